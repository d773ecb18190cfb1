"""What can be read of a device, and what reads it.

A :data:`Reading` is one series of a device: a metric of :mod:`inferspan.semconv` and the attributes that distinguish it
from the device's other series of that metric. Each is a constant here; a :class:`Reader` gives those that its driver
answers, in the metric's unit, and leaves the others out. To support one more vendor, write one more reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from inferspan import semconv


class Reading(NamedTuple):
    """One series: a metric, and its attributes beside the device's own."""

    metric: str
    attributes: tuple[tuple[str, str | int], ...] = ()


Sample = dict[Reading, float]
"""What one reading of a device, a process or a host gave, in the units of the metrics. What is absent is unknown."""


@dataclass(frozen=True)
class Device:
    """One device. ``id`` is the driver's UUID with its prefix, ``parent`` that of the board of a MIG instance,
    ``index`` its place in the driver's own order, ``facts`` further attributes that do not change."""

    id: str
    index: int
    name: str = ""
    parent: str = ""
    facts: Mapping[str, str] = field(default_factory=dict, compare=False)


class Reader(Protocol):
    """A driver. Called by one thread only, except for ``calls``; never raises for what the driver cannot do."""

    calls: int

    def devices(self) -> Sequence[Device]:
        """The devices of this machine (of this container), in the driver's order; none where there is no driver."""
        ...

    def read(self, device: Device) -> Sample:
        """Everything of one device that the driver gives now."""
        ...

    def stop(self) -> None:
        """End what was started, without waiting, and without shutting the driver down under others."""
        ...


def of(metric: str, attribute: str, value: str | int) -> Reading:
    """One of the series of a metric that an attribute distinguishes."""
    return Reading(metric, ((attribute, value),))


MEMORY_LIMIT = Reading(semconv.MEMORY_LIMIT)
MEMORY_USED = Reading(semconv.MEMORY_USED)
MEMORY_SHARE = Reading(semconv.MEMORY_SHARE)
MEMORY_RESERVED = Reading(semconv.MEMORY_RESERVED)
MEMORY_BUSY = Reading(semconv.MEMORY_BUSY)
BUSY = of(semconv.GPU_UTILIZATION, semconv.GPU_TASK, "general")
ENERGY = Reading(semconv.ENERGY)
POWER = Reading(semconv.POWER)
POWER_LIMIT = Reading(semconv.POWER_LIMIT)
TEMPERATURE = of(semconv.TEMPERATURE_NOW, semconv.HW_SENSOR_LOCATION, "gpu")
SM_CLOCK = of(semconv.CLOCK_FREQUENCY, semconv.CLOCK, "sm")
MEMORY_CLOCK = of(semconv.CLOCK_FREQUENCY, semconv.CLOCK, "memory")
PCIE_GENERATION = Reading(semconv.PCIE_GENERATION)
PCIE_WIDTH = Reading(semconv.PCIE_WIDTH)
ROWS_PENDING = of(semconv.ROWS, semconv.REMAP, "pending")
ROWS_FAILED = of(semconv.ROWS, semconv.REMAP, "failed")
OK = of(semconv.DEVICE_STATUS, semconv.HW_STATE, "ok")
DEGRADED = of(semconv.DEVICE_STATUS, semconv.HW_STATE, "degraded")
FAILED = of(semconv.DEVICE_STATUS, semconv.HW_STATE, "failed")
