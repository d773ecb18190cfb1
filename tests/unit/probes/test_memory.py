"""Two readings of an allocator, and what follows from them: what is exact, what is a bound, what is absent."""

from __future__ import annotations

from typing import Any

import pytest

from inferspan import semconv
from inferspan.core.probe import CallSite, Report
from inferspan.core.record import Inference
from inferspan.probes.kinds import Memory
from inferspan.probes.memory import MemoryProbe, MemoryUse
from support import records
from support.fakedevice import FakeGpu, install, obeyed
from support.records import present


def report_of(before: Memory | None, after: Memory | None, record: Inference | None = None, **results: Any) -> Report:
    mark = MemoryUse("cuda:0", before)
    mark.after = after
    report = Report(results=results)
    MemoryProbe().report(records.inference() if record is None else record, mark, report)
    return report


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
    always = {"before": before.allocated, "after": after.allocated, "reserved": after.reserved}
    assert present(report_of(before, after).attributes) == {
        f"memory.{name}": value for name, value in {**always, **expected}.items()
    }


RAISED = Memory(100, 1000, 100, 100, 0, 0, 0), Memory(100, 1000, 900, 900, 0, 0, 0)


def test_memory_beside_other_inferences_is_marked() -> None:
    record = records.inference()
    record.overlap.is_alone = False
    found = present(report_of(*RAISED, record).attributes)
    assert found["memory.shared"] is True
    assert "memory.activations" not in found


def test_memory_of_a_model_on_several_devices_has_no_activations() -> None:
    record = records.inference("chat", "me/model")
    assert record.info is not None
    record.info.devices = 2
    found = present(report_of(*RAISED, record).attributes)
    assert found["memory.peak"] == 900
    assert "memory.activations" not in found


def test_activations_are_without_the_cache() -> None:
    assert present(report_of(*RAISED, kv_cache=300).attributes)["memory.activations"] == 500


def test_points_are_of_the_model_on_its_device() -> None:
    on_device = {"inferspan.device": "cuda:0"}
    assert [
        (point.metric, point.value, point.attributes, point.of_operation, point.has_exemplar)
        for point in report_of(*RAISED).points
    ] == [
        (semconv.MEMORY_AFTERWARDS, 100, on_device, False, False),
        (semconv.MEMORY_PEAKS, 900, on_device, False, True),
    ]


def test_peak_of_which_no_upper_bound_is_known_is_no_point() -> None:
    report = report_of(Memory(100, 1000, 5000, 6000), Memory(100, 1000, 800, 6400))
    assert [point.metric for point in report.points] == [semconv.MEMORY_AFTERWARDS]


@pytest.mark.parametrize(("before", "after"), [(None, Memory(5)), (Memory(5), None), (None, None)])
def test_memory_that_was_not_read_at_both_ends_is_absent_but_its_device_known(
    before: Memory | None, after: Memory | None
) -> None:
    report = report_of(before, after)
    assert (report.attributes, report.points, report.results["device"]) == ({}, [], "cuda:0")


def test_memory_is_read_at_both_ends_of_an_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    install(gpu, monkeypatch)
    probe = MemoryProbe().prepare(CallSite(records.plan().settings, None, None, "cuda:0"))
    assert probe is not None
    gpu.allocate(300)
    mark = probe.begin(records.inference(), None)
    assert mark is not None
    gpu.allocate(200)
    gpu.free(100)
    probe.end(records.inference(), mark)
    assert (mark.device, mark.before, mark.after) == (
        "cuda:0",
        Memory(300, 1 << 30, 300, 300, 0, 0, 0),
        Memory(400, 1 << 30, 500, 500, 0, 0, 0),
    )
    assert obeyed(gpu)


def test_it_does_not_apply_to_the_host() -> None:
    assert MemoryProbe().prepare(CallSite(records.plan().settings, None, None, "cpu")) is None
