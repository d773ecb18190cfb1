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
_REQUESTED = re.compile(rf"(?:[Tt]ried|[Ff]ailed) to allocate {_AMOUNT}|Allocation failed for size::(\d+)")
_FREE = re.compile(rf"of which {_AMOUNT} is free|; {_AMOUNT} free;")
_HOST = "can't allocate memory"
# Only CUDA, XPU and newer NPUs raise torch's own type. "CUDA out of memory", "MPS backend out of memory", "CUDA error:
# out of memory"; what a small backend says, and the HPU's.
_ON_DEVICE = re.compile(
    rf"\b[A-Z]{{3,}}\w* (?:backend |error: )?out of memory|Failed to allocate {_AMOUNT}|Allocation failed for size::"
)


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
    if not (on_device or on_host or _ON_DEVICE.search(message)):
        return None
    return OutOfMemory(_bytes(_REQUESTED, message), _bytes(_FREE, message), on_host)


def _bytes(pattern: re.Pattern[str], message: str) -> int | None:
    found = pattern.search(message)
    if found is None:
        return None
    number, *unit = (group for group in found.groups() if group is not None)
    return round(float(number) * _UNITS[unit[0] if unit else "bytes"])


class OutOfMemoryProbe(Probe):
    """An event on the inference that ended for want of memory, and a counter of allocations that failed."""

    name = "out_of_memory"

    def failed(self, inference: Inference, error: BaseException) -> OutOfMemory | None:
        return out_of_memory(error)

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
