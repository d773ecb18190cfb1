"""One run from idle to cool-down, over the whole sweep, with one target or several side by side.

idle · for each target: load, idle, cold first call · for each point of the sweep: warm-up until steady, measure ·
cool-down. Several targets take short turns at each point, first one then the other, in alternating order, so that
what the machine does meanwhile meets them alike.

What fails is a result: a configuration that runs out of memory is marked and the sweep goes on; a target that cannot
be loaded is marked too. Ctrl-C ends the run, and what was measured until then is marked partial.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

from inferspan.bench import targets
from inferspan.bench.environment import environment
from inferspan.bench.folders import last_part, without_folders
from inferspan.bench.monitor import Monitor
from inferspan.bench.plan import Plan, Progress, steps, sweep
from inferspan.bench.point import MESSAGE_MAX, Loaded, Measurement
from inferspan.bench.recorder import Recorder
from inferspan.bench.results import FORMAT, VERSION, Failure, Result, Target, Timeline
from inferspan.version import __version__

__all__ = ["Plan", "Progress", "run", "steps"]

_BUSY_HOST = 0.2


def run(plan: Plan, recorder: Recorder, progress: Progress) -> Result:
    """Run it all, and return what was measured, whatever happens in between."""
    return _Run(plan, recorder, progress).run()


class _Run:
    def __init__(self, plan: Plan, recorder: Recorder, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._monitor = Monitor()
        self._measurement = Measurement(plan, recorder, progress, self._monitor, self._note)
        self._result = Result(
            format=FORMAT,
            version=VERSION,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            inferspan=__version__,
            command=plan.command,
            workload=plan.workload,
            environment=environment(None),
            targets=[],
        )

    def run(self) -> Result:
        monitor, result = self._monitor, self._result
        monitor.start()
        try:
            result.idle = self._rest("idle", self._plan.idle_s)
            result.environment = environment(monitor.read())
            loaded = [found for spec in self._plan.specifications if (found := self._prepare(spec)) is not None]
            # once more: torch is imported now, and its devices are known
            result.environment = environment(monitor.read())
            for number, (input_tokens, batch_size) in enumerate(sweep(self._plan.workload) if loaded else ()):
                self._measurement.measure(loaded, number, input_tokens, batch_size)
            for each in loaded:
                each.entry.cooldown = self._rest("cooldown", self._plan.cooldown_s, each.entry.label)
        except KeyboardInterrupt:
            result.partial = True
        finally:
            monitor.stop()
        result.timeline = _without_empty(monitor.timeline)
        result.duration_s = monitor.now_s()
        self._note_surroundings()
        return result

    def _prepare(self, specification: targets.Specification) -> Loaded | None:
        """Load a target, let it rest, and make its first call."""
        entry = Target(last_part(specification.name), "", self._unique(specification.label), specification.task)
        self._result.targets.append(entry)
        before = self._resident()
        self._progress.begin("load", entry.label)
        try:
            with self._monitor.stage("load", entry.label) as stage:
                target = targets.load(specification)
        except targets.TargetError as error:
            entry.failure = Failure("TargetError", without_folders(str(error))[:MESSAGE_MAX])
            return None
        entry.load_s = stage.end_s - stage.start_s
        entry.kind, entry.task, entry.model = target.kind, target.task, dict(target.model)
        after = self._resident()
        if before is not None and after is not None:
            entry.load_resident_bytes = after - before
        entry.idle = self._rest("idle", self._plan.idle_s, entry.label)
        entry.cold = self._measurement.first_call(target, entry.label)
        return Loaded(target, entry)

    def _rest(self, name: str, duration_s: float, label: str | None = None) -> Any:
        self._progress.begin(name, label or "nothing loaded")
        with self._monitor.stage(name, label) as stage:
            self._monitor.read()
            began = perf_counter()
            while (left_s := duration_s - (perf_counter() - began)) > 0:
                time.sleep(min(0.25, left_s))
                self._progress.advanced(1 - max(0.0, left_s) / duration_s)
            self._monitor.read()
        return self._monitor.rest(stage)

    def _unique(self, label: str) -> str:
        taken = {target.label for target in self._result.targets}
        return next(name for name in (label, *(f"{label} ({n})" for n in range(2, 99))) if name not in taken)

    def _resident(self) -> int | None:
        self._monitor.read()
        return next((value for value in reversed(self._monitor.timeline.resident_bytes) if value is not None), None)

    def _note(self, text: str) -> None:
        if text not in self._result.notes:
            self._result.notes.append(text)

    def _note_surroundings(self) -> None:
        idle = self._result.idle
        if idle is not None and idle.host_cpu_share is not None and idle.host_cpu_share > _BUSY_HOST:
            self._note(f"others used {idle.host_cpu_share:.0%} of the CPUs while this process was idle")
        governor = self._result.environment.machine.get("cpu_governor")
        if governor not in (None, "performance"):
            self._note(f"the CPU governor is {governor}: clocks follow the load")


def _without_empty(line: Timeline) -> Timeline:
    for name in line.__slots__:
        rows = getattr(line, name)
        if all(item is None for item in rows):
            setattr(line, name, [])
    return line
