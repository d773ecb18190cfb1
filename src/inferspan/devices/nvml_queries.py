"""What NVML is asked of a device: tables of fields, calls and GPM metrics, and the readings that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from inferspan import semconv
from inferspan.devices import reader as r
from inferspan.devices.reader import Reading, of

SM = 1
_PROCESSES_MAX = 32
_ALL_LINKS = 0xFFFFFFFF
VALUE = dict(enumerate(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")))  # in a field's union, by type
WIDE = (2, 3, 4)  # the 64-bit types: a 32-bit count of bytes wraps several times between two collections

_held_time = partial(of, semconv.CLOCK_HELD_TIME, semconv.CLOCK_REASON)
_pipe = partial(of, semconv.PIPE_BUSY, semconv.PIPE)

# fmt: off
FIELDS: tuple[tuple[int, int, Reading, float], ...] = (
    # field, scope, what it is, factor to the unit of the metric; of two for the same reading the first one counts
    (185, 0, r.POWER, 1e-3), (186, 0, r.POWER, 1e-3), (190, 0, r.POWER_LIMIT, 1e-3), (83, 0, r.ENERGY, 1e-3),
    (82, 0, of(semconv.TEMPERATURE_NOW, semconv.HW_SENSOR_LOCATION, "memory"), 1),
    (197, 0, of(semconv.DEVICE_IO, semconv.DIRECTION, "transmit"), 1),
    (198, 0, of(semconv.DEVICE_IO, semconv.DIRECTION, "receive"), 1),
    (94, 0, Reading(semconv.PCIE_REPLAYS), 1),
    (138, _ALL_LINKS, of(semconv.NVLINK_IO, semconv.DIRECTION, "transmit"), 1024),
    (139, _ALL_LINKS, of(semconv.NVLINK_IO, semconv.DIRECTION, "receive"), 1024),
    (5, 0, of(semconv.DEVICE_ERRORS, semconv.ERROR_TYPE, "corrected"), 1),
    (6, 0, of(semconv.DEVICE_ERRORS, semconv.ERROR_TYPE, "uncorrected"), 1),
    (142, 0, of(semconv.ROWS, semconv.REMAP, "corrected"), 1),
    (143, 0, of(semconv.ROWS, semconv.REMAP, "uncorrected"), 1),
    (144, 0, r.ROWS_PENDING, 1), (145, 0, r.ROWS_FAILED, 1), (230, 0, r.DEGRADED, 1),
    (74, 0, _held_time("power_cap"), 1e-9), (76, 0, _held_time("sync_boost"), 1e-9),
    (77, 0, _held_time("board_limit"), 1e-9), (79, 0, _held_time("reliability"), 1e-9),
    (269, 0, _held_time("thermal"), 1e-9), (270, 0, _held_time("hardware_thermal"), 1e-9),
    (271, 0, _held_time("power_brake"), 1e-9), (75, 0, _held_time("thermal"), 1e-9),
)
_REASONS = {
    1 << bit: of(semconv.CLOCK_HELD, semconv.CLOCK_REASON, name) for bit, name in enumerate((
        "idle", "application", "power_cap", "hardware", "sync_boost", "thermal", "hardware_thermal", "power_brake",
        "display",
    ))
}
GPM: dict[int, Reading] = {
    2: Reading(semconv.SM_BUSY), 3: Reading(semconv.SM_OCCUPANCY), 10: Reading(semconv.MEMORY_BANDWIDTH),
    4: _pipe("integer"), 5: _pipe("any_tensor"), 6: _pipe("dfma"), 7: _pipe("hmma"), 9: _pipe("imma"),
    11: _pipe("fp64"), 12: _pipe("fp32"), 13: _pipe("fp16"),
}
# fmt: on


_Take = Callable[[Any], Iterable[tuple[Reading, float]]]


@dataclass(frozen=True)
class Call:
    """One call: the functions that give the same, newest first, with their arguments after the handle, and how their
    result becomes readings. ``backup`` calls are made only where no field has given the reading."""

    ways: tuple[tuple[Any, ...], ...]
    take: _Take
    of_instance: bool = False
    slow: bool = False
    backup: Reading | None = None


def _times(reading: Reading, factor: float) -> _Take:
    return lambda value: ((reading, value * factor),)


def _codec(reading: Reading) -> _Take:
    return lambda share_and_period: ((reading, share_and_period[0] / 100),)


def _memory(memory: Any) -> Iterable[tuple[Reading, float]]:
    yield from ((r.MEMORY_LIMIT, memory.total), (r.MEMORY_USED, memory.used))
    if memory.total:
        yield r.MEMORY_SHARE, memory.used / memory.total
    if hasattr(memory, "reserved"):
        yield r.MEMORY_RESERVED, memory.reserved


def _processes(processes: Any) -> Iterable[tuple[Reading, float]]:
    # None: the driver does not know (Windows, WSL, some containers)
    known = sorted(((p.usedGpuMemory, p.pid) for p in processes if p.usedGpuMemory is not None), reverse=True)
    return [(of(semconv.PROCESS_MEMORY, semconv.PROCESS_PID, pid), used) for used, pid in known[:_PROCESSES_MAX]]


# fmt: off
CALLS: tuple[Call, ...] = (
    # the most important first: _CALLS_MAX
    Call((("nvmlDeviceGetMemoryInfo", 0x02000028), ("nvmlDeviceGetMemoryInfo",)), _memory, of_instance=True),
    Call((("nvmlDeviceGetUtilizationRates",),),
        lambda rates: ((r.BUSY, rates.gpu / 100), (r.MEMORY_BUSY, rates.memory / 100))),
    Call((("nvmlDeviceGetTemperatureV", 0), ("nvmlDeviceGetTemperature", 0)), _times(r.TEMPERATURE, 1)),
    Call((("nvmlDeviceGetClockInfo", SM),), _times(r.SM_CLOCK, 10**6)),
    Call((("nvmlDeviceGetCurrentClocksEventReasons",), ("nvmlDeviceGetCurrentClocksThrottleReasons",)),
        lambda bits: [(reading, int(bool(bits & bit))) for bit, reading in _REASONS.items()]),
    Call((("nvmlDeviceGetPowerUsage",),), _times(r.POWER, 1e-3), backup=r.POWER),
    Call((("nvmlDeviceGetCurrPcieLinkGeneration",),), _times(r.PCIE_GENERATION, 1)),
    Call((("nvmlDeviceGetClockInfo", 2),), _times(r.MEMORY_CLOCK, 10**6)),
    Call((("nvmlDeviceGetTotalEnergyConsumption",),), _times(r.ENERGY, 1e-3), backup=r.ENERGY),
    Call((("nvmlDeviceGetEnforcedPowerLimit",),), _times(r.POWER_LIMIT, 1e-3), backup=r.POWER_LIMIT),
    Call((("nvmlDeviceGetCurrPcieLinkWidth",),), _times(r.PCIE_WIDTH, 1)),
    Call((("nvmlDeviceGetComputeRunningProcesses_v3",),), _processes, of_instance=True, slow=True),
    *(Call((("nvmlDeviceGetPcieThroughput", number),),
        _times(of(semconv.PCIE_THROUGHPUT, semconv.DIRECTION, way), 1000), slow=True)
        for number, way in enumerate(("transmit", "receive"))),
    Call((("nvmlDeviceGetFanSpeed_v2", 0),), _times(Reading(semconv.FAN), 0.01), slow=True),
    *(Call((("nvmlDeviceGetTemperatureThreshold", number),),
        _times(of(semconv.TEMPERATURE_LIMIT, semconv.HW_LIMIT_TYPE, limit), 1), slow=True)
        for number, limit in enumerate(("high.critical", "high.degraded"))),
    *(Call(((f"nvmlDeviceGet{task.title()}Utilization",),),
        _codec(of(semconv.GPU_UTILIZATION, semconv.GPU_TASK, task)), slow=True) for task in ("encoder", "decoder")),
    # the error's kind, 1: over the board's life, where: 2 is device memory (DRAM), 7 SRAM
    *(Call((("nvmlDeviceGetMemoryErrorCounter", number, 1, where),),
        _times(Reading(semconv.ECC_DETAIL, ((semconv.ECC_KIND, kind), (semconv.MEMORY_LOCATION, place))), 1), slow=True)
        for number, kind in enumerate(("corrected", "uncorrected")) for where, place in ((2, "dram"), (7, "sram"))),
)
# fmt: on
