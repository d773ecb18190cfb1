"""``with inferspan.inference(...)``: the program's own inference, in every way that Python lets one write it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode

import inferspan
from inferspan.core import current, record, steps
from support.recorder import Recorder

PROCESS = {
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
}


class Net:
    def __init__(self, name: str) -> None:
        self.config = SimpleNamespace(_name_or_path=name, model_type="net")


def status(recorder: Recorder, name: str) -> tuple[StatusCode, str | None]:
    found = recorder.span(name).status
    return found.status_code, found.description


def outside() -> bool:
    """Whether nothing of ours is current here."""
    return current.here() is None and not trace.get_current_span().get_span_context().is_valid


# What a block gives


def test_block_is_one_root_with_its_phases(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        with block.phase("tokenize"):
            pass
        with block.phase("think"):
            pass
        with block.phase("tokenize"):
            pass

    assert recorder.trees() == [("answer", "tokenize", "think", "tokenize")]
    assert recorder.attributes("answer") == {
        "gen_ai.operation.name": "answer",
        **PROCESS,
    }
    assert outside()


def test_block_has_what_the_program_sets(recorder: Recorder) -> None:
    with inferspan.inference("answer", model="me/model", operation="chat") as block:
        block.set_tokens(input=3)
        block.set_tokens(output=4)
        block.set_batch_size(2)
        block.set_attribute("app.user", "x")
        with block.phase("think") as phase:
            phase.set_attribute("app.depth", 7)

    assert recorder.attributes("answer") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "me/model",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "inferspan.batch.size": 2,
        "app.user": "x",
        **PROCESS,
    }
    assert recorder.attributes("think") == {"app.depth": 7}
    assert recorder.counts("gen_ai.client.token.usage", "gen_ai.token.type") == {"input": 1, "output": 1}


@pytest.mark.parametrize(
    ("local_name", "shown"),
    [pytest.param("basename", "customer", id="basename"), pytest.param("class", "_OTHER", id="class")],
)
def test_block_with_the_path_of_a_model_shows_what_the_setting_allows(
    bare_recorder: Recorder, local_name: str, shown: str
) -> None:
    bare_recorder.instrument(local_model_name=local_name)
    with inferspan.inference("answer", model="/srv/secret/customer"):
        pass

    assert (bare_recorder.span("answer").attributes or {})["gen_ai.request.model"] == shown


def test_block_with_a_model_instance_has_its_facts_and_is_cold_once(recorder: Recorder) -> None:
    model = Net("me/model")
    with inferspan.inference("first", model=model):
        pass
    with inferspan.inference("second", model=model):
        pass

    assert recorder.attributes("first") == {
        "gen_ai.operation.name": "first",
        "gen_ai.request.model": "me/model",
        "inferspan.cold": True,
        "inferspan.model.class": "Net",
        "inferspan.model.type": "net",
        **PROCESS,
    }
    assert recorder.attributes("second") == {
        "gen_ai.operation.name": "second",
        "gen_ai.request.model": "me/model",
        "inferspan.cold": False,
        **PROCESS,
    }
    assert recorder.counts("inferspan.inference.cold_starts", "gen_ai.request.model") == {"me/model": 1}


def test_block_without_process_stats_has_none(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(process_stats=False)
    with inferspan.inference("answer"):
        pass

    assert bare_recorder.attributes("answer") == {"gen_ai.operation.name": "answer"}


def test_block_is_current_for_the_programs_own_spans(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("request"), inferspan.inference("answer") as block:
        with recorder.tracer.start_as_current_span("look-up"):
            pass
        with block.phase("think"), recorder.tracer.start_as_current_span("inside a phase"):
            pass

    assert recorder.trees() == [("request", ("answer", "look-up", "think", "inside a phase"))]


def test_block_inside_another_is_an_inference_below_it(recorder: Recorder) -> None:
    with inferspan.inference("outer") as outer, outer.phase("whole"):
        with inferspan.inference("inner") as block, block.phase("think"):
            block.set_attribute("own", 1)
        with inferspan.inference("other") as block:
            block.set_tokens(input=1)

    assert recorder.trees() == [("outer", "whole", ("inner", "think"), "other")]
    assert recorder.attributes("inner") == {"gen_ai.operation.name": "inner", "own": 1, **PROCESS}
    assert recorder.attributes("other") == {
        "gen_ai.operation.name": "other",
        "gen_ai.usage.input_tokens": 1,
        **PROCESS,
    }
    assert recorder.attributes("outer") == {"gen_ai.operation.name": "outer", **PROCESS}
    assert recorder.counts("gen_ai.client.operation.duration", "gen_ai.operation.name") == {
        "outer": 1,
        "inner": 1,
        "other": 1,
    }


def test_phase_belongs_to_its_block_whatever_runs_here(recorder: Recorder) -> None:
    with inferspan.inference("outer") as outer:
        with inferspan.inference("inner"), outer.phase("think"):
            pass
        with outer.phase("rest"):
            pass

    assert recorder.trees() == [("outer", "inner", "think", "rest")]


def test_phase_inside_another_is_one_more_of_the_block(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block, block.phase("think"), block.phase("think harder") as inner:
        inner.set_attribute("own", 1)

    assert recorder.trees() == [("answer", "think", "think harder")]
    (found,) = [span for span in recorder.spans() if span.name == "think"]
    assert dict(found.attributes or {}) == {}
    assert recorder.attributes("think harder") == {"own": 1}


def test_phase_of_a_block_that_was_not_entered_is_one_of_what_runs_here(recorder: Recorder) -> None:
    block = inferspan.inference("never entered")
    with inferspan.inference("answer"), block.phase("think"):
        pass
    with block.phase("nowhere"):
        pass

    assert recorder.trees() == [("answer", "think")]


def test_phases_of_one_name_in_a_row_are_one_span(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        for _ in range(3):
            with block.phase("tokenize"):
                pass

    assert recorder.trees() == [("answer", "tokenize")]
    assert recorder.attributes("tokenize") == {"inferspan.phase.calls": 3, "inferspan.phase.time": ...}


def test_phases_beyond_the_limit_are_counted(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=2)
    with inferspan.inference("answer") as block:
        for name in ("a", "b", "c", "d"):
            with block.phase(name):
                pass

    assert bare_recorder.trees() == [("answer", "a", "b")]
    assert bare_recorder.attributes("answer")["inferspan.children.dropped"] == 2
    assert bare_recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert bare_recorder.counts("inferspan.overhead.dropped", "inferspan.drop.reason") == {"children_max": 2}


def test_block_used_twice_one_after_the_other_is_two(recorder: Recorder) -> None:
    block = inferspan.inference("answer")
    for _ in range(2):
        with block:
            pass

    assert recorder.trees() == ["answer", "answer"]


def test_block_after_its_end_takes_nothing_more(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        pass
    block.set_tokens(input=1)
    block.set_batch_size(1)
    block.set_attribute("late", 1)
    with block.phase("late"):
        pass

    assert recorder.trees() == ["answer"]
    assert "late" not in recorder.attributes("answer")


# Errors


def test_block_with_an_error_has_it_and_passes_it_on(recorder: Recorder) -> None:
    error = ValueError("the prompt")

    def fail() -> None:
        with inferspan.inference("answer") as block:
            with block.phase("fine"):
                pass
            with block.phase("think"):
                raise error

    with pytest.raises(ValueError, match="the prompt") as raised:
        fail()

    assert raised.value is error
    assert recorder.trees() == [("answer", "fine", "think")]
    assert recorder.attributes("answer")["error.type"] == "ValueError"
    assert recorder.attributes("think") == {"error.type": "ValueError"}
    assert (status(recorder, "answer"), status(recorder, "think")) == ((StatusCode.ERROR, None),) * 2
    assert status(recorder, "fine") == (StatusCode.UNSET, None)
    (event,) = recorder.span("answer").events
    assert (event.name, sorted(event.attributes or {})) == ("exception", ["exception.stacktrace", "exception.type"])
    assert "the prompt" not in str(event.attributes)
    assert recorder.counts("inferspan.inference.errors", "error.type") == {"ValueError": 1}
    assert outside()


def test_block_with_an_error_and_content_capture_has_its_message(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY", content_length=3)
    with pytest.raises(ValueError, match="prompt"), inferspan.inference("answer"):
        raise ValueError("prompt")

    (event,) = bare_recorder.span("answer").events
    assert (event.attributes or {})["exception.message"] == "pro"
    assert status(bare_recorder, "answer") == (StatusCode.ERROR, "pro")


@pytest.mark.parametrize("mode", ["SPAN_ONLY", "NO_CONTENT"])
def test_block_with_an_error_that_cannot_be_printed_is_recorded_too(bare_recorder: Recorder, mode: str) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    bare_recorder.instrument(capture_content=mode)
    with pytest.raises(Unprintable), inferspan.inference("answer"):
        raise Unprintable

    assert bare_recorder.attributes("answer")["error.type"].endswith("Unprintable")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="interrupt"),
        pytest.param(SystemExit(1), "SystemExit", id="exit"),
    ],
)
def test_block_left_by_more_than_an_exception_is_an_error(recorder: Recorder, error: BaseException, name: str) -> None:
    with pytest.raises(type(error)), inferspan.inference("answer"):
        raise error

    assert recorder.attributes("answer")["error.type"] == name
    assert outside()


class RequestCancelled(Exception):
    """Of some framework of the user's."""


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(asyncio.CancelledError(), id="asyncio"),
        pytest.param(RequestCancelled(), id="by its name"),
        pytest.param(GeneratorExit(), id="generator closed"),
    ],
)
def test_block_cancelled_is_no_error(recorder: Recorder, error: BaseException) -> None:
    with pytest.raises(type(error)), inferspan.inference("answer") as block, block.phase("think"):
        raise error

    assert recorder.attributes("answer") == {
        "gen_ai.operation.name": "answer",
        "inferspan.cancelled": True,
        **PROCESS,
    }
    assert recorder.attributes("think") == {}
    assert status(recorder, "answer") == (StatusCode.UNSET, None)
    assert recorder.counts("inferspan.inference.errors") == {}
    assert outside()


# Tokens of a decoding loop of the program's own


class Clock:
    """Goes on by itself a little, so that nothing takes no time, and else when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (record, steps, current):
        monkeypatch.setattr(module, "perf_counter_ns", clock)
    return clock


def timed(recorder: Recorder, name: str) -> dict[str, float]:
    """What the span says of times, rounded to milliseconds."""
    found = recorder.span(name).attributes or {}
    names = ("inferspan.time_to_first_token", "inferspan.time_per_output_token", "gen_ai.response.time_to_first_chunk")
    return {each.rpartition(".")[2]: round(found[each], 3) for each in names if each in found}  # type: ignore[arg-type, call-overload]


def intervals(recorder: Recorder) -> list[tuple[int, float]]:
    return [(point.count, round(point.sum, 3)) for point in recorder.points("inferspan.inter_token.duration")]


def decode(block: inferspan.core.block.InferenceBlock, clock: Clock, *counts: int) -> None:
    for count in counts:
        clock.wait(0.1)
        block.token(count)


def test_tokens_that_are_marked_in_a_phase_are_its_prefill_and_decode(recorder: Recorder, clock: Clock) -> None:
    with inferspan.inference("answer", model="m") as block:
        clock.wait(1)
        with block.phase("forward"):
            clock.wait(1)
            decode(block, clock, 1, 1, 1)

    assert recorder.trees() == [("answer", ("forward", "prefill", "decode"))]
    assert recorder.attributes("decode") == {"inferspan.decode.steps": 2}
    assert timed(recorder, "answer") == {"time_to_first_token": 2.1, "time_per_output_token": 0.1}
    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == 3
    assert intervals(recorder) == [(2, 0.2)]
    prefill, decoding = recorder.span("prefill"), recorder.span("decode")
    assert prefill.end_time == decoding.start_time
    assert round((prefill.end_time - prefill.start_time) * 1e-9, 3) == 1.1  # type: ignore[operator]
    for metric, expected in (
        ("gen_ai.server.time_to_first_token", 2.1),
        ("gen_ai.server.time_per_output_token", 0.1),
        ("gen_ai.client.token.usage", 3),
    ):
        (point,) = recorder.points(metric)
        assert (point.count, round(point.sum, 3)) == (1, expected)
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"forward": 1, "prefill": 1, "decode": 1}


def test_tokens_that_are_marked_outside_of_phases_are_of_the_block(recorder: Recorder, clock: Clock) -> None:
    with inferspan.inference("answer") as block:
        with block.phase("prefill"):
            clock.wait(1)
        decode(block, clock, 1)
        with block.phase("decode"):
            decode(block, clock, 1, 1)

    assert recorder.trees() == [("answer", "prefill", "decode")]
    assert timed(recorder, "answer") == {"time_to_first_token": 1.1, "time_per_output_token": 0.1}
    assert intervals(recorder) == [(2, 0.2)]


def test_tokens_that_are_marked_in_a_phase_each_are_one_series(recorder: Recorder, clock: Clock) -> None:
    with inferspan.inference("answer") as block:
        for _ in range(4):
            with block.phase("forward"):
                decode(block, clock, 1)

    assert recorder.trees() == [("answer", ("forward", "prefill"), "forward")]
    assert timed(recorder, "answer") == {"time_to_first_token": 0.1, "time_per_output_token": 0.1}
    assert (intervals(recorder), recorder.attributes("answer")["gen_ai.usage.output_tokens"]) == ([(3, 0.3)], 4)


def test_tokens_that_are_marked_in_phases_that_say_it_already_have_no_second_prefill(
    recorder: Recorder, clock: Clock
) -> None:
    with inferspan.inference("answer") as block:
        for name in ("prefill", "decode"):
            with block.phase(name):
                decode(block, clock, 1, 1)

    assert recorder.trees() == [("answer", "prefill", "decode")]


@pytest.mark.parametrize(
    ("rows", "counts", "per_token"),
    [
        pytest.param(None, (1, 3, 1), 0.05, id="several tokens of one sequence: 0.2 s for the four after the first"),
        pytest.param(4, (4, 4, 2), 0.1, id="a batch: a token of each row takes a step"),
    ],
)
def test_time_per_token_is_that_of_one_sequence(
    recorder: Recorder, clock: Clock, rows: int | None, counts: tuple[int, ...], per_token: float
) -> None:
    with inferspan.inference("answer") as block:
        if rows is not None:
            block.set_batch_size(rows)
        decode(block, clock, *counts)

    assert timed(recorder, "answer")["time_per_output_token"] == per_token
    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == sum(counts)


def test_one_token_has_a_time_and_no_interval(recorder: Recorder, clock: Clock) -> None:
    with inferspan.inference("answer") as block, block.phase("forward"):
        decode(block, clock, 1)

    assert recorder.trees() == [("answer", ("forward", "prefill"))]
    assert timed(recorder, "answer") == {"time_to_first_token": 0.1}
    assert recorder.points("gen_ai.server.time_per_output_token") == []


def test_tokens_are_counted_by_the_marks_unless_the_program_says_otherwise(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        block.set_tokens(output=7)
        for _ in range(3):
            block.token()

    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == 7


def test_streamed_block_has_the_time_to_its_first_chunk(recorder: Recorder, clock: Clock) -> None:
    with inferspan.inference("answer", stream=True) as block:
        decode(block, clock, 1)

    assert recorder.attributes("answer")["gen_ai.request.stream"] is True
    assert timed(recorder, "answer") == {"time_to_first_token": 0.1, "time_to_first_chunk": 0.1}


def test_tokens_may_be_marked_in_any_thread(recorder: Recorder) -> None:
    def work() -> None:
        for _ in range(500):
            block.token()

    with inferspan.inference("answer") as block, block.phase("forward"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert recorder.trees() == [("answer", ("forward", "prefill", "decode"))]
    assert recorder.attributes("decode") == {"inferspan.decode.steps": 1999}
    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == 2000


def test_tokens_of_blocks_that_take_turns_are_each_its_own(recorder: Recorder) -> None:
    def stream(name: str) -> Iterator[int]:
        with inferspan.inference(name) as block, block.phase("forward"):
            for number in range(3):
                block.token()
                yield number

    first, second = stream("first"), stream("second")
    next(first)
    assert list(zip(second, first, strict=False)) == [(0, 1), (1, 2)]
    assert list(first) == []
    second.close()

    counts = [recorder.attributes(name)["gen_ai.usage.output_tokens"] for name in ("first", "second")]
    assert counts == [3, 3]
    assert "inferspan.cancelled" in recorder.attributes("second")


def test_block_that_fails_while_it_decodes_has_its_tokens(recorder: Recorder) -> None:
    def fail() -> None:
        with inferspan.inference("answer") as block, block.phase("forward"):
            block.token()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()

    assert recorder.trees() == [("answer", ("forward", "prefill", "decode"))]
    assert recorder.attributes("decode") == {"error.type": "ValueError", "inferspan.decode.steps": 0}
    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == 1


def test_marks_before_and_after_a_block_are_nothing(recorder: Recorder) -> None:
    block = inferspan.inference("answer")
    block.token()
    for count in (1, 2):
        with block:
            block.token(count)
        block.token()

    found = [(span.attributes or {})["gen_ai.usage.output_tokens"] for span in recorder.spans()]
    assert found == [1, 2]


# What is no number


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda block: block.set_tokens(input="many"), "set_tokens(input=…) of an inference takes a whole number"),
        (lambda block: block.set_tokens(output=-1), "from 0 on, not -1"),
        (lambda block: block.set_tokens(output=2.5), "not 2.5"),
        (lambda block: block.set_tokens(input=float("nan")), "not nan"),
        (lambda block: block.set_tokens(input=[1, 2]), "not list"),
        (lambda block: block.set_tokens(input=OnDevice()), "not OnDevice"),
        (lambda block: block.set_batch_size("2"), "set_batch_size() of an inference takes"),
        (lambda block: block.set_batch_size(-2), "not -2"),
        (lambda block: block.token("a"), "token() of an inference takes"),
        (lambda block: block.token(-3), "not -3"),
    ],
)
def test_number_that_is_none_is_left_out_with_one_warning(
    recorder: Recorder, give: Callable[[Any], None], said: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with inferspan.inference("answer") as block:
                give(block)

    ((warning,)) = caught
    assert said in str(warning.message)
    assert warning.filename == __file__
    for span in recorder.spans():
        assert not [name for name in span.attributes or {} if "tokens" in name or "batch" in name]


class OnDevice:
    """As a tensor on a GPU: to read it is to wait for it."""

    device = SimpleNamespace(type="cuda")

    def __int__(self) -> int:
        raise AssertionError


class Number:
    """As a tensor on the CPU, or a number of numpy's."""

    device = SimpleNamespace(type="cpu")

    def __int__(self) -> int:
        return 3

    def __eq__(self, other: object) -> bool:
        return other == 3


@pytest.mark.parametrize("number", [3, 3.0, True + 2, Number()])
def test_number_of_any_kind_is_taken(recorder: Recorder, number: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with inferspan.inference("answer") as block:
            block.set_tokens(input=number)
            block.token(number)

    attributes = recorder.attributes("answer")
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (3, 3)


# Links and a parent


def places(span: trace.Span) -> dict[str, Any]:
    """The same place in each of its shapes."""
    return {
        "span": span,
        "span context": span.get_span_context(),
        "context": trace.set_span_in_context(span, Context()),
        "link": trace.Link(span.get_span_context()),
    }


PLACES = pytest.mark.parametrize("kind", ["span", "span context", "context", "link"])


@PLACES
@pytest.mark.parametrize("several", [list, tuple, iter, lambda each: each[0]], ids=["list", "tuple", "iterator", "one"])
def test_block_is_linked_to_what_it_is_for(recorder: Recorder, kind: str, several: Callable[[Any], Any]) -> None:
    with recorder.tracer.start_as_current_span("request") as request:
        place = places(request)[kind]
    with inferspan.inference("batch", links=several([place])):
        pass

    span = recorder.span("batch")
    assert [link.context for link in span.links] == [request.get_span_context()]
    assert span.parent is None


def test_link_keeps_its_attributes(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("request") as request:
        pass
    with inferspan.inference("batch", links=[trace.Link(request.get_span_context(), {"a": 1}), request]):
        pass

    assert [dict(link.attributes or {}) for link in recorder.span("batch").links] == [{"a": 1}, {}]


@pytest.mark.parametrize("nothing", [None, Context(), trace.INVALID_SPAN, trace.INVALID_SPAN_CONTEXT])
def test_link_to_no_trace_is_none(recorder: Recorder, nothing: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with inferspan.inference("batch", links=[nothing]), inferspan.inference("other", links=nothing):
            pass

    assert [list(span.links) for span in recorder.spans()] == [[], []]


@PLACES
def test_block_is_below_the_parent_that_it_is_given(recorder: Recorder, kind: str) -> None:
    with recorder.tracer.start_as_current_span("request") as request:
        place = places(request)[kind]
        with recorder.tracer.start_as_current_span("current"), inferspan.inference("outer") as outer:
            with inferspan.inference("answer", parent=place) as block, block.phase("think"):
                assert trace.get_current_span().get_span_context().trace_id == request.get_span_context().trace_id
            with outer.phase("rest"):
                pass

    assert recorder.trees() == [("request", ("current", ("outer", "rest")), ("answer", "think"))]
    assert outside()


def test_block_below_nothing_is_a_trace_of_its_own(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("request"), inferspan.inference("answer", parent=Context()):
        pass

    assert recorder.trees() == ["request", "answer"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"links": ["00-1"]}, "links= of an inference takes contexts or spans of OpenTelemetry, not str"),
        ({"links": 3}, "links= of an inference takes a list of contexts or spans of OpenTelemetry, not 3"),
        ({"parent": "00-1"}, "parent= of an inference takes contexts or spans of OpenTelemetry, not str"),
        ({"parent": {"traceparent": "00-1"}}, "not dict"),
        ({"parent": contextvars.copy_context()}, "not Context"),
    ],
)
def test_place_that_is_none_is_left_out_with_one_warning(recorder: Recorder, given: dict[str, Any], said: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with recorder.tracer.start_as_current_span("request"), inferspan.inference("answer", **given):
                pass

    ((warning,)) = caught
    assert said in str(warning.message)
    assert warning.filename == __file__
    assert recorder.trees() == [("request", "answer")] * 2


def test_links_that_are_no_list_of_places_keep_those_that_are(recorder: Recorder) -> None:
    def given() -> Iterator[Any]:
        yield request
        raise RuntimeError

    with recorder.tracer.start_as_current_span("request") as request:
        pass
    with pytest.warns(inferspan.InferspanWarning), inferspan.inference("answer", links=given()):
        pass

    assert len(recorder.span("answer").links) == 1


def test_nothing_is_looked_at_while_not_instrumented() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with inferspan.inference("answer", links=iter([1]), parent=OnDevice()) as block:  # type: ignore[arg-type]
            block.set_tokens(input="many")  # type: ignore[arg-type]
            block.token("a")  # type: ignore[arg-type]


# Not there


def use_everything() -> str:
    with inferspan.inference("answer", model="me/model") as block:
        with block.phase("think") as phase:
            phase.set_attribute("a", 1)
        block.set_tokens(input=1, output=2)
        block.set_batch_size(3)
        block.set_attribute("b", 2)
        block.token()
    return "done"


def test_block_while_not_instrumented_does_nothing(bare_recorder: Recorder) -> None:
    assert use_everything() == "done"
    assert bare_recorder.spans() == []
    assert outside()


def test_block_while_suppressed_does_nothing(recorder: Recorder) -> None:
    with suppress_instrumentation():
        assert use_everything() == "done"

    assert recorder.spans() == []


def test_block_begun_before_instrument_stays_nothing(bare_recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        bare_recorder.instrument()
        with block.phase("think"):
            pass

    assert bare_recorder.spans() == []


def test_block_open_at_uninstrument_goes_on_without_a_word(bare_recorder: Recorder) -> None:
    bare_recorder.instrument()
    with inferspan.inference("answer") as block:
        inferspan.uninstrument()
        with block.phase("think"):
            block.set_attribute("a", 1)

    assert outside()
    assert len(current.state.open) == 0


def test_block_while_not_sampled_gives_metrics_alone() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    recorder = Recorder(sampler=ALWAYS_OFF)
    recorder.instrument()
    use_everything()

    assert recorder.spans() == []
    assert recorder.counts("gen_ai.client.operation.duration", "gen_ai.request.model") == {"me/model": 1}
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"think": 1}


def test_block_under_a_sampler_that_raises_leaves_the_program_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opentelemetry.sdk.trace.sampling import Sampler

    from inferspan import faults

    class Broken(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no")

        def get_description(self) -> str:
            return "broken"

    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    recorder = Recorder(sampler=Broken())
    recorder.instrument()

    assert use_everything() == "done"
    assert outside()
    assert faults.counts() == {"scope.open": 1}


# Asynchronous


def test_async_block_is_one_root_with_its_phases(recorder: Recorder) -> None:
    async def main() -> None:
        async with inferspan.inference("answer") as block:
            async with block.phase("think") as phase:
                phase.set_attribute("a", 1)
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(main())

    assert recorder.trees() == [("answer", "think")]
    assert recorder.attributes("think") == {"a": 1}


def test_async_blocks_of_many_tasks_are_a_trace_each(recorder: Recorder) -> None:
    async def one(name: str) -> None:
        async with inferspan.inference(name) as block, block.phase(f"think {name}"):
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(one(f"task{number}") for number in range(5)))
        assert outside()

    asyncio.run(main())

    assert sorted(recorder.trees()) == [(f"task{number}", f"think task{number}") for number in range(5)]


def test_async_tasks_in_one_block_add_their_phases_to_it(recorder: Recorder) -> None:
    async def main() -> None:
        async with inferspan.inference("answer") as block:
            all_begun = asyncio.Event()
            waiting = []

            async def part(number: int) -> None:
                async with block.phase("fetch"):
                    waiting.append(number)
                    if len(waiting) == 3:
                        all_begun.set()
                    await all_begun.wait()

            await asyncio.gather(part(1), part(2), part(3))

    asyncio.run(main())

    # at the same time, so they are no sequence and no one span
    assert recorder.trees() == [("answer", "fetch", "fetch", "fetch")]
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"fetch": 1}


def test_async_block_whose_task_is_cancelled_is_cancelled(recorder: Recorder) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def work() -> None:
            async with inferspan.inference("answer") as block, block.phase("think"):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert recorder.trees() == [("answer", "think")]
    assert recorder.attributes("answer")["inferspan.cancelled"] is True
    assert status(recorder, "answer")[0] is StatusCode.UNSET


def test_threads_with_the_blocks_context_add_their_phases_to_it(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:

        def work(number: int) -> None:
            with block.phase(f"part{number}"):
                pass

        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ((root, *children),) = recorder.trees()
    assert (root, sorted(children)) == ("answer", ["part0", "part1", "part2", "part3"])


# In generators


def stream(count: int) -> Iterator[int]:
    with inferspan.inference("stream") as block:
        for number in range(count):
            with block.phase("step"):
                pass
            yield number


def in_another_context(function: Callable[..., Any], *args: Any) -> Any:
    """Like a web framework, which runs each step of a generator in a copy of the request's context."""
    return contextvars.copy_context().run(function, *args)


def test_generator_run_to_its_end_is_one_inference(recorder: Recorder) -> None:
    assert list(stream(2)) == [0, 1]
    assert recorder.trees() == [("stream", "step")]
    assert outside()


@pytest.mark.parametrize("copies", [False, True], ids=["bare threads", "threads with a copy of the context"])
def test_generator_driven_by_threads_in_turns_is_one_inference(recorder: Recorder, copies: bool) -> None:
    """As a web framework does: each piece is asked for in whatever thread is free."""

    def work() -> Iterator[int]:
        with inferspan.inference("stream") as block:
            with block.phase("whole"):
                block.token()
                yield 1  # the phase goes on in another thread
                with inferspan.inference("inner") as inner, inner.phase("part"):
                    yield 2
                block.token()
            with block.phase("rest"):
                yield 3

    def ask(pool: ThreadPoolExecutor, function: Callable[..., Any], *args: Any) -> Any:
        return pool.submit(*([contextvars.copy_context().run] if copies else []), function, *args).result()

    steps = work()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert [ask(pool, next, steps, None) for pool in (one, other, one, other)] == [1, 2, 3, None]
        assert [ask(pool, outside_of_ours) for pool in (one, other)] == [True, True]
        for pool in (one, other):
            ask(pool, list, stream(1))

    alone = ("stream", "step")
    assert recorder.trees() == [
        ("stream", ("whole", "prefill", "decode"), "rest"),
        ("inner", "part"),
        alone,
        alone,
    ]


def outside_of_ours() -> bool:
    return current.here() is None


def test_phases_of_pool_threads_are_the_blocks(recorder: Recorder) -> None:
    def work(block: Any) -> None:
        with block.phase("part"):
            pass

    with ThreadPoolExecutor(4) as pool, inferspan.inference("one") as one, inferspan.inference("two") as two:
        list(pool.map(work, [one, two] * 8))

    counts = {
        span.name: sum(
            (each.attributes or {}).get("inferspan.phase.calls", 1)  # type: ignore[misc]
            for each in recorder.spans()
            if each.parent is not None and each.parent.span_id == span.context.span_id and each.name == "part"
        )
        for span in recorder.spans()
        if span.name in ("one", "two")
    }
    assert counts == {"one": 8, "two": 8}


def test_generator_closed_half_way_is_cancelled(recorder: Recorder) -> None:
    steps = stream(5)
    assert next(steps) == 0
    steps.close()

    assert recorder.attributes("stream")["inferspan.cancelled"] is True
    assert outside()


def test_generator_whose_steps_run_in_other_contexts_goes_on(recorder: Recorder) -> None:
    steps = stream(3)

    assert [in_another_context(next, steps) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopIteration):
        in_another_context(next, steps)
    assert recorder.span("stream").end_time is not None
    assert outside()


def test_generator_closed_in_another_context_ends_its_inference(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    steps = stream(3)
    in_another_context(next, steps)
    steps.close()

    assert recorder.attributes("stream")["inferspan.cancelled"] is True
    assert outside()
    assert caplog.records == []


def test_generator_closed_within_a_phase_in_another_context_ends_both(recorder: Recorder) -> None:
    def work() -> Iterator[int]:
        with inferspan.inference("stream") as block, block.phase("step"):
            yield 1

    steps = work()
    in_another_context(next, steps)
    steps.close()

    assert recorder.trees() == [("stream", "step")]
    assert outside()


def test_async_generator_dropped_half_way_ends_its_inference(recorder: Recorder) -> None:
    async def work() -> AsyncIterator[int]:
        async with inferspan.inference("stream") as block, block.phase("step"):
            yield 1
            yield 2

    async def main() -> None:
        async for _ in work():
            break

    asyncio.run(main())

    assert recorder.trees() == [("stream", "step")]
    assert recorder.attributes("stream")["inferspan.cancelled"] is True


def test_blocks_left_in_the_wrong_order_end_and_leave_nothing_current(recorder: Recorder) -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(inferspan.inference("first"))
    second.enter_context(inferspan.inference("second"))
    first.close()
    second.close()

    one, two = recorder.span("first"), recorder.span("second")
    assert (one.parent, two.parent) == (None, one.context)
    assert outside()
    with inferspan.inference("third"):
        pass
    assert [span.name for span in recorder.spans()] == ["first", "second", "third"]
    assert recorder.span("third").parent is None
