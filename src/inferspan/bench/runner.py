"""One run from idle to cool-down, over the whole sweep, with one target or several side by side.

idle · for each target: load, idle, cold first call · for each point of the sweep: warm-up until steady, measure ·
cool-down. Several targets take short turns at each point, first one then the other, in alternating order, so that
what the machine does meanwhile meets them alike.

What fails is a result: a configuration that runs out of memory is marked and the sweep goes on; a target that cannot
be loaded is marked too. Ctrl-C ends the run, and what was measured until then is marked partial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, Protocol

from inferspan import semconv
from inferspan.bench import targets
from inferspan.bench.environment import environment
from inferspan.bench.load import FAILURES_MAX, Asked, Load, Turn
from inferspan.bench.monitor import Monitor
from inferspan.bench.recorder import Recorder, Request
from inferspan.bench.results import (
    FORMAT,
    VERSION,
    Configuration,
    Failure,
    Result,
    Stage,
    Target,
    Timeline,
    Warmup,
    Workload,
)
from inferspan.bench.steady import WINDOW, is_steady
from inferspan.bench.workload import WorkloadError, batches, poisson
from inferspan.probes.out_of_memory import out_of_memory
from inferspan.version import __version__

__all__ = ["Plan", "Progress", "run", "steps"]

_TURNS = 20
"""Of each target at each point, where several take turns. The test swaps whole turns: with ten of them, the smallest
p-value that it can give would not outlive the correction for a sweep."""
_REQUESTS_MIN = 5
"""However long one takes."""
_WARMUP_STEPS = 0.3
"""What warming up a configuration is of its time, roughly, for the progress."""
_BUSY_HOST = 0.2
_MESSAGE_MAX = 500


class Progress(Protocol):
    """Is told how far the run is."""

    def begin(self, stage: str, about: str, steps: float = 0.0) -> None:
        """A stage begins, which is so much of the run's steps: one for each configuration of each target."""

    def advanced(self, share: float) -> None:
        """Of the stage."""


@dataclass(slots=True)
class Plan:
    """What is to be run. ``workload`` is what the result keeps of it; ``requests`` are those of a file."""

    specifications: Sequence[targets.Specification]
    workload: Workload
    command: list[str]
    requests: Sequence[Any] | None = None
    idle_s: float = 2.0
    cooldown_s: float = 2.0


@dataclass(slots=True)
class _Loaded:
    """A target that was loaded, and what is told of it."""

    target: targets.Target
    told: Target


@dataclass(slots=True)
class _Point:
    """One target at one point of the sweep."""

    loaded: _Loaded
    configuration: Configuration
    number: int
    call: Callable[[list[Any]], Any] | None = None
    batches: Iterator[list[Any]] = field(default_factory=lambda: iter(()))
    requests: dict[int, Request] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        return self.configuration.failure is None and not self.configuration.partial


def run(plan: Plan, recorder: Recorder, progress: Progress) -> Result:
    """Run it all, and return what was measured, whatever happens in between."""
    return _Run(plan, recorder, progress).run()


def steps(plan: Plan) -> int:
    """Configurations of the whole run, all targets together."""
    return len(plan.specifications) * len(_sweep(plan.workload))


def _sweep(workload: Workload) -> list[tuple[int | None, int]]:
    """Input tokens and batch size of each point."""
    lengths: list[int | None] = [*workload.input_tokens] or [None]
    return [(length, size) for length in lengths for size in workload.batch_sizes or [1]]


class _Run:
    def __init__(self, plan: Plan, recorder: Recorder, progress: Progress) -> None:
        self._plan = plan
        self._recorder = recorder
        self._progress = progress
        self._monitor = Monitor()
        self._load = Load()
        self._workload = plan.workload
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
            for number, (input_tokens, batch_size) in enumerate(_sweep(self._workload) if loaded else ()):
                self._measure(loaded, number, input_tokens, batch_size)
            for each in loaded:
                each.told.cooldown = self._rest("cooldown", self._plan.cooldown_s, each.told.label)
        except KeyboardInterrupt:
            result.partial = True
        finally:
            monitor.stop()
        result.timeline = _without_empty(monitor.timeline)
        result.duration_s = monitor.now_s()
        self._note_surroundings()
        return result

    # -- before the sweep ----------------------------------------------------------------------------------------------

    def _prepare(self, specification: targets.Specification) -> _Loaded | None:
        """Load a target, let it rest, and make its first call."""
        told = Target(specification.name, "", self._unique(specification.label), specification.task)
        self._result.targets.append(told)
        before = self._resident()
        self._progress.begin("load", told.label)
        try:
            with self._monitor.stage("load", told.label) as stage:
                target = targets.load(specification)
        except targets.TargetError as error:
            told.failure = Failure("TargetError", str(error)[:_MESSAGE_MAX])
            return None
        told.load_s = stage.end_s - stage.start_s
        told.kind, told.task, told.model = target.kind, target.task, dict(target.model)
        after = self._resident()
        if before is not None and after is not None:
            told.load_resident_bytes = after - before
        told.idle = self._rest("idle", self._plan.idle_s, told.label)
        self._cold(target, told)
        return _Loaded(target, told)

    def _cold(self, target: targets.Target, told: Target) -> None:
        input_tokens, batch_size = _sweep(self._workload)[0]
        try:
            call, found = self._caller(target, input_tokens, batch_size, count=1)
        except WorkloadError:
            return  # which its configuration will tell
        self._progress.begin("cold", told.label)
        with self._monitor.stage("cold", told.label):
            asked = self._load.run(self._turn(call, found, 0, 1, 1, float("inf"), closed=True), lambda error: True)
        self._end_if_interrupted(asked)
        if asked.failure is not None:
            failure = _failure(asked.failure)
            self._note(f"{told.label}: the first call failed: {failure.type}: {failure.message}")
            targets.free()
        told.cold = self._recorder.take().samples(asked.requests)

    # -- one point of the sweep ----------------------------------------------------------------------------------------

    def _measure(self, loaded: list[_Loaded], number: int, input_tokens: int | None, batch_size: int) -> None:
        """All targets at one point."""
        points = []
        for each in loaded:
            configuration = Configuration(batch_size, input_tokens)
            configuration.output_tokens = self._workload.output_tokens if each.target.generates else None
            each.told.configurations.append(configuration)
            points.append(_Point(each, configuration, number))
        try:
            for point in points:
                self._warm_up(point)
            turns = _TURNS if len(points) > 1 else 1
            for turn in range(turns):
                for point in points if turn % 2 == 0 else reversed(points):
                    if point.goes_on:
                        self._take_turn(point, turn, turns)
        except KeyboardInterrupt:
            for point in points:
                point.configuration.partial = True
            raise
        finally:
            self._tell(points)

    def _warm_up(self, point: _Point) -> None:
        configuration, workload = point.configuration, self._workload
        self._begin("warmup", point, _WARMUP_STEPS)
        warmup = configuration.warmup = Warmup(steady=False)
        with self._monitor.stage("warmup", point.loaded.told.label, point.number):
            try:
                point.call, point.batches = self._caller(
                    point.loaded.target, configuration.input_tokens, configuration.batch_size, workload.requests
                )
            except WorkloadError as error:
                configuration.failure = _failure(error)
                return
            self._until_steady(point, warmup)
        self._recorder.take()  # these do not count

    def _until_steady(self, point: _Point, warmup: Warmup) -> None:
        assert point.call is not None
        workload = self._workload
        began, failures = perf_counter(), 0
        while True:
            count, spent_s = len(warmup.latency_s), perf_counter() - began
            warmup.steady = is_steady(warmup.latency_s)
            most, most_s = workload.warmup_requests_max, workload.warmup_duration_max_s
            if warmup.steady or count >= most or spent_s >= most_s:
                warmup.reason = f"{'' if warmup.steady else 'not '}steady after {count} requests and {spent_s:.1f} s"
                return
            self._progress.advanced(max(count / most, spent_s / most_s))
            started = perf_counter()
            try:
                point.call(next(point.batches))
            except Exception as error:  # noqa: BLE001 - the target's own
                failures += 1
                if failures >= FAILURES_MAX or _ends_configuration(error):
                    point.configuration.failure = _failure(error)
                    targets.free()
                    return
            else:
                failures = 0
                warmup.latency_s.append(perf_counter() - started)

    def _take_turn(self, point: _Point, turn: int, turns: int) -> None:
        assert point.call is not None
        workload, configuration = self._workload, point.configuration
        self._begin("measure", point, (1 - _WARMUP_STEPS) / turns)
        share = max(1, -(-(workload.requests or 10**9) // turns))
        least = -(-_REQUESTS_MIN // turns)
        duration_s = (workload.duration_s or float("inf")) / turns
        energy_j = self._monitor.energy_j()
        with self._monitor.stage("measure", point.loaded.told.label, point.number) as stage:
            asked = self._load.run(
                self._turn(point.call, point.batches, turn, share, least, duration_s), _ends_configuration
            )
        used_j = _difference(self._monitor.energy_j(), energy_j)
        point.stages.append(stage)
        point.requests.update(asked.requests)
        configuration.duration_s = (configuration.duration_s or 0.0) + asked.duration_s
        if used_j is not None:
            configuration.energy_j = (configuration.energy_j or 0.0) + used_j
        if asked.failure is not None:
            configuration.failure = _failure(asked.failure)
            targets.free()
        if workload.rate is not None and not asked.interrupted:
            self._note_backlog(point, asked)
        self._end_if_interrupted(asked)

    def _tell(self, points: list[_Point]) -> None:
        """What was heard of these requests, into their configurations."""
        heard = self._recorder.take()
        for point in points:
            configuration = point.configuration
            root = heard.root(point.requests)
            if root is not None and root.attributes is not None:
                configuration.operation = str(root.attributes.get(semconv.OPERATION_NAME))
                model = root.attributes.get(semconv.REQUEST_MODEL)
                configuration.model = None if model is None else str(model)
            samples = configuration.samples = heard.samples(point.requests)
            for request in point.requests.values():
                if request.error is not None:
                    kind = type(request.error).__name__
                    configuration.errors[kind] = configuration.errors.get(kind, 0) + 1
            answered = sum(request.error is None for request in point.requests.values())
            if answered > len(samples):
                self._note(f"{self._name(point)}: {answered - len(samples)} requests had no trace and are not counted")
            configuration.resident_peak_bytes = max(
                (seen for seen in (self._monitor.resident_peak(point.stages), *samples.resident_bytes) if seen),
                default=None,
            )
            configuration.device_peak_bytes = max(
                (peak for peak in samples.device_peak_bytes if peak is not None), default=None
            )
            if configuration.warmup is not None and not configuration.warmup.steady and configuration.failure is None:
                self._note(f"{self._name(point)}: {configuration.warmup.reason or 'warm-up was cut short'}")

    # -- small things --------------------------------------------------------------------------------------------------

    def _caller(
        self, target: targets.Target, input_tokens: int | None, batch_size: int, count: int | None
    ) -> tuple[Callable[[list[Any]], Any], Iterator[list[Any]]]:
        output_tokens = self._workload.output_tokens if target.generates else None
        call = target.caller(input_tokens, output_tokens, self._workload.stream)
        requests = self._plan.requests
        if requests is None:
            wanted = batch_size * ((count or 10**6) + 2 * WINDOW)
            requests = target.requests(input_tokens, output_tokens, wanted, self._workload.seed)
        return call, batches(requests, batch_size)

    def _turn(
        self,
        call: Callable[[list[Any]], Any],
        found: Iterator[list[Any]],
        number: int,
        requests_max: int,
        requests_min: int,
        duration_s: float,
        closed: bool = False,
    ) -> Turn:
        workload = self._workload
        is_open = workload.rate is not None and not closed
        return Turn(
            call=call,
            batches=found,
            number=number,
            requests_max=requests_max,
            requests_min=requests_min,
            duration_s=duration_s,
            concurrency=1 if closed else workload.concurrency,
            arrivals=poisson(workload.rate or 0.0, workload.seed + number) if is_open else None,
            began=self._monitor.began,
            advanced=self._progress.advanced,
        )

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

    def _begin(self, stage: str, point: _Point, steps: float) -> None:
        self._progress.begin(stage, self._name(point), steps)

    def _name(self, point: _Point) -> str:
        configuration = point.configuration
        length = "" if configuration.input_tokens is None else f", {configuration.input_tokens} tokens"
        return f"{point.loaded.told.label}, batch {configuration.batch_size}{length}"

    def _unique(self, label: str) -> str:
        taken = {target.label for target in self._result.targets}
        return next(name for name in (label, *(f"{label} ({n})" for n in range(2, 99))) if name not in taken)

    def _resident(self) -> int | None:
        self._monitor.read()
        return next((value for value in reversed(self._monitor.timeline.resident_bytes) if value is not None), None)

    def _note(self, text: str) -> None:
        if text not in self._result.notes:
            self._result.notes.append(text)

    def _note_backlog(self, point: _Point, asked: Asked) -> None:
        late = [request.start_s - request.intended_s for request in asked.requests.values()]
        last = late[-max(1, len(late) // 4) :]
        if len(late) >= _REQUESTS_MIN and min(last) > asked.duration_s / 10:
            self._note(f"{self._name(point)}: could not keep up with {self._workload.rate:g} requests/s")

    def _note_surroundings(self) -> None:
        idle = self._result.idle
        if idle is not None and idle.host_cpu_share is not None and idle.host_cpu_share > _BUSY_HOST:
            self._note(f"others used {idle.host_cpu_share:.0%} of the CPUs while this process was idle")
        governor = self._result.environment.machine.get("cpu_governor")
        if governor not in (None, "performance"):
            self._note(f"the CPU governor is {governor}: clocks follow the load")

    @staticmethod
    def _end_if_interrupted(asked: Asked) -> None:
        if asked.interrupted:
            raise KeyboardInterrupt


def _ends_configuration(error: BaseException) -> bool:
    return isinstance(error, WorkloadError) or out_of_memory(error) is not None


def _failure(error: BaseException) -> Failure:
    kind = type(error)
    is_plain = kind.__module__ == "builtins" or isinstance(error, WorkloadError)
    name = kind.__name__ if is_plain else f"{kind.__module__}.{kind.__name__}"
    return Failure(name, str(error)[:_MESSAGE_MAX], out_of_memory(error) is not None)


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None or after < before else after - before


def _without_empty(line: Timeline) -> Timeline:
    for name in line.__slots__:
        rows = getattr(line, name)
        if all(item is None for item in rows):
            setattr(line, name, [])
    return line
