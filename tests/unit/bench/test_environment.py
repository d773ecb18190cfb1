"""What is told of the surroundings, and what is not."""

from __future__ import annotations

import json
import platform

import pytest

from inferspan.bench.environment import environment
from inferspan.devices import reader as r
from inferspan.devices.sampler import Snapshot


def test_machine_and_versions_are_told() -> None:
    found = environment(None)

    assert found.machine["architecture"] == platform.machine()
    assert found.machine["memory_bytes"] > 0  # type: ignore[operator]
    assert found.versions["python"].endswith(platform.python_version())
    assert found.devices == []


def test_variables_that_change_speed_are_told_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_TOKEN", "TORCH_API_KEY", "INFERSPAN_SECRET", "HOME", "USER"):
        monkeypatch.setenv(name, "very-private")

    found = environment(None)

    assert {"OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM"} <= found.settings.keys()
    assert "very-private" not in json.dumps([found.settings, found.machine, found.versions])
    assert platform.node() not in found.machine.values()


def test_variables_with_paths_are_told_without_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/home/alice/acme/triton")
    monkeypatch.setenv("LD_PRELOAD", "/home/alice/libjemalloc.so:/usr/lib/libgomp.so.1")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    found = environment(None).settings

    assert (found["TRITON_CACHE_DIR"], found["LD_PRELOAD"]) == ("triton", "libjemalloc.so:libgomp.so.1")
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_devices_are_told_with_what_was_read() -> None:
    device = r.Device("GPU-1", 0, "NVIDIA H200", facts={"hw.driver_version": "580.1"})

    found = environment(Snapshot(samples=[(device, {r.POWER_LIMIT: 700.0, r.MEMORY_LIMIT: 150e9})]))

    assert found.devices == [
        {"name": "NVIDIA H200", "uuid": "GPU-1", "driver": "580.1", "memory_bytes": 150 * 10**9, "power_limit_w": 700.0}
    ]
