"""The snapshot behind the instruments: its thread, its deadline, its counters, and what a meter reader gets of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import inferspan
from inferspan import faults, semconv
from inferspan.devices.host import Host
from inferspan.devices.nvml import Nvml
from inferspan.devices.ownership import Ownership
from inferspan.devices.reader import Device, Reading, Sample
from inferspan.devices.sampler import Sampler
from support.fakenvml import FakeDriver, until
from support.recorder import Recorder

BOARD = "GPU-00000000-0000-0000-0000-000000000000"
ON_BOARD = {"hw.id": BOARD, "hw.name": "NVIDIA H200"}
_PATIENCE_S = 30.0


class Clock:
    """Both the age of snapshots and the deadline go by it; waiting itself is real."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class NoHost(Host):
    def read(self, with_system: bool) -> Sample:
        return {}


def sampler_of(*readers: Any, clock: Callable[[], float], deadline_s: float = _PATIENCE_S) -> Sampler:
    return Sampler(readers, NoHost(), Ownership("always"), all_devices=True, deadline_s=deadline_s, clock=clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml_sampler(driver: FakeDriver, clock: Clock) -> Iterator[Sampler]:
    faults.forget()
    sampler = sampler_of(Nvml(clock=clock), clock=clock)
    yield sampler
    sampler.stop()


class Scripted:
    """A reader of one device that gives what it is told to."""

    calls = 0

    def __init__(self) -> None:
        self.sample: Sample = {}
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0

    def devices(self) -> list[Device]:
        return [Device("X", 0)]

    def read(self, device: Device) -> Sample:
        self.reads += 1
        assert self.gate.wait(_PATIENCE_S)
        return dict(self.sample)

    def stop(self) -> None:
        self.gate.set()


def test_snapshot_serves_all_for_its_interval_and_is_then_read_anew(
    nvml_sampler: Sampler, driver: FakeDriver, clock: Clock
) -> None:
    first = nvml_sampler.snapshot()
    driver.forget()
    clock.now_s += 0.9
    assert nvml_sampler.snapshot() is first
    assert driver.calls() == []
    clock.now_s += 0.2
    assert nvml_sampler.snapshot() is not first
    assert len(driver.calls()) == 8


def test_snapshot_has_points_with_the_attributes_of_their_metrics(nvml_sampler: Sampler) -> None:
    snapshot = nvml_sampler.snapshot()
    assert snapshot is not None
    assert {name: snapshot.points[name] for name in ("hw.power", "hw.gpu.io", "inferspan.device.info")} == {
        "hw.power": [(627.0, {**ON_BOARD, "hw.type": "gpu"})],
        "hw.gpu.io": [
            (5000, {**ON_BOARD, "network.io.direction": "transmit"}),
            (6000, {**ON_BOARD, "network.io.direction": "receive"}),
        ],
        "inferspan.device.info": [
            (
                1,
                {
                    **ON_BOARD,
                    "hw.vendor": "NVIDIA",
                    "hw.driver_version": "580.105.08",
                    "inferspan.device.pci.address": "00000000:1a:00.0",
                },
            )
        ],
    }


def test_every_attribute_is_in_the_table_of_its_metric(driver: FakeDriver, clock: Clock) -> None:
    driver.says("count=2", "dev0.mig=1", "dev0.mig.0=MIG-a")
    sampler = sampler_of(Nvml(frozenset({"slow", "gpm"}), clock), clock=clock)
    sampler.snapshot()
    clock.now_s += 2
    snapshot = sampler.snapshot()
    assert snapshot is not None
    for metric, values in snapshot.points.items():
        for _, attributes in values:
            assert set(attributes) <= set(semconv.METRICS[metric].attributes), metric
    sampler.stop()


def test_call_that_hangs_leaves_the_devices_out_delays_nobody_and_recovers(
    driver: FakeDriver, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults.forget()
    caplog.set_level("INFO", "inferspan")
    sampler = sampler_of(Nvml(clock=clock), clock=clock, deadline_s=0.05)
    until(sampler.snapshot)  # starting: not called hung within 30 s of the clock, which stands
    driver.says(f"nvmlDeviceGetUtilizationRates.wait_for={tmp_path / 'go'}")
    clock.now_s += 2
    assert sampler.snapshot() is None
    clock.now_s += 2
    driver.forget()
    assert [sampler.snapshot() for _ in range(50)] == [None] * 50
    assert sampler.is_hung
    assert driver.calls() == []
    message = "the device driver has not answered within 0.05 s: device metrics are absent until it does; nothing else "
    assert caplog.messages == [message + "waits for it"]

    (tmp_path / "go").touch()
    until(lambda: not sampler.is_hung)
    assert sampler.snapshot() is not None
    assert caplog.messages[1:] == ["inferspan: the device driver answers again"]
    sampler.stop()


def test_hung_driver_leaves_the_other_instruments_alone(driver: FakeDriver, tmp_path: Path) -> None:
    driver.says(f"nvmlInitWithFlags.wait_for={tmp_path / 'go'}")
    recorder = Recorder()
    recorder.instrument(devices="always")
    with inferspan.inference("test", model="m"):
        pass
    assert [point.value for point in recorder.points("inferspan.inference.active")] == [0]
    assert recorder.metric_names() == {"gen_ai.client.operation.duration", *OWN}
    (tmp_path / "go").touch()
    recorder.close()


def test_counter_that_starts_again_goes_on_from_where_it_was(clock: Clock) -> None:
    reader = Scripted()
    energy, power = Reading(semconv.ENERGY), Reading(semconv.POWER)
    sampler = sampler_of(reader, clock=clock)
    seen = []
    for joules in (100.0, 250.0, 10.0, 30.0, 5.0):
        reader.sample = {energy: joules, power: joules}
        snapshot = sampler.snapshot()
        assert snapshot is not None
        seen.append((snapshot.points[semconv.ENERGY][0][0], snapshot.points[semconv.POWER][0][0]))
        clock.now_s += 2
    assert seen == [(100.0, 100.0), (250.0, 250.0), (260.0, 10.0), (280.0, 30.0), (285.0, 5.0)]
    sampler.stop()


def test_counters_stay_monotonic_when_the_driver_is_loaded_anew(
    nvml_sampler: Sampler, driver: FakeDriver, clock: Clock
) -> None:
    def energy() -> list[Any]:
        snapshot = nvml_sampler.snapshot()
        assert snapshot is not None
        return snapshot.points.get(semconv.ENERGY, [])

    on_gpu = {**ON_BOARD, "hw.type": "gpu"}
    assert energy() == [(1234567.0, on_gpu)]
    driver.says("nvmlDeviceGetFieldValues.ret=1", "nvmlInitWithFlags.ret=9")
    clock.now_s += 2
    assert energy() == []
    driver.says("field.83=1000")
    clock.now_s += 61
    assert energy() == [(1234568.0, on_gpu)]


def test_many_threads_at_once_cause_one_reading(clock: Clock) -> None:
    reader = Scripted()
    reader.gate.clear()
    sampler = sampler_of(reader, clock=clock)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(sampler.snapshot())) for _ in range(8)]
    for thread in threads:
        thread.start()
    reader.gate.set()
    for thread in threads:
        thread.join(_PATIENCE_S)
    assert len(got) == 8
    assert len({id(snapshot) for snapshot in got}) == 1
    assert reader.reads == 1
    sampler.stop()


def test_forked_child_has_a_thread_of_its_own_even_if_the_lock_was_held(nvml_sampler: Sampler) -> None:
    assert nvml_sampler.snapshot() is not None
    receiving, sending = os.pipe()
    with nvml_sampler._changed:  # as if another thread of the parent was just collecting
        child = os.fork()
        if child == 0:
            try:
                snapshot = nvml_sampler.snapshot()
                os.write(sending, json.dumps(snapshot and snapshot.points["hw.power"]).encode())
            finally:
                os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as stream:
        assert json.loads(stream.read()) == [[627.0, {**ON_BOARD, "hw.type": "gpu"}]]
    os.waitpid(child, 0)


def test_stopped_sampler_gives_nothing(nvml_sampler: Sampler, clock: Clock) -> None:
    assert nvml_sampler.snapshot() is not None
    nvml_sampler.stop()
    clock.now_s += 2
    assert nvml_sampler.snapshot() is None


def test_overhead_is_reported(nvml_sampler: Sampler, driver: FakeDriver) -> None:
    snapshot = nvml_sampler.snapshot()
    assert snapshot is not None
    assert snapshot.points[semconv.OVERHEAD_CALLS] == [(len(driver.calls()), {})]
    (seconds, attributes) = snapshot.points[semconv.OVERHEAD_TIME][0]
    assert seconds > 0
    assert attributes == {}


# -- through the providers ----------------------------------------------------------------------------------------

ALWAYS = {
    "hw.energy", "hw.errors", "hw.gpu.io", "hw.gpu.memory.limit", "hw.gpu.memory.usage", "hw.gpu.memory.utilization",
    "hw.gpu.utilization", "hw.power", "hw.status", "hw.temperature", "inferspan.device.clock.frequency",
    "inferspan.device.clock.held", "inferspan.device.clock.held_time", "inferspan.device.info",
    "inferspan.device.memory.busy", "inferspan.device.memory.reserved", "inferspan.device.nvlink.io",
    "inferspan.device.pcie.generation", "inferspan.device.pcie.replays", "inferspan.device.pcie.width",
    "inferspan.device.power.limit", "inferspan.device.rows", "inferspan.overhead.devices.calls",
    "inferspan.overhead.devices.time", "process.cpu.time", "process.memory.usage", "system.memory.limit",
    "system.memory.usage",
}  # fmt: skip
OWN = {
    "inferspan.inference.active", "inferspan.overhead.worker.time", "inferspan.overhead.hooks.time",
    "inferspan.overhead.queue.max",
}  # fmt: skip
SLOW = {
    "hw.fan.speed_ratio", "hw.temperature.limit", "inferspan.device.ecc.errors", "inferspan.device.pcie.throughput",
    "inferspan.device.process.memory",
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"devices": "auto"}, ALWAYS, id="auto"),
        pytest.param({"devices": "always", "devices_detail": ["slow"]}, ALWAYS | SLOW, id="slow"),
        pytest.param(
            {"devices": "auto", "process_stats": False},
            ALWAYS - {"process.cpu.time", "process.memory.usage"},
            id="no_process_stats",
        ),
        pytest.param({"devices": "never"}, set(), id="never"),
    ],
)
def test_instruments_reported_by(driver: FakeDriver, settings: dict[str, Any], expected: set[str]) -> None:
    recorder = Recorder()
    recorder.instrument(**settings)
    assert recorder.metric_names() == expected | OWN
    recorder.close()


def test_two_readers_and_a_second_set_up_make_no_duplicates(driver: FakeDriver) -> None:
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    recorder = Recorder()
    recorder.meter_provider = provider
    for _ in range(2):
        recorder.instrument(devices="auto")
        for reader in readers:
            recorder.reader = reader
            assert [(point.value, dict(point.attributes)) for point in recorder.points("hw.power")] == [
                (627.0, {**ON_BOARD, "hw.type": "gpu"})
            ]
        recorder.close()


def test_visible_devices_are_reported_alone(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.says("count=8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-00000003")
    recorder = Recorder()
    recorder.instrument(devices="auto")
    assert sorted(point.attributes["hw.id"][:12] for point in recorder.points("hw.power")) == [
        "GPU-00000003",
        "GPU-00000006",
    ]
    recorder.close()


# -- host and process ---------------------------------------------------------------------------------------------


def test_host_and_process_have_shares_from_the_second_reading_on() -> None:
    host = Host()
    first, second = host.read(with_system=True), host.read(with_system=True)
    assert {key.metric for key in first} == {
        "process.cpu.time", "process.memory.usage", "system.memory.limit", "system.memory.usage",
    }  # fmt: skip
    shares = {"process.cpu.utilization", "system.cpu.utilization"}
    assert {key.metric for key in second} - {key.metric for key in first} <= shares
    assert all(0 <= value <= 1 for key, value in second.items() if key.metric == "system.cpu.utilization")


def test_host_is_left_to_the_owner() -> None:
    assert {key.metric for key in Host().read(with_system=False)} == {"process.cpu.time", "process.memory.usage"}


def test_host_is_left_to_system_metrics_where_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    running = SimpleNamespace(is_instrumented_by_opentelemetry=True)
    module = SimpleNamespace(SystemMetricsInstrumentor=lambda: running)
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.instrumentation.system_metrics", module)
    assert Host().read(with_system=True) == {}
