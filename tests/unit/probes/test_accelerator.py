"""Time and memory of a device, by the rules: never wait, never disturb a capture, absent where it cannot be known."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from inferspan import InferspanWarning, faults
from inferspan.probes import accelerator
from inferspan.probes.accelerator import Accelerator, Memory
from support.fakedevice import FakeEvent, FakeGpu, install, obeyed


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    faults.forget()
    gpu = FakeGpu()
    install(gpu, monkeypatch)
    yield gpu
    assert obeyed(gpu)


def of(device: str) -> Accelerator:
    found = accelerator.of(device)
    assert found is not None
    return found


# -- which device ------------------------------------------------------------------------------------------------


def test_the_host_is_no_accelerator(gpu: FakeGpu) -> None:
    assert accelerator.of("cpu") is None
    assert accelerator.of(None) is None
    assert accelerator.of("meta") is None
    assert accelerator.of("privateuseone:0") is None


def test_one_object_for_each_device(gpu: FakeGpu) -> None:
    assert of("cuda:0") is of("cuda:0")
    assert of("cuda:0") is not of("cuda:1")
    assert of("cuda") is of("cuda:0")  # the current one
    assert of("cuda:1").device == "cuda:1"


def test_no_context_is_made(gpu: FakeGpu) -> None:
    gpu.initialized = False
    gpu.error = AssertionError("asked before the program had initialised CUDA")
    assert accelerator.of("cuda:0") is None


def test_a_known_device_is_gone_in_a_forked_child(gpu: FakeGpu) -> None:
    of("cuda:0")
    gpu.initialized = False  # what torch answers there
    assert accelerator.of("cuda:0") is None


# -- time --------------------------------------------------------------------------------------------------------


def test_time_between_laps(gpu: FakeGpu) -> None:
    timer = of("cuda:0").timer(8)
    assert timer is not None
    gpu.work(0.25)
    timer.lap()
    gpu.work(0.5)
    timer.stop()
    assert timer.is_pending is True
    assert not timer.is_ready()
    gpu.finish()
    assert timer.is_ready()
    assert timer.laps() == [0.25, 0.5]
    assert timer.laps() == [0.25, 0.5], "the answer stays"


def test_a_device_that_has_finished_is_not_pending(gpu: FakeGpu) -> None:
    timer = of("cuda:0").timer(8)
    assert timer is not None
    gpu.work(0.25)
    gpu.finish()
    timer.stop()
    assert timer.is_pending is False
    assert timer.laps() == [0.25]


def test_what_is_not_ready_when_asked_stays_unknown(gpu: FakeGpu) -> None:
    timer = of("cuda:0").timer(8)
    assert timer is not None
    gpu.work(1)
    timer.stop()
    assert timer.laps() == []
    gpu.finish()
    assert timer.laps() == []


def test_events_are_used_again_by_the_same_device_only(gpu: FakeGpu) -> None:
    before = FakeEvent.made
    for _ in range(5):
        for device in ("cuda:0", "cuda:1"):
            timer = of(device).timer(8)
            assert timer is not None
            timer.stop()
            gpu.finish()
            assert timer.laps() == [0.0]
    assert FakeEvent.made - before == 4


def test_an_event_that_may_still_be_read_is_not_recorded_anew(gpu: FakeGpu) -> None:
    timer = of("cuda:0").timer(8)
    assert timer is not None
    gpu.work(1)
    timer.stop()
    timer.laps()  # given up
    other = of("cuda:0").timer(8)
    assert other is not None
    other.stop()
    gpu.finish()
    assert other.laps() == [0.0]


def test_the_number_of_timers_is_bounded(gpu: FakeGpu) -> None:
    device = of("cuda:0")
    timers = [device.timer(2) for _ in range(3)]
    assert [timer is None for timer in timers] == [False, False, True]
    del timers
    gc.collect()
    assert device.timer(2) is not None, "those that were lost with their records do not count"


def test_nothing_is_recorded_inside_a_capture(gpu: FakeGpu) -> None:
    gpu.capturing = True
    assert of("cuda:0").timer(8) is None


def test_a_capture_that_began_meanwhile_leaves_the_time_unknown(gpu: FakeGpu) -> None:
    timer = of("cuda:0").timer(8)
    assert timer is not None
    gpu.capturing = True
    timer.stop()
    gpu.capturing = False
    gpu.finish()
    assert timer.laps() == []


def test_nothing_is_queried_while_another_thread_captures(gpu: FakeGpu) -> None:
    timer = of("cuda:0").timer(8)
    assert timer is not None
    gpu.work(0.5)
    timer.stop()
    gpu.finish()
    graph, queries = object(), gpu.queries
    accelerator.captures.begin(graph)
    assert not timer.is_ready()
    assert gpu.queries == queries
    accelerator.captures.end(graph)
    assert timer.is_ready()
    assert timer.laps() == [0.5]


def test_mps_has_no_time_since_reading_it_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Accelerator("mps", 0, FakeGpu())
    assert device.timer(8) is None


# -- errors of the driver ----------------------------------------------------------------------------------------


def test_an_error_of_the_driver_is_warned_of_once_and_the_device_left_alone(gpu: FakeGpu) -> None:
    device = of("cuda:0")
    timer = device.timer(8)
    assert timer is not None
    gpu.work(1)
    gpu.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.warns(InferspanWarning, match="cuda:0 gave an error"):
        timer.stop()
    assert timer.is_pending is None
    assert timer.is_ready(), "nothing is to be waited for"
    assert timer.laps() == []
    assert device.timer(8) is None
    assert of("cuda:1").is_broken is False


def test_an_error_in_reading_memory(gpu: FakeGpu) -> None:
    gpu.error = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.warns(InferspanWarning, match="cuda:0 gave an error"):
        assert of("cuda:0").memory() is None


# -- memory ------------------------------------------------------------------------------------------------------


def test_memory(gpu: FakeGpu) -> None:
    gpu.allocate(300)
    gpu.free(100)
    gpu.inactive, gpu.retries, gpu.failures = 7, 2, 1
    assert of("cuda:0").memory() == Memory(200, 1 << 30, 300, 300, 7, 2, 1)


def test_an_allocator_that_counts_nothing(gpu: FakeGpu) -> None:
    gpu.allocate(300)
    gpu.counts_memory = False
    assert of("cuda:0").memory() is None


def test_a_device_without_statistics() -> None:
    assert Accelerator("xpu", 0, object()).memory() is None  # torch 2.4


def test_mps_tells_two_numbers() -> None:
    class Mps:
        def current_allocated_memory(self) -> int:
            return 5

        def driver_allocated_memory(self) -> int:
            return 9

    assert Accelerator("mps", 0, Mps()).memory() == Memory(5, 9)
