"""What an exception says that was raised because there was no memory: how much was asked for, how much was free.

Torch says it in the message only, which quotes nothing of the program's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferspan import semconv
from inferspan.core.probe import Event, Point, Probe, Report

if TYPE_CHECKING:
    from inferspan.core.record import Inference
    from inferspan.probes.memory import MemoryUse

_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "KB": 2**10, "MiB": 2**20, "MB": 2**20, "GiB": 2**30, "GB": 2**30}
_AMOUNT = r"(\d+(?:\.\d+)?) ?(bytes|[KMG]i?B|B)\b"
_REQUESTED = re.compile(rf"(?:[Tt]ried to allocate|you tried to allocate) {_AMOUNT}")
_FREE = re.compile(rf"of which {_AMOUNT} is free")
_HOST = "can't allocate memory"
_MPS = "MPS backend out of memory"


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """Bytes that were asked for, and that were free on the device; ``None`` where the message does not say.
    ``on_host`` where it was the host's memory."""

    requested: int | None
    free: int | None
    on_host: bool


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """What ``error`` says; ``None`` if it is another error."""
    on_device = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    try:
        message = str(error) if on_device or isinstance(error, (RuntimeError, MemoryError)) else ""
    except Exception:  # noqa: BLE001 - the program's own class
        message = ""
    on_host = isinstance(error, MemoryError) or _HOST in message
    if not (on_device or on_host or _MPS in message):
        return None
    return OutOfMemory(_bytes(_REQUESTED, message), _bytes(_FREE, message), on_host)


def _bytes(pattern: re.Pattern[str], message: str) -> int | None:
    found = pattern.search(message)
    return None if found is None else round(float(found[1]) * _UNITS[found[2]])


class OutOfMemoryProbe(Probe):
    """An event on the inference that ended for want of memory, and a counter of allocations that failed."""

    name = "out_of_memory"

    def failed(self, inference: Inference, error: BaseException) -> OutOfMemory | None:
        return out_of_memory(error)

    def report(self, inference: Inference, mark: OutOfMemory | None, report: Report) -> None:
        memory: MemoryUse | None = report.results.get("memory")
        failures = max(0 if memory is None else memory.failures(), int(mark is not None))
        if failures:
            device = report.results.get("device", "cpu")
            point = Point(semconv.OUT_OF_MEMORY, failures, {semconv.DEVICE: device}, of_operation=False)
            report.points.append(point)
        if mark is not None:
            after = None if memory is None else memory.after
            attributes = {
                semconv.OOM_REQUESTED: mark.requested,
                semconv.OOM_FREE: mark.free,
                semconv.MEMORY_AFTER: None if after is None else after.allocated,
                semconv.MEMORY_HELD: None if after is None else after.reserved,
                semconv.MEMORY_FRAGMENTATION: None if memory is None else memory.fragmentation(),
            }
            report.events.append(Event(semconv.OUT_OF_MEMORY_EVENT, attributes, inference.end_ns or inference.start_ns))
