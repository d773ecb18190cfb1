"""Time and memory of a device, by the rules: never wait, never disturb a capture, absent where it cannot be known."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from inferspan import InferspanWarning, faults
from inferspan.probes import accelerator
from inferspan.probes.accelerator import Accelerator
from inferspan.probes.kinds import Memory
from support.fakedevice import FakeEvent, FakeGeneral, FakeGpu, install, obeyed


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
    assert accelerator.of("cpu:0") is None
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


def test_a_forked_child_is_told_by_a_kind_that_stays_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    install(gpu, monkeypatch, kind="npu")
    assert of("npu:0").device == "npu:0"
    gpu._is_in_bad_fork = lambda: True  # type: ignore[attr-defined]
    assert accelerator.of("npu:0") is None


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
    assert not device.has_time


def test_a_capture_is_seen_by_its_stream_where_the_kind_has_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``torch.Stream.is_capturing``, of which the streams of all kinds are since torch 2.15."""
    gpu, capturing = FakeGpu(), [True]

    class Stream(tuple[str, int]):
        def is_capturing(self) -> bool:
            return capturing[0]

    kind = SimpleNamespace(current_stream=lambda index: Stream(("stream", index)), Event=gpu.Event)
    install(kind, monkeypatch, kind="npu")
    assert of("npu:0").timer(8) is None
    capturing.clear()
    capturing.append(False)
    assert of("npu:0").timer(8) is not None


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
    assert of("cuda:1").has_time


def test_an_error_in_reading_memory(gpu: FakeGpu) -> None:
    gpu.error = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.warns(InferspanWarning, match="cuda:0 gave an error"):
        assert of("cuda:0").memory() is None


# -- what a kind offers ------------------------------------------------------------------------------------------


LIKE_CUDA = ["cuda", "xpu", "npu", "hpu", "mtia", "openreg", "musa"]


def timed(device: Accelerator, gpu: FakeGpu) -> list[float]:
    """The laps of a timer over a quarter of a second of work."""
    timer = device.timer(8)
    assert timer is not None
    gpu.work(0.25)
    timer.stop()
    gpu.finish()
    return timer.laps()


@pytest.mark.parametrize("kind", LIKE_CUDA)
def test_any_kind_with_events_and_statistics_is_measured(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    install(gpu, monkeypatch, kind=kind)
    gpu.allocate(300)
    device = of(f"{kind}:1")
    assert (device.device, device.kind, device.index) == (f"{kind}:1", kind, 1)
    assert timed(device, gpu) == [0.25]
    assert device.memory() == Memory(300, 1 << 30, 300, 300, 0, 0, 0)
    assert of(kind).device == f"{kind}:0"
    assert obeyed(gpu)


def test_a_kind_that_has_only_what_torch_has_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's own open-registration device: no Event, no stream and no statistics in its module."""
    gpu, made = FakeGpu(), []

    def event(*, device: str, enable_timing: bool) -> FakeEvent:
        made.append(device)
        return gpu.Event(enable_timing=enable_timing)

    module = SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 0)
    install(module, monkeypatch, kind="openreg", Event=event, accelerator=FakeGeneral(gpu, "openreg"))
    gpu.allocate(300)
    assert timed(of("openreg:1"), gpu) == [0.25]
    assert made == ["openreg:1"] * 2
    assert of("openreg:1").memory() == Memory(300, 1 << 30, 300, 300, 0, 0, 0)
    assert obeyed(gpu)


def test_what_torch_has_for_all_is_not_asked_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.accelerator`` knows one kind at a time: the streams and memory of ``cuda`` are not those of ``npu``."""
    gpu = FakeGpu()
    gpu.allocate(300)
    module = SimpleNamespace(current_device=lambda: 0)
    install(module, monkeypatch, kind="npu", accelerator=FakeGeneral(gpu, "cuda"))
    assert of("npu:0").timer(8) is None
    assert of("npu:0").memory() is None


def test_without_a_stream_time_is_of_the_current_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is told no stream is recorded on that of the current device."""
    gpu = FakeGpu()

    class Event(FakeEvent):
        def __init__(self, enable_timing: bool) -> None:
            super().__init__(gpu, enable_timing)

        def record(self) -> None:  # type: ignore[override]
            super().record(("stream", 1))

    install(SimpleNamespace(current_device=lambda: 1, Event=Event), monkeypatch, kind="npu")
    assert timed(of("npu:1"), gpu) == [0.25]
    assert of("npu:0").timer(8) is None
    assert of("npu:0").has_time, "it may be current later"
    assert obeyed(gpu)


class Untimed(FakeEvent):
    """The event of a kind that records, and cannot say how long."""

    def elapsed_time(self, end: FakeEvent) -> float:
        raise RuntimeError("Backend doesn't support elapsedTime.")


def refuses(error: Exception) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(refuses(TypeError("unexpected keyword argument 'enable_timing'")), id="does not time"),
        pytest.param(refuses(RuntimeError("PyTorch is not linked with support for hpu devices")), id="not built"),
        pytest.param(refuses(NotImplementedError()), id="not implemented"),
        pytest.param(lambda enable_timing: object(), id="another thing of that name"),
        pytest.param(None, id="none"),
    ],
)
def test_a_kind_without_timed_events_has_no_time_and_its_memory_all_the_same(
    event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    gpu.Event = event  # type: ignore[method-assign]
    install(gpu, monkeypatch, kind="hpu")
    gpu.allocate(300)
    device = of("hpu:0")
    assert device.timer(8) is None
    assert not device.has_time
    assert device.memory() is not None
    assert not faults.counts()


def test_a_kind_that_cannot_tell_the_time_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    gpu.Event = lambda enable_timing: Untimed(gpu, enable_timing)  # type: ignore[method-assign, assignment]
    install(gpu, monkeypatch, kind="hpu")
    assert timed(of("hpu:0"), gpu) == []
    assert of("hpu:0").timer(8) is None, "it is not tried again"
    assert obeyed(gpu)


def test_a_build_without_graphs_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has ``torch.xpu.is_current_stream_capturing`` where it is built without it, too."""
    gpu = FakeGpu()
    error = RuntimeError("Tried to instantiate dummy base class _xpu_isCurrentStreamCapturing")
    gpu.is_current_stream_capturing = refuses(error)  # type: ignore[method-assign]
    install(gpu, monkeypatch, kind="xpu")
    assert timed(of("xpu:0"), gpu) == [0.25]


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


def test_memory_of_cuda_malloc_async(gpu: FakeGpu) -> None:
    """It has the driver's current and highest values, and zero for all that only torch's own allocator counts."""
    stats = {
        "allocated_bytes": {"all": {"current": 200, "peak": 300, "allocated": 0, "freed": 0}},
        "reserved_bytes": {"all": {"current": 1000, "peak": 1000, "allocated": 0, "freed": 0}},
        "inactive_split_bytes": {"all": {"current": 0, "peak": 0, "allocated": 0, "freed": 0}},
        "num_alloc_retries": 0,
        "num_ooms": 0,
    }
    gpu.memory_stats_as_nested_dict = lambda index: stats  # type: ignore[method-assign]
    assert of("cuda:0").memory() == Memory(200, 1000, 300, None, None, 0, 0)


STATISTICS = {
    "allocated_bytes.all.current": 200,
    "allocated_bytes.all.peak": 300,
    "allocated_bytes.all.allocated": 900,
    "reserved_bytes.all.current": 1000,
    "num_ooms": 1,
}
GAUDI = {"Limit": 9000, "InUse": 200, "MaxInUse": 300, "NumAllocs": 4}
NUMBERS = {"memory_allocated": 200, "memory_reserved": 1000, "max_memory_allocated": 300}


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ({"memory_stats": STATISTICS}, Memory(200, 1000, 300, 900, None, None, 1)),
        ({"memory_stats": {"allocated_bytes.all.current": 200}}, Memory(200)),
        ({"memory_stats": {}}, None),
        ({"memory_stats": GAUDI, **NUMBERS}, Memory(200, 1000, 300)),
        ({"memory_stats": NotImplementedError(), **NUMBERS}, Memory(200, 1000, 300)),
        ({"memory_allocated": 200, "max_memory_allocated": 300}, Memory(200, None, 300)),
        ({"memory_allocated": 200}, Memory(200)),
        ({"memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 0}, None),
        ({"memory_allocated": 0, "memory_reserved": 1000, "max_memory_allocated": 300}, Memory(0, 1000, 300)),
        ({"max_memory_allocated": 300}, None),
        ({"memory_stats": RuntimeError("Allocator for npu is not a DeviceAllocator."), **NUMBERS},
         Memory(200, 1000, 300)),
        ({"memory_allocated": RuntimeError("operation not supported")}, None),
    ],
    ids=[
        "flat statistics", "one statistic", "none yet", "statistics of its own", "not implemented", "nothing reserved",
        "one number", "numbers of nothing", "all given back", "peak alone", "allocator of its own", "not supported",
    ],
)  # fmt: skip
def test_memory_that_a_kind_offers(
    offers: dict[str, Any], expected: Memory | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(value: Any) -> Callable[[int], Any]:
        return refuses(value) if isinstance(value, Exception) else lambda index: value if index == 1 else None

    install(SimpleNamespace(**{name: reads(value) for name, value in offers.items()}), monkeypatch, kind="npu")
    device = of("npu:1")
    assert [device.memory(), device.memory()] == [expected, expected]


def test_two_readings_are_of_the_same_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has answered is asked from then on, also where it answers nothing once."""
    answers = [STATISTICS, {}]
    module = SimpleNamespace(memory_stats=lambda index: answers.pop(0), memory_allocated=lambda index: 7)
    install(module, monkeypatch, kind="npu")
    device = of("npu:0")
    assert device.memory() is not None
    assert device.memory() is None


def test_mps_tells_two_numbers() -> None:
    class Mps:
        def current_allocated_memory(self) -> int:
            return 5

        def driver_allocated_memory(self) -> int:
            return 9

    assert Accelerator("mps", 0, Mps()).memory() == Memory(5, 9)
