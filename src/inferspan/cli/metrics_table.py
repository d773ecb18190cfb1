"""Recorded telemetry as two tables: how long each operation of each model took, and in which phases.

Counts, tokens and shares are read from the metrics. P50, P95 and P99 are not: from a histogram a backend can only
interpolate within buckets, while here the spans are at hand, so percentiles and the time to the first token are those
of the root spans' own durations, interpolated linearly between two of them. An operation whose metric is missing has
a dash, never a 0. Nothing is recorded here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inferspan import semconv

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from rich.table import Table

_DURATIONS = (semconv.OPERATION_DURATION, semconv.INFERENCE_DURATION)
_TOKENS = {
    (semconv.TOKEN_USAGE, "input"): "read",
    (semconv.TOKEN_USAGE, "output"): "written",
    (semconv.INFERENCE_INPUT_TOKENS, None): "read",
    (semconv.INFERENCE_OUTPUT_TOKENS, None): "written",
}
_NS = 1e-9


@dataclass(slots=True)
class Operation:
    """One operation of one model. ``durations_s`` and ``first_token_s`` are of the spans, the rest of the metrics."""

    name: str
    model: str
    count: int = 0
    total_s: float = 0.0
    read: int | None = None
    written: int | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    durations_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)

    def tokens_per_s(self) -> float | None:
        """Tokens written, or where none are, read, for each second of these inferences."""
        tokens = self.read if self.written is None else self.written
        return tokens / self.total_s if tokens is not None and self.total_s else None

    def share(self, phase: str) -> float | None:
        """Of the whole time, that in one phase."""
        return self.phases_s[phase] / self.total_s if phase in self.phases_s and self.total_s else None

    def share_of_rest(self) -> float | None:
        """Of the whole time, that in no phase: the library around them, and a lazy result's consumer."""
        parts = [self.share(phase) for phase in _PHASES if phase not in (semconv.PREFILL, semconv.DECODE)]
        known = [part for part in parts if part is not None]
        return max(0.0, 1 - sum(known)) if known else None


_PHASES = (
    semconv.TOKENIZE,
    semconv.PREPROCESS,
    semconv.FORWARD,
    semconv.PREFILL,
    semconv.DECODE,
    semconv.DETOKENIZE,
    semconv.POSTPROCESS,
)


def operations(metrics: MetricsData | None, spans: Sequence[ReadableSpan]) -> list[Operation]:
    """Every operation that has a duration, in the order of their first spans."""
    found: dict[tuple[Any, Any], Operation] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        facts = span.attributes or {}
        key = (facts.get(semconv.OPERATION_NAME), facts.get(semconv.REQUEST_MODEL))
        if None in key or key[0] == semconv.LOAD_OPERATION or not span.start_time or not span.end_time:
            continue
        operation = found.setdefault(key, Operation(str(key[0]), str(key[1])))
        operation.durations_s.append((span.end_time - span.start_time) * _NS)
        first = facts.get(semconv.TIME_TO_FIRST_TOKEN)
        if isinstance(first, float):
            operation.first_token_s.append(first)
    for name, point in _points(metrics):
        facts = point.attributes or {}
        of = found.get((facts.get(semconv.OPERATION_NAME), facts.get(semconv.REQUEST_MODEL)))
        if of is None:
            continue
        kind = _TOKENS.get((name, facts.get(semconv.TOKEN_TYPE)))
        if name in _DURATIONS:
            of.count += point.count
            of.total_s += point.sum
        elif kind is not None:
            setattr(of, kind, (getattr(of, kind) or 0) + int(point.sum))
        elif name == semconv.PHASE_DURATION:
            phase = facts[semconv.PHASE_NAME]
            of.phases_s[phase] = of.phases_s.get(phase, 0.0) + point.sum
    return [operation for operation in found.values() if operation.count]


def metric_names(metrics: MetricsData | None) -> list[str]:
    """Names of the metrics that have points, sorted."""
    return sorted({name for name, _ in _points(metrics)})


def latency_table(found: Sequence[Operation]) -> Table:
    """How long, how many tokens, how fast; durations in milliseconds."""
    table = _table("", "count", "P50", "P95", "P99", "first\ntoken", "tokens\nin", "tokens\nout", "tokens\n/s")
    for operation in found:
        table.add_row(
            _label(operation),
            str(operation.count),
            *(_ms(_percentile(operation.durations_s, percent)) for percent in (50, 95, 99)),
            _ms(_percentile(operation.first_token_s, 50)),
            _whole(operation.read),
            _whole(operation.written),
            _whole(operation.tokens_per_s()),
        )
    return table


def phase_table(found: Sequence[Operation]) -> Table:
    """Share of each phase in the time of its operation. Phases that no operation has get no column."""
    phases = [phase for phase in _PHASES if any(phase in operation.phases_s for operation in found)]
    inner = {semconv.PREFILL, semconv.DECODE}
    table = _table("", *(f"{phase}\n(in it)" if phase in inner else phase for phase in phases), "rest")
    for operation in found:
        table.add_row(
            _label(operation),
            *(_percent(operation.share(phase)) for phase in phases),
            _percent(operation.share_of_rest()),
        )
    return table


def _points(metrics: MetricsData | None) -> Iterator[tuple[str, Any]]:
    for resource in metrics.resource_metrics if metrics else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield metric.name, point


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column(first, overflow="fold", min_width=15)  # the one column that gives way to the width
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _label(operation: Operation) -> Any:
    from rich.text import Text

    return Text.assemble(operation.name, "\n", (operation.model, "dim"))


def _percentile(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.1f}"


def _whole(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
