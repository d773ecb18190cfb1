"""Time on the device of each forward, its prefill and its decode, by events on the device's own stream.

Events are recorded by the thread that works with the device and read later by another; nothing waits for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from inferspan import semconv
from inferspan.core.probe import Brackets, CallSite, Point, Probe, Report, Values
from inferspan.core.steps import DECODE, PREFILL
from inferspan.probes import accelerator

if TYPE_CHECKING:
    from inferspan.core.record import Inference, Phase
    from inferspan.probes.accelerator import Accelerator, Timer


class DeviceTime(NamedTuple):
    """Seconds on the device, ``None`` where they are not known; ``is_pending``: it still had work to do when the host
    had none left."""

    seconds: float | None
    on: Accelerator | None = None
    is_pending: bool | None = None


class DeviceTimeProbe(Probe):
    """Binds to an accelerator."""

    name = "device_time"
    brackets = Brackets.FORWARD

    def __init__(self, on: Accelerator | None = None, timers_max: int = 0) -> None:
        self._on = on
        self._timers_max = timers_max

    def prepare(self, site: CallSite) -> DeviceTimeProbe | None:
        found = accelerator.of(site.device)
        return None if found is None else DeviceTimeProbe(found, site.settings.gpu_timers_max)

    def begin(self, record: Phase, model: Any) -> Timer | None:
        return None if self._on is None else self._on.timer(self._timers_max)

    def end(self, record: Phase, mark: Timer) -> None:
        mark.stop()

    def generation_begins(self, phase: Phase, mark: Timer) -> None:
        if phase.generation is not None:
            phase.generation.on_first_token = mark.lap

    def is_ready(self, record: Any, mark: Timer) -> bool:
        return mark.is_ready()

    def value(self, phase: Phase, part: str, mark: Timer) -> DeviceTime:
        laps = mark.laps()
        if part == phase.name:
            return DeviceTime(sum(laps) if laps else None, self._on, mark.is_pending)
        has_token = phase.generation is not None and phase.generation.first_token_ns is not None
        if part == PREFILL and not has_token:
            return DeviceTime(sum(laps) if laps else None, self._on)
        if has_token and len(laps) == 2:
            return DeviceTime(laps[[PREFILL, DECODE].index(part)], self._on)
        return DeviceTime(None, self._on)

    def add(self, one: DeviceTime | None, other: DeviceTime | None) -> DeviceTime:
        on = next((value.on for value in (one, other) if value is not None), None)
        if one is None or other is None or one.seconds is None or other.seconds is None:
            return DeviceTime(None, on)
        return DeviceTime(one.seconds + other.seconds, on)

    def describe(self, inference: Inference, part: str, values: Values) -> dict[str, Any]:
        value: DeviceTime | None = values.get(self.name)
        if value is None:
            return {}
        return {semconv.GPU_TIME: value.seconds, semconv.GPU_PENDING: value.is_pending}

    def report(self, inference: Inference, mark: None, report: Report) -> None:
        for part, values in report.totals.items():
            value: DeviceTime | None = values.get(self.name)
            if value is None:
                continue
            if value.on is not None:
                report.results.setdefault("device", value.on.device)
            if value.seconds is not None:
                report.points.append(Point(semconv.GPU_TIMES, value.seconds, {semconv.PHASE_NAME: part}))
        if inference.self_phase is not None:
            timer: Timer | None = inference.self_phase.mark_of(self.name)
            report.attributes[semconv.GPU_PENDING] = None if timer is None else timer.is_pending
        total: DeviceTime | None = report.totals.get(semconv.FORWARD, {}).get(self.name)
        if total is not None and total.seconds is not None and inference.end_ns is not None:
            report.results[self.name] = total.seconds
            wall_s = (inference.end_ns - inference.start_ns) * 1e-9
            report.attributes[semconv.GPU_TIME] = total.seconds
            report.attributes[semconv.GPU_BUSY_SHARE] = min(1.0, total.seconds / (wall_s or total.seconds or 1.0))
