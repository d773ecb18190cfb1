"""Compilations, as torch itself tells them: each in the inference that waited for it, and nothing changed by it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.utils
import transformers
from opentelemetry.context import Context

from inferspan.core import current
from inferspan.core.plan import Probes
from inferspan.core.record import Inference
from inferspan.integrations.patching import Patches
from inferspan.integrations.torch import compilation
from inferspan.probes.compiles import Compile, Compiles, CompilesProbe
from support import records, tiny

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
BACKENDS = ["eager", "aot_eager"]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def hooked(nothing_compiled: None) -> Iterator[Patches]:
    patches = Patches()
    compilation.install(torch._dynamo.utils, patches)
    yield patches
    patches.undo()


def inference() -> Inference:
    probes = Probes((records.row(CompilesProbe()),))
    return records.inference("forward", of=records.plan("forward", probes=probes, children_max=8))


def compiles_of(record: Inference) -> Compiles | None:
    found: Compiles | None = record.mark_of("compiles")
    return found


def kept(record: Inference) -> tuple[Compile, ...]:
    compiles = compiles_of(record)
    return () if compiles is None else tuple(compiles.kept)


def compiled_in(call: Callable[[], Any], record: Inference | None = None) -> tuple[Compile, ...]:
    """What was compiled in an inference that does ``call``, without gradients."""
    record = record or inference()
    record.context = Context()
    active = current.enter(record)
    try:
        with torch.no_grad():
            call()
    finally:
        current.leave(active)
    return kept(record)


def the(compiled: tuple[Compile, ...]) -> Compile:
    assert len(compiled) == 1, compiled
    return compiled[0]


def double(x: Any) -> Any:
    return x * 2


def triple(x: Any) -> Any:
    return x * 3


# -- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_call_compiles_and_the_second_does_not(backend: str) -> None:
    model = torch.compile(double, backend=backend)
    compiled = the(compiled_in(lambda: model(torch.ones(2))))
    assert (compiled.function, compiled.reason, compiled.error) == ("double", None, None)
    assert compiled.location is not None
    assert compiled.location.startswith("test_compilation.py:")
    assert 0 < compiled.seconds < 60
    assert compiled_in(lambda: model(torch.ones(2))) == ()


def test_model_compiles_within_its_inference() -> None:
    model = torch.compile(tiny.classifier(return_dict=False), backend="eager")
    ids = torch.tensor([[10, 20, 30]])
    assert compiled_in(lambda: model(ids))
    assert compiled_in(lambda: model(ids)) == ()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (torch.ones(2, dtype=torch.float64), "tensor x dtype mismatch. expected Float, actual Double"),
        (torch.ones(3), "tensor x size mismatch at index 0. expected 2, actual 3"),
        (torch.ones(2, 1), "tensor x rank mismatch. expected 1, actual 2"),
    ],
    ids=["dtype", "shape", "rank"],
)
def test_recompilation_tells_its_reason(backend: str, changed: Any, reason: str) -> None:
    model = torch.compile(double, backend=backend, dynamic=False)
    compiled_in(lambda: model(torch.ones(2)))
    compiled = the(compiled_in(lambda: model(changed)))
    assert (compiled.function, compiled.reason) == ("double", reason)
    assert compiled_in(lambda: model(changed)) == ()


def test_reason_is_that_of_the_newest_code_whatever_else_was_recompiled() -> None:
    models = [torch.compile(function, backend="eager", dynamic=False) for function in (double, triple)]
    for size in (2, 3):
        for model in models:
            compiled_in(lambda: model(torch.ones(size)))  # noqa: B023 - called at once
    for model, name in zip(models, ("double", "triple"), strict=True):
        compiled = the(compiled_in(lambda: model(torch.ones(4))))  # noqa: B023
        assert (compiled.function, compiled.reason) == (name, "tensor x size mismatch at index 0. expected 3, actual 4")


def test_dynamic_shapes_are_not_compiled_again() -> None:
    model = torch.compile(double, backend="eager", dynamic=True)
    assert the(compiled_in(lambda: model(torch.ones(3)))).reason is None
    assert compiled_in(lambda: model(torch.ones(5))) == ()


def test_prompt_in_a_guard_is_not_told() -> None:
    def chat(x: Any, prompt: str) -> Any:
        return x * 2 if prompt == "SECRET" else x * 3

    model = torch.compile(chat, backend="eager")
    compiled_in(lambda: model(torch.ones(2), "SECRET"))
    compiled = the(compiled_in(lambda: model(torch.ones(2), "other SECRET")))
    assert compiled.reason == "prompt == '…'"


def test_graph_break_tells_each_frame() -> None:
    def broken(x: Any) -> Any:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    compiled = compiled_in(lambda: torch.compile(broken, backend="eager")(torch.ones(2)))
    assert len(compiled) == 2
    assert compiled[0].function == "broken"
    assert compiled[1].function is not None
    assert compiled[1].function.startswith("torch_dynamo_resume_in_broken")
    assert compiled[0].start_ns < compiled[1].start_ns
    assert [each.reason for each in compiled] == [None, None]


def test_limit_of_recompilations() -> None:
    model = torch.compile(double, backend="eager", dynamic=False)
    limit = torch._dynamo.config.cache_size_limit
    seen = [compiled_in(lambda: model(torch.ones(2 + n))) for n in range(limit + 3)]  # noqa: B023 - called at once
    assert [the(each).reason is None for each in seen[:limit]] == [True] + [False] * (limit - 1)
    if VERSION >= (2, 7):  # 2.6 tells no reason, older ones nothing of it
        refused = the(seen[limit])
        assert refused.function is None
        assert refused.error is not None
        assert refused.reason == f"tensor x size mismatch at index 0. expected {limit + 1}, actual {limit + 2}"
    elif VERSION < (2, 6):
        assert seen[limit] == ()
    assert seen[limit + 1 :] == [(), ()]


def test_backend_that_fails_is_told_and_the_error_is_the_programs() -> None:
    class OwnError(Exception):
        pass

    error = OwnError("SECRET")

    def failing(graph: Any, inputs: Any) -> Any:
        raise error

    record = inference()
    model = torch.compile(double, backend=failing)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        compiled_in(lambda: model(torch.ones(2)), record)
    assert raised.value.inner_exception is error
    compiled = the(kept(record))
    assert (compiled.function, compiled.error, compiled.reason) == ("double", "BackendCompilerFailed", None)
    assert "SECRET" not in repr(compiled)


def test_code_from_the_cache_of_inductor_is_no_recompilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = torch.compile(torch.nn.Linear(4, 4).eval(), backend="inductor")  # a library's kernel: needs no C++ compiler
    first = the(compiled_in(lambda: model(torch.ones(2, 4))))
    torch.compiler.reset()
    second = the(compiled_in(lambda: model(torch.ones(2, 4))))
    assert first.reason is second.reason is None


def test_generate_with_a_static_cache_compiles_once() -> None:
    config = transformers.CompileConfig(backend="eager", mode=None, fullgraph=False)
    config._compile_all_devices = True
    model = tiny.causal_lm(num_hidden_layers=1)

    def generate() -> None:
        model.generate(
            torch.tensor([[10, 20, 30]]),
            max_new_tokens=4,
            cache_implementation="static",
            compile_config=config,
            disable_compile=False,
        )

    assert any(each.reason is None for each in compiled_in(generate))
    compiled_in(generate)  # some versions compile the second call's cache anew
    assert compiled_in(generate) == ()


# -- in which inference ----------------------------------------------------------------------------------------------


def test_compilations_at_the_same_time_belong_to_their_own_inferences() -> None:
    opened, compiled = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)
    told: dict[str, tuple[Compile, ...]] = {}

    def run(function: Callable[[Any], Any]) -> None:
        model = torch.compile(function, backend="eager", dynamic=False)

        def call() -> None:
            opened.wait()
            for size in (2, 3):
                model(torch.ones(size))
            compiled.wait()  # neither is over before both have compiled

        told[function.__name__] = compiled_in(call)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in (double, triple)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    functions = {name: [each.function for each in compiles] for name, compiles in told.items()}
    assert functions == {"double": ["double", "double"], "triple": ["triple", "triple"]}


def test_compilation_outside_of_any_inference_belongs_to_none() -> None:
    idle = inference()
    model = torch.compile(double, backend="eager")
    model(torch.ones(2))
    current.run_suppressed(model, (torch.ones(2, dtype=torch.float64),), {})
    assert compiles_of(idle) is None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("reset", [torch._dynamo.reset, torch.compiler.reset], ids=["dynamo", "compiler"])
def test_compilation_after_a_reset_is_told(reset: Callable[[], None]) -> None:
    model = torch.compile(double, backend="eager")
    assert len(compiled_in(lambda: model(torch.ones(2)))) == 1
    reset()
    assert the(compiled_in(lambda: model(torch.ones(2)))).reason is None


def test_what_one_inference_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferspan.probes.compiles._KEPT_MAX", 2)
    model = torch.compile(double, backend="eager", dynamic=False)
    record = inference()
    for size in range(2, 6):
        compiled_in(lambda: model(torch.ones(size)), record)  # noqa: B023 - called at once
    compiles = compiles_of(record)
    assert compiles is not None
    assert [each.reason is None for each in compiles.kept] == [True, False]
    assert compiles.count == 4
    assert compiles.seconds > sum(each.seconds for each in compiles.kept)


# -- nothing else changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_and_recompilations_are_the_same_with_and_without(backend: str, hooked: Patches) -> None:
    def work() -> Any:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = torch.compile(tiny.classifier(return_dict=False), backend=backend)
        for length in (3, 4, 5):
            model(torch.ones((1, length), dtype=torch.long))
        return {
            name: dict(torch._dynamo.utils.counters[name]) for name in ("stats", "frames", "graph_break", "recompiles")
        }

    record = inference()
    told: list[Any] = []
    compiled_in(lambda: told.append(work()), record)
    assert len(kept(record)) >= 2
    hooked.undo()
    plain: list[Any] = []
    compiled_in(lambda: plain.append(work()))
    assert told == plain


def test_original_is_called_and_put_back(hooked: Patches, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked.undo()  # else monkeypatch would put its replacement back
    told: list[Any] = []
    module = torch._dynamo.utils
    monkeypatch.setattr(module, "log_compilation_event", told.append)
    own = module.log_compilation_event
    patches = Patches()
    compilation.install(torch._dynamo.utils, patches)
    assert len(compiled_in(lambda: torch.compile(double, backend="eager")(torch.ones(2)))) == 1
    assert [metrics.co_name for metrics in told] == ["double"]
    patches.undo()
    assert module.log_compilation_event is own


def test_compiler_is_not_imported_for_it() -> None:
    script = (
        "import sys, inferspan.integrations.torch.compilation; "
        "assert not any(name.startswith('torch') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
