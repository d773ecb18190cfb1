"""How spans are made once all is known of them: through the tracer, or given to the span processors as they are.

A span through the tracer costs five times as much, for what ours do not need: a start before the end, a lock, limits
checked at each attribute. :class:`DirectWriter` makes the same spans of the same public parts, and is taken where
nobody can tell the difference (:func:`writer_of`): no processor looks at spans that start or are about to end, the
sampler gives children what their root got, and limits and the SDK's metrics of itself are not set. Everywhere else
:class:`TracerWriter` goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    Event,
    ReadableSpan,
    Span,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    Tracer,
    sampling,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace import Tracer as ApiTracer

from inferspan import faults, semconv
from inferspan.emit.ids import IndependentIdGenerator

if TYPE_CHECKING:
    from opentelemetry.context import Context

Attributes = Mapping[str, Any]

_ERROR = Status(StatusCode.ERROR)
_UNSET = Status(StatusCode.UNSET)
_RANDOM: int = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)  # newer than the oldest SDK that we support
_DEFAULT_LIMITS = SpanLimits()
_NOTHING = SpanProcessor()
_PASSIVE = (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
_GROUPS = (SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor)
_PLAIN = frozenset((str, bool, int, float))
_EVEN_SAMPLERS = (sampling.StaticSampler, sampling.TraceIdRatioBased)
_ASKED_BY_PARENT = (
    "root",
    "remote_parent_sampled",
    "remote_parent_not_sampled",
    "local_parent_sampled",
    "local_parent_not_sampled",
)


class TracerWriter:
    """Spans through the tracer."""

    def __init__(self, tracer: ApiTracer) -> None:
        self._tracer = tracer

    def start(self, name: str, context: Context, attributes: Attributes, start_ns: int) -> ApiSpan:
        """A root span, live; ``attributes`` are for the sampler too. Times are of the wall clock."""
        return self._tracer.start_span(name, context, SpanKind.INTERNAL, attributes, start_time=start_ns)

    def end(
        self, root: ApiSpan, attributes: dict[str, Any], events: Sequence[Event], status: Status | None, end_ns: int
    ) -> None:
        """The root is over."""
        if isinstance(root, _Live):  # begun while spans were written directly: its own end reaches nobody
            tracer = self._tracer if isinstance(self._tracer, Tracer) else root._writer._tracer
            DirectWriter(tracer).end(root, attributes, events, status, end_ns)
            return
        try:
            root.set_attributes(attributes)
            for event in events:
                root.add_event(event.name, event.attributes, event.timestamp)
            if status is not None:
                root.set_status(status)
        finally:
            root.end(end_ns)

    def write(
        self,
        name: str,
        context: Context | None,
        attributes: dict[str, Any],
        start_ns: int,
        end_ns: int,
        error: str | None = None,
        below: Iterable[Callable[[Context], None]] = (),
    ) -> None:
        """A whole span under what is current in ``context``; ``error`` is its ``error.type``, ``below`` write
        spans below it."""
        span = self._tracer.start_span(name, context, SpanKind.INTERNAL, attributes, start_time=start_ns)
        for write in below:
            write(set_span_in_context(span, context))
        if error is not None:
            span.set_attribute(semconv.ERROR_TYPE, error)
            span.set_status(_ERROR)
        span.end(end_ns)


class _Decision(NamedTuple):
    context: SpanContext
    parent: SpanContext | None
    is_sampled: bool
    attributes: Attributes | None


_UNDECIDED = _Decision(INVALID_SPAN_CONTEXT, None, False, None)


class _Live(Span):
    """A root while it runs: a span of the SDK, of which most programs need nothing. Its ids and the sampler's decision
    are made when something asks for them, or when it is told; the rest, where something is set on it or read. What the
    program sets is kept; what we know is added when it is written, ``asked``, which the sampler sees, too."""

    def __init__(self, writer: DirectWriter, name: str, above: Context, start_ns: int, asked: Attributes) -> None:
        self._writer = writer
        self._name = name
        self._above = above
        self._start_time = start_ns
        self._end_time = None
        self.asked = asked

    def decided(self) -> _Decision:
        """What the sampler has said, now that somebody wants to know."""
        found: _Decision | None = vars(self).get("_decision")
        if found is None:
            try:
                found = self._writer.decide(self._name, self._above, self.asked)
            except Exception:  # noqa: BLE001 - a parent of the program's making; and it is the program that asks
                faults.note("writer.decide")
                found = _UNDECIDED
            # dict.setdefault is atomic: of two threads both get the first's
            found = vars(self).setdefault("_decision", found)
        return found

    @property
    def _context(self) -> SpanContext:  # type: ignore[override]
        return self.decided().context

    @property
    def _parent(self) -> SpanContext | None:  # type: ignore[override]
        return self.decided().parent

    def is_recording(self) -> bool:
        return self.decided().is_sampled and super().is_recording()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        whole = object.__new__(Span)
        tracer = self._writer._tracer
        Span.__init__(
            whole,
            self._name,
            self._context,
            resource=tracer.resource,
            span_processor=_NOTHING,
            instrumentation_scope=tracer._instrumentation_scope,
            limits=_DEFAULT_LIMITS,
        )
        for key, value in vars(whole).items():
            vars(self).setdefault(key, value)  # of two threads the first's, part by part
        return object.__getattribute__(self, name)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing can have been set on it: all that sets takes its lock."""
        return "_lock" not in vars(self)


class _Above(NonRecordingSpan):
    """A span that is to be written after those below it."""


class DirectWriter(TracerWriter):
    """The same spans, given to the tracer's processors whole."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer: Tracer = tracer
        self._scope = tracer._instrumentation_scope
        is_random = getattr(tracer.id_generator, "is_trace_id_random", None)
        self._plain_flags = _RANDOM if is_random is not None and is_random() else 0
        self._is_enabled = getattr(tracer, "_is_enabled", lambda: True)
        self._may_wait = type(tracer.id_generator) is IndependentIdGenerator and _decides_by_trace(tracer.sampler)

    def start(self, name: str, context: Context, attributes: Attributes, start_ns: int) -> ApiSpan:
        if not self._is_enabled():
            return super().start(name, context, attributes, start_ns)
        live = _Live(self, name, context, start_ns, attributes)
        if self._may_wait:
            return live
        vars(live)["_decision"] = decision = self.decide(name, context, attributes)
        told = decision.attributes
        if told and len(told) > len(attributes):
            live.set_attributes({name: value for name, value in told.items() if name not in attributes})
        return live

    def decide(self, name: str, context: Context, attributes: Attributes) -> _Decision:
        """The ids of a root, and what the sampler says."""
        tracer, parent = self._tracer, get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else tracer.id_generator.generate_trace_id()
        found = tracer.sampler.should_sample(context, trace_id, name, SpanKind.INTERNAL, attributes, ())
        is_sampled = found.decision is sampling.Decision.RECORD_AND_SAMPLE
        plain = parent.trace_flags & _RANDOM if parent.is_valid else self._plain_flags
        flags = TraceFlags(plain | TraceFlags.SAMPLED if is_sampled else plain)
        own = SpanContext(trace_id, tracer.id_generator.generate_span_id(), False, flags, found.trace_state)
        return _Decision(own, parent if parent.is_valid else None, is_sampled, found.attributes)

    def end(
        self, root: ApiSpan, attributes: dict[str, Any], events: Sequence[Event], status: Status | None, end_ns: int
    ) -> None:
        if type(root) is not _Live:
            super().end(root, attributes, events, status, end_ns)
            return
        if not root.decided().is_sampled:
            return
        facts: dict[str, Any]
        if root.is_untouched:
            root._end_time = end_ns
            attributes = {**root.asked, **attributes}
            facts = {"status": _UNSET if status is None else status, "events": events}
        else:
            if status is not None:
                root.set_status(status)
            if root.is_recording():  # else the program has ended it itself
                root.end(end_ns)
            attributes = {**root.asked, **(root.attributes or {}), **attributes}
            facts = {"status": root.status, "events": (*root.events, *events), "links": root.links}
        self._give(
            name=root.name,
            context=root.context,
            parent=root.parent,
            attributes=attributes,
            start_time=root.start_time,
            end_time=root.end_time,
            **facts,
        )

    def write(
        self,
        name: str,
        context: Context | None,
        attributes: dict[str, Any],
        start_ns: int,
        end_ns: int,
        error: str | None = None,
        below: Iterable[Callable[[Context], None]] = (),
    ) -> None:
        span = get_current_span(context)
        if not isinstance(span, (_Live, _Above)):  # of the sampler's decision here nothing is known
            super().write(name, context, attributes, start_ns, end_ns, error, below)
            return
        parent = span.get_span_context()
        if not parent.trace_flags.sampled:
            return
        own = SpanContext(
            parent.trace_id, self._tracer.id_generator.generate_span_id(), False, parent.trace_flags, parent.trace_state
        )
        for write in below:
            write(set_span_in_context(_Above(own), context))
        if error is not None:
            attributes = {**attributes, semconv.ERROR_TYPE: error}
        self._give(
            name=name,
            context=own,
            parent=parent,
            attributes=attributes,
            status=_UNSET if error is None else _ERROR,
            start_time=start_ns,
            end_time=end_ns,
        )

    def _give(self, attributes: Attributes, **facts: Any) -> None:
        if not all(name and type(name) is str and type(value) in _PLAIN for name, value in attributes.items()):
            # what the program has set may be anything: the SDK says what can be exported
            attributes = BoundedAttributes(attributes=attributes)
        tracer = self._tracer
        span = ReadableSpan(resource=tracer.resource, instrumentation_scope=self._scope, attributes=attributes, **facts)
        tracer.span_processor.on_end(span)


def writer_of(tracer: ApiTracer) -> TracerWriter:
    """The cheapest writer that gives the same as the tracer itself, while its provider's processors stay the same."""
    try:
        return DirectWriter(tracer) if type(tracer) is Tracer and _is_plain(tracer) else TracerWriter(tracer)
    except AttributeError:  # an SDK that is built otherwise
        return TracerWriter(tracer)


def _is_plain(tracer: Tracer) -> bool:
    metrics_of_itself = getattr(tracer, "_tracer_metrics", None)
    return (
        type(tracer.span_processor) in _GROUPS
        and all(map(_is_passive, tracer.span_processor._span_processors))
        and _is_even(tracer.sampler)
        and vars(tracer._span_limits) == vars(_DEFAULT_LIMITS)
        and (metrics_of_itself is None or type(metrics_of_itself).__name__ == "NoOpTracerMetrics")
    )


def _is_passive(processor: SpanProcessor) -> bool:
    """Whether a processor has no eye for spans before they end."""
    return all(
        getattr(type(processor), name, None) in [getattr(known, name, None) for known in _PASSIVE]
        for name in ("on_start", "_on_ending")
    )


def _is_even(sampler: sampling.Sampler) -> bool:
    """Whether a sampler decides for a child as for its parent in this process."""
    if isinstance(sampler, sampling.ParentBased):
        own = type(sampler).should_sample is sampling.ParentBased.should_sample
        return own and sampler._local_parent_sampled is sampling.ALWAYS_ON
    return type(sampler).should_sample in [known.should_sample for known in _EVEN_SAMPLERS]


def _decides_by_trace(sampler: sampling.Sampler) -> bool:
    """Whether a sampler looks at nothing but the trace's id and parent, so that it may as well be asked later."""
    if isinstance(sampler, sampling.ParentBased):
        if type(sampler).should_sample is not sampling.ParentBased.should_sample:
            return False
        below = (getattr(sampler, f"_{name}") for name in _ASKED_BY_PARENT)
        return all(map(_decides_by_trace, below))
    return type(sampler) in _EVEN_SAMPLERS
