"""A result as the baseline of the alert on slower work (docs/alerts.md): the gauge ``inferspan.baseline`` in seconds.

Its series say how long the phases of a model take per call, per token, row, FLOP, step and byte, defined exactly as
the recording rules compute them of production's metrics: a sum of time over a sum of work. They leave as OTLP points
of the gauge, or as Prometheus rules of which each gives one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.bench.results import Configuration, Result, Samples

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

__all__ = ["Point", "as_rules", "points", "record"]

_SERIES = "inferspan_baseline_seconds"


@dataclass(frozen=True, slots=True)
class Point:
    """One series: seconds of a phase for a unit of work."""

    operation: str
    model: str
    phase: str
    per: str
    seconds: float

    @property
    def attributes(self) -> dict[str, str]:
        return {
            semconv.OPERATION_NAME: self.operation,
            semconv.REQUEST_MODEL: self.model,
            semconv.PHASE_NAME: self.phase,
            semconv.PER: self.per,
        }


def points(result: Result, batch_size: int | None = None, input_tokens: int | None = None) -> list[Point]:
    """The baseline of the first target: of all its configurations together, or of those asked for.

    A mean over a sweep is that of no load in particular: where production's batches are of one size, ask for that.
    """
    found = [
        configuration
        for target in result.targets[:1]
        for configuration in target.configurations
        if configuration.samples.latency_s
        and batch_size in (None, configuration.batch_size)
        and input_tokens in (None, configuration.input_tokens)
    ]
    if not found or found[0].operation is None or found[0].model is None:
        return []
    operation, model = found[0].operation, found[0].model
    return [
        Point(operation, model, phase, per, seconds)
        for phase in (semconv.FORWARD, semconv.PREFILL, semconv.DECODE)
        for per, seconds in _of_phase(found, phase)
    ]


def record(meter: Meter, found: Sequence[Point]) -> None:
    """Record the points, each once: the rules look back 14 days for them."""
    metric = semconv.METRICS[semconv.BASELINE]
    gauge = meter.create_gauge(metric.name, metric.unit, metric.brief)
    for point in found:
        gauge.set(point.seconds, point.attributes)


def as_rules(found: Sequence[Point], source: str) -> str:
    """A file of recording rules for Prometheus, each of which is one point. ``source`` stands in a comment."""
    lines = [
        f"# Baseline of the alert InferspanComputeSlowerThanBaseline: {' '.join(source.split())}",
        "groups:",
        "  - name: inferspan-baseline",
        "    rules:",
    ]
    for point in found:
        lines += [f"      - record: {_SERIES}", f'        expr: "vector({point.seconds!r})"', "        labels:"]
        # JSON strings are YAML strings, whatever a model is called
        lines += [f"          {name.replace('.', '_')}: {json.dumps(text)}" for name, text in point.attributes.items()]
    return "\n".join(lines) + "\n"


def _of_phase(found: Sequence[Configuration], phase: str) -> Iterator[tuple[str, float]]:
    """Seconds by unit of work, as ``collector-config/prometheus/rules/recording.yaml`` has them of this phase."""
    parts = [part for configuration in found if (part := _times(configuration.samples, phase)) and None not in part]
    if not parts or (phase == semconv.FORWARD and any(semconv.PREFILL in c.samples.phases_s for c in found)):
        return  # the forward of a generation mixes prefill and decode
    seconds = sum(sum(part) for part in parts)
    work: dict[str, Any] = {"flop": [c.samples.phases_flops.get(phase) for c in found]}
    if phase == semconv.DECODE:
        work["byte"] = [c.samples.kv_cache_bytes for c in found]
        intervals = [one for c in found for row in c.samples.inter_token_s for one in row]
        if intervals:
            yield "step", sum(intervals) / len(intervals)
    else:
        yield "call", seconds / sum(map(len, parts))
        work["token"] = [c.samples.input_tokens for c in found]
        work["row"] = [[c.batch_size] * len(c.samples) for c in found]
    for per, columns in work.items():
        rows = [row for column in columns for row in column or [None]]
        if None not in rows and sum(rows):
            yield per, seconds / sum(rows)


def _times(samples: Samples, phase: str) -> list[Any]:
    """Of the GPU where they were measured, as the rules have it."""
    return samples.phases_gpu_s.get(phase) or samples.phases_s.get(phase) or []
