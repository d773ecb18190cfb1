"""Python's own allocations by phase, through ``tracemalloc``. Only on request: it slows the whole program down.

Torch's tensors are not in it: it allocates past Python. numpy's arrays are. The program's own peak is never reset.
"""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.probe import Brackets, Probe

if TYPE_CHECKING:
    from inferspan.core.record import Phase


class HostAllocationsProbe(Probe):
    """Bytes that a phase allocated and still holds, and the highest value above its beginning."""

    name = "host_allocations"
    brackets = Brackets.PHASE

    def __init__(self) -> None:
        self._has_started = not tracemalloc.is_tracing()
        if self._has_started:
            tracemalloc.start(1)

    def begin(self, record: Phase, model: Any) -> tuple[int, int]:
        return tracemalloc.get_traced_memory()

    def end(self, record: Phase, mark: tuple[int, int]) -> None:
        held, peak = tracemalloc.get_traced_memory()
        record.set(semconv.HOST_ALLOCATED, held - mark[0])  # negative where more was freed
        if peak > mark[1]:  # else it did not exceed an earlier peak of the process
            record.set(semconv.HOST_PEAK, peak - mark[0])

    def close(self) -> None:
        if self._has_started and tracemalloc.is_tracing():
            tracemalloc.stop()
