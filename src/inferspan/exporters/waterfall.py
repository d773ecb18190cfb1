"""One drawing as lines of text: the tree of spans, a bar for each on a common time axis, measurements beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inferspan import semconv
from inferspan.exporters.measurements import LAYER_PARTS, duration_of, is_failed, measurements_of, number, time_text
from inferspan.exporters.pending import NO_SPAN, Drawing, Node, start_of
from inferspan.exporters.terminal import BOLD, CYAN, DIM, RED, TEXT_MAX, Glyphs, Terminal, cells_of, clip, pad

_LAYERS_MAX = 8
_PREFIX_MAX = 24
_LABEL_LEAST_MAX = 36
_BAR_LEAST, _BAR_MIN, _BAR_MAX = 6, 12, 48


@dataclass(frozen=True, slots=True)
class _Row:
    """One span. ``below`` are the tree's lines beside further lines of the same row."""

    node: Node
    prefix: str
    below: str
    name: str
    duration: str
    measurements: list[str]


def draw(drawing: Drawing, terminal: Terminal) -> Iterator[str]:
    """The lines of one drawing, and an empty one."""
    rows = list(_rows(drawing, terminal))
    starts = [row.node.start_ns for row in rows if row.node.start_ns is not None]
    ends = [row.node.end_ns for row in rows if row.node.end_ns is not None]
    origin = min(starts, default=0)
    extent = max(ends, default=origin) - origin
    head = f"trace {drawing.trace_id:032x}"[:14] + terminal.glyphs.ellipsis
    total = time_text(extent / 1e9, terminal) if starts and ends else ""
    yield terminal.paint(terminal.glyphs.separator.join(filter(None, (head, total, drawing.note))), BOLD)
    columns = _columns(rows, terminal)
    for row in rows:
        bar = _bar(row.node, origin, extent, columns.bar, terminal.glyphs)
        yield from _lines(row, bar, columns, terminal)
    yield ""


def _rows(drawing: Drawing, terminal: Terminal) -> Iterator[_Row]:
    glyphs = terminal.glyphs
    stack = [("", "", node) for node in reversed(drawing.tops)]
    while stack:
        prefix, below, node = stack.pop()
        yield _Row(
            node,
            prefix,
            below + (glyphs.pipe if node.children else ""),
            terminal.clean(node.name, TEXT_MAX),
            duration_of(node, terminal),
            list(measurements_of(node, terminal)),
        )
        below = below[-_PREFIX_MAX:]
        children = _folded(node.children)
        for child in reversed(children):
            is_last = child is children[-1]
            here, under = (glyphs.last, "   ") if is_last else (glyphs.branch, glyphs.pipe)
            stack.append((below + here, below + under, child))


def _folded(children: list[Node]) -> list[Node]:
    """Of many layers those that took longest, and the others as one."""
    layers = sorted((node for node in children if semconv.LAYER_NAME in node.attributes), key=_layer_time)
    others = layers[:-_LAYERS_MAX]
    if not others:
        return children
    sums: dict[str, float] = {}
    for name in (semconv.PHASE_CALLS, semconv.GPU_TIME, *LAYER_PARTS.values()):
        values = [value for node in others if (value := number(node.attributes, name)) is not None]
        if len(values) == len(others):
            sums[name] = sum(values)
    folded = Node(
        trace_id=others[0].trace_id,
        span_id=NO_SPAN,
        parent_id=others[0].parent_id,
        remote=False,
        name=f"{len(others)} other layers",
        start_ns=min(map(start_of, others)),
        end_ns=max(node.end_ns or 0 for node in others),
        failed=False,
        attributes={**sums, semconv.PHASE_TIME: sum(map(_layer_time, others))},
    )
    gone = set(map(id, others))
    return sorted([folded, *(node for node in children if id(node) not in gone)], key=start_of)


def _layer_time(node: Node) -> float:
    for name in (semconv.GPU_TIME, semconv.PHASE_TIME):
        seconds = number(node.attributes, name)
        if seconds is not None:
            return seconds
    return ((node.end_ns or 0) - start_of(node)) / 1e9


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths in cells."""

    label: int
    bar: int
    duration: int
    measurements: int


def _columns(rows: list[_Row], terminal: Terminal) -> _Columns:
    """Labels get what they need up to two fifths of the width, then measurements, as long as that leaves a bar."""
    label_max = max(_LABEL_LEAST_MAX, 2 * terminal.width // 5)
    label = min(label_max, max(len(row.prefix) + cells_of(row.name) for row in rows))
    duration = max(cells_of(row.duration) for row in rows)
    longest = max(cells_of(terminal.glyphs.separator.join(row.measurements)) for row in rows)
    widest = max((cells_of(measurement) for row in rows for measurement in row.measurements), default=0)
    room = terminal.width - label - duration - 6
    bar = min(_BAR_MAX, room - longest)
    if bar < _BAR_MIN:  # measurements go on below, but none is broken in two
        bar = max(_BAR_LEAST if widest else _BAR_MIN, min(max(_BAR_MIN, 2 * room // 5), room - widest))
    return _Columns(label, bar, duration, max(widest, room - bar))


def _lines(row: _Row, bar: str, columns: _Columns, terminal: Terminal) -> Iterator[str]:
    failed = is_failed(row.node)
    first, *further = _wrap(row.measurements, columns.measurements, terminal.glyphs.separator) or [""]
    name = clip(row.name, columns.label - len(row.prefix), terminal.glyphs.ellipsis)
    label = terminal.paint(row.prefix, DIM) + pad(name, columns.label - len(row.prefix))
    painted_bar = terminal.paint(bar, RED if failed else CYAN)
    code = RED if failed else DIM
    yield f"{label}  {painted_bar}  {row.duration:>{columns.duration}}  {terminal.paint(first, code)}".rstrip()
    gap = " " * (columns.bar + columns.duration + 6)
    for text in further:
        below = row.below[: columns.label]
        yield f"{terminal.paint(pad(below, columns.label), DIM)}{gap}{terminal.paint(text, code)}"


def _wrap(measurements: list[str], cells: int, separator: str) -> list[str]:
    lines: list[str] = []
    for measurement in measurements:
        if lines and cells_of(lines[-1]) + len(separator) + cells_of(measurement) <= cells:
            lines[-1] += separator + measurement
        else:
            lines.append(measurement)
    return lines


def _bar(node: Node, origin_ns: int, extent_ns: int, columns: int, glyphs: Glyphs) -> str:
    """The span on the axis, in eighths of a column; never less than one of them."""
    if node.start_ns is None or node.end_ns is None:
        return " " * columns
    eighths = 8 * columns
    scale = eighths / extent_ns if extent_ns > 0 else 0.0
    left = min(round((node.start_ns - origin_ns) * scale), eighths - 1)
    right = max(round((node.end_ns - origin_ns) * scale), left + 1)
    if extent_ns <= 0:
        right = eighths
    first, last = left // 8, (right - 1) // 8
    if first == last:
        near_left = left + right <= 16 * first + 8
        cells = (glyphs.from_left if near_left else glyphs.from_right)[right - left]
    else:
        full = glyphs.from_left[8] * (last - first - 1)
        cells = glyphs.from_right[8 * (first + 1) - left] + full + glyphs.from_left[right - 8 * last]
    return pad(" " * first + cells, columns)
