"""``inferspan agent`` as a process of its own: against an OTLP receiver on loopback, until it is told to stop."""

from __future__ import annotations

import gzip
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from support.fakenvml import FakeDriver, until
from support.recorder import Recorder

_PATIENCE_S = 60.0


class Receiver:
    """Keeps every OTLP/HTTP request that arrives."""

    def __init__(self) -> None:
        self.requests: queue.Queue[ExportMetricsServiceRequest] = queue.Queue()
        received = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                received.put(ExportMetricsServiceRequest.FromString(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def next(self) -> dict[str, dict[str, Any]]:
        """The next request: by metric its points, as attributes (JSON) to value; and the resource."""
        request = self.requests.get(timeout=_PATIENCE_S)
        resource = request.resource_metrics[0]
        found: dict[str, dict[str, Any]] = {
            "resource": {a.key: a.value.string_value for a in resource.resource.attributes}
        }
        for metric in resource.scope_metrics[0].metrics:
            data = getattr(metric, metric.WhichOneof("data"))
            found[metric.name] = {
                json.dumps({a.key: a.value.string_value for a in point.attributes}): point.as_double or point.as_int
                for point in data.data_points
            }
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def start(driver: FakeDriver) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def agent(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferspan.cli", "agent", *arguments],
            env={**os.environ, **driver.environment, **environment},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield agent
    for process in started:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def otlp(receiver: Receiver, interval_ms: int = 3_600_000) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_METRIC_EXPORT_INTERVAL": str(interval_ms),
    }


def fetch(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=_PATIENCE_S) as answer:
        return answer.status, answer.read().decode()


def begun(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_agent_told_to_stop_exports_a_last_time_and_ends_cleanly(
    start: Callable[..., subprocess.Popen[str]], receiver: Receiver, driver: FakeDriver, number: signal.Signals
) -> None:
    driver.says("count=2", "dev1.field.185=100000")
    port = free_port()
    process = start("--health", str(port), **otlp(receiver))
    assert begun(process) == f"inferspan agent 0.1.0: running, health on http://127.0.0.1:{port}/\n".replace(
        "0.1.0", __import__("inferspan").__version__
    )
    assert fetch(f"http://127.0.0.1:{port}/") == (200, '{"status": "ok"}\n')
    assert receiver.requests.empty()

    process.send_signal(number)
    last = receiver.next()
    board = '{{"hw.id": "GPU-0000000{0}-0000-0000-0000-000000000000", "hw.name": "NVIDIA H200", "hw.type": "gpu"}}'
    assert last["hw.power"] == {board.format(0): 627.0, board.format(1): 100.0}
    assert last["resource"]["service.name"] == "inferspan-agent"
    assert process.communicate(timeout=_PATIENCE_S) == ("", "")
    assert process.returncode == 0


def test_agent_reports_what_the_process_does_and_the_process_then_no_more(
    start: Callable[..., subprocess.Popen[str]], receiver: Receiver, driver: FakeDriver
) -> None:
    recorder = Recorder()
    recorder.instrument(devices="auto", devices_interval=0.5)
    from_process = {name for name in recorder.metric_names() if name.startswith(("hw.", "inferspan.device."))}
    assert "hw.power" in from_process

    start("--health", "off", **otlp(receiver, interval_ms=200))

    def from_agent() -> set[str]:
        recorder.metric_names()  # the process notices the agent when it collects
        return {name for name in receiver.next() if name.startswith(("hw.", "inferspan.device."))}

    until(lambda: from_agent() == from_process)
    assert recorder.points("hw.power") == []
    assert recorder.points("process.memory.usage") != []
    recorder.close()


def test_prometheus_scrapes_the_agent(start: Callable[..., subprocess.Popen[str]], driver: FakeDriver) -> None:
    port = free_port()
    process = start("--health", "off", "--no-otlp", "--prometheus", str(port))
    assert begun(process).endswith(": running\n")
    status, text = fetch(f"http://127.0.0.1:{port}/metrics")
    assert status == 200
    power = [line for line in text.splitlines() if line.startswith("hw_power_watts{")]
    assert len(power) == 1
    assert 'hw_id="GPU-00000000-0000-0000-0000-000000000000"' in power[0]
    assert power[0].endswith(" 627.0")


def test_agent_whose_port_is_taken_says_so(start: Callable[..., subprocess.Popen[str]], receiver: Receiver) -> None:
    port = receiver.server.server_address[1]
    process = start("--health", str(port), "--no-otlp")
    out, err = process.communicate(timeout=_PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("inferspan agent: cannot listen: ")


def test_agent_with_a_wrong_address_says_so(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("--prometheus", "here")
    assert process.communicate(timeout=_PATIENCE_S) == ("", "inferspan agent: 'here' is no [HOST:]PORT\n")
    assert process.returncode == 1
