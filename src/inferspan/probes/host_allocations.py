"""Python's own allocations by phase, through ``tracemalloc``. Only on request: it slows the whole program down.

Torch's tensors are not in it: it allocates past Python. numpy's arrays are.
"""

from __future__ import annotations

import tracemalloc

is_tracing = False
"""Whether phases are to be marked. Read by every phase, so it is a plain variable."""
_started = False


def start() -> None:
    """Trace from now on, one frame deep, unless the program does so already."""
    global is_tracing, _started
    _started = not tracemalloc.is_tracing()
    if _started:
        tracemalloc.start(1)
    is_tracing = True


def stop() -> None:
    """Trace no more, if it was ours."""
    global is_tracing, _started
    is_tracing = False
    if _started and tracemalloc.is_tracing():
        tracemalloc.stop()
    _started = False


class Mark:
    """Traced memory at one moment. The program's own peak is never reset."""

    __slots__ = ("_current", "_peak")

    def __init__(self) -> None:
        self._current, self._peak = tracemalloc.get_traced_memory()

    def allocated(self) -> int:
        """Bytes more than then; negative where more was freed."""
        return tracemalloc.get_traced_memory()[0] - self._current

    def peak(self) -> int | None:
        """Highest value above that, ``None`` where it did not exceed an earlier peak of the process."""
        peak = tracemalloc.get_traced_memory()[1]
        return peak - self._current if peak > self._peak else None
