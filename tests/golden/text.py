"""Telemetry as canonical text: the same for each run, one fact a line, everything in an order of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import Gauge, Histogram, MetricsData, Sum
from opentelemetry.sdk.trace import Event, ReadableSpan

from golden import placeholders

OURS = "inferspan"
_SLACK_NS = 1_000_000


def indented(lines: Iterable[str], by: int = 1) -> list[str]:
    return ["  " * by + line for line in lines]


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A heading and what is below it; nothing where there is nothing."""
    return [title, *indented(lines)] if lines else []


def attributes(found: Mapping[str, Any] | None) -> list[str]:
    """One line for each, by name."""
    kept = sorted((name, value) for name, value in (found or {}).items() if name not in placeholders.LEFT_OUT)
    return [f"{name} = {placeholders.attribute(name, value)}" for name, value in kept]


def scope(found: Any) -> str:
    """An instrumentation scope in one line."""
    facts = [line.replace(" = ", "=") for line in attributes(found.attributes)]
    version = ["<version>"] if found.version else []
    return " ".join([found.name, *version, *([found.schema_url] if found.schema_url else []), *facts])


# -- spans -------------------------------------------------------------------------------------------------------------


class Spans:
    """All spans of a scenario, and where each of them is."""

    def __init__(self, spans: Sequence[ReadableSpan]) -> None:
        self.spans = sorted(spans, key=lambda span: (span.start_time, -(span.end_time or 0), span.name))
        self.by_id = {span.context.span_id: span for span in self.spans}
        self.roots = [span for span in self.spans if self.above(span) is None]
        self.traces: dict[int, int] = {}

    def above(self, span: ReadableSpan) -> ReadableSpan | None:
        return None if span.parent is None else self.by_id.get(span.parent.span_id)

    def path(self, span_id: int) -> str:
        """The names from a root down to the span."""
        span = self.by_id.get(span_id)
        if span is None:
            return "a span that was not recorded" if span_id else "none"
        above = self.above(span)
        return span.name if above is None else f"{self.path(above.context.span_id)} > {span.name}"

    def lines(self) -> list[str]:
        scopes = {scope(span.instrumentation_scope) for span in self.spans if _is_ours(span)}
        trees = [line for root in self.roots for line in self._tree(root)]
        return [*(f"scope {each}" for each in sorted(scopes)), *trees]

    def _tree(self, span: ReadableSpan) -> list[str]:
        below = [child for child in self.spans if self.above(child) is span]
        kind = "" if span.kind.name == "INTERNAL" else f" [{span.kind.name}]"
        lines = [*self._place(span), *_own(span), *self._links(span)]
        trees = [line for child in below for line in self._tree(child)]
        return [f"- {span.name}{kind}", *indented(lines, 2), *indented(trees)]

    def _place(self, span: ReadableSpan) -> list[str]:
        above, lines = self.above(span), []
        if above is None:
            number = self.traces.setdefault(span.context.trace_id, len(self.traces) + 1)
            if number <= len(self.traces) and self._is_second(span):
                lines.append(f"in trace {number}, which has more than this root")
            if span.parent is not None:
                lines.append(f"below a {'remote' if span.parent.is_remote else 'local'} span that was not recorded")
        else:
            if above.context.trace_id != span.context.trace_id:
                lines.append("in another trace than its parent")
            if above.start_time - span.start_time > _SLACK_NS or span.end_time - above.end_time > _SLACK_NS:
                lines.append("beyond its parent's time")
        if not _is_ours(span):
            lines.append(f"scope {scope(span.instrumentation_scope)}")
        return lines

    def _is_second(self, span: ReadableSpan) -> bool:
        return sum(root.context.trace_id == span.context.trace_id for root in self.roots) > 1

    def _links(self, span: ReadableSpan) -> list[str]:
        return [
            line
            for link in span.links
            for line in (f"link to {self.path(link.context.span_id)}", *indented(attributes(link.attributes)))
        ]


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope.name.split(".")[0] == OURS


def _own(span: ReadableSpan) -> list[str]:
    lines = []
    if not span.status.is_unset:
        lines.append(f"status {span.status.status_code.name} {span.status.description or ''}".rstrip())
    if span.context.trace_state:
        lines.append(f"trace state {span.context.trace_state.to_header()}")
    for name in ("attributes", "events", "links"):
        number = getattr(span, f"dropped_{name}")
        if number:
            lines.append(f"{number} {name} dropped")
    return [*lines, *attributes(span.attributes), *(line for event in span.events for line in _event(span, event))]


def _event(span: ReadableSpan, event: Event) -> list[str]:
    is_within = span.start_time - _SLACK_NS <= event.timestamp <= span.end_time + _SLACK_NS
    return [f"event {event.name}{'' if is_within else ' beyond its time'}", *indented(attributes(event.attributes))]


# -- log records -------------------------------------------------------------------------------------------------------


def logs(records: Sequence[Any], spans: Spans) -> list[str]:
    """Log records in the order in which they came."""
    lines = []
    for data in records:
        record = data.log_record
        body = [] if record.body is None else [f"body {record.body!r}"]
        severity = [] if record.severity_text is None else [f"severity {record.severity_text}"]
        place = [f"scope {scope(data.instrumentation_scope)}", f"in {spans.path(record.span_id or 0)}"]
        lines += [f"- {record.event_name}", *indented([*place, *severity, *body, *attributes(record.attributes)], 2)]
    return lines


# -- metrics -----------------------------------------------------------------------------------------------------------


def metrics(data: MetricsData | None, spans: Spans, *, bounds: bool = False, exemplars: bool = False) -> list[str]:
    """All points of one collection, by metric and attributes."""
    lines: list[str] = []
    scopes = [found for resource in (data.resource_metrics if data else ()) for found in resource.scope_metrics]
    for found in sorted(scopes, key=lambda each: each.scope.name):
        lines.append(f"scope {scope(found.scope)}")
        for metric in sorted(found.metrics, key=lambda each: each.name):
            points = sorted(
                line
                for point in metric.data.data_points
                for line in [_point(metric, point, bounds) + (_exemplars(point, spans) if exemplars else "")]
            )
            lines += [f"{metric.name} {_kind(metric.data)} {metric.unit}", *indented(points)]
    return lines


def _kind(data: Any) -> str:
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "updowncounter"
    return "gauge" if isinstance(data, Gauge) else "histogram" if isinstance(data, Histogram) else type(data).__name__


def _point(metric: Any, point: Any, bounds: bool) -> str:
    own = ", ".join(line.replace(" = ", "=") for line in attributes(point.attributes))
    shown = placeholders.of_metric(metric.name, metric.unit, point.attributes or {})
    if not hasattr(point, "count"):
        return f"{{{own}}} {placeholders.literal(point.value) if shown is None else shown}"
    values = f"count={point.count}"
    if shown is None:
        values += "".join(f" {name}={placeholders.literal(getattr(point, name))}" for name in ("sum", "min", "max"))
        values += _buckets(point)
    if bounds and hasattr(point, "explicit_bounds"):
        values += f" bounds={placeholders.literal(tuple(point.explicit_bounds))}"
    return f"{{{own}}} {values}"


def _buckets(point: Any) -> str:
    if not hasattr(point, "explicit_bounds"):
        return f" scale={point.scale}"
    limits = [*(f"<={bound:g}" for bound in point.explicit_bounds), "more"]
    filled = [f"{limit}: {count}" for limit, count in zip(limits, point.bucket_counts, strict=False) if count]
    return f" [{', '.join(filled)}]"


def _exemplars(point: Any, spans: Spans) -> str:
    places = sorted({spans.path(exemplar.span_id or 0) for exemplar in point.exemplars})
    return f" exemplars in {places}" if places else " no exemplars"
