"""NVIDIA's devices, through NVML as ``pynvml`` (the distribution nvidia-ml-py) binds it.

What is read is in the tables of :mod:`inferspan.devices.nvml_queries`: fields, which one call fetches together, further
calls, and GPM metrics. Every call but those of the XID thread goes through one gate (:meth:`Nvml._ask`), where the
error code decides: absent and not asked again, absent this time, this device is gone, or the driver is.

The driver is initialised at the first reading, once in a process and again in a forked child; it is never shut down,
since others in the process may use it, and neither init nor shutdown is cheap (100 cycles cost a program 4.7 times the
CPU: NVIDIA/mig-parted#332). Nothing here makes a CUDA context. One thread reads; a second only waits for XID events.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from inferspan import faults, forks, semconv
from inferspan.devices import reader as r
from inferspan.devices.nvml_errors import DEVICE_GONE, DRIVER_GONE, FOR_GOOD, NO_DRIVER, BackOff, GoneError, report
from inferspan.devices.nvml_queries import CALLS, FIELDS, GPM, SM, VALUE, WIDE, Call
from inferspan.devices.reader import Device, Reading, Sample
from inferspan.devices.xids import Xids

_CALLS_MAX = 8  # for one device and snapshot; of CALLS those that come later are read every _STANDING_S only
_STANDING_S = 300.0


@dataclass
class _Board:
    """What is remembered of one device."""

    device: Device
    handle: Any
    again: BackOff = field(default_factory=BackOff)
    lost: bool = False
    fields: list[tuple[int, int, Reading, float]] = field(default_factory=lambda: list(FIELDS))
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
            except GoneError as gone:
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
        except GoneError as gone:
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
            clock_mhz = self._ask(device.id, "nvmlDeviceGetClockInfo", board.handle, SM)
        except GoneError as gone:
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
        for call in CALLS:
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

    def _made(self, board: _Board, call: Call) -> Iterable[tuple[Reading, float]]:
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
            kinds = WIDE if semconv.METRICS[reading.metric].unit == "By" else VALUE
            if value.nvmlReturn not in FOR_GOOD:
                answered.append(row)
            if value.nvmlReturn == 0 and value.valueType in kinds:
                sample.setdefault(reading, getattr(value.value, VALUE[value.valueType]) * factor)
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
        query.version, query.numMetrics, query.sample1, query.sample2 = 1, len(GPM), older, newer
        for slot, number in enumerate(GPM):
            query.metrics[slot].metricId = number
        if self._ask(about, "nvmlGpmMetricsGet", query) is not None:
            for slot, reading in enumerate(GPM.values()):
                if query.metrics[slot].nvmlReturn == 0:
                    sample[reading] = query.metrics[slot].value / 100

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._pynvml: Any = None
        self._initialised = False
        self._absent: set[tuple[Any, ...]] = set()
        self._boards: dict[str, _Board] = {}
        self._again = BackOff()
        self._enumerate_at = 0.0
        self._xids = Xids()

    def _initialise(self) -> None:
        if self._pynvml is None:
            try:
                import pynvml
            except ImportError:
                raise GoneError(NO_DRIVER) from None
            self._pynvml = pynvml
        if self._ask("driver", "nvmlInit") is None:
            raise GoneError(999)
        self._initialised = True

    def _enumerate(self) -> None:
        """Find the boards and their MIG instances; those that are known keep what is remembered of them."""
        found: dict[str, _Board] = {}
        version = self._ask("driver", "nvmlSystemGetDriverVersion")
        for index in range(self._ask("driver", "nvmlDeviceGetCount") or 0):
            try:
                self._add(found, index, self._ask("driver", "nvmlDeviceGetHandleByIndex", index), version)
            except GoneError as gone:
                if gone.args[0] in DRIVER_GONE:
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
            raise GoneError(28)
        board.handle, board.gpm, board.gpm_taken_at = handle, [], None
        self._absent = {key for key in self._absent if key[0] != board.device.id}

    def _ask(self, about: str, function: str, *arguments: Any) -> Any:
        """One call of the driver: its result, or ``None`` where it has none.

        Raises:
            GoneError: the device or the driver cannot be asked any more.
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
            report(code, about)
            if code in DRIVER_GONE or code in DEVICE_GONE or (code == 2 and about.startswith("MIG-")):
                raise GoneError(code) from None
            if code in FOR_GOOD and not about.endswith("slot"):
                self._absent.add(key)
            return None
        return True if value is None else value

    def _gone(self, board: _Board, code: int) -> None:
        if code in DRIVER_GONE:
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
        if code == NO_DRIVER:
            self._again.due_at = float("inf")
        self._enumerate_at = 0.0
        self._xids.stop()


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _failed_sample(board: _Board | None) -> Sample:
    if board is None or not board.lost or board.device.parent:
        return {}
    return {r.OK: 0, r.DEGRADED: 0, r.FAILED: 1}
