"""What ``inferspan devices`` prints, as literals."""

from __future__ import annotations

import json

import pytest

from inferspan.cli import devices as command
from inferspan.cli import main
from inferspan.devices import host
from inferspan.devices.reader import Reading, Sample, of
from support.fakenvml import FakeDriver


@pytest.fixture(autouse=True)
def plain_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: host.Host, with_system: bool) -> Sample:
        return {
            of("system.cpu.utilization", "cpu.mode", "idle"): 0.25,
            of("system.memory.usage", "system.memory.state", "used"): 8 << 30,
            Reading("system.memory.limit"): 128 << 30,
        }

    monkeypatch.setattr(host.Host, "read", read)


def test_devices_are_shown_as_a_table(driver: FakeDriver, capsys: pytest.CaptureFixture[str]) -> None:
    driver.says(
        "count=3",
        "dev1.name=NVIDIA L4",
        "dev1.nvmlDeviceGetUtilizationRates.ret=3",
        "dev1.reasons=0x24",
        "dev1.field.190.ret=3",
        "dev1.nvmlDeviceGetEnforcedPowerLimit.ret=3",
        "dev2.mig=1",
        "dev2.mig.1=MIG-12345678-1234",
        "dev2.mig.1.memory.total=18253611008",
        "dev2.mig.1.memory.used=1073741824",
        "dev2.reasons=0",
    )
    assert main(["devices"]) == 0
    assert capsys.readouterr().out == (
        "     device                   busy  memory             power         temperature  SM clock  "
        "throttled by        PCIe       id\n"
        "0    NVIDIA H200              87%   70.2 of 140.4 GiB  627 of 700 W  52 °C        1980 MHz  "
        "power_cap           gen 5 x16  GPU-00000000\n"
        "1    NVIDIA L4                      70.2 of 140.4 GiB  627 W         52 °C        1980 MHz  "
        "power_cap, thermal  gen 5 x16  GPU-00000001\n"
        "2    NVIDIA H200              87%   70.2 of 140.4 GiB  627 of 700 W  52 °C        1980 MHz  "
        "                    gen 5 x16  GPU-00000002\n"
        "  1  NVIDIA H200 MIG 1g.18gb        1.0 of 17.0 GiB                                         "
        "                               MIG-12345678\n"
        "\n"
        "host: CPU 75%, memory 8.0 of 128.0 GiB\n"
    )


def test_machine_without_devices_is_told_in_a_sentence(driver: FakeDriver, capsys: pytest.CaptureFixture[str]) -> None:
    driver.says("nvmlInitWithFlags.ret=12")
    assert main(["devices"]) == 0
    assert capsys.readouterr() == (
        "No GPU: there is no driver here that answers for one.\n\nhost: CPU 75%, memory 8.0 of 128.0 GiB\n",
        "",
    )


def test_json_has_every_reading_under_its_metric(driver: FakeDriver, capsys: pytest.CaptureFixture[str]) -> None:
    absent = ["FieldValues", "UtilizationRates", "ClockInfo", "CurrentClocksEventReasons", "CurrPcieLinkGeneration"]
    absent += ["CurrPcieLinkWidth", "TotalEnergyConsumption", "EnforcedPowerLimit", "MemoryInfo_v2", "MemoryInfo"]
    driver.says(*(f"nvmlDeviceGet{name}.ret=3" for name in absent))
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "devices": [
            {
                "id": "GPU-00000000-0000-0000-0000-000000000000",
                "index": 0,
                "name": "NVIDIA H200",
                "parent": None,
                "attributes": {
                    "hw.vendor": "NVIDIA",
                    "hw.driver_version": "580.105.08",
                    "inferspan.device.pci.address": "00000000:1a:00.0",
                },
                "readings": [
                    {
                        "metric": "hw.temperature",
                        "attributes": {"hw.sensor_location": "gpu"},
                        "unit": "Cel",
                        "value": 52,
                    },
                    {"metric": "hw.power", "attributes": {}, "unit": "W", "value": 627.0},
                    {"metric": "hw.status", "attributes": {"hw.state": "ok"}, "unit": "1", "value": 1},
                    {"metric": "hw.status", "attributes": {"hw.state": "degraded"}, "unit": "1", "value": 0},
                    {"metric": "hw.status", "attributes": {"hw.state": "failed"}, "unit": "1", "value": 0},
                    {"metric": "inferspan.device.info", "attributes": {}, "unit": "1", "value": 1},
                ],
            }
        ],
        "host": [
            {"metric": "system.cpu.utilization", "attributes": {"cpu.mode": "idle"}, "unit": "1", "value": 0.25},
            {
                "metric": "system.memory.usage",
                "attributes": {"system.memory.state": "used"},
                "unit": "By",
                "value": 8 << 30,
            },
            {"metric": "system.memory.limit", "attributes": {}, "unit": "By", "value": 128 << 30},
        ],
    }


def test_watch_shows_the_table_until_interrupted(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paused = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", pause)
    for variable, value in {"COLUMNS": "160", "TERM": "xterm", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(variable, value)
    assert main(["devices", "--watch", "0.5"]) == 0
    assert paused == [0.5, 0.5]
    assert "627 of 700 W" in capsys.readouterr().out


def test_watching_more_often_than_the_driver_samples_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--watch", "0.1"]) == 1
    assert capsys.readouterr().err == (
        "inferspan devices: devices_interval='0.1' is not allowed (allowed: 0.5 to 60 seconds)\n"
    )
