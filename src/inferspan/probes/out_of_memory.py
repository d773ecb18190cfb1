"""An inference that ended for want of memory: an event with what the error says, and a counter of such failures.

The words of the errors are in :mod:`inferspan.probes.memory_errors`, which is loaded when something fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.probe import Event, Point, Probe, Report
from inferspan.forks import import_module

if TYPE_CHECKING:
    from inferspan.core.record import Inference
    from inferspan.probes.memory import MemoryUse
    from inferspan.probes.memory_errors import OutOfMemory


class OutOfMemoryProbe(Probe):
    """An event on the inference that ended for want of memory, and a counter of allocations that failed."""

    name = "out_of_memory"

    def failed(self, inference: Inference, error: BaseException) -> Any:
        if not isinstance(error, Exception):
            return None  # an interruption, or a generator that is closed
        return import_module("inferspan.probes.memory_errors").out_of_memory(error)

    def report(self, inference: Inference, mark: OutOfMemory | None, report: Report) -> None:
        memory: MemoryUse | None = report.results.get("memory")
        device = report.results.get("device", "cpu")
        failures = {device: 0 if memory is None else memory.failures()}
        if mark is not None:
            failed_on = "cpu" if mark.on_host else device
            failures[failed_on] = max(1, failures.get(failed_on, 0))
        for on, count in failures.items():
            if count:
                report.points.append(Point(semconv.OUT_OF_MEMORY, count, {semconv.DEVICE: on}, of_operation=False))
        if mark is not None:
            memory = None if mark.on_host else memory  # that of the device says nothing of the host's
            after = None if memory is None else memory.after
            attributes = {
                semconv.OOM_REQUESTED: mark.requested,
                semconv.OOM_FREE: mark.free,
                semconv.MEMORY_AFTER: None if after is None else after.allocated,
                semconv.MEMORY_HELD: None if after is None else after.reserved,
                semconv.MEMORY_FRAGMENTATION: None if memory is None else memory.fragmentation(),
            }
            report.events.append(Event(semconv.OUT_OF_MEMORY_EVENT, attributes, inference.end_ns or inference.start_ns))
