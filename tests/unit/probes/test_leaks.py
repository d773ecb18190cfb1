"""Which readings of memory are a leak, and which are not."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from inferspan import InferspanWarning, faults, semconv
from inferspan.core.probe import Report
from inferspan.probes import leaks
from inferspan.probes.kinds import Memory
from inferspan.probes.leaks import ALLOCATOR, RESIDENT, Leak, Leaks, LeaksProbe, Noise
from inferspan.probes.memory import MemoryUse
from inferspan.probes.process import ProcessUse, ResidentMemory
from support import records

KIB, MIB = 1 << 10, 1 << 20
BASE = 900 * MIB


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many garbage collections there were, as the test says."""
    count = [0]
    monkeypatch.setattr(leaks, "_collections", lambda: count[0])
    monkeypatch.setattr(gc, "get_threshold", lambda: (700, 10, 10))
    return count


@pytest.fixture
def alarms(collections: list[int]) -> Callable[..., list[tuple[int, Leak]]]:
    """Feeds one key with a reading a second; gives each alarm with the number of inferences until then."""

    def feed(
        held: Iterable[float | None],
        noise: Noise = RESIDENT,
        *,
        collection_every: int = 20,
        shape: Callable[[int], Any] = lambda i: None,
        others: Callable[[int], int] = lambda i: 0,
        into: Leaks | None = None,
    ) -> list[tuple[int, Leak]]:
        into = Leaks() if into is None else into
        found = []
        for i, value in enumerate(held):
            if i % collection_every == collection_every - 1:
                collections[0] += 1
            held_bytes = None if value is None else int(BASE + value)
            leak = into.add("model", held_bytes, noise, at_ns=i * 10**9, shape=shape(i), others=others(i))
            if leak is not None:
                found.append((i + 1, leak))
        return found

    return feed


def jitter(size: float, seed: int = 7) -> Callable[[], float]:
    """Results that are still alive at the reading: between nothing and ``size``."""
    draw = random.Random(seed)
    return lambda: draw.random() * size


def lengths(count: int, seed: int = 3) -> list[int]:
    draw = random.Random(seed)
    return [int(min(512, max(4, draw.lognormvariate(3.5, 0.8)))) for _ in range(count)]


def longest_so_far(values: list[int]) -> list[int]:
    return [max(values[max(0, i - 2000) : i + 1]) for i in range(len(values))]


def returning_walk(count: int) -> list[float]:
    draw, value, walk = random.Random(5), 0.0, []
    for _ in range(count):
        value = value * 0.99 + draw.gauss(0, 1)
        walk.append(value)
    return walk


COUNT = 2000
noisy = jitter(3 * MIB)

CLEAN = (
    pytest.param([0] * COUNT, id="constant"),
    pytest.param([-i * 64 * KIB for i in range(COUNT)], id="decreasing"),
    pytest.param([noisy() for _ in range(COUNT)], id="results of varying size"),
    pytest.param([500 * MIB * (1 - math.exp(-i / 40)) + noisy() for i in range(COUNT)], id="warm-up"),
    pytest.param([n * MIB / 4 + noisy() for n in longest_so_far(lengths(COUNT))], id="longest input so far"),
    pytest.param([min(i, 100) * 2 * MIB + noisy() for i in range(COUNT)], id="short cache fills"),
    pytest.param([min(i * 20 * KIB, 12 * MIB) for i in range(COUNT)], id="small cache fills evenly"),
    pytest.param([(i > 300) * 800 * MIB + (i > 700) * 90 * MIB for i in range(COUNT)], id="steps"),
    pytest.param([min(max(i - 300, 0), 80) * 20 * MIB for i in range(COUNT)], id="another model is loaded"),
    pytest.param([(i % 300) * MIB / 20 + noisy() for i in range(COUNT)], id="trimmed before it is much"),
    pytest.param([value * 10 * MIB + noisy() for value in returning_walk(COUNT)], id="sessions come and go"),
)


@pytest.mark.parametrize("held", CLEAN)
def test_memory_that_is_steady_is_no_leak(alarms: Any, held: list[float]) -> None:
    assert alarms(held) == []


LEAKING = (
    pytest.param(1 * MIB, 1, 0, RESIDENT, 200, id="1 MiB"),
    pytest.param(64 * KIB, 1, 0, RESIDENT, 360, id="64 KiB"),
    pytest.param(64 * KIB, 1, 0.5 * MIB, RESIDENT, 400, id="64 KiB under results"),
    pytest.param(4 * KIB, 1, 0, RESIDENT, 5400, id="4 KiB"),
    pytest.param(640 * KIB, 10, 0, RESIDENT, 600, id="640 KiB in one of ten"),
    pytest.param(64 * KIB, 1, 0, ALLOCATOR, 200, id="64 KiB on a device"),
    pytest.param(512, 1, 0, ALLOCATOR, 2700, id="the allocator's least"),
    pytest.param(64 * KIB, 10, 0, ALLOCATOR, 600, id="64 KiB in one of ten on a device"),
)


@pytest.mark.parametrize(("size", "every", "results", "noise", "within"), LEAKING)
def test_memory_that_grows_with_each_inference_is_a_leak(
    alarms: Any, size: int, every: int, results: float, noise: Noise, within: int
) -> None:
    above = jitter(results)
    found = alarms([i // every * size + above() for i in range(6000)], noise)

    assert len(found) == 1  # told once, though it never stops
    at, leak = found[0]
    assert at <= within
    assert leak.bytes_per_inference == pytest.approx(size / every, rel=0.15)
    assert leak.grown_bytes == pytest.approx(leak.bytes_per_inference * leak.inferences)
    assert leak.grown_bytes >= noise.floor_bytes
    assert leak.seconds == pytest.approx(leak.inferences)
    assert leak.inferences < at


def test_leak_that_begins_late_is_found_as_soon(alarms: Any) -> None:
    found = alarms([max(0, i - 3000) * 64 * KIB for i in range(4000)])

    assert len(found) == 1
    assert 3250 < found[0][0] < 3350


def test_leak_after_a_warm_up_and_a_step_is_found(alarms: Any) -> None:
    held = [300 * MIB * (1 - math.exp(-i / 10)) + (i > 150) * 900 * MIB + i * 256 * KIB for i in range(1000)]

    assert len(alarms(held)) == 1


def test_growth_that_new_shapes_explain_is_no_leak(alarms: Any) -> None:
    held = [min(i, 600) * 300 * KIB for i in range(COUNT)]

    assert alarms(held, shape=lambda i: (1, min(i, 600))) == []
    assert len(alarms(held, shape=lambda i: (1, i % 5))) == 1


def test_memory_that_one_reading_in_eight_finds_free_is_no_leak(alarms: Any) -> None:
    assert alarms([(i % 8 != 5) * i * MIB for i in range(COUNT)]) == []


def test_leak_that_one_reading_in_eight_finds_alone_is_found(alarms: Any) -> None:
    assert len(alarms([i * MIB for i in range(COUNT)], others=lambda i: (i % 8 != 5) * i)) == 1


def test_growth_of_what_is_in_flight_is_no_leak(alarms: Any) -> None:
    held = [i // 20 * 4 * MIB for i in range(COUNT)]

    assert alarms(held, others=lambda i: i // 20) == []
    assert len(alarms(held, others=lambda i: 3)) == 1


def test_growth_between_two_collections_is_no_leak(alarms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [i % 650 * 200 * KIB for i in range(COUNT)]
    assert alarms(held, collection_every=650) == []

    monkeypatch.setattr(gc, "isenabled", lambda: False)
    assert len(alarms(held, collection_every=650)) == 1


def test_growth_longer_than_garbage_can_wait_needs_no_collection(alarms: Any) -> None:
    assert len(alarms([i * 64 * KIB for i in range(COUNT)], collection_every=10**9)) == 1


def test_saw_tooth_that_rises_is_a_leak(alarms: Any) -> None:
    found = alarms([i % 200 * 64 * KIB + i * 64 * KIB for i in range(6000)], collection_every=200)

    assert len(found) == 1
    assert found[0][0] < 5000
    assert found[0][1].bytes_per_inference == pytest.approx(64 * KIB, rel=0.05)


def test_rise_to_a_height_seen_before_is_no_leak(alarms: Any) -> None:
    wave = [abs(200 - i % 400) * MIB for i in range(COUNT)]

    assert alarms(wave) == []


def test_growth_that_slows_down_from_the_start_is_no_leak(alarms: Any) -> None:
    assert alarms([120 * MIB * math.log2(1 + i) for i in range(5000)]) == []


def test_growth_that_slows_down_within_its_window_is_no_leak(alarms: Any) -> None:
    assert alarms([1000 * MIB * (1 - math.exp(-max(0, i - 500) / 60)) for i in range(COUNT)]) == []


def test_growth_that_is_one_step_for_the_most_part_is_no_leak(alarms: Any) -> None:
    assert alarms([min(max(0, i - 300), 190) * 180 * KIB + (i > 430) * 1000 * MIB for i in range(COUNT)]) == []


def test_leak_that_stopped_and_came_back_is_told_again(alarms: Any) -> None:
    series = Leaks()
    found = alarms([(min(i, 1000) + max(0, i - 2000)) * 64 * KIB for i in range(3000)], into=series)

    assert len(found) == 2
    assert found[0][0] < 400
    assert 2250 < found[1][0] < 2400


def test_growth_is_unknown_then_none_then_that_of_the_leak_then_none(alarms: Any) -> None:
    series = Leaks()
    assert series.growth("model") is None
    alarms([0] * 100, into=series)
    assert series.growth("model") is None
    alarms([0] * 100, into=series)
    assert series.growth("model") == 0.0
    alarms([i * 64 * KIB for i in range(500)], into=series)
    assert series.growth("model") == pytest.approx(64 * KIB, rel=0.05)
    alarms([500 * 64 * KIB] * 600, into=series)
    assert series.growth("model") == 0.0
    assert series.growth("another") is None


def test_readings_that_are_missing_change_nothing(alarms: Any) -> None:
    held = [i * 64 * KIB for i in range(600)]
    gaps = [value for reading in held for value in (None, reading)]

    [(at, leak)] = alarms(gaps)
    [(whole_at, whole)] = alarms(held)
    assert at == 2 * whole_at
    assert leak[:3] == whole[:3]


def test_no_reading_makes_no_key() -> None:
    series = Leaks()

    assert series.add("model", None, RESIDENT, at_ns=0) is None
    assert series.keys() == []


def test_keys_do_not_mix(collections: list[int]) -> None:
    series = Leaks()
    told = []
    for i in range(600):
        collections[0] += 1
        told.append(series.add("leaking", BASE + i * 256 * KIB, RESIDENT, at_ns=i))
        assert series.add("steady", BASE, RESIDENT, at_ns=i) is None

    assert len([leak for leak in told if leak is not None]) == 1
    assert series.growth("steady") == 0.0


def test_keys_beyond_the_limit_take_the_place_of_the_longest_silent() -> None:
    series = Leaks(keys_max=3)
    for at, key in enumerate(("a", "b", "c", "a", "d", "e")):
        series.add(key, BASE, RESIDENT, at_ns=at)

    assert sorted(series.keys()) == ["a", "d", "e"]


def test_restart_forgets_what_grew(alarms: Any) -> None:
    series = Leaks()
    for start in range(0, 1000, 200):
        assert alarms([(start + i) * 64 * KIB for i in range(200)], into=series) == []
        series.restart()
    assert series.keys() == []


def test_shapes_are_counted_once_and_bounded() -> None:
    series = Leaks()
    for i in range(20_000):
        series.add("model", BASE, RESIDENT, at_ns=i, shape=i % 300 if i < 1000 else i)
        if i == 999:
            assert series._series["model"].fresh == 300
    assert series._series["model"].fresh <= leaks._SHAPE_BITS


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        pytest.param(
            "cuda:0",
            "memory on cuda:0 grows by 1.2 MiB with each inference of bert: 153.6 MiB in 128 inferences (12 s). "
            "Something keeps a result, a cache or a tensor of each.",
            id="device",
        ),
        pytest.param(
            None,
            "memory of this process grows by 1.2 MiB with each inference of bert: 153.6 MiB in 128 inferences (12 s). "
            "Something keeps a result, a cache or a tensor of each.",
            id="process",
        ),
    ],
)
def test_sentence_says_where_and_how_much(device: str | None, sentence: str) -> None:
    assert Leak(1.2 * MIB, int(153.6 * MIB), 128, 12.3).sentence("bert", device) == sentence


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the platform has no /proc")
@pytest.mark.parametrize("leaking", [pytest.param(False, id="clean"), pytest.param(True, id="leaking")])
def test_real_loop_of_a_model(leaking: bool) -> None:
    torch = pytest.importorskip("torch")
    model, memory, series = torch.nn.Linear(64, 4096).eval(), ResidentMemory(), Leaks()
    draw, kept, found = random.Random(1), [], []
    with torch.inference_mode():
        for i in range(600):
            result = model(torch.randn(draw.choice((16, 32, 64)), 64))
            if leaking:
                kept.append(result)
            if i % 50 == 0:
                gc.collect(0)  # as the requests of a server would bring about
            found.append(series.add("linear", memory.read_bytes(), RESIDENT, at_ns=i, shape=result.shape))
    memory.close()
    told = [leak for leak in found if leak is not None]

    assert len(told) == leaking
    if leaking:
        mean = sum(tensor.nbytes for tensor in kept) / len(kept)
        assert told[0].bytes_per_inference == pytest.approx(mean, rel=0.3)


# The probe


def leaking(probe: LeaksProbe, bytes_each: int, operation: str = "chat", count: int = 400) -> list[Report]:
    """What is reported of so many inferences, each of which leaves something behind."""
    found = []
    for number in range(count):
        record = records.ended(records.inference(operation, "me/model"), number * 1000, number * 1000 + 1)
        use = ProcessUse()
        use.memory_bytes = BASE + number * bytes_each
        found.append(Report(results={"process": use}))
        probe.report(record, None, found[-1])
    return found


@pytest.mark.usefixtures("collections")
def test_probe_warns_of_a_leak_once_and_reports_the_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_reported", {})
    monkeypatch.setattr(leaks, "_collections", iter(range(10**6)).__next__)
    with pytest.warns(InferspanWarning, match="memory of this process grows by 1 MiB") as warned:
        reports = leaking(LeaksProbe(), MIB)

    assert len(warned) == 1
    (event,) = [event for report in reports for event in report.events]
    assert event.name == semconv.LEAK_EVENT
    assert event.attributes[semconv.DEVICE] == "cpu"
    assert event.attributes[semconv.GROWTH] == pytest.approx(MIB, rel=0.05)
    (point,) = reports[-1].points
    assert (point.metric, point.attributes, point.of_operation) == (
        semconv.MEMORY_GROWTH,
        {semconv.DEVICE: "cpu"},
        False,
    )
    assert point.value == pytest.approx(MIB, rel=0.05)


@pytest.mark.usefixtures("collections")
def test_probe_reports_no_growth_where_there_is_none() -> None:
    reports = leaking(LeaksProbe(), 0)

    assert [event for report in reports for event in report.events] == []
    assert [point.value for point in reports[-1].points] == [0.0]
    assert reports[0].points == [], "not known yet"


@pytest.mark.usefixtures("collections")
def test_probe_begins_anew_when_a_model_is_loaded() -> None:
    probe = LeaksProbe()
    leaking(probe, 0, count=200)
    assert len(probe._leaks.keys()) == 1
    leaking(probe, 0, operation=semconv.LOAD_OPERATION, count=1)

    assert probe._leaks.keys() == []


def test_probe_follows_the_allocator_of_a_device_too() -> None:
    probe = LeaksProbe()
    memory = MemoryUse("cuda:0", None)
    memory.after = Memory(5)
    probe.report(records.ended(records.inference("chat", "me/model")), None, Report(results={"memory": memory}))

    assert probe._leaks.keys() == [("me/model", "cuda:0")]
