"""Energy and SM clock of the boards that inferences run on, sampled while they run.

The board's energy counter moves every 20 to 100 ms and counts everything on the board, so one inference has a share of
it: at each moment that of one among those which this process runs there then (other processes and the idle draw are in
it). The running sum of that share is kept beside the counter; an inference's energy is the difference between its end
and its start. Below :data:`WINDOW_S` the counter's steps would be the larger part of it, so there is none.

The thread works only while an inference runs on a board, and asks the driver for two numbers each time.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from inferspan import faults, semconv
from inferspan.core.probe import CallSite, Point, Probe, Report
from inferspan.devices import identity
from inferspan.devices.nvml import Nvml
from inferspan.devices.reader import ENERGY, SM_CLOCK, Device, Sample
from inferspan.probes import accelerator

if TYPE_CHECKING:
    from inferspan.core.record import Inference

STEP_S = 0.1
WINDOW_S = 1.0
_SAMPLES_MAX = 6000
_LINGER_S = 2.0
_NS = 1e-9


class MeterReader(Protocol):
    """What a driver must give: see :class:`inferspan.devices.nvml.Nvml`."""

    def devices(self) -> Sequence[Device]: ...

    def meter(self, device: Device) -> Sample: ...


class Energy(NamedTuple):
    """Joules of one inference; ``is_shared`` where others ran on the board at the same time."""

    joules: float
    is_shared: bool


class _Reading(NamedTuple):
    at_ns: int
    share_j: float | None  # running sum of what one inference has of the counter
    alone_s: float  # running integral of 1 / inferences: grows with the clock where there is one
    clock_hz: float | None


class _Board:
    """What is known of one board, by the index that torch gives it."""

    def __init__(self) -> None:
        self.changes: deque[tuple[int, int]] = deque()  # when an inference began (+1) or ended (-1)
        self.readings: deque[_Reading] = deque(maxlen=_SAMPLES_MAX)
        self.running = 0
        self._at_ns: int | None = None
        self._alone_s = 0.0
        self._share_j = 0.0
        self._energy_j: float | None = None

    def add(self, now_ns: int, energy_j: float | None, clock_hz: float | None) -> None:
        """One sample of the driver."""
        alone_s = self._until(now_ns)
        share_j = None
        if energy_j is not None:
            last = self.readings[-1] if self.readings else None
            # a counter that went back belongs to a driver that was loaded anew
            if last is not None and self._energy_j is not None and energy_j >= self._energy_j:
                elapsed_s = (now_ns - last.at_ns) * _NS
                self._share_j += (energy_j - self._energy_j) * (alone_s / elapsed_s if elapsed_s else 0.0)
            self._energy_j, share_j = energy_j, self._share_j
        self._alone_s += alone_s
        self.readings.append(_Reading(now_ns, share_j, self._alone_s, clock_hz))

    def _until(self, now_ns: int) -> float:
        """Integral of 1 / inferences since the last sample."""
        at_ns = now_ns if self._at_ns is None else self._at_ns
        total = 0.0
        while self.changes and self.changes[0][0] <= now_ns:
            changed_ns, change = self.changes.popleft()
            if self.running:
                total += (changed_ns - at_ns) * _NS / self.running
            self.running, at_ns = max(0, self.running + change), max(at_ns, changed_ns)
        if self.running:
            total += (now_ns - at_ns) * _NS / self.running
        self._at_ns = now_ns
        return max(0.0, total)


class EnergySampler:
    """Samples boards on a thread of its own. :meth:`begin` and :meth:`end` never wait."""

    def __init__(self, reader: MeterReader, clock: Callable[[], int] = perf_counter_ns) -> None:
        self._reader = reader
        self._clock = clock
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._boards: dict[int, _Board] = {}
        self._devices: dict[int, Device] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def begin(self, index: int) -> None:
        """An inference begins on the board that torch gives this index."""
        if self._pid != os.getpid():
            self._start_over()
        self._boards.setdefault(index, _Board()).changes.append((self._clock(), 1))
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._run, name="inferspan-meter", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._thread = None
        if not self._wake.is_set():
            self._wake.set()

    def end(self, index: int) -> None:
        """It ends. Only appends, so that the garbage collector may call it."""
        board = self._boards.get(index)
        if board is not None:
            board.changes.append((self._clock(), -1))

    def stop(self) -> None:
        """End the thread, at its next opportunity."""
        self._stopped = True
        self._wake.set()

    def is_ready(self, index: int, start_ns: int, end_ns: int) -> bool:
        """Whether what can be known of a window is known: a sample after its end, if it is long enough to matter."""
        board = self._boards.get(index)
        if board is None or not board.readings or self._thread is None or (end_ns - start_ns) * _NS < WINDOW_S:
            return True
        return board.readings[-1].at_ns >= end_ns

    def energy(self, index: int, start_ns: int, end_ns: int) -> Energy | None:
        """Energy of a window between two readings of the clock; ``None`` where the counter does not show it."""
        window_s = (end_ns - start_ns) * _NS
        readings = self._readings(index)
        if window_s < WINDOW_S or len(readings) < 2:
            return None
        begin_ns, finish_ns = max(start_ns, readings[0].at_ns), min(end_ns, readings[-1].at_ns)
        covered_s = (finish_ns - begin_ns) * _NS
        if covered_s < 0.8 * window_s:
            return None
        first, last = _between(readings, begin_ns), _between(readings, finish_ns)
        if first is None or last is None:
            return None
        joules = (last[0] - first[0]) * window_s / covered_s
        return Energy(joules, last[1] - first[1] < 0.99 * covered_s)

    def sm_clock_hz(self, index: int, start_ns: int, end_ns: int) -> float | None:
        """Mean SM clock of the samples in a window, or of the one nearest to it, at most two seconds away."""
        found = [r for r in self._readings(index) if r.clock_hz is not None]
        inside = [r.clock_hz for r in found if start_ns <= r.at_ns <= end_ns and r.clock_hz is not None]
        if inside:
            return sum(inside) / len(inside)
        nearest = min(found, key=lambda r: min(abs(r.at_ns - start_ns), abs(r.at_ns - end_ns)), default=None)
        if nearest is None or min(abs(nearest.at_ns - start_ns), abs(nearest.at_ns - end_ns)) * _NS > _LINGER_S:
            return None
        return nearest.clock_hz

    def _readings(self, index: int) -> list[_Reading]:
        board = self._boards.get(index)
        return [] if board is None else list(board.readings)

    def _run(self) -> None:
        idle_since = self._clock()
        while not self._stopped:
            try:
                busy = self._sample()
            except Exception:  # noqa: BLE001 - the reader's own fault
                faults.note("devices.meter")
                busy = False
            now = self._clock()
            idle_since = now if busy else idle_since
            if (now - idle_since) * _NS > _LINGER_S:
                self._wake.clear()
                if not any(board.changes for board in self._boards.values()):
                    self._wake.wait()
                idle_since = self._clock()
            else:
                sleep(STEP_S)

    def _sample(self) -> bool:
        """One sample of each board that is at work; whether one is."""
        busy = False
        for index, board in list(self._boards.items()):
            if not (board.running or board.changes):
                continue
            busy = True
            device = self._device(index)
            sample = {} if device is None else self._reader.meter(device)
            board.add(self._clock(), sample.get(ENERGY), sample.get(SM_CLOCK))
        return busy

    def _device(self, index: int) -> Device | None:
        if index not in self._devices:
            devices = {device.id: device for device in self._reader.devices()}
            if not devices:
                self._stopped = True  # CUDA works without it (ROCm, a container without NVML): it will not come
                return None
            indices = identity.torch_indices(list(devices.values()))
            self._devices.update({found: devices[device_id] for device_id, found in indices.items()})
        return self._devices.get(index)


def _between(readings: list[_Reading], at_ns: int) -> tuple[float, float] | None:
    """Share of the energy and integral at a moment, interpolated between two samples."""
    place = bisect_left(readings, at_ns, key=lambda reading: reading.at_ns)
    after = readings[min(place, len(readings) - 1)]
    before = readings[max(0, place - 1)] if after.at_ns > at_ns else after
    if before.share_j is None or after.share_j is None:
        return None
    span = after.at_ns - before.at_ns
    part = (at_ns - before.at_ns) / span if span else 0.0
    return (
        before.share_j + (after.share_j - before.share_j) * part,
        before.alone_s + (after.alone_s - before.alone_s) * part,
    )


class EnergyProbe(Probe):
    """Energy of inferences of a second or more, and cycles of the device, on CUDA devices that the driver samples."""

    name = "energy"

    def __init__(self, sampler: EnergySampler | None = None, index: int = 0) -> None:
        self._sampler = EnergySampler(Nvml()) if sampler is None else sampler
        self._index = index

    def prepare(self, site: CallSite) -> EnergyProbe | None:
        on = accelerator.of(site.device)
        return None if on is None or on.kind != "cuda" else EnergyProbe(self._sampler, on.index)

    def begin(self, record: Inference, model: Any) -> EnergyProbe:
        self._sampler.begin(self._index)
        return self

    def end(self, record: Inference, mark: EnergyProbe) -> None:
        self._sampler.end(self._index)

    def is_ready(self, record: Inference, mark: EnergyProbe) -> bool:
        return record.end_ns is None or self._sampler.is_ready(self._index, record.start_ns, record.end_ns)

    def report(self, inference: Inference, mark: EnergyProbe | None, report: Report) -> None:
        if mark is not None and inference.end_ns is not None:
            mark._report(inference, inference.start_ns, inference.end_ns, report)

    def _report(self, inference: Inference, start_ns: int, end_ns: int, report: Report) -> None:
        clock_hz = self._sampler.sm_clock_hz(self._index, start_ns, end_ns)
        busy_s = report.results.get("device_time")
        if clock_hz is not None and busy_s is not None:
            report.attributes[semconv.GPU_CYCLES] = round(busy_s * clock_hz)
            report.attributes[semconv.GPU_CYCLES_SOURCE] = "sm_clock"
        energy = self._sampler.energy(self._index, start_ns, end_ns)
        if energy is None:
            return
        report.attributes[semconv.ENERGY_CONSUMPTION] = energy.joules
        report.attributes[semconv.ENERGY_METHOD] = "board_counter_shared" if energy.is_shared else "board_counter"
        report.points.append(Point(semconv.ENERGY_CONSUMED, energy.joules))
        if inference.counts.output_tokens:
            per_token = energy.joules / inference.counts.output_tokens
            report.points.append(Point(semconv.ENERGY_PER_TOKEN, per_token))

    def close(self) -> None:
        self._sampler.stop()
