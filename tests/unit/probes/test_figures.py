"""From marks to numbers, on records made by hand: what adds up, what is a bound, what is absent."""

from __future__ import annotations

from typing import Any

import pytest
from inferspan.probes.figures import Part, add_parts, attributes_of, failed_allocations, figures_of, part_attributes

from inferspan import semconv
from inferspan.core.model import ModelInfo
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Generation
from inferspan.probes import figures
from inferspan.probes.accelerator import Accelerator, Memory
from inferspan.probes.energy import Energy
from inferspan.probes.out_of_memory import OutOfMemory
from support.fakedevice import FakeGpu

MS = 1_000_000


def inference(gpu: FakeGpu | None = None, dtype: str = "bfloat16", phases_max: int = 64) -> Inference:
    facts = ModelInfo("me/model")
    facts.dtype = dtype
    made = Inference("chat me/model", "chat", facts, phases_max)
    made.is_alone = True
    if gpu is not None:
        made.accelerator = Accelerator("cuda", 0, gpu)
    return made


def forward(record: Inference, *laps: float) -> Phase:
    """A phase that took so long on the device, lap by lap."""
    gpu = record.accelerator
    assert gpu is not None
    phase = record.begin(semconv.FORWARD)
    phase.is_measured = True
    phase.timer = gpu.timer(1000)
    assert phase.timer is not None
    for lap in laps[:-1]:
        gpu._torch.work(lap)
        phase.timer.lap()
    gpu._torch.work(laps[-1])
    record.end(phase)
    return phase


def ended(record: Inference) -> Inference:
    record.end_ns = record.start_ns + 100 * MS
    return record


def numbers(record: Inference) -> dict[str, Any]:
    found = attributes_of(ended(record), figures_of(record, None))
    return {name.removeprefix("inferspan."): value for name, value in found.items() if value is not None}


# -- time --------------------------------------------------------------------------------------------------------


def test_time_of_several_forwards_adds_up() -> None:
    gpu = FakeGpu()
    record = inference(gpu)
    forward(record, 0.010)
    forward(record, 0.030)
    assert not figures.is_ready(ended(record), None)
    gpu.finish()
    assert figures.is_ready(record, None)
    assert numbers(record) == {"gpu.time": pytest.approx(0.04), "gpu.busy_share": pytest.approx(0.4)}


def test_prefill_and_decode() -> None:
    gpu = FakeGpu()
    record = inference(gpu)
    phase = record.begin(semconv.FORWARD)
    assert record.accelerator is not None
    phase.is_measured = True
    phase.timer = record.accelerator.timer(100)
    generation = phase.generation = Generation()
    generation.timer = phase.timer
    generation.tick()
    gpu.work(0.02)
    generation.tick()
    for _ in range(3):
        gpu.work(0.005)
        generation.tick()
    record.end(phase)
    gpu.finish()
    found = figures_of(record, None)
    assert {name: part.gpu_s for name, part in found.totals.items()} == {
        "forward": pytest.approx(0.035),
        "prefill": pytest.approx(0.02),
        "decode": pytest.approx(0.015),
    }


def test_a_generation_that_failed_before_its_first_token_is_all_prefill() -> None:
    gpu = FakeGpu()
    record = inference(gpu)
    phase = record.begin(semconv.FORWARD)
    assert record.accelerator is not None
    phase.is_measured = True
    phase.timer = record.accelerator.timer(100)
    phase.generation = Generation()
    gpu.work(0.02)
    record.end(phase)
    gpu.finish()
    parts = figures_of(record, None).phases[0]
    assert parts["prefill"].gpu_s == parts["forward"].gpu_s == pytest.approx(0.02)
    assert parts["decode"].gpu_s is None


def test_time_that_is_missing_in_one_forward_is_missing_in_the_sum() -> None:
    gpu = FakeGpu()
    record = inference(gpu)
    forward(record, 0.01)
    gpu.finish()
    gpu.capturing = True
    untimed = record.begin(semconv.FORWARD)
    untimed.is_measured = True
    record.end(untimed)
    gpu.capturing = False
    assert "gpu.time" not in numbers(record)


def test_forwards_that_have_no_span_count_too_and_hold_no_events() -> None:
    gpu = FakeGpu()
    record = inference(gpu, phases_max=2)
    for _ in range(500):
        forward(record, 0.001)
        gpu.finish()
    assert len(record.phases) == 2
    assert len(record.unread) <= 1
    assert numbers(record)["gpu.time"] == pytest.approx(0.5)


def test_a_stream_whose_device_is_far_behind_holds_a_bounded_number_of_events() -> None:
    gpu = FakeGpu()
    record = inference(gpu, phases_max=2)
    for _ in range(500):
        forward(record, 0.001)
    assert len(record.unread) == 64
    gpu.finish()
    assert "gpu.time" not in numbers(record), "some were given up, so the sum is not known"


def test_busy_share_is_no_more_than_all() -> None:
    gpu = FakeGpu()
    record = inference(gpu)
    forward(record, 5.0)  # the host did not wait for it
    gpu.finish()
    assert numbers(record)["gpu.busy_share"] == 1.0


# -- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            Memory(100, 1000, 100, 100, 10, 0, 0),
            Memory(120, 1000, 700, 900, 50, 0, 0),
            {"peak": 700, "activations": 600, "allocated": 800, "fragmentation": 0.05},
        ),
        (
            Memory(100, 1000, 5000, 6000, 0, 0, 0),
            Memory(100, 1000, 5000, 6400, 0, 0, 0),
            {"peak": 500, "peak_exact": False, "peak_least": 100, "allocated": 400, "fragmentation": 0.0},
        ),
        (
            Memory(100, 1000, 300, 6000, 0, 0, 0),
            Memory(250, 1000, 300, 9000, 0, 2, 0),
            {"peak": 300, "peak_exact": False, "peak_least": 250, "allocated": 3000, "retries": 2}
            | {"fragmentation": 0.0},
        ),
        (
            Memory(100, 1000, 5000, 6000, 0, 0, 0),
            Memory(100, 1000, 800, 6400, 0, 0, 0),
            {"peak_exact": False, "peak_least": 800, "allocated": 400, "fragmentation": 0.0},
        ),
        (
            Memory(100, 1000, 5000, 6000, 0, 3, 0),
            Memory(100, 1000, 6000, 10, 0, 1, 0),
            {"peak": 6000, "activations": 5900, "fragmentation": 0.0},
        ),
        (Memory(5, 9), Memory(7, 9), {}),
    ],
    ids=[
        "raised, so exact",
        "not raised: no more than was handed out",
        "not raised: no more than the old peak",
        "the program reset its peak meanwhile",
        "the program reset its sums meanwhile",
        "a device that tells two numbers",
    ],
)
def test_memory(before: Memory, after: Memory, expected: dict[str, Any]) -> None:
    record = inference(FakeGpu())
    record.memory_before, record.memory_after = before, after
    always = {"before": before.allocated, "after": after.allocated, "reserved": after.reserved}
    assert numbers(record) == {f"memory.{name}": value for name, value in {**always, **expected}.items()}


def test_memory_beside_other_inferences_is_marked() -> None:
    record = inference(FakeGpu())
    record.is_alone = False
    record.memory_before = Memory(100, 1000, 100, 100, 0, 0, 0)
    record.memory_after = Memory(100, 1000, 900, 900, 0, 0, 0)
    found = numbers(record)
    assert found["memory.shared"] is True
    assert "memory.activations" not in found


def test_failed_allocations_count_once() -> None:
    record = inference(FakeGpu())
    assert failed_allocations(record) == 0
    record.memory_before, record.memory_after = Memory(1, failures=3), Memory(1, failures=5)
    assert failed_allocations(record) == 2, "the program caught two"
    record.out_of_memory = OutOfMemory(1, 1, False)
    assert failed_allocations(record) == 2, "and ended by the second"
    record.memory_after = Memory(1, failures=3)
    assert failed_allocations(record) == 1, "of the host, which has no counter"


# -- utilisation, energy, cycles -----------------------------------------------------------------------------------


def test_utilization_against_the_dense_peak() -> None:
    record = inference(FakeGpu("NVIDIA H100 80GB HBM3"))
    part = Part(gpu_s=0.5, flops=int(989.4e12 / 4))
    assert part_attributes(record, "forward", part)[semconv.FLOPS_UTILIZATION] == pytest.approx(0.5, rel=1e-3)


def test_bandwidth_of_decoding() -> None:
    record = inference(FakeGpu("NVIDIA H100 80GB HBM3"))
    part = Part(gpu_s=1.0, read_bytes=int(3.352e12 / 2))
    assert part_attributes(record, "decode", part)[semconv.BANDWIDTH_UTILIZATION] == pytest.approx(0.5, rel=1e-3)
    assert semconv.BANDWIDTH_UTILIZATION not in part_attributes(record, "prefill", part)


@pytest.mark.parametrize(
    ("name", "dtype", "devices"),
    [("NVIDIA Unknown 9000", "bfloat16", 1), ("NVIDIA H100 80GB HBM3", "bfloat16", 2), ("NVIDIA T4", "bfloat16", 1)],
    ids=["no such row", "several devices", "the device has no such units"],
)
def test_no_utilization_where_the_peak_is_not_known(name: str, dtype: str, devices: int) -> None:
    record = inference(FakeGpu(name), dtype)
    assert record.model is not None
    record.model.devices = devices
    found = part_attributes(record, "forward", Part(gpu_s=0.5, flops=10**12))
    assert found == {semconv.GPU_TIME: 0.5, semconv.FLOPS: 10**12}


class StubMeter:
    """Says what it is told."""

    def energy(self, index: int, start_ns: int, end_ns: int) -> Energy:
        return Energy(12.5, is_shared=index == 1)

    def sm_clock_hz(self, index: int, start_ns: int, end_ns: int) -> float:
        return 1.98e9

    def is_ready(self, index: int, start_ns: int, end_ns: int) -> bool:
        return index == 0


def test_cycles_and_energy() -> None:
    gpu = FakeGpu()
    record = inference(gpu)
    forward(record, 0.01)
    gpu.finish()
    found = attributes_of(ended(record), figures_of(record, StubMeter()))  # type: ignore[arg-type]
    assert found[semconv.GPU_CYCLES] == 19_800_000
    assert found[semconv.GPU_CYCLES_SOURCE] == "sm_clock"
    assert found[semconv.ENERGY_CONSUMPTION] == 12.5
    assert found[semconv.ENERGY_METHOD] == "board_counter"
    record.accelerator = Accelerator("cuda", 1, gpu)
    found = attributes_of(ended(record), figures_of(record, StubMeter()))  # type: ignore[arg-type]
    assert found[semconv.ENERGY_METHOD] == "board_counter_shared"
    assert not figures.is_ready(record, StubMeter())  # type: ignore[arg-type]


# -- FLOPs -------------------------------------------------------------------------------------------------------


def test_flops_that_are_missing_in_one_part_make_a_lower_bound() -> None:
    totals: dict[str, Part] = {}
    add_parts(totals, {"forward": Part(flops=100)})
    add_parts(totals, {"forward": Part()})
    add_parts(totals, {"forward": Part(flops=100)})
    assert totals["forward"].flops == 200
    assert totals["forward"].exact is False


def test_a_cpu_has_flops_and_nothing_else() -> None:
    record = inference()
    record.totals = {"forward": Part(flops=100)}
    assert numbers(record) == {"flops.count": 100, "flops.method": "linear_inventory"}
