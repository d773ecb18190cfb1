"""Where the demo's telemetry goes: kept in memory, drawn where the demo asks for it, and sent if there is a collector.

Both providers are the demo's own, so that nothing else in the process or its environment decides what is seen.
Whether and where to send, and under which service name, say OpenTelemetry's own variables; they are read here and
by the exporters, since they are not settings of Inferspan.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TIMEOUT,
    OTEL_SDK_DISABLED,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import inferspan
from inferspan.cli import CommandError
from inferspan.exporters.console import WaterfallSpanExporter

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_HTTP, _GRPC = "http/protobuf", "grpc"
_HTTP_PORT = ":4318"
_SERVICE = "inferspan-demo"
_TIMEOUT_S = 5
_SPANS_A_REQUEST = 512
_REASON_MAX = 300


def resource(service: str) -> Resource:
    """What the environment says of this process, under the name ``service`` where it says none."""
    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: service}))
    return found


class Recording:
    """Everything that is recorded from :meth:`start` on. ``tracer`` is for the demo's own spans."""

    def __init__(self, out: IO[str], width: int) -> None:
        if os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true":
            raise CommandError(f"{OTEL_SDK_DISABLED}=true: nothing would be recorded, so unset it for the demo")
        own = resource(_SERVICE)
        self._kept = InMemorySpanExporter()
        self._drawing = _Drawing(WaterfallSpanExporter(out, width))
        self._reader = InMemoryMetricReader()
        self._tracer_provider = TracerProvider(ALWAYS_ON, own)
        self._tracer_provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self._tracer_provider.add_span_processor(SimpleSpanProcessor(self._drawing))
        self._meter_provider = MeterProvider([self._reader], own)
        self.tracer: Tracer = self._tracer_provider.get_tracer(_SERVICE)

    def start(self) -> None:
        inferspan.instrument(tracer_provider=self._tracer_provider, meter_provider=self._meter_provider, metrics=True)

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """What is recorded inside is drawn, all of it when the block is left."""
        inferspan.force_flush()
        self._drawing.begin()
        try:
            yield
        finally:
            inferspan.force_flush()
            self._drawing.end()

    def spans(self) -> list[ReadableSpan]:
        """All spans so far."""
        inferspan.force_flush()
        return list(self._kept.get_finished_spans())

    def metrics(self) -> MetricsData | None:
        """All metrics so far."""
        inferspan.force_flush()
        return self._reader.get_metrics_data()

    def stop(self) -> None:
        inferspan.uninstrument()
        self._tracer_provider.shutdown()
        self._meter_provider.shutdown()


class _Drawing(SpanExporter):
    """The waterfall between ``begin`` and ``end``; at the end, so that it gets whole traces whatever ended first."""

    def __init__(self, waterfall: WaterfallSpanExporter) -> None:
        self._waterfall = waterfall
        self._held: list[ReadableSpan] | None = None

    def begin(self) -> None:
        self._held = []

    def end(self) -> None:
        held, self._held = self._held, None
        self._waterfall.export(held or ())

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._held is not None:
            self._held.extend(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._waterfall.shutdown()


@dataclass(frozen=True, slots=True)
class Collector:
    """A place to send to; made by :func:`collector`."""

    endpoint: str
    protocol: str
    span_exporter: Any
    metric_exporter: Any

    def send(self, spans: Sequence[ReadableSpan], metrics: MetricsData | None) -> str | None:
        """Send both and wait for the answers; what the exporters said where it failed, or ``None``."""
        with _exporters_heard() as heard:
            try:
                done = self._send(spans, metrics)
            except Exception as error:  # noqa: BLE001 - an endpoint that is no URL raises whatever the client likes
                return str(error) or type(error).__name__
            finally:
                self.span_exporter.shutdown()
                self.metric_exporter.shutdown()
        return None if done else heard.first or "no answer"

    def _send(self, spans: Sequence[ReadableSpan], metrics: MetricsData | None) -> bool:
        for start in range(0, len(spans), _SPANS_A_REQUEST):
            part = spans[start : start + _SPANS_A_REQUEST]
            if self.span_exporter.export(part) is not SpanExportResult.SUCCESS:
                return False
        return metrics is None or self.metric_exporter.export(metrics) is MetricExportResult.SUCCESS


def collector(environ: Mapping[str, str] = os.environ) -> Collector | None:
    """The collector that the environment names, ``None`` if it names none.

    Raises:
        CommandError: its protocol is unknown or cannot be spoken here.
    """
    endpoint = environ.get(OTEL_EXPORTER_OTLP_ENDPOINT, "").strip()
    if not endpoint:
        return None
    # gRPC is what OpenTelemetry for Python takes where nothing is said; at the port that is HTTP's it never works.
    usual = _HTTP if endpoint.rstrip("/").endswith(_HTTP_PORT) else _GRPC
    protocol = environ.get(OTEL_EXPORTER_OTLP_PROTOCOL, "").strip().lower() or usual
    timeout = {} if environ.get(OTEL_EXPORTER_OTLP_TIMEOUT) else {"timeout": _TIMEOUT_S}
    span_exporter: Any
    metric_exporter: Any
    try:
        if protocol == _HTTP:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans

            span_exporter, metric_exporter = HttpSpans, HttpMetrics
        elif protocol == _GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

            span_exporter, metric_exporter = GrpcSpans, GrpcMetrics
        else:
            raise CommandError(f"{OTEL_EXPORTER_OTLP_PROTOCOL}={protocol} is not allowed (allowed: {_GRPC}, {_HTTP})")
    except ImportError as error:
        raise CommandError(
            f"{OTEL_EXPORTER_OTLP_ENDPOINT} is set, but what sends by {protocol} is not installed "
            f"({error.name}): pip install 'inferspan[otlp]', or unset it"
        ) from error
    return Collector(endpoint, protocol, span_exporter(**timeout), metric_exporter(**timeout))


class _Heard(logging.Handler):
    """Keeps the first complaint of the exporters, which is the cause; they return no reason."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()[:_REASON_MAX]


@contextmanager
def _exporters_heard() -> Iterator[_Heard]:
    """What the exporters log goes to the handler, and not to the terminal."""
    logger = logging.getLogger("opentelemetry")
    heard = _Heard()
    propagated = logger.propagate
    logger.addHandler(heard)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagated
