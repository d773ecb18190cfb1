"""The process and the devices over the whole run: read twice a second by a thread, by the readers of production.

Each reading costs less than a millisecond of CPU. The allocator is asked only where torch has used the device.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from time import perf_counter
from typing import Any

from inferspan import config, faults, semconv
from inferspan.bench.results import Rest, Stage, Timeline
from inferspan.devices import choice, identity
from inferspan.devices import reader as r
from inferspan.devices.nvml import Nvml
from inferspan.devices.sampler import Snapshot

_INTERVAL_S = 0.5
_RESIDENT = r.Reading(semconv.PROCESS_RESIDENT)
_HOST_IDLE = r.of(semconv.SYSTEM_CPU, semconv.CPU_MODE, "idle")
_CPU = tuple(r.of(semconv.PROCESS_CPU, semconv.CPU_MODE, mode) for mode in ("user", "system"))


class Monitor:
    """Fills :attr:`timeline` from :meth:`start` to :meth:`stop`. Offsets count from ``began``."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.timeline = Timeline()
        # each process for itself: a benchmark must see its devices whoever reports them to a backend
        settings = config.load({"devices": "always", "devices_interval": _INTERVAL_S, "process_stats": True})
        self._sampler = choice.sampler(settings, deadline_s=5.0)
        self._boards = Nvml()  # of its own: the sampler's is read by one thread only
        self._host_shares: list[float | None] = []
        self._stopped = threading.Event()
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="inferspan-bench-monitor", daemon=True)

    def start(self) -> None:
        self.read()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        self._sampler.stop()

    def now_s(self) -> float:
        """Seconds since the run began."""
        return perf_counter() - self.began

    @contextmanager
    def stage(self, name: str, target: str | None = None, configuration: int | None = None) -> Iterator[Stage]:
        """What happens inside is this stage of the run."""
        stage = Stage(name, self.now_s(), self.now_s(), target, configuration)
        self.timeline.stages.append(stage)
        try:
            yield stage
        finally:
            stage.end_s = self.now_s()

    def read(self) -> Snapshot | None:
        """One more reading of everything, now; ``None`` where the driver does not answer."""
        with self._reading:
            snapshot = self._sampler.snapshot()
            if snapshot is not None:
                self._note(snapshot)
            return snapshot

    def energy_j(self) -> float | None:
        """What the boards have used up, by their counters; ``None`` without one."""
        found = [self._boards.meter(device).get(r.ENERGY) for device in self._visible()]
        return None if not found or None in found else sum(value for value in found if value is not None)

    def rest(self, stage: Stage) -> Rest:
        """What was read in a stage in which nothing was asked of the target."""
        line = self.timeline
        inside = [place for place, at_s in enumerate(line.offset_s) if stage.start_s <= at_s <= stage.end_s]

        def mean(column: list[Any]) -> float | None:
            values = [column[place] for place in inside if column[place] is not None]
            return fmean(values) if values else None

        def last(column: list[Any]) -> Any:
            return next((column[place] for place in reversed(inside) if column[place] is not None), None)

        return Rest(
            duration_s=stage.end_s - stage.start_s,
            cpu_share=mean(line.cpu_share),
            host_cpu_share=mean(self._host_shares),
            resident_bytes=last(line.resident_bytes),
            device_bytes=last(line.device_bytes),
            device_reserved_bytes=last(line.device_reserved_bytes),
            power_w=mean(line.power_w),
            gpu_utilization=mean(line.gpu_utilization),
            temperature_c=last(line.temperature_c),
        )

    def resident_peak(self, stages: list[Stage]) -> int | None:
        """Highest resident set that was read in these stages."""
        line = self.timeline
        found = [
            resident
            for at_s, resident in zip(line.offset_s, line.resident_bytes, strict=False)
            if resident is not None and any(stage.start_s <= at_s <= stage.end_s for stage in stages)
        ]
        return max(found, default=None)

    def _visible(self) -> list[r.Device]:
        found = self._boards.devices()
        seen = identity.visible(found, os.environ, identity.torch_indices(found))
        return [device for device in found if device.id in seen]

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_S * 1.1):  # a little later than what the sampler calls fresh
            self._read_guarded()

    def _read_guarded(self) -> None:
        try:
            self.read()
        except Exception:  # noqa: BLE001 - a reader's own fault: the run goes on without this reading
            faults.note("bench.monitor")

    def _note(self, snapshot: Snapshot) -> None:
        line, host = self.timeline, snapshot.host
        shares = [host[reading] for reading in _CPU if reading in host]
        idle = host.get(_HOST_IDLE)
        resident = host.get(_RESIDENT)
        boards = [sample for _, sample in snapshot.samples]
        held = _allocator()
        line.offset_s.append(self.now_s())
        line.resident_bytes.append(None if resident is None else int(resident))
        line.cpu_share.append(sum(shares) if shares else None)
        self._host_shares.append(None if idle is None else max(0.0, 1 - idle))
        line.device_bytes.append(held[0])
        line.device_reserved_bytes.append(held[1])
        line.power_w.append(_over(boards, r.POWER, sum))
        line.gpu_utilization.append(_over(boards, r.BUSY, fmean))
        line.temperature_c.append(_over(boards, r.TEMPERATURE, max))
        line.sm_clock_hz.append(_over(boards, r.SM_CLOCK, fmean))


def _over(boards: list[r.Sample], reading: r.Reading, combine: Any) -> float | None:
    values = [sample[reading] for sample in boards if reading in sample]
    return float(combine(values)) if values else None


def _allocator() -> tuple[int | None, int | None]:
    """What torch's allocator has handed out and holds, on all devices; never makes a context."""
    cuda: Any = sys.modules.get("torch.cuda")
    # another thread may just be importing it
    if cuda is None or not hasattr(cuda, "memory_reserved") or not cuda.is_initialized():
        return None, None
    indices = range(cuda.device_count())
    return sum(map(cuda.memory_allocated, indices)), sum(map(cuda.memory_reserved, indices))
