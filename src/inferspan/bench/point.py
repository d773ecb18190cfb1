"""One point of the sweep: all targets at one batch size and length, warmed up, measured in turns, and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from inferspan import semconv
from inferspan.bench import targets
from inferspan.bench.folders import without_folders
from inferspan.bench.load import FAILURES_MAX, Asked, Load, Turn
from inferspan.bench.monitor import Monitor
from inferspan.bench.plan import Plan, Progress, sweep
from inferspan.bench.recorder import Recorder, Request
from inferspan.bench.results import Configuration, Failure, Samples, Stage, Target, Warmup
from inferspan.bench.steady import WINDOW, is_steady
from inferspan.bench.workload import WorkloadError, batches, poisson
from inferspan.probes.memory_errors import out_of_memory

__all__ = ["Loaded", "Measurement"]

_TURNS = 20
"""Of each target at each point, where several take turns. The test swaps whole turns: with ten of them, the smallest
p-value that it can give would not outlive the correction for a sweep."""
_REQUESTS_MIN = 5
"""However long one takes."""
_WARMUP_STEPS = 0.3
"""What warming up a configuration is of its time, roughly, for the progress."""
MESSAGE_MAX = 500


@dataclass(slots=True)
class Loaded:
    """A target that was loaded, and its entry in the result."""

    target: targets.Target
    entry: Target


@dataclass(slots=True)
class _Point:
    """One target at one point of the sweep."""

    loaded: Loaded
    configuration: Configuration
    number: int
    call: Callable[[list[Any]], Any] | None = None
    batches: Iterator[list[Any]] = field(default_factory=lambda: iter(()))
    requests: dict[int, Request] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        return self.configuration.failure is None and not self.configuration.partial


class Measurement:
    """Measures at the points of one run. ``note`` takes what the reader of the result should know."""

    def __init__(
        self, plan: Plan, recorder: Recorder, progress: Progress, monitor: Monitor, note: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._workload = plan.workload
        self._recorder = recorder
        self._progress = progress
        self._monitor = monitor
        self._note = note
        self._load = Load()

    def first_call(self, target: targets.Target, label: str) -> Samples:
        """The cold call, of the first point: one row, or none where it was not made or failed."""
        input_tokens, batch_size = sweep(self._workload)[0]
        try:
            call, found = self._caller(target, input_tokens, batch_size, count=1)
        except WorkloadError:
            return Samples()  # its configuration will say so
        self._progress.begin("cold", label)
        with self._monitor.stage("cold", label):
            asked = self._load.run(self._turn(call, found, 0, 1, 1, float("inf"), closed=True), lambda error: True)
        _end_if_interrupted(asked)
        if asked.failure is not None:
            failure = _failure(asked.failure)
            self._note(f"{label}: the first call failed: {failure.type}: {failure.message}")
            targets.free()
        return self._recorder.take().samples(asked.requests)

    def measure(self, loaded: list[Loaded], number: int, input_tokens: int | None, batch_size: int) -> None:
        """All targets at one point."""
        points = []
        for each in loaded:
            configuration = Configuration(batch_size, input_tokens)
            configuration.output_tokens = self._workload.output_tokens if each.target.generates else None
            each.entry.configurations.append(configuration)
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
            self._write_down(points)

    def _warm_up(self, point: _Point) -> None:
        configuration, workload = point.configuration, self._workload
        self._begin("warmup", point, _WARMUP_STEPS)
        warmup = configuration.warmup = Warmup(steady=False)
        with self._monitor.stage("warmup", point.loaded.entry.label, point.number):
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
        with self._monitor.stage("measure", point.loaded.entry.label, point.number) as stage:
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
        _end_if_interrupted(asked)

    def _write_down(self, points: list[_Point]) -> None:
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

    # -- what is asked -----------------------------------------------------------------------------------------------

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

    def _begin(self, stage: str, point: _Point, steps: float) -> None:
        self._progress.begin(stage, self._name(point), steps)

    def _name(self, point: _Point) -> str:
        configuration = point.configuration
        length = "" if configuration.input_tokens is None else f", {configuration.input_tokens} tokens"
        return f"{point.loaded.entry.label}, batch {configuration.batch_size}{length}"

    def _note_backlog(self, point: _Point, asked: Asked) -> None:
        late = [request.start_s - request.intended_s for request in asked.requests.values()]
        last = late[-max(1, len(late) // 4) :]
        if len(late) >= _REQUESTS_MIN and min(last) > asked.duration_s / 10:
            self._note(f"{self._name(point)}: could not keep up with {self._workload.rate:g} requests/s")


def _end_if_interrupted(asked: Asked) -> None:
    if asked.interrupted:
        raise KeyboardInterrupt


def _ends_configuration(error: BaseException) -> bool:
    return isinstance(error, WorkloadError) or out_of_memory(error) is not None


def _failure(error: BaseException) -> Failure:
    kind = type(error)
    is_plain = kind.__module__ == "builtins" or isinstance(error, WorkloadError)
    name = kind.__name__ if is_plain else f"{kind.__module__}.{kind.__name__}"
    return Failure(name, without_folders(str(error))[:MESSAGE_MAX], out_of_memory(error) is not None)


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None or after < before else after - before
