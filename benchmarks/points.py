"""What one metric point costs: through its instrument, and straight to the SDK's sums, as Inferspan sends its own.

    python benchmarks/points.py

A histogram of 14 buckets, three attributes, a sampled span for the exemplar, one reader; a loop that does nothing else.
The ways take turns; the mean of the lower half of the rounds, microseconds.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from overhead import lower_half

from inferspan import semconv
from inferspan.emit.fastpath import FastInstrument

ROUNDS = 20
POINTS = 5000
ATTRIBUTES = {"some.operation": "classify", "some.model": "a model", "some.phase": "forward"}


def main() -> None:
    boundaries = semconv.METRICS[semconv.OPERATION_DURATION].buckets
    histogram = (
        MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        .get_meter("points")
        .create_histogram("it", "s", explicit_bucket_boundaries_advisory=boundaries)
    )
    root = TracerProvider(shutdown_on_exit=False).get_tracer("points").start_span("root")
    context = trace.set_span_in_context(root, Context())
    ways = {"through the instrument": histogram.record, "straight": FastInstrument(histogram, "histogram").put}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, put in ways.items():
            start = time.perf_counter()
            for _ in range(POINTS):
                put(0.03, ATTRIBUTES, context)
            found[name].append((time.perf_counter() - start) / POINTS * 1e6)
    for name, times in found.items():
        print(f"{name:24}{lower_half(times):5.1f} µs a point")


if __name__ == "__main__":
    main()
