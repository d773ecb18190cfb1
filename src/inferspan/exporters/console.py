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
for that is still one stroke. Times come from the spans, measurements from their attributes; a measurement that a span
has not is left out, and batch, items and calls of one are not worth a word.

Spans wait here for their local root (no parent, or a parent in another process), and are then drawn with it.
What comes later is drawn by itself, with a note, and so is what waits when there is too much of it, or at a
flush.

This is for looking, not for machines: the layout may change. Nothing is written but complete drawings, no
text of a span reaches the terminal with its control characters, and nothing is raised into the SDK: a stream
that is closed or broken gives ``FAILURE``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import IO

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from inferspan import faults, forks
from inferspan.exporters.pending import Drawing, PendingSpans, node_of
from inferspan.exporters.terminal import terminal_of
from inferspan.exporters.waterfall import draw


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
                drawings = self._pending.add(node_of(span) for span in spans if span.context is not None)
            except Exception:  # noqa: BLE001 - a fault of ours must not end the SDK's export thread
                faults.note("waterfall.export")
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS if self._write(drawings) else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Draw what waits for its root as it is. False where the stream did not take it."""
        with self._lock:
            return self._write(self._pending.take_all())

    def shutdown(self) -> None:
        self.force_flush()
        self._shut_down = True

    def _begin_anew(self) -> None:
        # Again in a forked child: what waits is the parent's, and a thread left there may hold the lock.
        # Reentrant, since a worker that the garbage collector runs in here may end a span.
        self._lock = threading.RLock()
        self._pending = PendingSpans()

    def _write(self, drawings: list[Drawing]) -> bool:
        if not drawings:
            return True
        out = sys.stdout if self._out is None else self._out
        try:
            terminal = terminal_of(out, self._width)
        except Exception:  # noqa: BLE001 - any stream can be put in place of stdout, and raise what it likes
            return False
        try:
            text = "".join(f"{line}\n" for drawing in drawings for line in draw(drawing, terminal))
        except Exception:  # noqa: BLE001 - as in export
            faults.note("waterfall.draw")
            return False
        try:
            out.write(text)
            out.flush()
        except Exception:  # noqa: BLE001 - as above
            return False
        return True
