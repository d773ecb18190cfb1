"""One snapshot behind all the instruments, read by a thread of its own.

The thread reads when somebody collects and the last snapshot is too old; between collections it waits and costs
nothing. Who collects waits for it until a deadline and no longer: a driver call that hangs delays neither the export
nor any other thread, the instruments report nothing until it returns, and one warning says so.

Counters only grow: where a driver starts again from zero, the new count is added to what was there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter

from inferspan import faults, semconv
from inferspan.devices import identity
from inferspan.devices.host import Host
from inferspan.devices.ownership import Ownership
from inferspan.devices.reader import Device, Reader, Reading, Sample

_STARTING_S = 30.0
"""How long the first snapshot may take before it is called hung: without the persistence daemon the driver wakes the
boards, one after the other."""
_HOST = "host"

Value = tuple[float, Mapping[str, str | int]]


@dataclass
class Snapshot:
    """What was read at one time: ``points`` by metric, and the same by device for who wants to show it."""

    samples: list[tuple[Device, Sample]] = field(default_factory=list)
    host: Sample = field(default_factory=dict)
    points: dict[str, list[Value]] = field(default_factory=dict)

    def add(self, sample: Sample, device: Device | None = None) -> None:
        for reading, value in sample.items():
            attributes = dict(reading.attributes)
            if device is not None:
                attributes.update(_attributes(device, semconv.METRICS[reading.metric]))
            self.points.setdefault(reading.metric, []).append((value, attributes))


class Sampler:
    """Reads devices, host and process. Every method may be called from any thread."""

    def __init__(
        self,
        readers: Sequence[Reader],
        host: Host,
        ownership: Ownership,
        *,
        all_devices: bool = False,
        interval_s: float = 1.0,
        deadline_s: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._readers, self._host, self._ownership = readers, host, ownership
        self._all_devices = all_devices
        self._interval_s, self._deadline_s, self._clock = interval_s, deadline_s, clock
        self._start_over()

    def _start_over(self) -> None:
        # In a forked child the lock may be held by a thread that is not there.
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._latest: Snapshot | None = None
        self._taken_at = float("-inf")
        self._asked_at: float | None = None
        self._stopped = self._has_read = self.is_hung = False
        self._seconds = 0.0
        self._counted: dict[tuple[str, Reading], tuple[float, float]] = {}

    def snapshot(self) -> Snapshot | None:
        """What is there now, at most ``interval_s`` old; ``None`` where the driver does not answer in time."""
        if self._pid != os.getpid():
            self._start_over()
        with self._changed:
            if self._is_fresh() or self._stopped:
                return self._latest
            if self._asked_at is None:
                self._asked_at = self._clock()
                self._ensure_thread()
                self._changed.notify_all()
            patience = self._asked_at + self._deadline_s - self._clock()
            if patience > 0 and self._changed.wait_for(self._is_fresh, patience):
                return self._latest
            hung = self._asked_at is not None and self._clock() - self._asked_at >= self._allowed_s
        if hung and not self.is_hung:
            self.is_hung = True
            faults.warn_once("devices hung", f"the device driver has not answered within {self._allowed_s:g} s: device "
                             "metrics are absent until it does; nothing else waits for it")  # fmt: skip
        return None

    def stop(self) -> None:
        """End the thread, at its next opportunity, and let others report."""
        with self._changed:
            self._stopped, self._latest = True, None
            self._changed.notify_all()
        for reader in self._readers:
            reader.stop()
        self._ownership.release()

    def _is_fresh(self) -> bool:
        return self._clock() - self._taken_at <= self._interval_s

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="inferspan-devices", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._thread, self._asked_at = None, None

    @property
    def _allowed_s(self) -> float:
        return self._deadline_s if self._has_read else _STARTING_S

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                changed.wait_for(lambda: self._asked_at is not None or self._stopped)
                if self._stopped:
                    return
            snapshot = self._read(perf_counter()) or Snapshot()
            with changed:
                self._latest, self._taken_at, self._asked_at = snapshot, self._clock(), None
                self._has_read = True
                if self.is_hung:
                    self.is_hung = False
                    faults.logger.info("inferspan: the device driver answers again")
                changed.notify_all()

    @faults.guarded("devices")  # a reader's own fault
    def _read(self, begun: float) -> Snapshot:
        snapshot = Snapshot()
        found = [(reader, device) for reader in self._readers for device in reader.devices()]
        indices = identity.torch_indices([device for _, device in found])
        if not self._all_devices:
            seen = identity.visible([device for _, device in found], os.environ, indices)
            found = [(reader, device) for reader, device in found if device.id in seen]
        owned = self._ownership.owned({_HOST, *(device.id for _, device in found)})
        for reader, device in found:
            if device.id in owned:
                sample = self._growing(device.id, reader.read(device))
                sample[Reading(semconv.DEVICE_INFO)] = 1
                if device.id in indices:
                    sample[Reading(semconv.DEVICE_INDEX)] = indices[device.id]
                snapshot.samples.append((device, sample))
                snapshot.add(sample, device)
        snapshot.host = self._host.read(with_system=_HOST in owned)
        snapshot.add(self._growing("", snapshot.host))
        self._seconds += perf_counter() - begun
        snapshot.add(
            {
                Reading(semconv.OVERHEAD_CALLS): sum(reader.calls for reader in self._readers),
                Reading(semconv.OVERHEAD_TIME): self._seconds,
            }
        )
        return snapshot

    def _growing(self, owner: str, sample: Sample) -> Sample:
        for reading, value in sample.items():
            if semconv.METRICS[reading.metric].instrument == "observable_counter":
                base, last = self._counted.get((owner, reading), (0.0, 0.0))
                base += last if value < last else 0
                self._counted[owner, reading] = base, value
                sample[reading] = base + value if base else value
        return sample


def _attributes(device: Device, metric: semconv.Metric) -> Iterable[tuple[str, str]]:
    known = {semconv.HW_ID: device.id, semconv.HW_NAME: device.name, semconv.HW_PARENT: device.parent}
    known[semconv.HW_TYPE] = "gpu"
    known.update(device.facts)
    return [(name, known[name]) for name in metric.attributes if known.get(name)]
