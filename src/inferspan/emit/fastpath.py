"""The short ways past the public interface of OpenTelemetry's SDK: the only file that has private names of it.

**Spans.** A span through the tracer costs five times as much, for what ours do not need: a start before the end, a
lock, limits checked at each attribute. :class:`DirectWriter` makes the same spans of the same public parts, and is
taken where nobody can see the difference (:func:`writer_of`): no processor looks at spans that start or are about to
end, the sampler gives children what their root got, and limits and the SDK's metrics of itself are not set.

**Points.** For each point the SDK checks and copies the attributes, hashes them and looks the views up again: more than
half of what a point costs. Ours come with few different attributes. So the first point of each goes through the
instrument; then the aggregations that the SDK has made for it, one for each reader and view, are looked up once, and
given the rest.

**Order and forks.** The public interface cannot put a span processor before those that are there, nor let go of sums
and locks in a forked child.

Everywhere else, where an SDK is built otherwise, and with the setting ``fast_path`` off, the ordinary way is taken.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Histogram
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
    Link,
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
from inferspan.emit.writer import ERROR, DirectRoot, TracerWriter

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

Attributes = Mapping[str, Any]

_UNSET = Status(StatusCode.UNSET)
_RANDOM: int = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)  # newer than the oldest SDK that we support
_DEFAULT_LIMITS = SpanLimits()
_NOTHING = SpanProcessor()
_PASSIVE = (SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
_GROUPS = (SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor)
_TEXT = frozenset((str,))
_PLAIN = frozenset((str, bool, int, float))
_EVEN_SAMPLERS = (sampling.StaticSampler, sampling.TraceIdRatioBased)
_ASKED_BY_PARENT = (
    "root",
    "remote_parent_sampled",
    "remote_parent_not_sampled",
    "local_parent_sampled",
    "local_parent_not_sampled",
)
_SERIES_MAX = 2048
_RECORDED_BY = {"histogram": "record", "gauge": "set"}
_NOWHERE = Context()
_LOCKS: dict[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock)}


# -- spans -----------------------------------------------------------------------------------------------------------


class _Decision(NamedTuple):
    context: SpanContext
    parent: SpanContext | None
    is_sampled: bool
    attributes: Attributes | None


_UNDECIDED = _Decision(INVALID_SPAN_CONTEXT, None, False, None)


class _Decided:
    """A field of :class:`_Live` that is there once it is decided."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, live: _Live | None, owner: type) -> Any:
        return self if live is None else getattr(live.decided(), self._name.removeprefix("_"))


class _Live(Span, DirectRoot):
    """A root while it runs: a span of the SDK, of which most programs need nothing. Its ids and the sampler's decision
    are made when something asks for them, or when it is emitted; the rest, where something is set on it or read. What
    the program sets is kept; what we know is added when it is written, ``asked``, which the sampler sees, too."""

    def __init__(
        self,
        writer: DirectWriter,
        name: str,
        above: Context,
        start_ns: int,
        asked: Attributes,
        links: Sequence[Link],
    ) -> None:
        self._writer = writer
        self._name = name
        self._above = above
        self._start_time = start_ns
        self._end_time = None
        self.asked = asked
        self.linked = links

    def decided(self) -> _Decision:
        """What the sampler has said, now that somebody wants to know."""
        found: _Decision | None = vars(self).get("_decision")
        if found is None:
            try:
                found = self._writer.decide(self._name, self._above, self.asked, self.linked)
            except Exception:  # noqa: BLE001 - a parent of the program's making; and it is the program that asks
                faults.note("writer.decide")
                found = _UNDECIDED
            # dict.setdefault is atomic: of two threads both get the first's
            found = vars(self).setdefault("_decision", found)
            self._context, self._parent = found.context, found.parent
        return found

    _context = _Decided()
    _parent = _Decided()

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
            links=self.linked,
        )
        for key, value in vars(whole).items():
            vars(self).setdefault(key, value)  # of two threads the first's, part by part
        return object.__getattribute__(self, name)

    def write_end(
        self,
        tracer: ApiTracer,
        attributes: dict[str, Any],
        events: Sequence[Event],
        status: Status | None,
        end_ns: int,
    ) -> None:
        DirectWriter(tracer if isinstance(tracer, Tracer) else self._writer._tracer).end(
            self, attributes, events, status, end_ns
        )

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
        self._is_enabled = getattr(tracer, "_is_enabled", None)
        self._may_wait = type(tracer.id_generator) is IndependentIdGenerator and _decides_by_trace(tracer.sampler)

    def start(
        self, name: str, context: Context, attributes: Attributes, start_ns: int, links: Sequence[Link] = ()
    ) -> ApiSpan:
        if self._is_enabled is not None and not self._is_enabled():
            return super().start(name, context, attributes, start_ns, links)
        live = _Live(self, name, context, start_ns, attributes, links)
        if self._may_wait:
            return live
        vars(live)["_decision"] = decision = self.decide(name, context, attributes, links)
        live._context, live._parent = decision.context, decision.parent
        given = decision.attributes
        if given and len(given) > len(attributes):
            live.set_attributes({name: value for name, value in given.items() if name not in attributes})
        return live

    def decide(self, name: str, context: Context, attributes: Attributes, links: Sequence[Link] = ()) -> _Decision:
        """The ids of a root, and what the sampler says."""
        tracer, parent = self._tracer, get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else tracer.id_generator.generate_trace_id()
        found = tracer.sampler.should_sample(context, trace_id, name, SpanKind.INTERNAL, attributes, links)
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
        is_sampled = root.decided().is_sampled
        root._above = _NOWHERE  # or the roots of a program that always begins one inside of the last would all be held
        if not is_sampled:
            return
        facts: dict[str, Any]
        if root.is_untouched:
            root._end_time = end_ns
            attributes = {**root.asked, **attributes}
            facts = {"status": _UNSET if status is None else status, "events": events, "links": root.linked}
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
            status=_UNSET if error is None else ERROR,
            start_time=start_ns,
            end_time=end_ns,
        )

    def _give(self, attributes: Attributes, **facts: Any) -> None:
        has_names = _TEXT.issuperset(map(type, attributes)) and "" not in attributes
        if not (has_names and _PLAIN.issuperset(map(type, attributes.values()))):
            # what the program has set may be anything: the SDK says what can be exported
            attributes = BoundedAttributes(attributes=attributes)
        tracer = self._tracer
        span = ReadableSpan(resource=tracer.resource, instrumentation_scope=self._scope, attributes=attributes, **facts)
        tracer.span_processor.on_end(span)


def writer_of(tracer: ApiTracer, *, is_allowed: bool = True) -> TracerWriter:
    """The cheapest writer that gives the same as the tracer itself, while its provider's processors stay the same."""
    if not is_allowed:
        return TracerWriter(tracer)
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


# -- points -----------------------------------------------------------------------------------------------------------


class _Measurement(NamedTuple):
    """What aggregations and reservoirs read of the SDK's class of that name."""

    value: float
    time_unix_nano: int
    instrument: Any
    context: Context
    attributes: Attributes


class FastInstrument:
    """One synchronous instrument, and the aggregations behind it by attributes."""

    def __init__(self, instrument: Any, kind: str, *, is_allowed: bool = True) -> None:
        self._instrument = instrument
        method = _RECORDED_BY.get(kind, "add")
        self._record: Callable[..., None] = getattr(instrument, method)
        # for the others the SDK would choose exemplars by the program's own global random stream
        self._has_exemplars = kind == "histogram"
        self._is_enabled: Callable[[], bool] = getattr(instrument, "_is_enabled", lambda: True)
        self._consumer = _consumer(instrument, method) if is_allowed else None
        self._storages: object = None
        self._found: dict[tuple[tuple[str, str | int], ...], list[Any]] = {}

    def put(self, value: float, attributes: Attributes, context: Context | None) -> None:
        """One value, whose exemplar points at the span in ``context``."""
        if self._consumer is not None and self._consumer._reader_storages is not self._storages:
            self._storages = self._consumer._reader_storages
            self.forget()  # a reader was added or taken away
        key = tuple(attributes.items())
        aggregations = self._found.get(key)
        if self._consumer is None or not aggregations or not self._is_enabled() or not 0 <= value < math.inf:
            self._record(value, attributes, *([context] if self._has_exemplars else []))
            if aggregations is None and len(self._found) < _SERIES_MAX:
                self._found[key] = _aggregations(self._consumer, self._instrument, attributes)
            return
        measurement = _Measurement(value, time_ns(), self._instrument, context or _NOWHERE, attributes)
        chosen = self._has_exemplars and self._consumer._sdk_config.exemplar_filter.should_sample(
            value, measurement.time_unix_nano, attributes, measurement.context
        )
        for aggregation in aggregations:
            aggregation.aggregate(measurement, chosen)

    def forget(self) -> None:
        """Look all up again: the sums begin anew."""
        self._found.clear()


def _consumer(instrument: Any, method: str) -> Any:
    """What the SDK's own instruments give their points to; ``None`` for others, and where somebody listens in."""
    try:
        from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer
    except ImportError:  # an SDK that is built otherwise
        return None
    consumer = getattr(instrument, "_measurement_consumer", None)
    is_own = type(consumer) is SynchronousMeasurementConsumer and type(instrument).__module__ == Histogram.__module__
    return consumer if is_own and method not in vars(instrument) else None


def _aggregations(consumer: Any, instrument: Any, attributes: Attributes) -> list[Any]:
    """What a point of these attributes has gone to; empty where that is not known."""
    try:
        return [
            _last_with(match._attributes_aggregation.values(), match._view._attribute_keys, attributes)
            for storage in consumer._reader_storages.values()
            for match in storage._get_or_init_view_instrument_match(instrument)
        ]
    except (AttributeError, LookupError):  # an SDK that is built otherwise
        return []


def _last_with(aggregations: Iterable[Any], kept: set[str] | None, attributes: Attributes) -> Any:
    wanted = {name: value for name, value in attributes.items() if kept is None or name in kept}
    for aggregation in reversed(list(aggregations)):
        if aggregation._attributes == wanted:
            return aggregation
    raise LookupError  # the SDK has ignored the point


# -- order and forks -------------------------------------------------------------------------------------------------


def processors_of(provider: object) -> object:
    """The provider's span processors: a tuple, replaced when one is added; ``None`` where it has none."""
    return getattr(getattr(provider, "_active_span_processor", None), "_span_processors", None)


def put_first(provider: Any, processor: SpanProcessor) -> None:
    """Have a span processor flush and shut down before the others of a provider."""
    processors, group = processors_of(provider), getattr(provider, "_active_span_processor", None)
    if isinstance(group, ConcurrentMultiSpanProcessor):
        _stand_before(group, processor)
    elif isinstance(processors, tuple):
        if processor not in processors:
            provider._active_span_processor._span_processors = (processor, *processors)
    elif hasattr(provider, "add_span_processor"):
        provider.add_span_processor(processor)


def take_out(provider: Any, processor: SpanProcessor) -> None:
    """Undo :func:`put_first`."""
    processors, group = processors_of(provider), getattr(provider, "_active_span_processor", None)
    if isinstance(group, ConcurrentMultiSpanProcessor):
        for name in ("force_flush", "shutdown"):
            vars(group).pop(name, None)
    elif isinstance(processors, tuple):
        provider._active_span_processor._span_processors = tuple(
            other for other in processors if other is not processor
        )


def _stand_before(group: ConcurrentMultiSpanProcessor, processor: SpanProcessor) -> None:
    """In front of processors that flush all at once: as one of them it would come too late, and where they have one
    thread, wait for itself."""

    def force_flush(timeout_millis: int = 30000) -> bool:
        flushed = processor.force_flush(timeout_millis)
        return type(group).force_flush(group, timeout_millis) and flushed

    def shutdown() -> None:
        processor.shutdown()
        type(group).shutdown(group)

    vars(group).update(force_flush=force_flush, shutdown=shutdown)


def begin_anew(provider: MeterProvider | None, scope: str) -> None:
    """In a forked child: let go of all sums of the scope, which are those of the parent and would be exported twice;
    and of the locks under which another thread of the parent's may have been collecting or exporting, and which stay
    held here. Those of spans and loggers the SDK renews itself."""
    consumer = getattr(provider, "_measurement_consumer", None)
    storages = getattr(consumer, "_reader_storages", {})
    for storage in storages.values():
        matches = getattr(storage, "_instrument_view_instrument_matches", {})
        for instrument in list(matches):
            if instrument.instrumentation_scope.name == scope:
                del matches[instrument]
    for owner in (consumer, *storages, *storages.values()):
        for name in ("_lock", "_export_lock"):
            lock = getattr(owner, name, None)
            if type(lock) in _LOCKS:
                setattr(owner, name, _LOCKS[type(lock)]())
