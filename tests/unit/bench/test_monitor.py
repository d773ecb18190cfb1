"""The timeline of a run, with and without a GPU."""

from __future__ import annotations

import pytest

from inferspan.bench.monitor import Monitor
from support.fakenvml import FakeDriver


def test_stages_and_readings_lie_on_one_clock() -> None:
    monitor = Monitor()
    monitor.start()
    with monitor.stage("idle", "model", 3) as stage:
        monitor.read()
    monitor.stop()

    line = monitor.timeline
    assert line.stages == [stage]
    assert (stage.name, stage.target, stage.configuration) == ("idle", "model", 3)
    assert 0 <= stage.start_s <= stage.end_s <= monitor.now_s()
    assert line.offset_s == sorted(line.offset_s)
    assert {len(line.resident_bytes), len(line.cpu_share), len(line.power_w)} == {len(line.offset_s)}
    assert monitor.rest(stage).resident_bytes == line.resident_bytes[-1]
    assert monitor.resident_peak([stage]) == line.resident_bytes[-1]


def test_without_a_gpu_nothing_of_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monitor = Monitor()
    monitor.read()

    assert monitor.energy_j() is None
    assert monitor.timeline.power_w == [None]
    assert monitor.timeline.gpu_utilization == [None]


def test_gpu_is_read_by_the_readers_of_production(driver: FakeDriver) -> None:
    monitor = Monitor()
    snapshot = monitor.read()
    monitor.stop()

    assert snapshot is not None
    assert [device.name for device, _ in snapshot.samples] == ["NVIDIA H200"]
    line = monitor.timeline
    for column in (line.power_w, line.gpu_utilization, line.temperature_c, line.sm_clock_hz):
        assert column[0] is not None
    first, second = monitor.energy_j(), monitor.energy_j()
    assert first is not None
    assert second is not None
    assert second >= first
