"""An alert on its way: from the driver's reading through a real Prometheus to a real Alertmanager.

The rules are the shipped ones, sixty times as quick. That each of them fires when it should is told by promtool's tests
(``collector-config/prometheus/tests``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import backends, rules
from support.backends import Alertmanager, Config, Prometheus
from support.fakenvml import FakeDriver

BOARD = "GPU-00000000-0000-0000-0000-000000000000"
ALL = 150754820096


@pytest.fixture
def prometheus(tmp_path: Path, alertmanager: Alertmanager) -> Iterator[Prometheus]:
    """With the quick rules, and in front of the Alertmanager."""
    quick = rules.quick(tmp_path / "rules")

    def edit(config: Config) -> None:
        quick(config)
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]}

    with backends.running(Prometheus(tmp_path / "prometheus", edit)) as started:
        yield started


@pytest.fixture
def agent(tmp_path: Path, nvml_library: Path, prometheus: Prometheus) -> Iterator[FakeDriver]:
    """``inferspan agent`` on a machine with one GPU, half of whose memory is in use, and its driver."""
    driver = FakeDriver(nvml_library, tmp_path)
    driver.says(f"memory.used={ALL // 2}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "INFERSPAN_"))}
    log = tmp_path / "agent.log"
    with log.open("wb") as target:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferspan.cli", "agent", "--health", "off"],
            env={
                **kept,
                **driver.environment,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": prometheus.otlp_http,
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                "OTEL_RESOURCE_ATTRIBUTES": "host.name=gpu-1",
            },
            stderr=target,
        )
    try:
        prometheus.until(lambda: prometheus.query("hw_gpu_memory_utilization_ratio"), "the agent's first export")
        yield driver
    finally:
        process.terminate()
        try:
            process.wait(backends.STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def of_memory(alertmanager: Alertmanager) -> list[Any]:
    return [alert for alert in alertmanager.alerts() if alert["labels"]["alertname"] == "InferspanGpuMemoryHigh"]


def test_full_memory_reaches_alertmanager_and_is_over_when_it_is(
    agent: FakeDriver, prometheus: Prometheus, alertmanager: Alertmanager
) -> None:
    pending = 'ALERTS{alertname="InferspanGpuMemoryHigh", alertstate="pending"}'
    # until the agent spoke, there was no telemetry at all
    prometheus.until(lambda: not prometheus.alerts(), "no alert to begin with")

    agent.says(f"memory.used={ALL * 86 // 100}")
    started = time.monotonic()
    (alert,) = prometheus.until(lambda: of_memory(alertmanager), "the alert in Alertmanager")
    waited = time.monotonic() - started

    assert waited > 5, "`for` is 5 s here"
    assert prometheus.query(f"last_over_time({pending}[1m])"), "it was pending first"
    assert alert["labels"] == {
        "alertname": "InferspanGpuMemoryHigh",
        "severity": "warning",
        "host_name": "gpu-1",
        "hw_id": BOARD,
        "hw_name": "NVIDIA H200",
    }
    assert alert["annotations"] == {
        "summary": "Memory of NVIDIA H200 on gpu-1 is nearly full",
        "description": f"86% of the memory of {BOARD} is in use.",
        "runbook": "docs/alerts.md#inferspangpumemoryhigh",
    }
    assert alert["receivers"] == [{"name": "everybody"}]
    assert alert["status"]["state"] == "active"
    assert {one["labels"]["alertname"] for one in prometheus.alerts()} == {"InferspanGpuMemoryHigh"}

    agent.says(f"memory.used={ALL * 84 // 100}")
    prometheus.until(lambda: not of_memory(alertmanager), "the alert is over in Alertmanager")
    assert prometheus.alerts() == []
