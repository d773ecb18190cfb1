"""What every trace must be, whatever made it: one root, children inside their parent and in order, sums that agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from inferspan import semconv

# Seconds on a span are floats of nanoseconds.
_ROUNDED_S = 1e-6


class Span(NamedTuple):
    """One span of one trace. Times are nanoseconds since 1970."""

    name: str
    span_id: Any
    parent_id: Any
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9


def span_of(span: ReadableSpan) -> Span:
    """A span of the SDK."""
    parent = None if span.parent is None else span.parent.span_id
    assert span.context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    return Span(span.name, span.context.span_id, parent, span.start_time, span.end_time, span.attributes or {})


def tree(trace: Iterable[Span]) -> Any:
    """Names as nested tuples ``("root", "child", ("child", ...))``, by start; of a trace that is well formed."""
    below = _below(trace)
    (root,) = below.pop(None)

    def name(span: Span) -> Any:
        children = below.get(span.span_id, ())
        return (span.name, *map(name, children)) if children else span.name

    return name(root)


def problems(trace: Iterable[Span], *, concurrent: bool = False) -> list[str]:
    """What is wrong with a whole trace. ``concurrent``: the phases of its root may overlap."""
    trace = list(trace)
    ids = [span.span_id for span in trace]
    if len(set(ids)) < len(ids):
        return ["a span came twice"]
    roots = [span for span in trace if span.parent_id is None]
    if len(roots) != 1:
        return [f"{len(roots)} roots"]
    orphans = [span.name for span in trace if span.parent_id is not None and span.parent_id not in ids]
    if orphans:
        return [f"parent missing of {orphans}"]
    below = _below(trace)
    return [
        problem
        for span in trace
        for problem in _wrong(span, below.get(span.span_id, []), concurrent=concurrent and span is roots[0])
    ]


def _wrong(span: Span, children: list[Span], *, concurrent: bool) -> Iterable[str]:
    if span.end_ns < span.start_ns:
        yield f"{span.name} ends before it starts"
    for child in children:
        if not span.start_ns <= child.start_ns <= child.end_ns <= span.end_ns:
            yield f"{child.name} outside of {span.name}"
    for first, second in pairwise(children):
        if not concurrent and second.start_ns < first.end_ns:
            yield f"{first.name} and {second.name} overlap"
    busy = span.attributes.get(semconv.BUSY_TIME, span.seconds)
    if busy > span.seconds + _ROUNDED_S:
        yield f"{span.name} was busy longer than it took"
    own = span.attributes.get(semconv.PHASE_TIME)
    if (own is None) != (span.attributes.get(semconv.PHASE_CALLS, 1) == 1) or (own or 0) > span.seconds + _ROUNDED_S:
        yield f"{span.name}: the time of its calls does not agree with itself"
    if not concurrent and sum(child.attributes.get(semconv.PHASE_TIME, child.seconds) for child in children) > (
        span.seconds + _ROUNDED_S
    ):
        yield f"the parts of {span.name} took longer than the whole"
    yield from _wrong_generation(span, children)


def _wrong_generation(span: Span, children: list[Span]) -> Iterable[str]:
    parts = [child for child in children if child.name in (semconv.PREFILL, semconv.DECODE)]
    if [part.name for part in parts] not in ([], [semconv.PREFILL], [semconv.PREFILL, semconv.DECODE]):
        yield f"{span.name} has {[part.name for part in parts]}"
    if len(parts) == 2 and parts[0].end_ns != parts[1].start_ns:
        yield "decode does not begin where prefill ends"
    first_s = span.attributes.get(semconv.TIME_TO_FIRST_TOKEN)
    if first_s is not None and not 0 <= first_s <= span.seconds + _ROUNDED_S:
        yield "the first token came outside of the inference"


def _below(trace: Iterable[Span]) -> dict[Any, list[Span]]:
    """Children of each span, in the order of their start."""
    found: dict[Any, list[Span]] = {}
    for span in sorted(trace, key=lambda span: (span.start_ns, span.end_ns)):
        found.setdefault(span.parent_id, []).append(span)
    return found
