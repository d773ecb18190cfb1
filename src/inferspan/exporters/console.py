"""Finished traces as waterfalls in a terminal: what ``OTEL_TRACES_EXPORTER=inferspan_console`` chooses.

::

    trace 4bf92f35… · 812.4 ms
    text_completion tiny-llama  ████████████████████████  812.4 ms  11 → 32 tokens · 41.7 tok/s
    │                                                               first token 61.0 ms · cold
    ├─ tokenize                 ▏                           0.9 ms
    ├─ forward                  ███████████████████████▊  804.1 ms
    │  ├─ prefill               █▉                         60.2 ms
    │  └─ decode                 ▕█████████████████████▊  743.9 ms  41.7 steps/s
    └─ detokenize                                      ▕    0.4 ms

A row is a span. Its bar stands on the time axis of what is drawn, to an eighth of a column; a span too short
for that is still one stroke. Times come from the spans, figures from their attributes; a figure that a span
has not is left out, and batch, items and calls of one are not worth a word.

Spans wait here for their local root (no parent, or a parent in another process), and are then drawn with it.
What comes later is drawn by itself, with a note, and so is what waits when there is too much of it, or at a
flush.

This is for looking, not for machines: the layout may change. Nothing is written but complete drawings, no
text of a span reaches the terminal with its control characters, and nothing is raised into the SDK: a stream
that is closed or broken gives ``FAILURE``.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from inferspan import faults, forks, semconv

_TRACES_MAX = 128
_SPANS_MAX = 4096
_DRAWN_MAX = 8192
_LAYERS_MAX = 8

_WIDTH_UNKNOWN = 100
_WIDTH_PIPED_MAX = 120
_WIDTH_MIN = 40
_TEXT_MAX = 120
_FIGURE_MAX = 60
_PREFIX_MAX = 24
_LABEL_LEAST_MAX = 36
_BAR_LEAST, _BAR_MIN, _BAR_MAX = 6, 12, 48

_REMOTE = "parent in another process"
_LATE = "late: the rest of this trace is drawn above"
_STRAYS = "with spans whose parent did not come"
_NO_ROOT = "root not finished"
_NO_SPAN = 0  # the invalid span id: (trace, 0) in the drawn ids says that the trace's root was drawn


class WaterfallSpanExporter(SpanExporter):
    """Draws each trace when its local root has ended. May be shared by threads.

    ``out`` is standard output at the time of writing unless given; ``width`` is that of the terminal.
    """

    def __init__(self, out: IO[str] | None = None, width: int | None = None) -> None:
        self._out = out
        self._width = width
        self._shut_down = False
        self._begin_anew()
        forks.register(after_in_child=self._begin_anew)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            if self._shut_down:
                return SpanExportResult.FAILURE
            try:
                parts = self._waiting.add(_node(span) for span in spans if span.context is not None)
            except Exception:  # noqa: BLE001 - a fault of ours must not end the SDK's export thread
                faults.note("waterfall.export")
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS if self._write(parts) else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Draw what waits for its root as it is. False where the stream did not take it."""
        with self._lock:
            return self._write(self._waiting.take_all())

    def shutdown(self) -> None:
        self.force_flush()
        self._shut_down = True

    def _begin_anew(self) -> None:
        # Again in a forked child: what waits is the parent's, and a thread left there may hold the lock.
        # Reentrant, since a worker that the garbage collector runs in here may end a span.
        self._lock = threading.RLock()
        self._waiting = _Waiting()

    def _write(self, parts: list[_Part]) -> bool:
        if not parts:
            return True
        out = sys.stdout if self._out is None else self._out
        try:
            surface = _surface(out, self._width)
        except Exception:  # noqa: BLE001 - any stream can be put in place of stdout, and raise what it likes
            return False
        try:
            text = "".join(f"{line}\n" for part in parts for line in _draw(part, surface))
        except Exception:  # noqa: BLE001 - as in export
            faults.note("waterfall.draw")
            return False
        try:
            out.write(text)
            out.flush()
        except Exception:  # noqa: BLE001 - as above
            return False
        return True


@dataclass(slots=True)
class _Node:
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
    children: list[_Node] = field(default_factory=list)


def _node(span: ReadableSpan) -> _Node:
    parent = span.parent
    return _Node(
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


def _start(node: _Node) -> int:
    return node.start_ns or 0


@dataclass(frozen=True, slots=True)
class _Part:
    """One drawing: spans of one trace, as trees."""

    trace_id: int
    note: str
    tops: list[_Node]


class _Waiting:
    """Spans by trace until their local root comes, and the ids of what was drawn. The oldest go first."""

    def __init__(self) -> None:
        self._held: dict[int, dict[int, _Node]] = {}
        self._drawn: dict[tuple[int, int], None] = {}

    def add(self, nodes: Iterable[_Node]) -> list[_Part]:
        """Hold these; give what can now be drawn."""
        arrived: dict[int, list[_Node]] = {}
        for node in nodes:
            self._held.setdefault(node.trace_id, {})[node.span_id] = node
            arrived.setdefault(node.trace_id, []).append(node)
        parts = [part for trace_id, new in arrived.items() for part in self._ready(trace_id, new)]
        while len(self._held) > _TRACES_MAX or sum(map(len, self._held.values())) > _SPANS_MAX:
            parts.extend(self._give_up(next(iter(self._held))))
        return parts

    def take_all(self) -> list[_Part]:
        """Give all that waits, without the roots."""
        return [part for trace_id in list(self._held) for part in self._give_up(trace_id)]

    def _ready(self, trace_id: int, arrived: list[_Node]) -> list[_Part]:
        """The root takes all that waits. A span with a remote parent takes only what is below it, since there
        may be others of the same trace. A span whose parent was drawn comes late."""
        held = self._held[trace_id]
        has_root = any(node.parent_id is None for node in arrived)
        ended = has_root or (trace_id, _NO_SPAN) in self._drawn
        candidates = list(held.values()) if has_root else arrived
        tops = [node for node in candidates if node.parent_id not in held]
        parts = [self._take(trace_id, [node], _REMOTE) for node in tops if node.remote]
        others = [node for node in tops if not node.remote and (ended or (trace_id, node.parent_id) in self._drawn)]
        if others:
            strays = _STRAYS if len(others) > 1 else ""
            parts.append(self._take(trace_id, others, strays if has_root else _LATE))
        if has_root:
            self._remember(trace_id, _NO_SPAN)
        return parts

    def _give_up(self, trace_id: int) -> list[_Part]:
        held = self._held[trace_id]
        tops = [node for node in held.values() if node.parent_id not in held]
        parts = [self._take(trace_id, tops, _NO_ROOT)] if tops else []
        # Left are spans that are each other's parents.
        self._held.pop(trace_id, None)
        return parts

    def _take(self, trace_id: int, tops: list[_Node], note: str) -> _Part:
        """Link ``tops`` to all that is below them, which then waits no longer."""
        held = self._held[trace_id]
        below: dict[int | None, list[_Node]] = {}
        for node in held.values():
            below.setdefault(node.parent_id, []).append(node)
        reached = list(tops)
        for node in reached:
            node.children = sorted(below.get(node.span_id, ()), key=_start)
            reached.extend(node.children)
        for node in reached:
            held.pop(node.span_id, None)
            self._remember(trace_id, node.span_id)
        if not held:
            del self._held[trace_id]
        return _Part(trace_id, note, sorted(tops, key=_start))

    def _remember(self, trace_id: int, span_id: int) -> None:
        self._drawn[trace_id, span_id] = None
        if len(self._drawn) > _DRAWN_MAX:
            del self._drawn[next(iter(self._drawn))]


@dataclass(frozen=True, slots=True)
class _Glyphs:
    """``from_left[n]`` is a column of which n eighths are covered, counted from its left edge."""

    branch: str
    last: str
    pipe: str
    from_left: str
    from_right: str
    separator: str
    ellipsis: str
    arrow: str
    at_most: str
    micro: str


_LINES = _Glyphs("├─ ", "└─ ", "│  ", " ▏▎▍▌▋▊▉█", " ▕▕▐▐▐▐██", " · ", "…", "→", "≤", "µ")
_ASCII = _Glyphs("|- ", "`- ", "|  ", " ||||####", " ||||####", "; ", "...", "->", "<=", "u")

_ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f]).*?(?:\x1b\\|[\x07\x9c]|$)"
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Surface:
    """The stream, as far as a drawing depends on it."""

    width: int
    colour: bool
    encoding: str
    glyphs: _Glyphs

    def clean(self, text: object, cells: int) -> str:
        """Text of others on one line, without anything that a terminal would act on, cut to ``cells``."""
        # The regular expression must not see text of any length: unterminated sequences make it quadratic.
        shown = _ESCAPE_SEQUENCES.sub("", str(text)[: 4 * _TEXT_MAX])
        shown = "".join(
            " " if char.isspace() else char
            for char in shown
            if char.isspace() or not unicodedata.category(char).startswith("C")
        )
        shown = " ".join(shown.split()).encode(self.encoding, "replace").decode(self.encoding)
        return _clip(shown, cells, self.glyphs.ellipsis)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text.strip() else text


_BOLD, _DIM, _RED, _CYAN = "1", "2", "31", "36"


def _surface(out: IO[str], width: int | None) -> _Surface:
    is_terminal = out.isatty()
    if width is None:
        width = shutil.get_terminal_size((_WIDTH_UNKNOWN, 24)).columns
        if not is_terminal:
            width = min(width, _WIDTH_PIPED_MAX)
    encoding = getattr(out, "encoding", None) or "utf-8"
    glyphs = _LINES
    try:
        "".join(getattr(_LINES, name) for name in _Glyphs.__slots__).encode(encoding)
    except UnicodeError:
        glyphs = _ASCII
    except LookupError:
        encoding, glyphs = "ascii", _ASCII
    # Not a setting of ours but of terminals (no-color.org), and the SDK makes this class without arguments.
    colour = is_terminal and not os.environ.get("NO_COLOR")
    return _Surface(max(width, _WIDTH_MIN), colour, encoding, glyphs)


def _cells(text: str) -> int:
    """Columns that the text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cell(char) for char in text)


def _cell(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _clip(text: str, cells: int, ellipsis: str) -> str:
    if _cells(text) <= cells and len(text) <= 2 * cells:
        return text
    kept, left = [], cells - len(ellipsis)
    for char in text[: 2 * cells]:
        left -= _cell(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept) + ellipsis


def _pad(text: str, cells: int) -> str:
    return text + " " * (cells - _cells(text))


@dataclass(frozen=True, slots=True)
class _Row:
    """One span. ``below`` are the tree's lines beside further lines of the same row."""

    node: _Node
    prefix: str
    below: str
    name: str
    duration: str
    figures: list[str]


def _draw(part: _Part, surface: _Surface) -> Iterator[str]:
    """The lines of one drawing, and an empty one."""
    rows = list(_rows(part, surface))
    starts = [row.node.start_ns for row in rows if row.node.start_ns is not None]
    ends = [row.node.end_ns for row in rows if row.node.end_ns is not None]
    origin = min(starts, default=0)
    extent = max(ends, default=origin) - origin
    head = f"trace {part.trace_id:032x}"[:14] + surface.glyphs.ellipsis
    total = _time(extent / 1e9, surface) if starts and ends else ""
    yield surface.paint(surface.glyphs.separator.join(filter(None, (head, total, part.note))), _BOLD)
    columns = _columns(rows, surface)
    for row in rows:
        bar = _bar(row.node, origin, extent, columns.bar, surface.glyphs)
        yield from _lines(row, bar, columns, surface)
    yield ""


def _rows(part: _Part, surface: _Surface) -> Iterator[_Row]:
    glyphs = surface.glyphs
    stack = [("", "", node) for node in reversed(part.tops)]
    while stack:
        prefix, below, node = stack.pop()
        yield _Row(
            node,
            prefix,
            below + (glyphs.pipe if node.children else ""),
            surface.clean(node.name, _TEXT_MAX),
            _duration(node, surface),
            list(_figures(node, surface)),
        )
        below = below[-_PREFIX_MAX:]
        children = _folded(node.children)
        for child in reversed(children):
            is_last = child is children[-1]
            here, under = (glyphs.last, "   ") if is_last else (glyphs.branch, glyphs.pipe)
            stack.append((below + here, below + under, child))


def _folded(children: list[_Node]) -> list[_Node]:
    """Of many layers those that took longest, and the others as one."""
    layers = sorted((node for node in children if semconv.LAYER_NAME in node.attributes), key=_layer_time)
    others = layers[:-_LAYERS_MAX]
    if not others:
        return children
    sums: dict[str, float] = {}
    for name in (semconv.PHASE_CALLS, semconv.GPU_TIME, *_PARTS.values()):
        values = [value for node in others if (value := _number(node.attributes, name)) is not None]
        if len(values) == len(others):
            sums[name] = sum(values)
    folded = _Node(
        trace_id=others[0].trace_id,
        span_id=_NO_SPAN,
        parent_id=others[0].parent_id,
        remote=False,
        name=f"{len(others)} other layers",
        start_ns=min(map(_start, others)),
        end_ns=max(node.end_ns or 0 for node in others),
        failed=False,
        attributes={**sums, semconv.PHASE_TIME: sum(map(_layer_time, others))},
    )
    gone = set(map(id, others))
    return sorted([folded, *(node for node in children if id(node) not in gone)], key=_start)


def _layer_time(node: _Node) -> float:
    for name in (semconv.GPU_TIME, semconv.PHASE_TIME):
        seconds = _number(node.attributes, name)
        if seconds is not None:
            return seconds
    return ((node.end_ns or 0) - _start(node)) / 1e9


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths in cells."""

    label: int
    bar: int
    duration: int
    figures: int


def _columns(rows: list[_Row], surface: _Surface) -> _Columns:
    """Labels get what they need up to two fifths of the width, then figures, as long as that leaves a bar."""
    label_max = max(_LABEL_LEAST_MAX, 2 * surface.width // 5)
    label = min(label_max, max(len(row.prefix) + _cells(row.name) for row in rows))
    duration = max(_cells(row.duration) for row in rows)
    longest = max(_cells(surface.glyphs.separator.join(row.figures)) for row in rows)
    widest = max((_cells(figure) for row in rows for figure in row.figures), default=0)
    room = surface.width - label - duration - 6
    bar = min(_BAR_MAX, room - longest)
    if bar < _BAR_MIN:  # figures go on below, but none is broken in two
        bar = max(_BAR_LEAST if widest else _BAR_MIN, min(max(_BAR_MIN, 2 * room // 5), room - widest))
    return _Columns(label, bar, duration, max(widest, room - bar))


def _lines(row: _Row, bar: str, columns: _Columns, surface: _Surface) -> Iterator[str]:
    failed = _is_failed(row.node)
    first, *further = _wrap(row.figures, columns.figures, surface.glyphs.separator) or [""]
    name = _clip(row.name, columns.label - len(row.prefix), surface.glyphs.ellipsis)
    label = surface.paint(row.prefix, _DIM) + _pad(name, columns.label - len(row.prefix))
    painted_bar = surface.paint(bar, _RED if failed else _CYAN)
    code = _RED if failed else _DIM
    yield f"{label}  {painted_bar}  {row.duration:>{columns.duration}}  {surface.paint(first, code)}".rstrip()
    gap = " " * (columns.bar + columns.duration + 6)
    for text in further:
        below = row.below[: columns.label]
        yield f"{surface.paint(_pad(below, columns.label), _DIM)}{gap}{surface.paint(text, code)}"


def _wrap(figures: list[str], cells: int, separator: str) -> list[str]:
    lines: list[str] = []
    for figure in figures:
        if lines and _cells(lines[-1]) + len(separator) + _cells(figure) <= cells:
            lines[-1] += separator + figure
        else:
            lines.append(figure)
    return lines


def _bar(node: _Node, origin_ns: int, extent_ns: int, columns: int, glyphs: _Glyphs) -> str:
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
    return _pad(" " * first + cells, columns)


def _figures(node: _Node, surface: _Surface) -> Iterator[str]:
    """What people look for beside a bar, the most wanted first."""
    facts = node.attributes
    if _is_failed(node):
        yield f"error {surface.clean(facts.get(semconv.ERROR_TYPE, ''), _FIGURE_MAX)}".rstrip()
    model = facts.get(semconv.REQUEST_MODEL)
    if model is not None and str(model) not in node.name:
        yield surface.clean(model, _FIGURE_MAX)
    yield from _tokens(facts, surface.glyphs)
    yield from _rates(node)
    first_token = _number(facts, semconv.TIME_TO_FIRST_TOKEN)
    if first_token is not None:
        yield f"first token {_time(first_token, surface)}"
    yield from _measured(node, surface)
    for name, text in _COUNTS.items():
        count = _number(facts, name)
        if count is not None and count != 1:
            yield text.format(f"{count:.0f}")
    for name in (semconv.PHASE_TIME, semconv.BUSY_TIME):
        seconds = _number(facts, name)
        if seconds is not None:
            yield f"busy {_time(seconds, surface)}"
    for name, word in _FLAGS.items():
        if facts.get(name) is True:
            yield word


_COUNTS = {
    semconv.BATCH_SIZE: "batch {}",
    semconv.ITEMS: "{} items",
    semconv.PHASE_CALLS: "{} calls",
    semconv.CHILDREN_DROPPED: "{} children dropped",
}
_PARTS = {
    "attention on GPU": semconv.LAYER_ATTENTION_GPU_TIME,
    "MLP on GPU": semconv.LAYER_MLP_GPU_TIME,
    "attention": semconv.LAYER_ATTENTION_TIME,
    "MLP": semconv.LAYER_MLP_TIME,
}
_FLAGS = {semconv.COLD: "cold", semconv.ABANDONED: "abandoned", semconv.CANCELLED: "cancelled"}


def _tokens(facts: Mapping[str, Any], glyphs: _Glyphs) -> Iterator[str]:
    read = _count(facts, semconv.INPUT_TOKENS, semconv.INPUT_TOKENS_EXACT, glyphs)
    written = _count(facts, semconv.OUTPUT_TOKENS, semconv.OUTPUT_TOKENS_EXACT, glyphs)
    if read and written:
        yield f"{read} {glyphs.arrow} {written} tokens"
    elif read or written:
        yield f"{read} tokens in" if read else f"{written} tokens out"


def _rates(node: _Node) -> Iterator[str]:
    """Tokens for each sequence, as measured; steps, which with assisted decoding are fewer, from the bar."""
    per_token = _number(node.attributes, semconv.TIME_PER_OUTPUT_TOKEN)
    if per_token:
        rows = _number(node.attributes, semconv.BATCH_SIZE) or 1
        yield f"{1 / per_token:.1f} tok/s" + (" a row" if rows > 1 else "")
    steps = _number(node.attributes, semconv.DECODE_STEPS)
    if steps and node.start_ns is not None and node.end_ns is not None and node.end_ns > node.start_ns:
        yield f"{steps / (node.end_ns - node.start_ns) * 1e9:.1f} steps/s"


def _measured(node: _Node, surface: _Surface) -> Iterator[str]:
    """What it did to the device and to memory. FLOPs as a rate, by the device's time where that is known."""
    facts = node.attributes
    gpu_s = _number(facts, semconv.GPU_TIME)
    if gpu_s is not None:
        yield f"GPU {_time(gpu_s, surface)}"
    for word, name in _PARTS.items():
        seconds = _number(facts, name)
        if seconds is not None and (gpu_s is None) == (not word.endswith("GPU")):
            yield f"{word.removesuffix(' on GPU')} {_time(seconds, surface)}"
    flops = _number(facts, semconv.FLOPS)
    host_s = None if node.start_ns is None or node.end_ns is None else (node.end_ns - node.start_ns) / 1e9
    is_whole = semconv.OPERATION_NAME in facts and node.children  # tokenization is in its time
    if flops and (gpu_s or host_s) and not is_whole:
        yield f"{_scaled(flops / (gpu_s or host_s or 1), 1000, 'KMGTP')}FLOP/s"
    for name, word in ((semconv.FLOPS_UTILIZATION, "MFU"), (semconv.BANDWIDTH_UTILIZATION, "bandwidth")):
        share = _number(facts, name)
        if share is not None:
            yield f"{word} {share:.0%}"
    peak = _number(facts, semconv.MEMORY_PEAK)
    if peak:
        bound = surface.glyphs.at_most if facts.get(semconv.MEMORY_PEAK_EXACT) is False else ""
        yield f"peak {bound}{_scaled(peak, 1024, 'KMGT')}{'' if peak < 1024 else 'i'}B"
    joules = _number(facts, semconv.ENERGY_CONSUMPTION)
    if joules is not None:
        yield f"{joules:.1f} J"
    compile_s = _number(facts, semconv.COMPILE_TIME)
    if compile_s is not None:
        yield f"compiled {_time(compile_s, surface)}"


def _scaled(value: float, base: int, prefixes: str) -> str:
    prefix = ""
    for prefix in ("", *prefixes):
        if abs(value) < base or prefix == prefixes[-1]:
            break
        value /= base
    return f"{value:.3g} {prefix}"


def _count(facts: Mapping[str, Any], name: str, exact: str, glyphs: _Glyphs) -> str:
    count = _number(facts, name)
    if count is None:
        return ""
    return f"{glyphs.at_most if facts.get(exact) is False else ''}{count:.0f}"


def _is_failed(node: _Node) -> bool:
    return node.failed or semconv.ERROR_TYPE in node.attributes


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    """The attribute, if it is one that can be reckoned with: a program may set the same names by itself."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _duration(node: _Node, surface: _Surface) -> str:
    if node.start_ns is None or node.end_ns is None:
        return ""
    return _time((node.end_ns - node.start_ns) / 1e9, surface)


def _time(seconds: float, surface: _Surface) -> str:
    if abs(seconds) < 0.0001:
        return f"{seconds * 1e6:.0f} {surface.glyphs.micro}s"
    if abs(seconds) < 0.99995:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s"
