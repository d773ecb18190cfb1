"""What a program did and what it exported, in all of its processes: lines of JSON, appended to one file.

The program calls :func:`connect`, then :func:`infer` as often as it likes; each inference that has ended is noted.
With ``INSTRUMENTED=0`` in the environment the same program runs without Inferspan. Nothing is exported before
somebody flushes: what is in the ledger was flushed, and what is not was lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler

import inferspan

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
_HOUR_MS = 3_600_000
TREE = ("answer", "think")


# -- in the program ----------------------------------------------------------------------------------------------------


def note(**facts: Any) -> None:
    """One line, whole, whichever processes and threads write at the same time."""
    line = json.dumps({"pid": os.getpid(), **facts}) + "\n"
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(file, line.encode())
    os.close(file)


def is_on() -> bool:
    return os.environ.get("INSTRUMENTED") != "0"


class Spans(SpanExporter):
    """Writes each span to the ledger."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            note(
                span=span.name,
                id=span.context.span_id,
                trace=span.context.trace_id,
                parent=span.parent and span.parent.span_id,
                start=span.start_time,
                end=span.end_time,
                status=span.status.status_code.name,
                attributes=dict(span.attributes or {}),
            )
        return SpanExportResult.SUCCESS


class Points(MetricExporter):
    """Writes each point to the ledger."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any) -> MetricExportResult:
        for resource in metrics_data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = point.count if hasattr(point, "count") else point.value
                        note(metric=metric.name, attributes=dict(point.attributes or {}), value=value)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        pass


def batched(exporter: SpanExporter) -> SpanProcessor:
    """Exports when it is flushed, and not before."""
    return BatchSpanProcessor(exporter, schedule_delay_millis=_HOUR_MS)


def set_providers(*processors: SpanProcessor, sampler: Sampler | None = None, views: Sequence[View] = ()) -> None:
    """Set global providers that write to the ledger, or with these processors."""
    provider = TracerProvider(sampler=sampler)
    for processor in processors or (batched(Spans()),):
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    reader = PeriodicExportingMetricReader(Points(), export_interval_millis=_HOUR_MS)
    metrics.set_meter_provider(MeterProvider([reader], views=views))


def connect(*processors: SpanProcessor, **settings: Any) -> None:
    """Set the providers and instrument."""
    if is_on():
        set_providers(*processors)
        inferspan.instrument(**settings)


def infer(number: int, model: Any = None) -> int:
    """One inference, with a phase of its own and, where there is a model, a forward; its number plus one."""
    with inferspan.inference("answer") as block:
        block.set_attribute("number", number)
        with block.phase("think"):
            found = number + 1
        if model is not None:
            import torch

            with torch.no_grad():
                found = number + 1 + 0 * int(model(torch.ones(1, 8)).argmax())
    note(ended=number)
    return found


# -- in the test -------------------------------------------------------------------------------------------------------


@dataclass
class Ran:
    """A program that has ended, and its ledger."""

    status: int
    stdout: str
    stderr: str
    lines: list[dict[str, Any]]

    @property
    def outcome(self) -> tuple[int, str, str]:
        """What must be the same without Inferspan."""
        return self.status, self.stdout, self.stderr

    def ended(self) -> Counter[int]:
        """How often each inference ended."""
        return Counter(line["ended"] for line in self.lines if "ended" in line)

    def exported(self, tree: Sequence[str] | None = TREE) -> Counter[int]:
        """How often each inference was exported, each of them whole: its root, and these children within its time."""
        below: dict[int, list[dict[str, Any]]] = {}
        for span in self.spans():
            # else an inference of its own: a block inside, or in a process that was forked inside
            if "gen_ai.operation.name" not in span["attributes"]:
                below.setdefault(span["parent"], []).append(span)
        found: Counter[int] = Counter()
        for root in self.spans("answer"):
            children = sorted(below.pop(root["id"], []), key=lambda span: span["start"])
            names = (root["span"], *(child["span"] for child in children))
            assert tree is None or names == tuple(tree), (root, children)
            for child in children:
                assert child["trace"] == root["trace"]
                assert root["start"] <= child["start"] <= child["end"] <= root["end"]
            found[root["attributes"]["number"]] += 1
        ids = [span["id"] for span in self.spans()]
        assert len(ids) == len(set(ids)), "a span was exported twice"
        return found

    def spans(self, name: str | None = None) -> list[dict[str, Any]]:
        return [line for line in self.lines if "span" in line and name in (None, line["span"])]

    def points(self, metric: str, *by: str) -> dict[Any, float]:
        """The last value of each series that each process exported, added up over processes, by these attributes."""
        last = {
            (line["pid"], json.dumps(line["attributes"], sort_keys=True)): line
            for line in self.lines
            if line.get("metric") == metric
        }
        found: dict[Any, float] = {}
        for line in last.values():
            key = tuple(line["attributes"].get(name) for name in by)
            found[key[0] if len(key) == 1 else key] = found.get(key[0] if len(key) == 1 else key, 0) + line["value"]
        return found


def environment(ledger: Path, instrumented: bool = True, **extra: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "INFERSPAN_"))}
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    return {
        **kept,
        "PYTHONPATH": path,
        "LEDGER": str(ledger),
        "INSTRUMENTED": str(int(instrumented)),
        "INFERSPAN_DEVICES": "never",
        **extra,
    }


def read(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []


def program(
    folder: Path, code: str, *arguments: str, instrumented: bool = True, options: Sequence[str] = (), **extra: str
) -> Ran:
    """Run ``code`` (a file where it ends in ``.py``) to its end."""
    ledger = folder / f"ledger-{time.monotonic_ns()}"
    command = [code] if code.endswith(".py") else ["-c", code]
    process = subprocess.Popen(
        [sys.executable, *options, *command, *arguments],
        env=environment(ledger, instrumented, **extra),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        stdout, stderr = process.communicate()
        raise AssertionError(f"it does not end; last lines:\n{stdout[-2000:]}\n{stderr[-4000:]}") from None
    return Ran(process.returncode, stdout, stderr, read(ledger))


def both(
    folder: Path, code: str, *arguments: str, same_errors: bool = True, same_inferences: bool = True, **extra: Any
) -> Ran:
    """Run with Inferspan, after the same without: the same status, output and, where asked, errors and inferences."""
    without = program(folder, code, *arguments, instrumented=False, **extra)
    ran = program(folder, code, *arguments, **extra)
    assert ran.outcome[:2] == without.outcome[:2], ran.stderr
    assert not same_errors or ran.stderr == without.stderr
    assert not same_inferences or ran.ended() == without.ended()
    return ran
