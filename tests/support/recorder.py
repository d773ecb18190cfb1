"""Telemetry kept in memory, and read as plain data.

``Recorder.trees()`` gives each trace as nested tuples of names, ``Recorder.attributes(name)`` a span's attributes
with every measured value (a time, a memory reading) replaced by ``...``, so that tests compare whole literals: one
attribute more, or one less, fails.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import inferspan
from inferspan import semconv

MEASURED = {
    semconv.TIME_TO_FIRST_TOKEN,
    semconv.TIME_TO_FIRST_CHUNK,
    semconv.TIME_PER_OUTPUT_TOKEN,
    semconv.PHASE_TIME,
    semconv.BUSY_TIME,
    semconv.CPU_TIME,
    semconv.MEMORY_USAGE_BEFORE,
    semconv.MEMORY_USAGE,
    semconv.LOAD_TIME,
    semconv.EXCEPTION_STACKTRACE,
}
"""Attributes whose value differs from run to run."""

MODEL_FACTS = {
    semconv.MODEL_CLASS,
    semconv.MODEL_TYPE,
    semconv.MODEL_PARAMETERS,
    semconv.MODEL_SIZE,
    semconv.MODEL_DTYPE,
    semconv.MODEL_ATTENTION,
}
"""What a model that was not loaded by from_pretrained tells on its first inference."""

FIGURES = {
    semconv.FLOPS,
    semconv.FLOPS_METHOD,
    semconv.FLOPS_EXACT,
    semconv.KV_CACHE_SIZE,
}
"""What the models' own numbers decide; test_figures and test_flops look at them."""


class Recorder:
    """An SDK with everything in memory. ``tracer`` is for the test's own spans."""

    def __init__(self, **tracer_provider: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False, **tracer_provider)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.tracer_provider.get_tracer("test")

    def instrument(self, **settings: Any) -> None:
        inferspan.instrument(tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, **settings)

    def close(self) -> None:
        from inferspan.instrumentor import InferspanInstrumentor

        if InferspanInstrumentor().is_instrumented_by_opentelemetry:
            inferspan.uninstrument()

    def spans(self) -> list[ReadableSpan]:
        """All finished spans, in the order of their start."""
        self.tracer_provider.force_flush()
        return sorted(self.exporter.get_finished_spans(), key=lambda span: (span.start_time, -span.end_time))

    def clear(self) -> None:
        """Forget the spans so far."""
        self.tracer_provider.force_flush()
        self.exporter.clear()

    def span(self, name: str) -> ReadableSpan:
        """The one span whose name is, or begins with, ``name``."""
        found = [span for span in self.spans() if span.name == name or span.name.startswith(f"{name} ")]
        assert len(found) == 1, f"{name}: {[span.name for span in self.spans()]}"
        return found[0]

    def trees(self) -> list[Any]:
        """Each trace: a name, or a name and its children as nested tuples ``("root", "child", ("child", …))``.

        Checks on the way that children lie within their parent's time.
        """
        spans = self.spans()
        ids = {span.context.span_id for span in spans}
        children: dict[int, list[ReadableSpan]] = {}
        roots = []
        for span in spans:
            if span.parent is not None and span.parent.span_id in ids:
                children.setdefault(span.parent.span_id, []).append(span)
            else:
                roots.append(span)

        def tree(span: ReadableSpan) -> Any:
            below = children.get(span.context.span_id, [])
            for child in below:
                assert span.start_time <= child.start_time <= child.end_time <= span.end_time, (span, child)
            return (span.name, *map(tree, below)) if below else span.name

        return [tree(root) for root in roots]

    def attributes(self, name: str, *, without: set[str] = FIGURES) -> dict[str, Any]:
        """Attributes of the one span ``name``, measured values as ``...``."""
        return {
            key: ... if key in MEASURED else value
            for key, value in (self.span(name).attributes or {}).items()
            if key not in without
        }

    def points(self, metric: str) -> list[Any]:
        """Data points of one metric, ``[]`` if it was not emitted."""
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for found in scope.metrics:
                    if found.name == metric:
                        return list(found.data.data_points)
        return []

    def counts(self, metric: str, *by: str) -> dict[Any, float]:
        """Number of points of a histogram, or the sum of a counter, by the attributes named."""
        found: dict[Any, float] = {}
        for point in self.points(metric):
            key = tuple(point.attributes.get(name) for name in by)
            key = key[0] if len(key) == 1 else key
            found[key] = found.get(key, 0) + (point.count if hasattr(point, "count") else point.value)
        return found

    def metric_names(self) -> set[str]:
        data = self.reader.get_metrics_data()
        return {
            metric.name
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
