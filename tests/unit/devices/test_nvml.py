"""The NVML reader, over the real pynvml and the stub of the driver."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from typing import Any

import pynvml
import pytest

from inferspan import faults
from inferspan.devices.nvml import Nvml
from inferspan.devices.reader import Device, Sample
from support.fakenvml import FakeDriver, until

BOARD = "GPU-00000000-0000-0000-0000-000000000000"
FAST = {
    "hw.power": 627.0,
    "inferspan.device.power.limit": 700.0,
    "hw.energy": 1234567.0,
    "hw.temperature memory": 40,
    "hw.gpu.io transmit": 5000,
    "hw.gpu.io receive": 6000,
    "inferspan.device.pcie.replays": 4,
    "inferspan.device.nvlink.io transmit": 1024000,
    "inferspan.device.nvlink.io receive": 2048000,
    "hw.errors corrected": 2,
    "hw.errors uncorrected": 1,
    "inferspan.device.rows corrected": 7,
    "inferspan.device.rows uncorrected": 0,
    "inferspan.device.rows pending": 0,
    "inferspan.device.rows failed": 0,
    "inferspan.device.clock.held_time power_cap": 3.0,
    "inferspan.device.clock.held_time sync_boost": 0.0,
    "inferspan.device.clock.held_time board_limit": 0.0,
    "inferspan.device.clock.held_time reliability": 0.0,
    "inferspan.device.clock.held_time thermal": 1.5,
    "inferspan.device.clock.held_time hardware_thermal": 0.0,
    "inferspan.device.clock.held_time power_brake": 0.0,
    "hw.gpu.memory.limit": 150754820096,
    "hw.gpu.memory.usage": 75377410048,
    "hw.gpu.memory.utilization": 0.5,
    "inferspan.device.memory.reserved": 643825664,
    "hw.gpu.utilization general": 0.87,
    "inferspan.device.memory.busy": 0.34,
    "hw.temperature gpu": 52,
    "inferspan.device.clock.frequency sm": 1980000000,
    "inferspan.device.clock.frequency memory": 3201000000,
    "inferspan.device.clock.held idle": 0,
    "inferspan.device.clock.held application": 0,
    "inferspan.device.clock.held power_cap": 1,
    "inferspan.device.clock.held hardware": 0,
    "inferspan.device.clock.held sync_boost": 0,
    "inferspan.device.clock.held thermal": 0,
    "inferspan.device.clock.held hardware_thermal": 0,
    "inferspan.device.clock.held power_brake": 0,
    "inferspan.device.clock.held display": 0,
    "inferspan.device.pcie.generation": 5,
    "inferspan.device.pcie.width": 16,
    "hw.status ok": 1,
    "hw.status degraded": 0,
    "hw.status failed": 0,
}
SLOW = {
    "inferspan.device.process.memory 4711": 1073741824,
    "inferspan.device.process.memory 4713": 4096,
    "inferspan.device.pcie.throughput transmit": 1000000,
    "inferspan.device.pcie.throughput receive": 2000000,
    "hw.fan.speed_ratio": 0.3,
    "hw.temperature.limit high.critical": 95,
    "hw.temperature.limit high.degraded": 88,
    "hw.gpu.utilization encoder": 0.05,
    "hw.gpu.utilization decoder": 0.05,
    "inferspan.device.ecc.errors corrected dram": 2,
    "inferspan.device.ecc.errors corrected sram": 7,
    "inferspan.device.ecc.errors uncorrected dram": 12,
    "inferspan.device.ecc.errors uncorrected sram": 17,
}
GPM = {
    "inferspan.device.sm.utilization": 0.02,
    "inferspan.device.sm.occupancy": 0.03,
    "inferspan.device.memory.bandwidth.utilization": 0.1,
    "inferspan.device.pipe.utilization integer": 0.04,
    "inferspan.device.pipe.utilization any_tensor": 0.05,
    "inferspan.device.pipe.utilization dfma": 0.06,
    "inferspan.device.pipe.utilization hmma": 0.07,
    "inferspan.device.pipe.utilization imma": 0.09,
    "inferspan.device.pipe.utilization fp64": 0.11,
    "inferspan.device.pipe.utilization fp32": 0.12,
    "inferspan.device.pipe.utilization fp16": 0.13,
}
STATES = ("hw.status ok", "hw.status degraded", "hw.status failed")
LOST = dict(zip(STATES, (0, 0, 1), strict=True))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def named(sample: Sample) -> dict[str, float]:
    return {
        " ".join([key.metric, *(str(value) for _, value in key.attributes)]): value for key, value in sample.items()
    }


def read(nvml: Nvml, index: int = 0) -> dict[str, float]:
    return named(nvml.read(nvml.devices()[index]))


def without(readings: dict[str, float], *beginnings: str) -> dict[str, float]:
    return {name: value for name, value in readings.items() if not name.startswith(beginnings)}


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "inferspan"]


@pytest.fixture(autouse=True)
def tell_everything(caplog: pytest.LogCaptureFixture) -> None:
    faults.forget()
    caplog.set_level(logging.DEBUG, "inferspan")


def test_board_has_its_identity(driver: FakeDriver) -> None:
    facts = {
        "hw.vendor": "NVIDIA",
        "hw.driver_version": "580.105.08",
        "inferspan.device.pci.address": "00000000:1a:00.0",
    }
    devices = Nvml().devices()
    assert devices == [Device(BOARD, 0, "NVIDIA H200", "")]
    assert devices[0].facts == facts


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        pytest.param(set(), FAST, id="fast"),
        pytest.param({"slow"}, {**FAST, **SLOW}, id="slow"),
        pytest.param({"gpm"}, {**FAST, **GPM}, id="gpm"),
    ],
)
def test_board_read_gives_everything_in_the_units_of_the_metrics(
    driver: FakeDriver, detail: set[str], expected: dict[str, float]
) -> None:
    clock = Clock()
    nvml = Nvml(frozenset(detail), clock)
    read(nvml)  # GPM compares two samples
    clock.now_s += 1
    assert read(nvml) == expected


def test_gpm_window_too_short_gives_no_means(driver: FakeDriver) -> None:
    clock = Clock()
    nvml = Nvml(frozenset({"gpm"}), clock)
    read(nvml)
    clock.now_s += 0.09
    assert read(nvml) == FAST


def test_snapshot_of_eight_boards_stays_in_the_call_budget(driver: FakeDriver) -> None:
    driver.says("count=8")
    nvml = Nvml()
    [nvml.read(device) for device in nvml.devices()]
    driver.forget()
    samples = [nvml.read(device) for device in nvml.devices()]
    assert [named(sample) for sample in samples] == [FAST] * 8
    assert driver.calls() == 8 * [
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetTemperatureV" if hasattr(pynvml, "nvmlDeviceGetTemperatureV") else "nvmlDeviceGetTemperature",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrPcieLinkGeneration",
        "nvmlDeviceGetClockInfo",
    ]


def test_board_whose_fields_lack_power_has_it_from_the_older_call_in_the_same_budget(driver: FakeDriver) -> None:
    driver.says("field.185.ret=3", "field.186.ret=3", "field.190.ret=3", "field.83.ret=3")
    nvml = Nvml()
    read(nvml)
    driver.forget()
    assert read(nvml) == FAST
    assert len(driver.calls()) == 8


def test_what_the_first_reading_could_not_afford_does_not_outlive_its_reading(driver: FakeDriver) -> None:
    absent = ("FieldValues", "MemoryInfo_v2", "MemoryInfo", "UtilizationRates", "TemperatureV", "Temperature")
    says = [f"nvmlDeviceGet{name}.ret=3" for name in absent]
    driver.says(*says)
    nvml = Nvml()
    assert read(nvml)["inferspan.device.pcie.generation"] == 5  # beyond the budget, while learning what is absent
    assert read(nvml)["inferspan.device.pcie.generation"] == 5
    driver.says(*says, "nvmlDeviceGetCurrPcieLinkGeneration.ret=19")
    assert "inferspan.device.pcie.generation" not in read(nvml)


def test_driver_without_the_newer_structs_is_asked_by_the_older_ones(driver: FakeDriver) -> None:
    driver.says("nvmlDeviceGetMemoryInfo_v2.ret=25", "nvmlDeviceGetTemperatureV.ret=13")
    nvml = Nvml()
    expected = without(FAST, "inferspan.device.memory.reserved")
    expected["hw.gpu.memory.usage"] += 643825664
    expected["hw.gpu.memory.utilization"] = expected["hw.gpu.memory.usage"] / 150754820096
    assert read(nvml) == expected
    driver.forget()
    assert read(nvml) == expected
    assert len(driver.calls()) == 8


def test_count_of_bytes_in_32_bits_is_absent(driver: FakeDriver) -> None:
    driver.says("field.197.type=1", "field.198.type=1")
    assert read(Nvml()) == without(FAST, "hw.gpu.io")


def test_not_supported_is_absent_and_not_asked_again(driver: FakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.says("nvmlDeviceGetUtilizationRates.ret=3", "field.82.ret=3")
    nvml = Nvml()
    expected = without(FAST, "hw.gpu.utilization", "inferspan.device.memory.busy", "hw.temperature memory")
    assert read(nvml) == expected
    driver.forget()
    assert read(nvml) == expected
    assert "nvmlDeviceGetUtilizationRates" not in driver.calls()
    assert told(caplog) == []


MESSAGES = {
    1: "NVML is not initialised any more: something shut it down",
    4: "the driver does not permit it to this user: some metrics of the device are absent",
    9: "the NVIDIA driver is not loaded",
    15: "the GPU has fallen off the bus",
    16: "the GPU has to be reset",
    18: "the NVIDIA driver was replaced while this process runs: its devices are absent until it is started again",
    28: "the GPU is not there any more",
    999: "the driver gave an unknown error",
}
CODES = sorted(
    value
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int) and value > 0
)


@pytest.mark.parametrize("code", CODES)
def test_error_of_one_call_leaves_out_what_it_means(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    clock = Clock()
    nvml = Nvml(clock=clock)
    device = nvml.devices()[0]
    driver.says(f"nvmlDeviceGetUtilizationRates.ret={code}")
    for _ in range(3):
        sample = named(nvml.read(nvml.devices()[0]))
        if code in (1, 9, 12, 18):  # the driver
            assert sample == {}
        elif code in (15, 16, 28):  # the device
            assert sample == LOST
        else:
            assert sample == without(FAST, "hw.gpu.utilization", "inferspan.device.memory.busy")
    expected = [("WARNING", f"NVML, {BOARD}: {MESSAGES[code]} (NVML error {code})")] if code in MESSAGES else []
    if code == 12:
        expected = [("DEBUG", "inferspan: no NVIDIA driver here, so no metrics of NVIDIA devices")]
    assert told(caplog) == expected

    driver.says()
    clock.now_s += 61
    remembered = code in (2, 3, 4, 13, 25, 26)
    if code != 12:
        assert nvml.devices() == [device]
        assert read(nvml) == (
            without(FAST, "hw.gpu.utilization", "inferspan.device.memory.busy") if remembered else FAST
        )


@pytest.mark.parametrize("code", CODES)
def test_error_of_init_gives_no_devices_and_is_tried_again_with_pauses(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    clock = Clock()
    nvml = Nvml(clock=clock)
    driver.says(f"nvmlInitWithFlags.ret={code}")
    attempts = []
    for _ in range(200):
        assert nvml.devices() == []
        attempts.append(len(driver.calls()))
        clock.now_s += 1
    assert attempts[:9] == ([1] * 9 if code == 12 else [1, 2, 2, 3, 3, 3, 3, 4, 4])
    assert attempts[-1] == (1 if code == 12 else 9)
    assert len(told(caplog)) == (code in MESSAGES or code == 12)
    driver.says()
    clock.now_s += 61
    assert len(nvml.devices()) == (0 if code == 12 else 1)


def test_machine_without_driver_has_one_debug_line_and_nothing_else(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    driver.says("nvmlInitWithFlags.ret=12")
    nvml = Nvml()
    assert [nvml.devices() for _ in range(3)] == [[], [], []]
    assert told(caplog) == [("DEBUG", "inferspan: no NVIDIA driver here, so no metrics of NVIDIA devices")]
    assert capfd.readouterr() == ("", "")


def test_lost_board_is_failed_the_others_go_on_and_it_comes_back(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    driver.says("count=2")
    nvml = Nvml(clock=clock)
    assert [read(nvml, 0), read(nvml, 1)] == [FAST, FAST]
    driver.says("count=2", "dev0.ret=15")
    for _ in range(3):
        assert [read(nvml, 0), read(nvml, 1)] == [LOST, FAST]
        clock.now_s += 1
    driver.says("count=2")
    clock.now_s += 61
    assert [read(nvml, 0), read(nvml, 1)] == [FAST, FAST]
    assert told(caplog) == [
        ("WARNING", f"NVML, {BOARD}: the GPU has fallen off the bus (NVML error 15)"),
        ("INFO", f"inferspan: {BOARD} is back"),
    ]


def test_board_that_is_not_counted_any_more_is_failed(driver: FakeDriver) -> None:
    clock = Clock()
    driver.says("count=2")
    nvml = Nvml(clock=clock)
    before = nvml.devices()
    driver.says("count=1")
    clock.now_s += 301
    assert nvml.devices() == before
    assert [read(nvml, 0), read(nvml, 1)] == [FAST, LOST]


def test_board_of_another_user_is_left_out(driver: FakeDriver) -> None:
    driver.says("count=2", "dev0.nvmlDeviceGetHandleByIndex_v2.ret=4")
    assert [device.index for device in Nvml().devices()] == [1]


def test_driver_shut_down_by_others_is_initialised_again(driver: FakeDriver) -> None:
    clock = Clock()
    nvml = Nvml(clock=clock)
    assert read(nvml) == FAST
    pynvml.nvmlShutdown()
    assert read(nvml) == {}
    clock.now_s += 2
    assert read(nvml) == FAST
    assert driver.calls().count("nvmlInitWithFlags") == 2


def test_board_that_needs_a_reset_is_degraded(driver: FakeDriver) -> None:
    driver.says("field.144=1")
    sample = read(Nvml())
    assert [sample[state] for state in STATES] == [0, 1, 0]
    driver.says("field.230=1")
    sample = read(Nvml())
    assert [sample[state] for state in STATES] == [0, 1, 0]


MIG = ("dev0.mig=1", "dev0.mig.2=MIG-aaaa", "dev0.mig.2.gi=5", "dev0.mig.2.memory.used=1000", "dev0.mig.5=MIG-bbbb")


def test_mig_instances_have_their_own_memory_and_nothing_of_the_board(driver: FakeDriver) -> None:
    driver.says("count=8", *MIG)
    nvml = Nvml()
    assert [(device.id, device.parent) for device in nvml.devices()[:4]] == [
        (BOARD, ""),
        ("MIG-aaaa", BOARD),
        ("MIG-bbbb", BOARD),
        ("GPU-00000001-0000-0000-0000-000000000000", ""),
    ]
    assert read(nvml, 1) == {
        "hw.gpu.memory.limit": 150754820096,
        "hw.gpu.memory.usage": 1000,
        "hw.gpu.memory.utilization": 1000 / 150754820096,
        "inferspan.device.memory.reserved": 643825664,
    }


def test_mig_instance_has_gpm_of_its_own(driver: FakeDriver) -> None:
    driver.says(*MIG)
    clock = Clock()
    nvml = Nvml(frozenset({"gpm"}), clock)
    read(nvml, 1)
    clock.now_s += 1
    assert without(read(nvml, 1), "hw.gpu.memory", "inferspan.device.memory.reserved") == GPM


def test_mig_instance_made_anew_is_found(driver: FakeDriver) -> None:
    driver.says(*MIG)
    nvml = Nvml()
    old = nvml.devices()[1]
    driver.says("dev0.mig=1", "dev0.mig.0=MIG-cccc")
    assert nvml.read(old) == {}
    assert [device.id for device in nvml.devices()] == [BOARD, "MIG-cccc"]


def test_xid_events_are_counted(driver: FakeDriver) -> None:
    nvml = Nvml(frozenset({"xid"}))

    def counts() -> dict[str, float]:
        return {
            name.rsplit(" ")[1]: value for name, value in read(nvml).items() if name.startswith("inferspan.device.x")
        }

    assert counts() == {}
    for serial, code, expected in ((1, 79, {"79": 1}), (2, 79, {"79": 2}), (3, 31, {"79": 2, "31": 1})):
        driver.says(f"xid={code}", f"xid.serial={serial}")
        until(lambda expected=expected: counts() == expected)
    nvml.stop()


def test_forked_child_initialises_itself_and_the_parent_goes_on(driver: FakeDriver) -> None:
    nvml = Nvml()
    assert read(nvml) == FAST
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sending, json.dumps(read(nvml)).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as stream:
        assert json.loads(stream.read()) == FAST
    os.waitpid(child, 0)
    assert driver.calls(child).count("nvmlInitWithFlags") == 1
    assert read(nvml) == FAST
    assert driver.calls().count("nvmlInitWithFlags") == 1


def test_nothing_is_called_or_imported_at_import_and_instrument(driver: FakeDriver) -> None:
    code = (
        "import sys, inferspan\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "inferspan.instrument(meter_provider=MeterProvider())\n"
        "assert 'pynvml' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **driver.environment}, check=True)
    own = str(os.getpid())  # in which an earlier test may have left something to the garbage collector
    assert [call for call in driver.calls_by_process() if call[0] != own] == []


def test_structs_of_the_stub_are_as_large_as_those_of_pynvml(driver: FakeDriver) -> None:
    structs: list[Any] = [
        pynvml.c_nvmlMemory_t,
        pynvml.c_nvmlMemory_v2_t,
        pynvml.c_nvmlUtilization_t,
        getattr(pynvml, "c_nvmlTemperature_v1_t", ctypes.c_uint * 3),
        pynvml.nvmlPciInfo_t,
        getattr(pynvml, "c_nvmlProcessInfo_v3_t", pynvml.c_nvmlProcessInfo_t),
        pynvml.c_nvmlFieldValue_t,
        pynvml.c_nvmlEventData_t,
        pynvml.c_nvmlGpmMetric_t,
        pynvml.c_nvmlGpmSupport_t,
    ]
    sizes = (ctypes.c_uint * len(structs)).in_dll(ctypes.CDLL(str(driver.library)), "fakenvml_sizes")
    assert list(sizes) == [ctypes.sizeof(struct) for struct in structs]
