"""What Inferspan says of each request, heard where production's telemetry leaves: a span processor and a histogram.

On the calling thread it does nothing but note, as a root span starts, which request it belongs to. The spans
themselves are kept as they end, on the thread that emits them, and are read between two configurations. So a
benchmark adds no more to what it measures than a program with a span processor of its own does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import inferspan
from inferspan import semconv
from inferspan.bench.results import Samples
from inferspan.emit.providers import SCOPE

REQUEST: ContextVar[int | None] = ContextVar("inferspan_bench_request", default=None)
"""Number of the request that this context serves."""

_NS = 1e-9
_COLUMNS = {
    "gpu_s": semconv.GPU_TIME,
    "cpu_s": semconv.CPU_TIME,
    "input_tokens": semconv.INPUT_TOKENS,
    "output_tokens": semconv.OUTPUT_TOKENS,
    "time_per_output_token_s": semconv.TIME_PER_OUTPUT_TOKEN,
    "padding_ratio": semconv.PADDING_RATIO,
    "flops": semconv.FLOPS,
    "flops_utilization": semconv.FLOPS_UTILIZATION,
    "energy_j": semconv.ENERGY_CONSUMPTION,
    "resident_bytes": semconv.MEMORY_USAGE,
    "device_bytes": semconv.MEMORY_AFTER,
    "device_peak_bytes": semconv.MEMORY_PEAK,
    "device_reserved_bytes": semconv.MEMORY_HELD,
    "kv_cache_bytes": semconv.KV_CACHE_SIZE,
    "fragmentation": semconv.MEMORY_FRAGMENTATION,
}
"""Columns of :class:`Samples` that are an attribute of the root span."""
_FLUSH_S = 60.0


@dataclass(slots=True)
class Request:
    """One request, as the load generator knows it: offsets from the run's begin."""

    intended_s: float
    start_s: float
    turn: int = 0
    error: BaseException | None = None


@dataclass(slots=True)
class _Trace:
    """The spans of one request."""

    root: ReadableSpan | None = None
    parts: list[ReadableSpan] = field(default_factory=list)


class _Phase(NamedTuple):
    """One phase of one request."""

    seconds: float | None
    gpu_s: float | None
    flops: int | None


class Recorder(SpanProcessor):
    """Hears every span from :meth:`start` to :meth:`stop`. ``processors`` and ``readers`` export the same elsewhere."""

    def __init__(
        self,
        resource: Resource,
        processors: list[SpanProcessor] | None = None,
        readers: list[MetricReader] | None = None,
    ) -> None:
        self._tracer_provider = TracerProvider(ALWAYS_ON, resource)
        self._tracer_provider.add_span_processor(self)
        for processor in processors or ():
            self._tracer_provider.add_span_processor(processor)
        self._meter_provider = _MeterProvider(readers or [InMemoryMetricReader()], resource, self._note_interval)
        self.meter = self._meter_provider.get_meter(SCOPE, inferspan.__version__, semconv.SCHEMA_URL)
        self._requests: dict[int, int] = {}
        self._spans: list[ReadableSpan] = []
        self._intervals: defaultdict[int, list[float]] = defaultdict(list)

    def start(self) -> None:
        """Instrument this process."""
        inferspan.instrument(
            tracer_provider=self._tracer_provider,
            meter_provider=self._meter_provider,
            metrics=True,
        )

    def stop(self) -> None:
        """Put everything back, and send what is to be sent."""
        inferspan.uninstrument()
        self._tracer_provider.shutdown()
        self._meter_provider.shutdown()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        number = REQUEST.get()
        if number is not None:
            self._requests[span.context.trace_id] = number

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> Heard:
        """All that was heard since the last time."""
        inferspan.force_flush(_FLUSH_S)
        spans, self._spans = self._spans, []
        requests, self._requests = self._requests, {}
        intervals, self._intervals = self._intervals, defaultdict(list)
        loads: list[ReadableSpan] = []
        traces: defaultdict[int, _Trace] = defaultdict(_Trace)
        for span in spans:
            if _attribute(span, semconv.OPERATION_NAME) == semconv.LOAD_OPERATION:
                loads.append(span)
            number = requests.get(span.context.trace_id)
            if number is None:
                continue
            if span.parent is None:
                traces[number].root = span
            else:
                traces[number].parts.append(span)
        by_request = {requests[trace_id]: found for trace_id, found in intervals.items() if trace_id in requests}
        return Heard(loads, dict(traces), by_request)

    def _note_interval(self, seconds: float, context: Context | None) -> None:
        trace_id = trace.get_current_span(context).get_span_context().trace_id
        self._intervals[trace_id].append(seconds)


@dataclass(slots=True)
class Heard:
    """Spans of requests and of loaded models, and the times between tokens by request."""

    loads: list[ReadableSpan]
    _traces: dict[int, _Trace]
    _intervals: dict[int, list[float]]

    def root(self, requests: Iterable[int]) -> ReadableSpan | None:
        """The root of the first of these requests that had one."""
        found = (self._traces[number].root for number in requests if number in self._traces)
        return next((root for root in found if root is not None), None)

    def samples(self, requests: Mapping[int, Request]) -> Samples:
        """A row for each of the requests that ended well, in the order of their starts."""
        samples = Samples()
        phases: list[dict[str, _Phase]] = []
        for number, request in sorted(requests.items(), key=lambda item: item[1].start_s):
            found = self._traces.get(number)
            if request.error is not None or found is None or found.root is None or not found.root.status.is_ok:
                continue
            late_s = max(0.0, request.start_s - request.intended_s)
            samples.intended_s.append(request.intended_s)
            samples.start_s.append(request.start_s)
            samples.turn.append(request.turn)
            samples.latency_s.append(late_s + _duration_s(found.root))
            first_s = _attribute(found.root, semconv.TIME_TO_FIRST_TOKEN)
            samples.time_to_first_token_s.append(None if first_s is None else late_s + first_s)
            for column, name in _COLUMNS.items():
                getattr(samples, column).append(_attribute(found.root, name))
            samples.inter_token_s.append(self._intervals.get(number, []))
            phases.append(_phases(found))
        absent = _Phase(None, None, None)
        for name in sorted({name for row in phases for name in row}):
            found_in = [row.get(name, absent) for row in phases]
            samples.phases_s[name] = [phase.seconds for phase in found_in]
            samples.phases_gpu_s[name] = [phase.gpu_s for phase in found_in]
            samples.phases_flops[name] = [phase.flops for phase in found_in]
        return _without_empty(samples)


def _phases(found: _Trace) -> dict[str, _Phase]:
    """What each phase took; none where children were dropped, since their sum is not known here."""
    phases: dict[str, _Phase] = {}
    if found.root is None or _attribute(found.root, semconv.CHILDREN_DROPPED):
        return phases
    for span in found.parts:
        phase = _Phase(
            _attribute(span, semconv.PHASE_TIME) or _duration_s(span),
            _attribute(span, semconv.GPU_TIME),
            _attribute(span, semconv.FLOPS),
        )
        before = phases.get(span.name)
        phases[span.name] = phase if before is None else _Phase(*map(_sum, before, phase))
    return phases


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


def _without_empty(samples: Samples) -> Samples:
    """Columns in which nothing is known are left out."""
    for column in fields(samples):
        rows = getattr(samples, column.name)
        if isinstance(rows, dict):
            setattr(samples, column.name, {k: v for k, v in rows.items() if any(item is not None for item in v)})
        elif not any(item not in (None, []) for item in rows):
            setattr(samples, column.name, [])
    return samples


def _attribute(span: ReadableSpan, name: str) -> Any:
    return None if span.attributes is None else span.attributes.get(name)


def _duration_s(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) * _NS


class _MeterProvider(MeterProvider):
    """The SDK's own, of which one histogram is overheard: the spans do not have the times between tokens."""

    def __init__(
        self, readers: list[MetricReader], resource: Resource, note: Callable[[float, Context | None], None]
    ) -> None:
        super().__init__(readers, resource)
        self._note = note

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        meter: Any = super().get_meter(*args, **kwargs)
        if "create_histogram" in vars(meter):
            return meter  # the SDK gives the same one again
        create = meter.create_histogram

        def create_histogram(name: str, *args: Any, **kwargs: Any) -> Any:
            histogram = create(name, *args, **kwargs)
            if name == semconv.INTER_TOKEN_DURATION:
                record = histogram.record

                def heard(amount: float, attributes: Any = None, context: Context | None = None) -> None:
                    self._note(amount, context)
                    record(amount, attributes, context)

                histogram.record = heard
            return histogram

        meter.create_histogram = create_histogram
        return meter
