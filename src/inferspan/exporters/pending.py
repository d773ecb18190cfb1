"""Spans that wait for their local root, and the drawings that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

_TRACES_MAX = 128
_SPANS_MAX = 4096
_DRAWN_MAX = 8192

_REMOTE = "parent in another process"
_LATE = "late: the rest of this trace is drawn above"
_STRAYS = "with spans whose parent did not come"
_NO_ROOT = "root not finished"
NO_SPAN = 0  # the invalid span id: (trace, 0) in the drawn ids says that the trace's root was drawn


@dataclass(slots=True)
class Node:
    """What a drawing needs of one span. Times are Unix nanoseconds; a trace's root has no ``parent_id``."""

    trace_id: int
    span_id: int
    parent_id: int | None
    remote: bool
    name: str
    start_ns: int | None
    end_ns: int | None
    failed: bool
    attributes: Mapping[str, Any]
    children: list[Node] = field(default_factory=list)


def node_of(span: ReadableSpan) -> Node:
    parent = span.parent
    return Node(
        trace_id=span.context.trace_id,
        span_id=span.context.span_id,
        parent_id=None if parent is None else parent.span_id,
        remote=parent is not None and parent.is_remote,
        name=span.name,
        start_ns=span.start_time,
        end_ns=span.end_time,
        failed=span.status.status_code is StatusCode.ERROR,
        attributes=span.attributes or {},
    )


def start_of(node: Node) -> int:
    return node.start_ns or 0


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing: spans of one trace, as trees."""

    trace_id: int
    note: str
    tops: list[Node]


class PendingSpans:
    """Spans by trace until their local root comes, and the ids of what was drawn. The oldest go first."""

    def __init__(self) -> None:
        self._held: dict[int, dict[int, Node]] = {}
        self._drawn: dict[tuple[int, int], None] = {}

    def add(self, nodes: Iterable[Node]) -> list[Drawing]:
        """Hold these; give what can now be drawn."""
        arrived: dict[int, list[Node]] = {}
        for node in nodes:
            self._held.setdefault(node.trace_id, {})[node.span_id] = node
            arrived.setdefault(node.trace_id, []).append(node)
        drawings = [drawing for trace_id, new in arrived.items() for drawing in self._ready(trace_id, new)]
        while len(self._held) > _TRACES_MAX or sum(map(len, self._held.values())) > _SPANS_MAX:
            drawings.extend(self._give_up(next(iter(self._held))))
        return drawings

    def take_all(self) -> list[Drawing]:
        """Give all that waits, without the roots."""
        return [drawing for trace_id in list(self._held) for drawing in self._give_up(trace_id)]

    def _ready(self, trace_id: int, arrived: list[Node]) -> list[Drawing]:
        """The root takes all that waits. A span with a remote parent takes only what is below it, since there
        may be others of the same trace. A span whose parent was drawn comes late."""
        held = self._held[trace_id]
        has_root = any(node.parent_id is None for node in arrived)
        ended = has_root or (trace_id, NO_SPAN) in self._drawn
        candidates = list(held.values()) if has_root else arrived
        tops = [node for node in candidates if node.parent_id not in held]
        drawings = [self._take(trace_id, [node], _REMOTE) for node in tops if node.remote]
        others = [node for node in tops if not node.remote and (ended or (trace_id, node.parent_id) in self._drawn)]
        if others:
            strays = _STRAYS if len(others) > 1 else ""
            drawings.append(self._take(trace_id, others, strays if has_root else _LATE))
        if has_root:
            self._remember(trace_id, NO_SPAN)
        return drawings

    def _give_up(self, trace_id: int) -> list[Drawing]:
        held = self._held[trace_id]
        tops = [node for node in held.values() if node.parent_id not in held]
        drawings = [self._take(trace_id, tops, _NO_ROOT)] if tops else []
        # Left are spans that are each other's parents.
        self._held.pop(trace_id, None)
        return drawings

    def _take(self, trace_id: int, tops: list[Node], note: str) -> Drawing:
        """Link ``tops`` to all that is below them, which then waits no longer."""
        held = self._held[trace_id]
        below: dict[int | None, list[Node]] = {}
        for node in held.values():
            below.setdefault(node.parent_id, []).append(node)
        reached = list(tops)
        for node in reached:
            node.children = sorted(below.get(node.span_id, ()), key=start_of)
            reached.extend(node.children)
        for node in reached:
            held.pop(node.span_id, None)
            self._remember(trace_id, node.span_id)
        if not held:
            del self._held[trace_id]
        return Drawing(trace_id, note, sorted(tops, key=start_of))

    def _remember(self, trace_id: int, span_id: int) -> None:
        self._drawn[trace_id, span_id] = None
        if len(self._drawn) > _DRAWN_MAX:
            del self._drawn[next(iter(self._drawn))]
