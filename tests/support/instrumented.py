"""A pytest plugin that runs any suite with Inferspan on, from before its first import to its end.

    PYTHONPATH=tests python -m pytest -p support.instrumented path/to/their/tests

The settings come from the environment (``INFERSPAN_LAYERS=transformer``). Every span and metric point is made and
thrown away. The last line says how much there was: a suite that gave no span has not been tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import inferspan
from inferspan import faults


class _Counted(SpanExporter):
    number = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.number += len(spans)
        return SpanExportResult.SUCCESS


_spans = _Counted()


def pytest_load_initial_conftests() -> None:
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(_spans))
    inferspan.instrument(tracer_provider=tracer_provider, meter_provider=MeterProvider([InMemoryMetricReader()]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    inferspan.force_flush()
    terminalreporter.write_line(f"inferspan: {_spans.number} spans, {sum(faults.counts().values())} faults")
    for place, number in faults.counts().items():
        terminalreporter.write_line(f"inferspan: {number} faults in {place}")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    inferspan.uninstrument()
