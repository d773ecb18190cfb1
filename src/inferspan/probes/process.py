"""CPU time and resident memory of this process, cheaply enough to read at every inference.

CPU time is the whole process's, all threads: with several inferences at once it is shared by them, and says so in
the name of the attribute. Resident memory is a reading, not a difference: the allocator keeps what a call freed.
This is not the memory of the model, nor of the inference.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from inferspan import forks, semconv
from inferspan.core.probe import Probe, Report

if TYPE_CHECKING:
    from inferspan.core.record import Inference

cpu_time_ns = time.process_time_ns

_STATM = "/proc/self/statm"
RECENT_NS = 10_000_000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class ResidentMemory:
    """Reads the resident set through one descriptor kept open: 2 µs instead of the 20 that opening the file takes.

    After a fork the descriptor still speaks of the parent, so :meth:`reopen` must be called in the child.
    """

    __slots__ = ("_descriptor", "last", "last_ns")

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.reopen()

    def reopen(self) -> None:
        self.close()
        self.last: int | None = None
        self.last_ns = -RECENT_NS
        try:
            self._descriptor = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, AttributeError):  # no /proc; no O_CLOEXEC on Windows
            self._descriptor = None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def read_bytes(self) -> int | None:
        """Resident set in bytes; ``None`` where /proc is not there."""
        found = None
        if self._descriptor is not None:
            try:
                found = int(os.pread(self._descriptor, 128, 0).split()[1]) * _PAGE_BYTES
            except (OSError, ValueError, IndexError):
                pass
        # in one go, and only now: another thread may look while this one reads
        self.last, self.last_ns = found, time.perf_counter_ns()
        return found


class ProcessUse:
    """Readings at both ends of an inference; ``memory_bytes`` is the one at its end."""

    cpu_start_ns: int = 0
    cpu_time_ns: int | None = None
    memory_start_bytes: int | None = None
    memory_bytes: int | None = None


class ProcessProbe(Probe):
    """CPU time and resident memory of the process at each inference."""

    name = "process"

    def __init__(self) -> None:
        self._memory = ResidentMemory()
        forks.register(after_in_child=self._reopen)

    def begin(self, record: Inference, model: Any) -> ProcessUse:
        use = ProcessUse()
        use.cpu_start_ns = cpu_time_ns()
        memory = self._memory
        is_recent = record.start_ns - memory.last_ns < RECENT_NS
        use.memory_start_bytes = memory.last if is_recent else memory.read_bytes()
        return use

    def end(self, record: Inference, mark: ProcessUse) -> None:
        mark.cpu_time_ns = cpu_time_ns() - mark.cpu_start_ns
        if record.end_ns is not None:
            memory = self._memory
            mark.memory_bytes = memory.last if record.end_ns - memory.last_ns < RECENT_NS else memory.read_bytes()

    def report(self, inference: Inference, mark: ProcessUse | None, report: Report) -> None:
        if mark is not None:
            report.results[self.name] = mark
            report.attributes[semconv.CPU_TIME] = None if mark.cpu_time_ns is None else mark.cpu_time_ns * 1e-9
            report.attributes[semconv.MEMORY_USAGE_BEFORE] = mark.memory_start_bytes
            report.attributes[semconv.MEMORY_USAGE] = mark.memory_bytes

    def close(self) -> None:
        self._memory.close()

    def _reopen(self) -> None:
        self._memory.reopen()
