"""NVIDIA's devices, through NVML as ``pynvml`` (the distribution nvidia-ml-py) binds it.

What is read is in three tables: fields, which one call fetches together, further calls, and GPM metrics. Every call
goes through one gate (:meth:`Nvml._ask`), where the error code decides: absent and not asked again, absent this time,
this device is gone, or the driver is. Each code that says something to the user is told once.

The driver is initialised at the first reading, once in a process and again in a forked child; it is never shut down,
since others in the process may use it, and neither init nor shutdown is cheap (100 cycles cost a program 4.7 times the
CPU: NVIDIA/mig-parted#332). Nothing here makes a CUDA context. One thread reads; a second only waits for XID events.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from inferspan import faults, forks, semconv
from inferspan.devices import reader as r
from inferspan.devices.reader import Device, Reading, Sample, of

_CALLS_MAX = 8  # for one device and snapshot; of _CALLS those that come later are read every _STANDING_S only
_STANDING_S = 300.0
_BACK_OFF_S = (1.0, 60.0)
_PROCESSES_MAX = 32
_XIDS_MAX = 64
_ALL_LINKS = 0xFFFFFFFF
_XID = 0x8
_SM = 1
_VALUE = dict(
    enumerate(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal"))
)  # in a field's union, by type
_WIDE = (2, 3, 4)  # the 64-bit types: a 32-bit count of bytes wraps several times between two collections

_NO_DRIVER = 12
# not for this board, driver or user: bad argument, not supported, no permission, no function, version, deprecated
_FOR_GOOD = frozenset({2, 3, 4, 13, 25, 26})
_DEVICE_GONE = frozenset({15, 16, 28})  # lost, reset required, not found
_DRIVER_GONE = frozenset({1, 9, _NO_DRIVER, 18})  # not initialised, not loaded, no library, another version of it
_TOLD = {
    1: "NVML is not initialised any more: something shut it down",
    4: "the driver does not permit it to this user: some metrics of the device are absent",
    9: "the NVIDIA driver is not loaded",
    15: "the GPU has fallen off the bus",
    16: "the GPU has to be reset",
    18: "the NVIDIA driver was replaced while this process runs: its devices are absent until it is started again",
    28: "the GPU is not there any more",
    999: "the driver gave an unknown error",
}


_held_time = partial(of, semconv.CLOCK_HELD_TIME, semconv.CLOCK_REASON)
_pipe = partial(of, semconv.PIPE_BUSY, semconv.PIPE)

# fmt: off
_FIELDS: tuple[tuple[int, int, Reading, float], ...] = (
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
_GPM: dict[int, Reading] = {
    2: Reading(semconv.SM_BUSY), 3: Reading(semconv.SM_OCCUPANCY), 10: Reading(semconv.MEMORY_BANDWIDTH),
    4: _pipe("integer"), 5: _pipe("any_tensor"), 6: _pipe("dfma"), 7: _pipe("hmma"), 9: _pipe("imma"),
    11: _pipe("fp64"), 12: _pipe("fp32"), 13: _pipe("fp16"),
}
# fmt: on


_Take = Callable[[Any], Iterable[tuple[Reading, float]]]


@dataclass(frozen=True)
class _Call:
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
_CALLS: tuple[_Call, ...] = (
    # the most important first: _CALLS_MAX
    _Call((("nvmlDeviceGetMemoryInfo", 0x02000028), ("nvmlDeviceGetMemoryInfo",)), _memory, of_instance=True),
    _Call((("nvmlDeviceGetUtilizationRates",),),
        lambda rates: ((r.BUSY, rates.gpu / 100), (r.MEMORY_BUSY, rates.memory / 100))),
    _Call((("nvmlDeviceGetTemperatureV", 0), ("nvmlDeviceGetTemperature", 0)), _times(r.TEMPERATURE, 1)),
    _Call((("nvmlDeviceGetClockInfo", _SM),), _times(r.SM_CLOCK, 10**6)),
    _Call((("nvmlDeviceGetCurrentClocksEventReasons",), ("nvmlDeviceGetCurrentClocksThrottleReasons",)),
        lambda bits: [(reading, int(bool(bits & bit))) for bit, reading in _REASONS.items()]),
    _Call((("nvmlDeviceGetPowerUsage",),), _times(r.POWER, 1e-3), backup=r.POWER),
    _Call((("nvmlDeviceGetCurrPcieLinkGeneration",),), _times(r.PCIE_GENERATION, 1)),
    _Call((("nvmlDeviceGetClockInfo", 2),), _times(r.MEMORY_CLOCK, 10**6)),
    _Call((("nvmlDeviceGetTotalEnergyConsumption",),), _times(r.ENERGY, 1e-3), backup=r.ENERGY),
    _Call((("nvmlDeviceGetEnforcedPowerLimit",),), _times(r.POWER_LIMIT, 1e-3), backup=r.POWER_LIMIT),
    _Call((("nvmlDeviceGetCurrPcieLinkWidth",),), _times(r.PCIE_WIDTH, 1)),
    _Call((("nvmlDeviceGetComputeRunningProcesses_v3",),), _processes, of_instance=True, slow=True),
    *(_Call((("nvmlDeviceGetPcieThroughput", number),),
        _times(of(semconv.PCIE_THROUGHPUT, semconv.DIRECTION, way), 1000), slow=True)
        for number, way in enumerate(("transmit", "receive"))),
    _Call((("nvmlDeviceGetFanSpeed_v2", 0),), _times(Reading(semconv.FAN), 0.01), slow=True),
    *(_Call((("nvmlDeviceGetTemperatureThreshold", number),),
        _times(of(semconv.TEMPERATURE_LIMIT, semconv.HW_LIMIT_TYPE, limit), 1), slow=True)
        for number, limit in enumerate(("high.critical", "high.degraded"))),
    *(_Call(((f"nvmlDeviceGet{task.title()}Utilization",),),
        _codec(of(semconv.GPU_UTILIZATION, semconv.GPU_TASK, task)), slow=True) for task in ("encoder", "decoder")),
    # the error's kind, 1: over the board's life, where: 2 is device memory (DRAM), 7 SRAM
    *(_Call((("nvmlDeviceGetMemoryErrorCounter", number, 1, where),),
        _times(Reading(semconv.ECC_DETAIL, ((semconv.ECC_KIND, kind), (semconv.MEMORY_LOCATION, place))), 1), slow=True)
        for number, kind in enumerate(("corrected", "uncorrected")) for where, place in ((2, "dram"), (7, "sram"))),
)
# fmt: on


class _GoneError(Exception):
    """The device, or the whole driver, cannot be asked now; the argument is the driver's code."""


class _BackOff:
    """When to try again: after 1 s, 2 s, … 60 s, until :meth:`reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.due_at, self._pause = 0.0, _BACK_OFF_S[0]

    def failed(self, now: float) -> None:
        self.due_at, self._pause = now + self._pause, min(self._pause * 2, _BACK_OFF_S[1])


@dataclass
class _Board:
    """What is remembered of one device."""

    device: Device
    handle: Any
    again: _BackOff = field(default_factory=_BackOff)
    lost: bool = False
    fields: list[tuple[int, int, Reading, float]] = field(default_factory=lambda: list(_FIELDS))
    standing: Sample = field(default_factory=dict)
    standing_due_at: float = 0.0
    instance_id: int | None = None
    gpm: list[Any] = field(default_factory=list)
    gpm_taken_at: float | None = None


class _Calling:
    """One call of the driver at a time in this process: concurrent ones have crashed it (datadog-agent#54458)."""

    def __init__(self) -> None:
        self.renew()
        forks.register(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_calling = _Calling()


class Nvml:
    """The reader of NVIDIA's devices. ``detail`` is ``Settings.devices_detail``."""

    def __init__(self, detail: frozenset[str] = frozenset(), clock: Callable[[], float] = monotonic) -> None:
        self.calls = 0
        self._detail = detail
        self._clock = clock
        self._start_over()

    def devices(self) -> Sequence[Device]:
        if self._pid != os.getpid():
            self._start_over()
        if self._clock() >= max(self._again.due_at, self._enumerate_at):
            try:
                if not self._initialised:
                    self._initialise()
                self._enumerate()
                self._again.reset()
            except _GoneError as gone:
                self._driver_gone(gone.args[0])
        return [board.device for board in self._boards.values()]

    def read(self, device: Device) -> Sample:
        board = self._boards.get(device.id)
        if board is None or not self._initialised or self._clock() < board.again.due_at:
            return _failed_sample(board)
        try:
            if board.lost:
                self._find_again(board)
            sample = self._read(board)
        except _GoneError as gone:
            self._gone(board, gone.args[0])
            return _failed_sample(board)
        if board.lost:
            board.lost = False
            board.again.reset()
            faults.logger.info("inferspan: %s is back", device.id)
        if not device.parent:
            # exactly one state; the driver's advice to reset came as a number under DEGRADED
            asks = sample.pop(r.DEGRADED, 0) or sample.get(r.ROWS_PENDING) or sample.get(r.ROWS_FAILED)
            sample.update({r.OK: int(not asks), r.DEGRADED: int(bool(asks)), r.FAILED: 0})
        return sample

    def meter(self, device: Device) -> Sample:
        """Energy and SM clock only, for :mod:`inferspan.probes.energy`: two calls."""
        board = self._boards.get(device.id)
        if board is None or board.lost or not self._initialised:
            return {}
        try:
            energy_mj = self._ask(device.id, "nvmlDeviceGetTotalEnergyConsumption", board.handle)
            clock_mhz = self._ask(device.id, "nvmlDeviceGetClockInfo", board.handle, _SM)
        except _GoneError as gone:
            self._gone(board, gone.args[0])
            return {}
        sample = {} if energy_mj is None else {r.ENERGY: energy_mj * 1e-3}
        return sample if clock_mhz is None else {**sample, r.SM_CLOCK: clock_mhz * 10**6}

    def stop(self) -> None:
        self._xids.stop()

    def _read(self, board: _Board) -> Sample:
        sample: Sample = {}
        is_instance = bool(board.device.parent)
        calls_end = self.calls + _CALLS_MAX
        if not is_instance:
            self._read_fields(board, sample)
        standing_due = self._clock() >= board.standing_due_at
        for call in _CALLS:
            unwanted = call.slow and "slow" not in self._detail
            if unwanted or (is_instance and not call.of_instance) or call.backup in sample:
                continue
            if call.slow or self.calls < calls_end:
                sample.update(self._made(board, call))
            elif standing_due:
                board.standing.update(self._made(board, call))
        if standing_due:
            board.standing_due_at = self._clock() + _STANDING_S
        if "gpm" in self._detail:
            self._read_gpm(board, sample)
        sample.update(self._xids.counts(board.device.id))
        # what is read every time now must not outlive its reading
        board.standing = {reading: value for reading, value in board.standing.items() if reading not in sample}
        return {**sample, **board.standing}

    def _made(self, board: _Board, call: _Call) -> Iterable[tuple[Reading, float]]:
        for function, *arguments in call.ways:
            value = self._ask(board.device.id, function, board.handle, *arguments)
            if value is not None:
                return call.take(value)
        return ()

    def _read_fields(self, board: _Board, sample: Sample) -> None:
        wanted = [(number, scope) for number, scope, _, _ in board.fields]
        values = self._ask(board.device.id, "nvmlDeviceGetFieldValues", board.handle, wanted)
        if values is None:
            return
        answered = []
        for row, value in zip(board.fields, values, strict=False):
            _, _, reading, factor = row
            kinds = _WIDE if semconv.METRICS[reading.metric].unit == "By" else _VALUE
            if value.nvmlReturn not in _FOR_GOOD:
                answered.append(row)
            if value.nvmlReturn == 0 and value.valueType in kinds:
                sample.setdefault(reading, getattr(value.value, _VALUE[value.valueType]) * factor)
        board.fields = answered

    def _read_gpm(self, board: _Board, sample: Sample) -> None:
        """Means over the time since the last snapshot: GPM compares two samples, more than 100 ms apart."""
        about = board.device.id
        if not board.gpm:
            support = self._ask(about, "nvmlGpmQueryDeviceSupport", board.handle)
            if support is None or not support.isSupportedDevice:
                return
            board.gpm = [self._ask(about, "nvmlGpmSampleAlloc") for _ in range(2)]
        older, newer = board.gpm
        if board.instance_id is None:
            taken = self._ask(about, "nvmlGpmSampleGet", board.handle, newer)
        else:
            parent = self._boards[board.device.parent].handle
            taken = self._ask(about, "nvmlGpmMigSampleGet", parent, board.instance_id, newer)
        if taken is None:
            return
        before, board.gpm_taken_at, board.gpm = board.gpm_taken_at, self._clock(), [newer, older]
        if before is None or board.gpm_taken_at - before <= 0.1:
            return
        query = self._pynvml.c_nvmlGpmMetricsGet_t()
        query.version, query.numMetrics, query.sample1, query.sample2 = 1, len(_GPM), older, newer
        for slot, number in enumerate(_GPM):
            query.metrics[slot].metricId = number
        if self._ask(about, "nvmlGpmMetricsGet", query) is not None:
            for slot, reading in enumerate(_GPM.values()):
                if query.metrics[slot].nvmlReturn == 0:
                    sample[reading] = query.metrics[slot].value / 100

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._pynvml: Any = None
        self._initialised = False
        self._absent: set[tuple[Any, ...]] = set()
        self._boards: dict[str, _Board] = {}
        self._again = _BackOff()
        self._enumerate_at = 0.0
        self._xids = _Xids()

    def _initialise(self) -> None:
        if self._pynvml is None:
            try:
                import pynvml
            except ImportError:
                raise _GoneError(_NO_DRIVER) from None
            self._pynvml = pynvml
        if self._ask("driver", "nvmlInit") is None:
            raise _GoneError(999)
        self._initialised = True

    def _enumerate(self) -> None:
        """Find the boards and their MIG instances; those that are known keep what is remembered of them."""
        found: dict[str, _Board] = {}
        version = self._ask("driver", "nvmlSystemGetDriverVersion")
        for index in range(self._ask("driver", "nvmlDeviceGetCount") or 0):
            try:
                self._add(found, index, self._ask("driver", "nvmlDeviceGetHandleByIndex", index), version)
            except _GoneError as gone:  # noqa: PERF203 - the others are there
                if gone.args[0] in _DRIVER_GONE:
                    raise
        for known in self._boards.values():  # a lost board is not counted any more, and comes back under its UUID
            if known.device.id not in found and not known.device.parent:
                known.lost = True
                found[known.device.id] = known
        self._boards = found
        self._enumerate_at = self._clock() + _STANDING_S
        if "xid" in self._detail:
            self._xids.start(self._pynvml, {b.device.id: b.handle for b in found.values() if not b.device.parent})

    def _add(self, found: dict[str, _Board], index: int, handle: Any, version: Any, parent: str = "") -> None:
        about = f"{parent or 'board'} {index}"
        uuid = None if handle is None else self._ask(about, "nvmlDeviceGetUUID", handle)
        if uuid is None:  # the board of another user, or an empty slot between full ones
            return
        pci = None if parent else self._ask(about, "nvmlDeviceGetPciInfo", handle)
        facts = {semconv.HW_VENDOR: semconv.NVIDIA, semconv.HW_DRIVER_VERSION: version or ""}
        facts[semconv.PCI_ADDRESS] = "" if pci is None else _text(pci.busId).lower()
        name = self._ask(about, "nvmlDeviceGetName", handle) or ""
        device = Device(uuid, index, name, parent, {fact: value for fact, value in facts.items() if value})
        board = self._boards.get(uuid) or _Board(device, handle)
        board.device, board.handle = device, handle
        found[uuid] = board
        if parent:
            board.instance_id = self._ask(uuid, "nvmlDeviceGetGpuInstanceId", handle)
            return
        mode = self._ask(uuid, "nvmlDeviceGetMigMode", handle)
        if mode is not None and mode[0]:
            for slot in range(self._ask(uuid, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
                instance = self._ask(f"{uuid} slot", "nvmlDeviceGetMigDeviceHandleByIndex", handle, slot)
                self._add(found, slot, instance, version, uuid)

    def _find_again(self, board: _Board) -> None:
        handle = self._ask("lost board", "nvmlDeviceGetHandleByUUID", board.device.id.encode())
        if handle is None:
            raise _GoneError(28)
        board.handle, board.gpm, board.gpm_taken_at = handle, [], None
        self._absent = {key for key in self._absent if key[0] != board.device.id}

    def _ask(self, about: str, function: str, *arguments: Any) -> Any:
        """One call of the driver: its result, or ``None`` where it has none.

        Raises:
            _GoneError: the device or the driver cannot be asked any more.
        """
        key = (about, function, *(a for a in arguments if isinstance(a, int)))
        if key in self._absent:
            return None
        call: Any = getattr(self._pynvml, function, None)  # an older pynvml lacks some
        self.calls += call is not None
        try:
            with _calling.lock:
                value = call(*arguments)
        except Exception as error:  # noqa: BLE001 - NVMLError, and what pynvml itself raises for an older driver
            # NVMLError is compared by its code: it cannot be hashed
            code = getattr(error, "value", 13)
            self._tell(code, about)
            if code in _DRIVER_GONE or code in _DEVICE_GONE or (code == 2 and about.startswith("MIG-")):
                raise _GoneError(code) from None
            if code in _FOR_GOOD and not about.endswith("slot"):
                self._absent.add(key)
            return None
        return True if value is None else value

    def _tell(self, code: int, about: str) -> None:
        if code == _NO_DRIVER:
            faults.logger.debug("inferspan: no NVIDIA driver here, so no metrics of NVIDIA devices")
        elif code in _TOLD:
            faults.warn_once(f"nvml {code}", f"NVML, {about}: {_TOLD[code]} (NVML error {code})")

    def _gone(self, board: _Board, code: int) -> None:
        if code in _DRIVER_GONE:
            self._driver_gone(code)
            return
        board.lost = True
        board.again.failed(self._clock())
        if board.device.parent:  # instances are made and unmade while we watch
            self._enumerate_at = 0.0

    def _driver_gone(self, code: int) -> None:
        self._initialised = False
        self._absent.clear()
        self._again.failed(self._clock())
        if code == _NO_DRIVER:
            self._again.due_at = float("inf")
        self._enumerate_at = 0.0
        self._xids.stop()


class _Xids:
    """Counts the driver's XID events, on a thread that only waits for them."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._stop = threading.Event()
        self._watched: set[str] = set()

    def counts(self, device_id: str) -> Sample:
        counts = list(self._counts.items())
        return {of(semconv.XIDS, semconv.XID_CODE, code): n for (about, code), n in counts if about == device_id}

    def start(self, pynvml: Any, handles: dict[str, Any]) -> None:
        if self._watched == set(handles) and not self._stop.is_set():
            return
        self._stop.set()
        self._watched, self._stop = set(handles), threading.Event()
        arguments = (pynvml, handles, self._stop)
        threading.Thread(target=self._run, args=arguments, name="inferspan-xid", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self, pynvml: Any, handles: dict[str, Any], stop: threading.Event) -> None:
        try:
            events = pynvml.nvmlEventSetCreate()
            for handle in handles.values():
                pynvml.nvmlDeviceRegisterEvents(handle, _XID, events)
            owners = {_address(handle): device_id for device_id, handle in handles.items()}
            while not stop.is_set():
                self._wait(pynvml, events, owners)
            pynvml.nvmlEventSetFree(events)
        except Exception as error:  # noqa: BLE001 - no such events (Windows, vGPU), or the driver went away
            faults.logger.debug("inferspan: XID errors are not watched (%s)", error)
            stop.set()

    def _wait(self, pynvml: Any, events: Any, owners: dict[int, str]) -> None:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, 1000)
        except pynvml.NVMLError_Timeout:
            return
        key = (owners.get(_address(event.device), ""), int(event.eventData))
        if key in self._counts or len(self._counts) < _XIDS_MAX:
            self._counts[key] = self._counts.get(key, 0) + 1


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _failed_sample(board: _Board | None) -> Sample:
    if board is None or not board.lost or board.device.parent:
        return {}
    return {r.OK: 0, r.DEGRADED: 0, r.FAILED: 1}
