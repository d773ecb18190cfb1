"""Energy and clock of single inferences, from scripted samples of the driver."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic, sleep

import pytest

from inferspan import semconv
from inferspan.core.probe import CallSite, Report
from inferspan.devices import identity
from inferspan.devices.nvml import Nvml
from inferspan.devices.reader import Device, Sample
from inferspan.probes import energy as energy_module
from inferspan.probes.energy import Energy, EnergyProbe, EnergySampler, _Board
from support import records
from support.fakedevice import FakeGpu, install
from support.fakenvml import FakeDriver

S = 10**9


class Silent:
    """A driver that is never asked: the tests add the samples."""

    def devices(self) -> Sequence[Device]:
        return []

    def meter(self, device: Device) -> Sample:
        raise AssertionError


def metered(*changes: tuple[float, int], until_s: float, watts: float = 100.0, step_s: float = 0.1) -> EnergySampler:
    """A meter of a board that draws ``watts`` throughout; ``changes``: when inferences began (1) and ended (-1)."""
    found = EnergySampler(Silent())
    board = found._boards[0] = _Board()
    waiting = sorted(changes)
    for step in range(round(until_s / step_s) + 1):
        now_s = step * step_s
        while waiting and waiting[0][0] <= now_s:
            at_s, change = waiting.pop(0)
            board.changes.append((round(at_s * S), change))
        board.add(round(now_s * S), 5000 + watts * now_s, 1.5e9)
    return found


def energy(found: EnergySampler, start_s: float, end_s: float) -> Energy | None:
    return found.energy(0, round(start_s * S), round(end_s * S))


def test_alone_it_has_all_of_it() -> None:
    found = energy(metered((1.0, 1), (4.0, -1), until_s=6), 1.0, 4.0)
    assert found is not None
    assert found.joules == pytest.approx(300, rel=0.02)
    assert not found.is_shared


def test_two_at_once_share_equally() -> None:
    both = metered((1.0, 1), (2.0, 1), (4.0, -1), (5.0, -1), until_s=6)
    first, second = energy(both, 1.0, 4.0), energy(both, 2.0, 5.0)
    assert first is not None
    assert second is not None
    assert first.joules == pytest.approx(100 + 2 * 50, rel=0.03)
    assert second.joules == pytest.approx(2 * 50 + 100, rel=0.03)
    assert first.is_shared
    assert second.is_shared


def test_shares_add_up_to_the_board() -> None:
    changes = [(0.5 + i, 1) for i in range(4)] + [(3.5 + i, -1) for i in range(4)]
    found = metered(*changes, until_s=8)
    shares = [energy(found, 0.5 + i, 3.5 + i) for i in range(4)]
    assert sum(share.joules for share in shares if share) == pytest.approx(100 * 6, rel=0.02)


def test_idle_draw_between_inferences_is_nobodys() -> None:
    found = metered((1.0, 1), (3.0, -1), (7.0, 1), (9.0, -1), until_s=10)
    second = energy(found, 7.0, 9.0)
    assert second is not None
    assert second.joules == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize(
    ("start_s", "end_s"),
    [(1.0, 1.9), (4.5, 7.5), (20.0, 30.0)],
    ids=["shorter than the counter can tell", "mostly after the last sample", "not at all"],
)
def test_absent(start_s: float, end_s: float) -> None:
    assert energy(metered((1.0, 1), until_s=6), start_s, end_s) is None


def test_a_counter_that_starts_anew_is_no_negative_energy() -> None:
    found = metered((0.0, 1), until_s=2)
    board = found._boards[0]
    for step in range(21, 41):
        board.add(step * S // 10, 100.0 * (step - 21) / 10, None)
    result = energy(found, 0.0, 4.0)
    assert result is not None
    assert 350 < result.joules <= 400


def test_a_board_without_a_counter_still_has_a_clock() -> None:
    found = EnergySampler(Silent())
    board = found._boards[0] = _Board()
    for step in range(40):
        board.add(step * S // 10, None, 1.2e9)
    assert energy(found, 0.0, 3.0) is None
    assert found.sm_clock_hz(0, 0, S) == 1.2e9


def test_the_clock_of_a_short_inference_is_the_nearest_sample() -> None:
    found = EnergySampler(Silent())
    board = found._boards[0] = _Board()
    board.add(1 * S, None, 1.0e9)
    board.add(2 * S, None, 2.0e9)
    assert found.sm_clock_hz(0, int(1.1 * S), int(1.2 * S)) == 1.0e9
    assert found.sm_clock_hz(0, int(1.8 * S), int(1.9 * S)) == 2.0e9
    assert found.sm_clock_hz(0, 1 * S, 2 * S) == 1.5e9
    assert found.sm_clock_hz(0, 5 * S, 6 * S) is None
    assert found.sm_clock_hz(1, 1 * S, 2 * S) is None


def test_memory_is_bounded() -> None:
    board = _Board()
    for step in range(energy_module._SAMPLES_MAX + 10):
        board.add(step, 1.0, None)
    assert len(board.readings) == energy_module._SAMPLES_MAX


# -- the thread, under the real pynvml -----------------------------------------------------------------------------


def wait_until(condition: object, timeout_s: float = 10) -> None:
    deadline = monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert monotonic() < deadline
        sleep(0.01)


class Wake(threading.Event):
    """Tells when the thread has come to wait, and for how long."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        self.awaited.set()
        return super().wait(timeout)


@pytest.fixture
def running(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> EnergySampler:
    monkeypatch.setattr(identity, "torch_indices", lambda devices: {devices[0].id: 0})
    monkeypatch.setattr(energy_module, "STEP_S", 0.02)
    monkeypatch.setattr(energy_module, "WINDOW_S", 0.1)
    monkeypatch.setattr(energy_module, "_LINGER_S", 0.1)
    return EnergySampler(Nvml())


def test_it_reads_the_driver_while_an_inference_runs_and_then_no_more(
    running: EnergySampler, driver: FakeDriver
) -> None:
    driver.says("dev0.nvmlDeviceGetTotalEnergyConsumption=1000000")
    running._wake = wake = Wake()
    running.begin(0)
    wait_until(lambda: 0 in running._boards and len(running._boards[0].readings) > 3)
    running.end(0)
    assert wake.awaited.wait(10), "nothing runs, and yet its thread goes on"
    calls = driver.calls()
    assert {"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetClockInfo"} <= set(calls)
    assert wake.timeouts == [None], "it comes back by itself"
    asked = len(calls)
    running.begin(0)
    wait_until(lambda: len(driver.calls()) > asked)
    running.stop()


def test_nothing_is_asked_before_an_inference_runs(running: EnergySampler, driver: FakeDriver) -> None:
    wait_until(lambda: "inferspan-meter" not in [thread.name for thread in threading.enumerate()])  # of other tests
    assert running._thread is None
    assert driver.calls() == []


def test_without_a_driver_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EnergySampler(Silent())
    found.begin(0)
    wait_until(lambda: found._stopped)
    assert found.is_ready(0, 0, 10 * S), "nothing is to be waited for"


def test_ready_when_a_sample_after_the_end_is_there(running: EnergySampler, driver: FakeDriver) -> None:
    running.begin(0)
    wait_until(lambda: 0 in running._boards and len(running._boards[0].readings) > 1)
    now = running._clock()
    assert not running.is_ready(0, now, now + 2 * S)
    assert running.is_ready(0, now - S, now - S // 2)
    assert running.is_ready(0, now, now + 1000), "too short to matter"
    running.stop()


# -- the probe -------------------------------------------------------------------------------------------------------


class Stub:
    """A sampler that says what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def begin(self, index: int) -> None:
        self.seen.append(("begin", index))

    def end(self, index: int) -> None:
        self.seen.append(("end", index))

    def stop(self) -> None:
        self.seen.append(("stop", -1))

    def energy(self, index: int, start_ns: int, end_ns: int) -> Energy:
        return Energy(12.5, is_shared=index == 1)

    def sm_clock_hz(self, index: int, start_ns: int, end_ns: int) -> float:
        return 1.98e9

    def is_ready(self, index: int, start_ns: int, end_ns: int) -> bool:
        return index == 0


def test_cycles_and_energy() -> None:
    record = records.ended(records.inference())
    for index, method in ((0, "board_counter"), (1, "board_counter_shared")):
        probe = EnergyProbe(Stub(), index)  # type: ignore[arg-type]
        report = Report(results={"device_time": 0.01})
        probe.report(record, probe, report)
        assert report.attributes[semconv.GPU_CYCLES] == 19_800_000
        assert report.attributes[semconv.GPU_CYCLES_SOURCE] == "sm_clock"
        assert report.attributes[semconv.ENERGY_CONSUMPTION] == 12.5
        assert report.attributes[semconv.ENERGY_METHOD] == method
        assert probe.is_ready(record, probe) is (index == 0)


def test_cycles_need_the_time_on_the_device() -> None:
    probe = EnergyProbe(Stub())  # type: ignore[arg-type]
    report = Report()
    probe.report(records.ended(records.inference()), probe, report)
    assert semconv.GPU_CYCLES not in report.attributes
    assert report.attributes[semconv.ENERGY_CONSUMPTION] == 12.5


def test_points_of_energy_are_the_inferences_and_each_tokens() -> None:
    probe = EnergyProbe(Stub())  # type: ignore[arg-type]
    record = records.ended(records.inference())
    record.counts.add_output(5, True)
    report = Report()
    probe.report(record, probe, report)
    assert [(point.metric, point.value, point.of_operation) for point in report.points] == [
        (semconv.ENERGY_CONSUMED, 12.5, True),
        (semconv.ENERGY_PER_TOKEN, 2.5, True),
    ]


def test_probe_binds_to_the_board_and_reports_begin_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeGpu(), monkeypatch)
    stub = Stub()
    unbound, record = EnergyProbe(stub), records.inference()  # type: ignore[arg-type]
    site = CallSite(record.plan.settings, None, None, "cuda:1")
    bound = unbound.prepare(site)
    assert bound is not None
    mark = bound.begin(record, None)
    bound.end(record, mark)
    unbound.close()
    assert stub.seen == [("begin", 1), ("end", 1), ("stop", -1)]
    assert unbound.prepare(site._replace(device="cpu")) is None
    assert unbound.prepare(site._replace(device="mps:0")) is None


def test_inference_without_a_mark_has_no_energy() -> None:
    report = Report()
    EnergyProbe(Stub()).report(records.ended(records.inference()), None, report)  # type: ignore[arg-type]
    assert (report.attributes, report.points) == ({}, [])
