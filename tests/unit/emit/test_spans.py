"""Records made up by hand, and the spans that come of them, with every time and attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult, StaticSampler
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context

from inferspan import semconv
from inferspan.core.batch import Batch
from inferspan.core.errors import Failure
from inferspan.core.messages import Content
from inferspan.core.model import ModelInfo
from inferspan.core.probe import ChildSpan, Event, Probe, Report, Values
from inferspan.core.record import Inference, Lazy, StandalonePhase
from inferspan.emit.fastpath import DirectWriter, writer_of
from inferspan.emit.spans import (
    emit_inference,
    emit_standalone,
    root_attributes,
    time_per_output_token_s,
    time_to_first_token_ns,
)
from inferspan.emit.writer import TracerWriter
from support import records
from support.messages import text_message
from support.records import MS, generation, phase

OFFSET_NS = 1_000_000


class Sdk:
    """A provider with its spans in memory, and the writer that it gets; or another one."""

    def __init__(self, sampler: Sampler = ALWAYS_ON, writer: Callable[[Tracer], TracerWriter] = writer_of) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.writer = writer(self.tracer)

    def emit(self, inference: Inference, report: Report | None = None, probes: Iterable[Probe] = ()) -> None:
        plan, start_ns = inference.plan, inference.start_ns + inference.unix_offset_ns
        inference.root = self.writer.start(plan.name, inference.parent, plan.asked, start_ns, inference.links)
        inference.context = set_span_in_context(inference.root, inference.parent)
        emit_inference(self.writer, inference, report or Report(), probes)

    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def attributes(self, name: str) -> dict[str, Any]:
        (span,) = [span for span in self.spans() if span.name == name]
        return dict(span.attributes or {})

    def timeline(self) -> dict[str, tuple[str | None, float, float]]:
        """Each span's parent, start and end in milliseconds."""
        names = {span.context.span_id: span.name for span in self.spans()}
        return {
            span.name: (
                None if span.parent is None else names[span.parent.span_id],
                (span.start_time - OFFSET_NS) / MS,
                (span.end_time - OFFSET_NS) / MS,
            )
            for span in self.spans()
        }


@pytest.fixture(params=[DirectWriter, TracerWriter])
def sdk(request: pytest.FixtureRequest) -> Sdk:
    return Sdk(writer=request.param)


def inference(
    operation: str = "chat", end_ms: int | None = 100, model: ModelInfo | None = None, **settings: Any
) -> Inference:
    """From 0 to ``end_ms``."""
    made = records.ended(records.inference(operation, model, name=operation, **settings), 0, end_ms)
    made.unix_offset_ns = OFFSET_NS
    return made


def test_inference_with_its_phases_has_all_their_times(sdk: Sdk) -> None:
    record = inference()
    phase(record, "tokenize", 1, 2)
    forward = phase(record, "forward", 3, 90)
    forward.generation = record.generation = generation(4, 10, 20, 80, end_ms=85)
    phase(record, "detokenize", 91, 99)
    sdk.emit(record)

    assert sdk.timeline() == {
        "tokenize": ("chat", 1, 2),
        "prefill": ("forward", 4, 10),
        "decode": ("forward", 10, 85),
        "forward": ("chat", 3, 90),
        "detokenize": ("chat", 91, 99),
        "chat": (None, 0, 100),
    }
    assert {span.kind for span in sdk.spans()} == {SpanKind.INTERNAL}
    assert sdk.attributes("decode") == {"inferspan.decode.steps": 2}
    assert sdk.attributes("prefill") == {}
    assert sdk.attributes("chat") == {
        "gen_ai.operation.name": "chat",
        "inferspan.time_to_first_token": 0.01,
        "inferspan.time_per_output_token": 0.035,
    }


def test_inference_full_of_facts_has_them_all(sdk: Sdk) -> None:
    model = ModelInfo("me/model", "huggingface")
    model.load_ns = 2_000 * MS
    record = inference(model=model)
    record.cold = True
    record.is_stream = True
    record.counts.items = 3
    record.generation = generation(0, 10, 30, end_ms=90)
    record.add_batch(None, Batch(rows=2, length=6, tokens=9, positions=12))
    record.add_batch(None, Batch(rows=4, length=3, tokens=9, exact=False, positions=12))
    record.counts.add_output(7, False)
    record.lazy = Lazy(0)
    record.lazy.busy_ns = 50 * MS
    record.is_abandoned = record.is_cancelled = True
    record.phases.dropped = 5
    record.set("app.own", "x")
    record.set("app.none", None)
    of_process = {semconv.CPU_TIME: 0.04, semconv.MEMORY_USAGE_BEFORE: 120, semconv.MEMORY_USAGE: 123}
    sdk.emit(record, Report(attributes={**of_process, semconv.GPU_TIME: None}))

    assert sdk.attributes("chat") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.model": "me/model",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.01,
        "gen_ai.usage.input_tokens": 18,
        "gen_ai.usage.output_tokens": 7,
        "inferspan.abandoned": True,
        "inferspan.batch.size": 4,
        "inferspan.busy_time": 0.05,
        "inferspan.cancelled": True,
        "inferspan.children.dropped": 5,
        "inferspan.cold": True,
        "inferspan.items": 3,
        "inferspan.load.time": 2.0,
        "inferspan.padding.ratio": 0.25,
        "inferspan.process.cpu_time": 0.04,
        "inferspan.process.memory_before": 120,
        "inferspan.process.memory_usage": 123,
        "inferspan.sequence.length": 6,
        "inferspan.time_per_output_token": 0.02,
        "inferspan.time_to_first_token": 0.01,
        "inferspan.usage.input_tokens.exact": False,
        "inferspan.usage.output_tokens.exact": False,
        "app.own": "x",
    }


def test_inference_of_which_nothing_is_known_has_nothing_else(sdk: Sdk) -> None:
    sdk.emit(inference())

    assert sdk.attributes("chat") == {"gen_ai.operation.name": "chat"}
    (span,) = sdk.spans()
    assert (span.status.status_code, list(span.events)) == (StatusCode.UNSET, [])


def test_load_has_no_cold_start(sdk: Sdk) -> None:
    sdk.emit(inference("load"))

    assert sdk.attributes("load") == {"gen_ai.operation.name": "load"}


def test_padding_of_none_is_absent(sdk: Sdk) -> None:
    record = inference()
    record.add_batch(None, Batch(rows=2, length=4, tokens=8, positions=8))
    sdk.emit(record)

    assert record.counts.padding == (0.0,)
    assert "inferspan.padding.ratio" not in sdk.attributes("chat")


def test_phase_that_stands_for_several_calls_says_so(sdk: Sdk) -> None:
    record = inference()
    several = phase(record, "tokenize", 0, 50, calls=3)
    several.busy_ns = 20 * MS
    sdk.emit(record)

    assert sdk.attributes("tokenize") == {"inferspan.phase.calls": 3, "inferspan.phase.time": 0.02}


def test_generation_of_one_token_has_no_decode(sdk: Sdk) -> None:
    record = inference()
    phase(record, "forward", 0, 20).generation = generation(0, 10, end_ms=15)
    sdk.emit(record)

    assert sdk.timeline() == {
        "prefill": ("forward", 0, 10),
        "forward": ("chat", 0, 20),
        "chat": (None, 0, 100),
    }


def test_generation_without_a_clock_has_no_parts(sdk: Sdk) -> None:
    record = inference()
    phase(record, "forward", 0, 20).generation = generation(1, end_ms=None)
    sdk.emit(record)

    assert sdk.timeline() == {"forward": ("chat", 0, 20), "chat": (None, 0, 100)}


@pytest.mark.parametrize(
    ("tokens", "failed"),
    [
        pytest.param((), ["prefill", "forward"], id="before the first token"),
        pytest.param((10,), ["decode", "forward"], id="after the first token"),
        pytest.param((10, 20), ["decode", "forward"], id="in decode"),
    ],
)
def test_generation_that_failed_says_in_which_part(sdk: Sdk, tokens: tuple[int, ...], failed: list[str]) -> None:
    record = inference()
    forward = phase(record, "forward", 0, 50)
    forward.generation = generation(0, *tokens, end_ms=40)
    forward.cut_off(ValueError())
    sdk.emit(record)

    found = [span.name for span in sdk.spans() if span.status.status_code is StatusCode.ERROR]
    assert found == failed
    assert {sdk.attributes(name)["error.type"] for name in failed} == {"ValueError"}


@pytest.mark.parametrize(
    ("failure", "description", "event"),
    [
        pytest.param(
            Failure("ValueError", "frames", None),
            None,
            {"exception.type": "ValueError", "exception.stacktrace": "frames"},
            id="without message",
        ),
        pytest.param(
            Failure("ValueError", "frames", "text"),
            "text",
            {"exception.type": "ValueError", "exception.stacktrace": "frames", "exception.message": "text"},
            id="with message",
        ),
        pytest.param(Failure("x.Error", "", None), None, {"exception.type": "x.Error"}, id="type alone"),
    ],
)
def test_inference_that_failed_has_the_exception(
    sdk: Sdk, failure: Failure, description: str | None, event: dict[str, str]
) -> None:
    record = inference()
    record.failure = failure
    sdk.emit(record)

    (span,) = sdk.spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, description)
    assert sdk.attributes("chat")["error.type"] == failure.type
    assert [(found.name, found.timestamp, found.attributes) for found in span.events] == [
        ("exception", 100 * MS + OFFSET_NS, event)
    ]


@pytest.mark.parametrize(
    ("mode", "recorded"),
    [
        pytest.param("NO_CONTENT", False, id="none"),
        pytest.param("EVENT_ONLY", False, id="events"),
        pytest.param("SPAN_ONLY", True, id="spans"),
        pytest.param("SPAN_AND_EVENT", True, id="both"),
    ],
)
def test_content_is_on_the_span_where_asked(sdk: Sdk, mode: str, recorded: bool) -> None:
    record = inference(capture_content=mode, content_length=4)
    record.content = Content(
        [text_message("system", "Be brief"), text_message("user", "Hello")], [text_message("assistant", "Hi")]
    )
    sdk.emit(record)

    found = {name: value for name, value in sdk.attributes("chat").items() if "messages" in name or "system" in name}
    assert found == (
        {
            "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "Hell"}]}]',
            "gen_ai.output.messages": '[{"role": "assistant", "parts": [{"type": "text", "content": "Hi"}]}]',
            "gen_ai.system_instructions": '[{"type": "text", "content": "Be b"}]',
        }
        if recorded
        else {}
    )


def test_standalone_phase_is_one_span_with_its_model(sdk: Sdk) -> None:
    made = phase(None, "tokenize", 1, 5)
    made.set("inferspan.batch.size", 2)
    record = StandalonePhase(made, Context(), "me/model")
    record.unix_offset_ns = OFFSET_NS
    emit_standalone(sdk.writer, record)

    assert sdk.timeline() == {"tokenize": (None, 1, 5)}
    assert sdk.attributes("tokenize") == {"inferspan.batch.size": 2, "gen_ai.request.model": "me/model"}


class Counting(Probe):
    """Describes each part by its value, and may say ``None``."""

    name = "counting"

    def describe(self, inference: Inference, part: str, values: Values) -> dict[str, Any]:
        return {"count": values.get(self.name), "of": part, "absent": None}


def test_parts_of_a_forward_have_what_probes_describe(sdk: Sdk) -> None:
    record = inference()
    phase(record, "tokenize", 0, 5)
    phase(record, "forward", 10, 90).generation = generation(10, 20, 80, end_ms=85)
    parts = {"forward": {"counting": 3}, "prefill": {"counting": 1}, "decode": {"counting": 2}}
    sdk.emit(record, Report(parts=[{}, parts]), [Counting()])

    assert sdk.attributes("tokenize") == {}
    assert sdk.attributes("forward") == {"count": 3, "of": "forward"}
    assert sdk.attributes("prefill") == {"count": 1, "of": "prefill"}
    assert sdk.attributes("decode") == {"count": 2, "of": "decode", "inferspan.decode.steps": 1}


def test_spans_and_events_of_probes_are_where_they_say(sdk: Sdk) -> None:
    record = inference()
    forward = phase(record, "forward", 10, 90)
    report = Report(
        events=[Event("recompile", {"why": "x", "absent": None}, 30 * MS)],
        spans=[
            ChildSpan("layer 0", {"a": 1}, 20 * MS, 40 * MS, None, forward),
            ChildSpan("layer 1", {}, 41 * MS, 50 * MS, "ValueError"),
        ],
    )
    sdk.emit(record, report)

    assert sdk.timeline() == {
        "layer 0": ("forward", 20, 40),
        "forward": ("chat", 10, 90),
        "layer 1": ("chat", 41, 50),
        "chat": (None, 0, 100),
    }
    assert (sdk.attributes("layer 0"), sdk.attributes("layer 1")) == ({"a": 1}, {"error.type": "ValueError"})
    (root,) = [span for span in sdk.spans() if span.name == "chat"]
    assert [(event.name, event.attributes, event.timestamp) for event in root.events] == [
        ("recompile", {"why": "x"}, 30 * MS + OFFSET_NS)
    ]


def test_attributes_of_a_root_have_one_precedence() -> None:
    """The program's own word is the last, but for the type of the error."""
    record = inference(capture_content="SPAN_ONLY")
    record.counts.input_tokens, record.device = 3, "cuda:0"
    record.content = Content([text_message("user", "Hello")])
    record.failure = Failure("ValueError", "", None)
    known = {"inferspan.rank": 8, "gen_ai.usage.input_tokens": 9, "gen_ai.input.messages": "x", "error.type": "x"}
    report = Report(attributes={**known, "inferspan.device": "probe", "probe": 1})
    found = root_attributes(record, report)

    assert found == {
        "inferspan.rank": 8,  # this process is none of several
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "Hello"}]}]',
        "inferspan.device": "cuda:0",
        "probe": 1,
        "error.type": "ValueError",
    }
    for name in ("gen_ai.usage.input_tokens", "gen_ai.input.messages", "inferspan.device", "probe", "error.type"):
        record.set(name, "mine")
    assert root_attributes(record, report) == {
        "inferspan.rank": 8,
        "gen_ai.usage.input_tokens": "mine",
        "gen_ai.input.messages": "mine",
        "inferspan.device": "mine",
        "probe": "mine",
        "error.type": "ValueError",
    }


def test_root_shows_the_sampler_operation_provider_and_model() -> None:
    seen = []

    class Looking(Sampler):
        def should_sample(
            self,
            parent_context: Any,
            trace_id: int,
            name: str,
            kind: Any = None,
            attributes: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> SamplingResult:
            seen.append((name, dict(attributes or {})))
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

        def get_description(self) -> str:
            return "looking"

    Sdk(Looking()).emit(inference(model=ModelInfo("me/model", "huggingface")))

    assert seen == [
        (
            "chat",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "huggingface",
                "gen_ai.request.model": "me/model",
            },
        )
    ]


@pytest.mark.parametrize("writer", [DirectWriter, TracerWriter])
def test_inference_not_sampled_makes_no_children(writer: type[TracerWriter]) -> None:
    names = []

    class Never(StaticSampler):
        def should_sample(self, parent_context: Any, trace_id: int, name: str, *more: Any, **others: Any) -> Any:
            names.append(name)
            return super().should_sample(parent_context, trace_id, name, *more, **others)

    sdk = Sdk(Never(Decision.DROP), writer)
    record = inference()
    phase(record, "tokenize", 1, 2)
    sdk.emit(record)

    assert (names, sdk.spans()) == (["chat"], [])


@pytest.mark.parametrize("at", ["on_start", "on_end"])
def test_root_ends_even_if_a_processor_raises_on_a_child(at: str) -> None:
    class Broken(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            if at == "on_start" and span.name == "tokenize":
                raise RuntimeError("no")

        def on_end(self, span: ReadableSpan) -> None:
            if at == "on_end" and span.name == "tokenize":
                raise RuntimeError("no")

    sdk = Sdk()
    sdk.provider.add_span_processor(Broken())
    sdk.writer = writer_of(sdk.tracer)
    record = inference()
    phase(record, "tokenize", 1, 2)
    with pytest.raises(RuntimeError, match="no"):
        sdk.emit(record)

    assert sdk.timeline()["chat"] == (None, 0, 100)


def test_inference_not_ended_is_not_emitted(sdk: Sdk) -> None:
    sdk.emit(inference(end_ms=None))

    assert sdk.spans() == []


def test_times_of_an_inference_without_a_generation_are_none() -> None:
    assert (time_to_first_token_ns(inference()), time_per_output_token_s(inference())) == (None, None)


def test_time_to_first_token_counts_from_the_start_of_the_inference() -> None:
    record = inference()
    record.start_ns = 2 * MS
    record.generation = generation(4, 10, end_ms=20)

    assert time_to_first_token_ns(record) == 8 * MS


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"),
    [
        pytest.param(1, 9, 0.01, id="one row: by its tokens"),
        pytest.param(1, 1, None, id="one token"),
        pytest.param(1, None, None, id="tokens not known"),
        pytest.param(2, 18, 0.02, id="several rows: by the steps"),
    ],
)
def test_time_per_token_of_assisted_decoding(rows: int, tokens: int | None, expected: float | None) -> None:
    record = inference()
    record.generation = generation(0, 10, 30, 50, 70, 90, end_ms=95)
    record.counts.rows_max, record.counts.output_tokens = rows, tokens
    record.generation.is_assisted = True
    found = time_per_output_token_s(record)

    assert found == (None if expected is None else pytest.approx(expected))
