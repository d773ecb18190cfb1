"""Spans given to the processors whole: those that the tracer would have made, and only where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    Event,
    Span,
    SpanLimits,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace.span import TraceState

from inferspan import faults
from inferspan.emit.fastpath import DirectWriter, writer_of
from inferspan.emit.ids import IndependentIdGenerator
from inferspan.emit.writer import TracerWriter


class Eager(SpanProcessor):
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("team", "search")


class EagerBatch(BatchSpanProcessor):
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("team", "search")


class LastMinute(SpanProcessor):
    def _on_ending(self, span: Span) -> None:
        span.set_attribute("team", "search")


class Passive(SpanProcessor):
    def on_end(self, span: Any) -> None:
        pass


class Odd(StaticSampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        return super().should_sample(*args, **kwargs)


def provider(*processors: SpanProcessor, **options: Any) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False, **options)
    for processor in processors:
        made.add_span_processor(processor)
    return made


def memory() -> SimpleSpanProcessor:
    return SimpleSpanProcessor(InMemorySpanExporter())


@pytest.mark.parametrize(
    ("make", "writer"),
    [
        pytest.param(provider, DirectWriter, id="no processor"),
        pytest.param(lambda: provider(memory(), Passive()), DirectWriter, id="exporters"),
        pytest.param(
            lambda: provider(memory(), active_span_processor=ConcurrentMultiSpanProcessor()),
            DirectWriter,
            id="concurrent processors",
        ),
        pytest.param(lambda: provider(sampler=ALWAYS_OFF), DirectWriter, id="never"),
        pytest.param(lambda: provider(sampler=DEFAULT_ON), DirectWriter, id="as the parent"),
        pytest.param(lambda: provider(sampler=TraceIdRatioBased(0.5)), DirectWriter, id="by ratio"),
        pytest.param(
            lambda: provider(sampler=ParentBasedTraceIdRatio(0.5)), DirectWriter, id="as the parent, by ratio"
        ),
        pytest.param(lambda: provider(memory(), Eager()), TracerWriter, id="processor that sees starts"),
        pytest.param(
            lambda: provider(EagerBatch(InMemorySpanExporter())), TracerWriter, id="exporter that sees starts"
        ),
        pytest.param(lambda: provider(LastMinute()), TracerWriter, id="processor that sees ends before they are"),
        pytest.param(lambda: provider(span_limits=SpanLimits(max_span_attributes=4)), TracerWriter, id="limits"),
        pytest.param(lambda: provider(sampler=Odd(Decision.RECORD_AND_SAMPLE)), TracerWriter, id="another sampler"),
        pytest.param(
            lambda: provider(sampler=ParentBased(Odd(Decision.RECORD_AND_SAMPLE))),
            DirectWriter,
            id="another at the root",
        ),
        pytest.param(
            lambda: provider(sampler=ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF)),
            TracerWriter,
            id="another for children",
        ),
        pytest.param(trace.NoOpTracerProvider, TracerWriter, id="no SDK"),
    ],
)
def test_spans_go_around_the_tracer_only_where_nobody_can_tell(
    make: Callable[[], trace.TracerProvider], writer: type[TracerWriter]
) -> None:
    assert type(writer_of(make().get_tracer("test"))) is writer


def test_limits_from_the_environment_are_the_sdks_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    exporter = InMemorySpanExporter()
    writer = writer_of(provider(SimpleSpanProcessor(exporter)).get_tracer("test"))
    root = writer.start("root", Context(), {}, 1)
    writer.end(root, {"name": "abcdef"}, (), None, 2)

    assert [span.attributes for span in exporter.get_finished_spans()] == [{"name": "abc"}]


def nothing(root: trace.Span) -> None:
    pass


def mark(root: trace.Span) -> None:
    root.set_attribute("mine", 1)
    root.set_attributes({"text": "b", "list": ["c"], "known": "by the program"})
    root.add_event("seen", {"at": "once"}, 5)
    root.add_link(SpanContext(1, 2, False), {"why": "not"})
    root.update_name("renamed")


def approve(root: trace.Span) -> None:
    root.set_status(StatusCode.OK)


def end(root: trace.Span) -> None:
    root.end(7)


def written(
    kind: type[TracerWriter],
    *,
    during: Callable[[trace.Span], None] = nothing,
    status: Status | None = None,
    attributes: dict[str, Any] | None = None,
    parent: Context | None = None,
    sampler: Sampler = ALWAYS_ON,
) -> list[dict[str, Any]]:
    """A root with a child and a grandchild, as the exporter gets them; ids by the order of their coming."""
    exporter = InMemorySpanExporter()
    tracer = provider(SimpleSpanProcessor(exporter), sampler=sampler).get_tracer("test", "1", "schema", {"of": "scope"})
    writer = kind(tracer)  # type: ignore[arg-type]
    context = Context() if parent is None else parent
    root = writer.start("root", context, {"asked": 1}, 1)
    inside = set_span_in_context(root, context)
    during(root)
    if root.is_recording() or during is end:
        writer.write(
            "child",
            inside,
            {"a": 1},
            2,
            5,
            below=[lambda below: writer.write("grandchild", below, {}, 3, 4, "ValueError")],
        )
    known = {"asked": 1, "known": 2.5} if attributes is None else attributes
    writer.end(root, known, [Event("done", {"b": True}, 8)], status, 9)
    spans = exporter.get_finished_spans()
    places = {span.context.span_id: place for place, span in enumerate(spans)}
    assert len({span.context.trace_id for span in spans}) <= 1
    return [
        {
            "name": span.name,
            "flags": int(span.context.trace_flags),
            "state": span.context.trace_state.to_header(),
            "parent": span.parent and places.get(span.parent.span_id, span.parent),
            "attributes": dict(span.attributes or {}),
            "events": [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events],
            "links": [(link.context, dict(link.attributes or {})) for link in span.links],
            "status": (span.status.status_code, span.status.description),
            "times": (span.start_time, span.end_time),
            "kind": span.kind,
            "scope": span.instrumentation_scope,
            "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        }
        for span in spans
    ]


class Signing(ParentBased):
    """Adds an attribute and a trace state."""

    class Root(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            attributes = {**(kwargs.get("attributes") or args[4]), "sampler": "signed"}
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, TraceState([("key", "value")]))

        def get_description(self) -> str:
            return "signing"


def remote(flags: int) -> Context:
    context = SpanContext(0xABC, 0xDEF, True, TraceFlags(flags), TraceState([("from", "afar")]))
    return set_span_in_context(trace.NonRecordingSpan(context), Context())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({}, id="plain"),
        pytest.param({"during": mark}, id="the program adds to the root"),
        pytest.param({"status": Status(StatusCode.ERROR, "why")}, id="failed"),
        pytest.param({"status": Status(StatusCode.ERROR), "during": approve}, id="the program says that it is well"),
        pytest.param({"parent": remote(1)}, id="in a trace from elsewhere"),
        pytest.param({"parent": remote(3)}, id="in a trace from elsewhere with a random id"),
        pytest.param({"parent": remote(0), "sampler": DEFAULT_ON}, id="in a trace that is not sampled"),
        pytest.param({"sampler": ALWAYS_OFF}, id="not sampled"),
        pytest.param({"sampler": Signing(Signing.Root())}, id="a sampler with something to say"),
        pytest.param(
            {"attributes": {"list": ["a"], "mixed": [1, "a"], "object": object(), "none": None, "bytes": b"a", "": 1}},
            id="attributes of every kind",
        ),
        pytest.param({"attributes": {"": 1}}, id="attribute without a name"),
    ],
)
def test_spans_are_the_same_either_way(case: dict[str, Any]) -> None:
    assert written(DirectWriter, **case) == written(TracerWriter, **case)


def test_root_that_the_program_ends_itself_is_exported_once() -> None:
    found = [span["name"] for span in written(DirectWriter, during=end)]

    assert found == ["grandchild", "child", "root"]


def test_root_is_a_span_like_any_other() -> None:
    """What looks at the current span finds its name, its start and what has been set on it."""
    root: Any = DirectWriter(provider().get_tracer("test")).start("root", Context(), {}, 5)  # type: ignore[arg-type]
    root.set_attribute("a", 1)

    assert (root.name, root.start_time, root.end_time, dict(root.attributes)) == ("root", 5, None, {"a": 1})
    assert root.is_recording()
    assert isinstance(root, Span)


def test_decision_by_ratio_is_the_samplers() -> None:
    sampler = TraceIdRatioBased(0.5)
    made = provider(sampler=sampler)
    writer = writer_of(made.get_tracer("test"))
    roots = [writer.start("root", Context(), {}, 1).get_span_context() for _ in range(200)]

    assert {root.trace_flags.sampled for root in roots} == {True, False}
    for root in roots:
        decided = sampler.should_sample(None, root.trace_id, "root").decision.is_sampled()
        assert root.trace_flags.sampled is decided


def test_ids_of_a_root_are_drawn_once_when_something_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = IndependentIdGenerator.generate_span_id
    monkeypatch.setattr(IndependentIdGenerator, "generate_span_id", lambda self: drawn.append(draw(self)) or drawn[-1])
    made = provider(sampler=DEFAULT_ON, id_generator=IndependentIdGenerator())
    root = writer_of(made.get_tracer("test")).start("root", Context(), {}, 1)
    assert drawn == []

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: root.get_span_context().span_id, range(64)))

    assert len(found) == 1
    assert found.pop() in drawn
    assert root.is_recording()


class Looking(Sampler):
    """Decides by more than the trace: by the clock, the thread, variables of the context."""

    asked = 0

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.asked += 1
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "looking"


@pytest.mark.parametrize("place", ["root", "remote_parent_sampled"])
def test_sampler_of_the_user_is_asked_when_the_root_begins(place: str) -> None:
    looking = Looking()
    sampler = ParentBased(**{"root": ALWAYS_ON, place: looking})  # type: ignore[arg-type]
    made = provider(sampler=sampler, id_generator=IndependentIdGenerator())
    writer_of(made.get_tracer("test")).start("root", Context() if place == "root" else remote(1), {}, 1)

    assert looking.asked == 1


def test_root_that_is_not_sampled_takes_what_the_program_sets_and_is_never_emitted() -> None:
    exporter = InMemorySpanExporter()
    made = provider(SimpleSpanProcessor(exporter), sampler=ALWAYS_OFF, id_generator=IndependentIdGenerator())
    writer = writer_of(made.get_tracer("test"))
    root = writer.start("root", Context(), {}, 1)
    root.set_attribute("mine", 1)
    writer.write("child", set_span_in_context(root), {}, 2, 3)
    writer.end(root, {}, (), None, 4)

    assert not root.is_recording()
    assert not root.get_span_context().trace_flags.sampled
    assert exporter.get_finished_spans() == ()


def test_sampler_that_fails_as_if_an_attribute_were_missing_is_asked_once() -> None:
    class Failing(Looking):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            super().should_sample()
            raise AttributeError("of the sampler")

    failing = Failing()
    writer = writer_of(provider(sampler=ParentBased(failing)).get_tracer("test"))

    with pytest.raises(AttributeError, match="of the sampler"):
        writer.start("root", Context(), {}, 1)
    assert failing.asked == 1


def test_root_below_a_span_that_fails_when_asked_is_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program asks for the current span, and gets one."""
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})

    class Failing(trace.NonRecordingSpan):
        def get_span_context(self) -> SpanContext:
            raise AttributeError("of the program")

    above = set_span_in_context(Failing(trace.INVALID_SPAN_CONTEXT), Context())
    made = provider(id_generator=IndependentIdGenerator())
    root = writer_of(made.get_tracer("test")).start("root", above, {}, 1)

    assert not root.get_span_context().is_valid
    assert not root.is_recording()
    assert faults.counts() == {"writer.decide": 1}
