"""What is read of torch's compilation metrics, and what is kept of the reason for a recompilation."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from inferspan import semconv
from inferspan.core.probe import Report
from inferspan.probes import compiles
from inferspan.probes.recompile_reason import redact
from support import records


def forward() -> None:
    """Its code stands for a compiled frame."""


CODE = forward.__code__


def metrics(**fields: Any) -> SimpleNamespace:
    """As torch 2.4 gives them."""
    plain = {
        "co_name": CODE.co_name,
        "co_filename": CODE.co_filename,
        "co_firstlineno": CODE.co_firstlineno,
        "cache_size": 0,
        "accumulated_cache_size": 0,
        "start_time": time.time() - 2.0,
        "fail_type": None,
        "fail_reason": None,
    }
    return SimpleNamespace(**{**plain, **fields})


def runtime(**fields: Any) -> SimpleNamespace:
    """Of a first run, as torch 2.7 and newer give them."""
    nothing = {"co_name": None, "co_filename": None, "co_firstlineno": None, "is_runtime": True}
    return metrics(**nothing, cache_size=None, start_time_us=1, **fields)


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_first_compilation_has_function_place_and_time() -> None:
    before = time.perf_counter_ns()
    compiled = compiles.read(metrics(), {})
    assert (compiled.function, compiled.location) == ("forward", f"test_compiles.py:{CODE.co_firstlineno}")
    assert compiled.seconds == pytest.approx(2.0, abs=0.5)
    assert compiled.start_ns == pytest.approx(before - 2e9, abs=5e8)
    assert (compiled.reason, compiled.error) == (None, None)


def test_time_is_never_negative_when_the_clock_was_set_back() -> None:
    assert compiles.read(metrics(start_time=time.time() + 3600), {}).seconds == 0.0


def test_start_is_read_from_microseconds_where_torch_gives_them() -> None:
    given = metrics(start_time=None, start_time_us=int((time.time() - 3.0) * 1e6))
    assert compiles.read(given, {}).seconds == pytest.approx(3.0, abs=0.5)


def test_reason_is_the_one_in_the_metrics() -> None:
    given = metrics(cache_size=1, recompile_reason="0/0: tensor 'x' size mismatch at index 0. expected 2, actual 3")
    assert compiles.read(given, {}).reason == "tensor x size mismatch at index 0. expected 2, actual 3"


def test_reason_before_2_7_is_the_newest_entrys_of_the_same_frame() -> None:
    # the second recompilation was checked against two cache entries, the newest first
    failures = {CODE: ["L['n'] == 1", "L['n'] == 2", "L['n'] == 1"], metrics.__code__: ["L['other'] == 1"]}
    given = metrics(cache_size=2, accumulated_cache_size=2)
    assert compiles.read(given, failures).reason == "n == 2"


@pytest.mark.parametrize("failures", [{}, {CODE: []}], ids=["no-frame", "no-reason"])
def test_recompilation_without_its_reason_is_still_one(failures: dict[Any, list[str]]) -> None:
    assert compiles.read(metrics(cache_size=1, accumulated_cache_size=1), failures).reason == "guard failed"


@pytest.mark.parametrize(
    ("fail_type", "error"),
    [
        ("<class 'torch._dynamo.exc.BackendCompilerFailed'>", "BackendCompilerFailed"),
        ("BackendCompilerFailed", "BackendCompilerFailed"),
    ],
)
def test_error_is_the_bare_type_and_no_message(fail_type: str, error: str) -> None:
    compiled = compiles.read(metrics(fail_type=fail_type, fail_reason="SECRET"), {})
    assert compiled.error == error
    assert "SECRET" not in repr(compiled)


def test_first_run_has_the_time_of_what_it_did_once_and_no_function() -> None:
    given = runtime(duration_us=700_000, runtime_triton_autotune_time_us=500_000, runtime_cudagraphify_time_us=200_000)
    compiled = compiles.read(given, {})
    assert (compiled.function, compiled.location, compiled.reason) == (None, None, None)
    assert compiled.seconds == 0.7


def test_sum_counts_what_got_code_and_the_time_of_all() -> None:
    total = compiles.Compiles()
    for compiled in (
        compiles.Compile("f", "m.py:1", 0, 1.0),
        compiles.Compile("f", "m.py:1", 0, 2.0, reason="x == 2"),
        compiles.Compile("f", "m.py:1", 0, 4.0, error="BackendCompilerFailed"),
        compiles.Compile(None, None, 0, 8.0, reason="x == 2", error="Unsupported"),
        compiles.Compile(None, None, 0, 16.0),
    ):
        total.add(compiled)
    assert (total.count, total.recompiles, total.seconds, len(total.kept)) == (2, 1, 31.0, 5)


# -- the probe -------------------------------------------------------------------------------------------------------


def recorded(*found: compiles.Compile, has_probe: bool = True) -> Report:
    """What is reported of an inference during which these were compiled."""
    probe = compiles.CompilesProbe()
    record = records.inference(of=records.plan(probes=records.table(*([probe] if has_probe else []))))
    for compiled in found:
        compiles.CompilesProbe.note(record, compiled)
    report = Report()
    probe.report(record, record.mark_of("compiles"), report)
    return report


def test_inference_during_which_something_was_compiled_has_its_time_and_number() -> None:
    report = recorded(
        compiles.Compile("f", "m.py:1", 5, 1.0),
        compiles.Compile("f", "m.py:1", 7, 2.0, reason="x == 2"),
    )
    assert report.attributes == {semconv.COMPILE_COUNT: 2, semconv.COMPILE_TIME: 3.0}
    assert [(point.metric, point.value) for point in report.points] == [
        (semconv.COMPILE_DURATION, 3.0),
        (semconv.RECOMPILES, 1),
    ]
    assert [(event.name, event.at_ns, event.attributes) for event in report.events] == [
        (
            semconv.RECOMPILE_EVENT,
            7,
            {
                semconv.COMPILE_FUNCTION: "f",
                semconv.COMPILE_LOCATION: "m.py:1",
                semconv.COMPILE_REASON: "x == 2",
                semconv.COMPILE_TIME: 2.0,
                semconv.ERROR_TYPE: None,
            },
        )
    ]


def test_events_of_recompilations_are_bounded_and_the_sums_are_not() -> None:
    report = recorded(*(compiles.Compile("f", "m.py:1", place, 1.0, reason="x == 2") for place in range(100)))
    assert [event.at_ns for event in report.events] == list(range(8))
    assert report.attributes == {semconv.COMPILE_COUNT: 100, semconv.COMPILE_TIME: 100.0}


@pytest.mark.parametrize("has_probe", [True, False], ids=["nothing compiled", "not measured"])
def test_inference_without_compilations_says_nothing_of_them(has_probe: bool) -> None:
    found = [] if has_probe else [compiles.Compile("f", "m.py:1", 5, 1.0)]
    report = recorded(*found, has_probe=has_probe)
    assert (report.attributes, report.points, report.events) == ({}, [], [])


# -- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (
            "tensor 'L['x']' stride mismatch at index 0. expected 4, actual 1",
            "tensor x stride mismatch at index 0.",
        ),
        (
            "0/1: tensor 'x' dtype mismatch. expected Float, actual Double",
            "tensor x dtype mismatch. expected Float,",
        ),
        (
            "tensor 'x' Tensor device index mismatch. Expected",
            "tensor x Tensor device index mismatch.",
        ),
        ("0/0: L['n'] == 3                      ", "n == 3"),
        (
            "0/0: len(l) == 1                   # for y in l: x+y  # x.py:5 in g\nUser stack trace:\n",
            "len(l) == 1",
        ),
        ("2 <= L['x'].size()[0] <= 8", "2 <= x.size()[0] <= 8"),
        ("not kw                           # return y+len(kw)  # x.py:22 in forward", "not kw"),
        ("___check_obj_id(L['self']._modules['0'].act, 7)", "___check_obj_id(self._modules['0'].act, 7)"),
        ("0/5: GLOBAL_STATE changed: grad_mode ", "GLOBAL_STATE changed: grad_mode"),
        ("KeyError on G['table']", "KeyError on table"),
        ("___check_obj_id(L['kwargs']['past'].keys, 139812327996496)", "___check_obj_id(kwargs['past'].keys, ...)"),
        (
            "0/1: ___check_type_id(self, 93889985266400), type=<class 'models.Llama'>  # return x  # mp/x.py:3 in f",
            "___check_type_id(self, ...) of models.Llama",
        ),
        ("expected type of 'L['x']' to be a tensor type, ' but found <class 'str'>", "type of x changed to str"),
        ("5/3: expected type of 'x' to be <class 'torch.Tensor'>, but found <class 'str'>", "type of x changed to str"),
        ("0/0: Duplicate tensors found: ['x', 'y']", "Duplicate tensors found"),
        ("0/0: BACKEND_MATCH failure: torch.compile detected different backend callables.", "BACKEND_MATCH failure"),
        ("Unable to find recompilation reasons", "Unable to find recompilation reasons"),
    ],
)
def test_reason_keeps_what_helps(reason: str, kept: str) -> None:
    assert redact(reason).startswith(kept)
    assert "x.py" not in redact(reason)


SECRETS = [
    "SECRET",
    "it's SECRET",
    'a "SECRET"',
    'it\'s "SECRET"',
    "# SECRET",
    "L['SECRET']",
    "\\' == SECRET",
    "x' size mismatch at index 0. SECRET",
    "a\nSECRET",
    "é; SECRET",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "guard",
    [
        lambda text: f"0/3: mode == {text!r}               # if mode=={text!r}: return y  # mp/x.py:21 in forward",
        lambda text: f"L['mode'] == {text!r}              ",
        lambda text: f"list(dict.keys(L['d']))[0] == {text!r}",
        lambda text: f"set(L['d']) == {{{text!r}, 'b'}}",
        lambda text: f"L['x'] is L['d'][{text!r}]",
        lambda text: f"L['b'] == {text.encode()!r}",
        lambda text: f"tensor 'L['d'][{text!r}]' size mismatch at index 0. expected 1, actual 2",
        lambda text: f"expected type of 'd[{text!r}]' to be <class 'torch.Tensor'>, but found <class 'NoneType'>",
        lambda text: f"mode == {text + ', type=<class SECRET> # '!r}",
        lambda text: f"mode == {', type=<class ' + chr(39) + text + chr(39) + '> # '!r}",
        lambda text: f"KeyError on L['d'][{text!r}]",
        lambda text: f"0/0: Duplicate tensors found: [{text!r}]",
        lambda text: f"a sentence of a later torch: {text}",
    ],
)
def test_reason_never_holds_a_string_of_the_users(guard: Callable[[str], str], secret: str) -> None:
    assert "SECRET" not in redact(guard(secret))


@pytest.mark.parametrize("reason", ["", "\n", "# only a comment", "x = 1", "(" * 5000, "0/0: ", "x" * 5000])
def test_reason_of_any_kind_is_short_and_not_empty(reason: str) -> None:
    assert 0 < len(redact(reason)) <= 512
