"""Time on the device, on records made by hand: what adds up, and what is absent."""

from __future__ import annotations

from typing import Any

import pytest

from inferspan import semconv
from inferspan.core.probe import CallSite, Report, begin
from inferspan.core.record import Inference, Overflow, Phase
from inferspan.core.steps import Generation
from inferspan.probes import accelerator
from inferspan.probes.accelerator import Accelerator, Timer
from inferspan.probes.device_time import DeviceTime, DeviceTimeProbe
from support import records
from support.fakedevice import FakeEvent, FakeGpu, install, obeyed
from support.records import present

WHOLE = records.table(DeviceTimeProbe(), on_device=True)


class OnGpu:
    """An inference whose forwards run on a GPU of the tests; ``pipeline`` is what the background worker does."""

    def __init__(self, timers_max: int = 1000, **settings: Any) -> None:
        self.gpu = FakeGpu()
        self.on = Accelerator("cuda", 0, self.gpu)
        self.probe = DeviceTimeProbe(self.on, timers_max)
        self.pipeline = records.pipeline(WHOLE)
        self.record = records.inference("chat", "me/model", hand_over=self.hand_over, **settings)
        self.waiting: list[Overflow] = []

    def hand_over(self, phases: list[Phase]) -> None:
        """As the worker does it: in order, each when its device is done."""
        self.waiting.append(Overflow(self.record, phases))
        self.work()

    def work(self) -> None:
        while self.waiting and self.pipeline._is_ready(self.waiting[0]):
            self.pipeline._emit(self.waiting.pop(0))

    def begin(self) -> tuple[Phase, Timer]:
        phase = self.record.begin(semconv.FORWARD)
        phase.is_forward = True
        phase.marks = []
        phase.has_ends = begin(phase, phase.marks, (self.probe,), None)
        return phase, phase.mark_of("device_time")

    def forward(self, *laps: float) -> Phase:
        """One that took so long on the device, lap by lap."""
        phase, timer = self.begin()
        for lap in laps[:-1]:
            self.gpu.work(lap)
            timer.lap()
        self.gpu.work(laps[-1])
        self.record.end(phase)
        return phase

    def generating(self) -> tuple[Phase, Generation]:
        phase, timer = self.begin()
        phase.generation = Generation()
        self.probe.generation_begins(phase, timer)
        return phase, phase.generation

    @property
    def is_ready(self) -> bool:
        return self.pipeline._is_ready(self.ended())

    def ended(self) -> Inference:
        self.record.end_ns = self.record.start_ns + 100 * records.MS
        return self.record

    def report(self) -> Report:
        self.work()
        found = self.pipeline._report(self.ended())
        assert obeyed(self.gpu)
        return found

    def numbers(self) -> dict[str, Any]:
        return present(self.report().attributes)


def test_time_of_several_forwards_adds_up() -> None:
    made = OnGpu()
    made.forward(0.010)
    made.forward(0.030)
    assert not made.is_ready
    made.gpu.finish()
    assert made.is_ready
    assert made.numbers() == {"gpu.time": pytest.approx(0.04), "gpu.busy_share": pytest.approx(0.4)}


def test_points_are_one_for_each_part() -> None:
    made = OnGpu()
    made.forward(0.010)
    made.gpu.finish()
    report = made.report()
    assert [(point.metric, point.value, point.attributes, point.of_operation) for point in report.points] == [
        (semconv.GPU_TIMES, pytest.approx(0.01), {"inferspan.phase": "forward"}, True)
    ]
    assert (report.results["device"], report.results["device_time"]) == ("cuda:0", pytest.approx(0.01))


def test_prefill_and_decode() -> None:
    made = OnGpu()
    phase, generation = made.generating()
    generation.tick()
    made.gpu.work(0.02)
    generation.tick()
    for _ in range(3):
        made.gpu.work(0.005)
        generation.tick()
    made.record.end(phase)
    made.gpu.finish()
    assert {name: values["device_time"].seconds for name, values in made.report().totals.items()} == {
        "forward": pytest.approx(0.035),
        "prefill": pytest.approx(0.02),
        "decode": pytest.approx(0.015),
    }


def test_a_generation_that_failed_before_its_first_token_is_all_prefill() -> None:
    made = OnGpu()
    phase, _ = made.generating()
    made.gpu.work(0.02)
    made.record.end(phase)
    made.gpu.finish()
    parts = made.report().parts[0]
    assert parts["prefill"]["device_time"].seconds == parts["forward"]["device_time"].seconds == pytest.approx(0.02)
    assert parts["decode"]["device_time"].seconds is None


def test_time_that_is_missing_in_one_forward_is_missing_in_the_sum() -> None:
    made = OnGpu()
    made.forward(0.01)
    made.gpu.finish()
    made.gpu.capturing = True
    untimed, timer = made.begin()
    assert timer is None
    made.record.end(untimed)
    made.gpu.capturing = False
    assert "gpu.time" not in made.numbers()


def test_time_that_is_missing_in_the_first_forward_is_missing_in_the_sum() -> None:
    made = OnGpu()
    made.gpu.capturing = True
    untimed, _ = made.begin()
    made.record.end(untimed)
    made.gpu.capturing = False
    made.forward(0.01)
    made.gpu.finish()
    assert "gpu.time" not in made.numbers()


def test_forwards_that_have_no_span_count_too_and_hold_no_events() -> None:
    before = FakeEvent.made
    made = OnGpu(children_max=2)
    for _ in range(500):
        made.forward(0.001)
        made.gpu.finish()
    assert len(made.record.phases.kept) == 2
    assert len(made.record.phases.overflow) < 64
    assert len(made.waiting) <= 1, "the last was handed over before the device was done"
    assert FakeEvent.made - before <= 2 * (2 * 64 + 2)
    assert made.numbers()["gpu.time"] == pytest.approx(0.5)


def test_a_stream_whose_device_is_far_behind_holds_a_bounded_number_of_events() -> None:
    before = FakeEvent.made
    made = OnGpu(timers_max=64, children_max=2)
    for _ in range(500):
        made.forward(0.001)
    assert FakeEvent.made - before == 2 * 64
    made.gpu.finish()
    assert "gpu.time" not in made.numbers(), "some had no timer, so the sum is not known"


def test_busy_share_is_no_more_than_all() -> None:
    made = OnGpu()
    made.forward(5.0)  # the host did not wait for it
    made.gpu.finish()
    assert made.numbers()["gpu.busy_share"] == 1.0


def test_part_has_its_time_and_whether_the_device_still_worked() -> None:
    made = OnGpu()
    made.forward(0.5)
    made.gpu.finish()
    (parts,) = made.report().parts
    assert present(made.probe.describe(made.record, "forward", parts["forward"])) == {
        "gpu.time": pytest.approx(0.5),
        "gpu.pending": True,
    }
    assert made.probe.describe(made.record, "forward", {}) == {}


def test_an_inference_that_is_its_own_forward_says_whether_the_device_still_worked() -> None:
    made = OnGpu()
    phase, timer = made.begin()
    made.record.self_phase = phase
    made.gpu.work(0.01)
    timer.stop()
    made.gpu.finish()
    assert made.numbers() == {
        "gpu.pending": True,
        "gpu.time": pytest.approx(0.01),
        "gpu.busy_share": pytest.approx(0.1),
    }


def test_sum_with_what_is_not_known_is_not_known_but_of_the_same_device() -> None:
    made = OnGpu()
    known = DeviceTime(1.0, made.on)
    assert made.probe.add(known, DeviceTime(2.0, made.on)) == DeviceTime(3.0, made.on)
    for missing in (None, DeviceTime(None)):
        assert made.probe.add(known, missing).seconds is None
        assert made.probe.add(missing, known).seconds is None
    assert made.probe.add(None, known).on is made.on
    assert made.probe.add(None, None) == DeviceTime(None)


def test_it_applies_where_the_device_is_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeGpu(), monkeypatch)
    site = CallSite(records.plan().settings, None, None, "cuda:0")
    bound = DeviceTimeProbe().prepare(site)
    assert bound is not None
    assert bound._on is accelerator.of("cuda:0")
    assert DeviceTimeProbe().prepare(site._replace(device="cpu")) is None
