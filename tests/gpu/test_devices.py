"""Each value beside what nvidia-smi says of it: the stub's behaviour is a claim, this is the check.

Skipped without an NVIDIA GPU. What moves is compared with a tolerance, or only for its presence; the rest exactly.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from inferspan.devices.nvml import Nvml
from inferspan.devices.reader import Sample

pytestmark = pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi: no NVIDIA GPU here")

_MIB = 1 << 20
COMPARED = [
    # nvidia-smi's name, ours, factor from its unit to ours, how far apart the two may be
    pytest.param("memory.total", "hw.gpu.memory.limit", _MIB, _MIB, id="memory_total"),
    pytest.param("memory.used", "hw.gpu.memory.usage", _MIB, 64 * _MIB, id="memory_used"),
    pytest.param("memory.reserved", "inferspan.device.memory.reserved", _MIB, _MIB, id="memory_reserved"),
    pytest.param("utilization.gpu", "hw.gpu.utilization general", 0.01, 0.3, id="utilization"),
    pytest.param("utilization.memory", "inferspan.device.memory.busy", 0.01, 0.3, id="memory_busy"),
    pytest.param("power.draw", "hw.power", 1, 60, id="power"),
    pytest.param("power.limit", "inferspan.device.power.limit", 1, 0.01, id="power_limit"),
    pytest.param("temperature.gpu", "hw.temperature gpu", 1, 3, id="temperature"),
    pytest.param("temperature.memory", "hw.temperature memory", 1, 3, id="memory_temperature"),
    pytest.param("clocks.sm", "inferspan.device.clock.frequency sm", 1e6, 300e6, id="sm_clock"),
    pytest.param("clocks.mem", "inferspan.device.clock.frequency memory", 1e6, 1e6, id="memory_clock"),
    pytest.param("pcie.link.gen.current", "inferspan.device.pcie.generation", 1, 0, id="pcie_generation"),
    pytest.param("pcie.link.width.current", "inferspan.device.pcie.width", 1, 0, id="pcie_width"),
    pytest.param("ecc.errors.corrected.aggregate.total", "hw.errors corrected", 1, 0, id="ecc_corrected"),
    pytest.param("ecc.errors.uncorrected.aggregate.total", "hw.errors uncorrected", 1, 0, id="ecc_uncorrected"),
    pytest.param("fan.speed", "hw.fan.speed_ratio", 0.01, 0.05, id="fan"),
]


def named(sample: Sample) -> dict[str, float]:
    return {" ".join([key.metric, *(str(word) for _, word in key.attributes)]): value for key, value in sample.items()}


def smi(field: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture(scope="module")
def readings() -> list[dict[str, float]]:
    nvml = Nvml(frozenset({"slow"}))
    boards = [device for device in nvml.devices() if not device.parent]
    if not boards:
        pytest.skip("nvidia-smi is here, an NVIDIA GPU is not")
    return [named(nvml.read(board)) for board in boards]


@pytest.mark.parametrize(("field", "reading", "factor", "tolerance"), COMPARED)
def test_reading_is_what_nvidia_smi_says(
    readings: list[dict[str, float]], field: str, reading: str, factor: float, tolerance: float
) -> None:
    for ours, theirs in zip(readings, smi(field), strict=True):
        if theirs.strip("[] ").upper() in ("N/A", "NOT SUPPORTED"):
            assert reading not in ours
        else:
            assert ours[reading] == pytest.approx(float(theirs) * factor, abs=tolerance)


def test_identity_is_what_nvidia_smi_says() -> None:
    boards = [device for device in Nvml().devices() if not device.parent]
    found: list[Any] = [
        (board.id, board.name, board.facts["hw.driver_version"], board.facts["inferspan.device.pci.address"].upper())
        for board in boards
    ]
    assert found == [tuple(line.split(", ")) for line in smi("uuid,name,driver_version,pci.bus_id")]


def test_energy_grows_and_is_in_joules() -> None:
    nvml = Nvml()
    board = nvml.devices()[0]
    before = named(nvml.read(board))["hw.energy"]
    later = before
    for _ in range(10000):  # the counter steps every 10 to 100 ms
        later = named(nvml.read(board))["hw.energy"]
        if later != before:
            break
    assert 0 < later - before < 1000
