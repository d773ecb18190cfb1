"""What happens when the Collector or a backend is down, killed, restarted or slow: the program never notices.

Kept are: metrics, always, since they are sums since the start of the program; spans for as long as the SDK's exporter
tries again (OTEL_EXPORTER_OTLP_TIMEOUT) and its queue has room; and all that a Collector has acknowledged, whatever
happens to it and to the backends behind it.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.application import Application
from support.backends import LOOPBACK, Collector, Jaeger, Prometheus, running
from support.told import CLASSIFICATION, all_traces, tree

Start = Callable[..., Application]
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
LOADS = {"load tiny-bert": 1, "load tiny-llama": 1}


@pytest.fixture
def own_collector(tmp_path: Path, destinations: dict[str, str]) -> Iterator[Collector]:
    """One of the test's own, not started; the variables of it can be changed until then."""
    own = Collector(tmp_path / "own-collector", "collector.yaml", **destinations)
    yield own
    own.kill()


def assert_all_arrived(classifications: int, service: str, jaeger: Jaeger, prometheus: Prometheus) -> None:
    number = classifications + len(LOADS)
    found = Counter(map(tree, all_traces(jaeger, service, number)))
    assert found == {**LOADS, CLASSIFICATION: classifications}
    count = f'gen_ai_client_operation_duration_seconds_count{{job="{service}"}}'
    prometheus.until(lambda: prometheus.value(count) == classifications, f"{count} == {classifications}")


def test_collector_that_comes_later_gets_everything(
    application: Start, own_collector: Collector, jaeger: Jaeger, prometheus: Prometheus
) -> None:
    program = application("collector-comes-later", own_collector.otlp_grpc, **PATIENT)
    program.do("classify", 2)
    own_collector.start()
    program.do("classify", 2)
    program.end()

    assert_all_arrived(4, program.service, jaeger, prometheus)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_collector_killed_and_restarted_loses_nothing(
    application: Start, own_collector: Collector, jaeger: Jaeger, prometheus: Prometheus, protocol: str
) -> None:
    own_collector.start()
    endpoint = own_collector.otlp_grpc if protocol == "grpc" else own_collector.otlp_http
    service = "collector-is-killed-" + protocol.partition("/")[0]
    program = application(service, endpoint, protocol, **PATIENT)
    program.do("classify", 2)
    own_collector.kill()
    program.do("classify", 2)
    own_collector.start()
    program.do("classify", 2)
    program.end()

    assert_all_arrived(6, service, jaeger, prometheus)


def test_what_collector_has_waits_on_disk_for_backend(
    application: Start, tmp_path: Path, destinations: dict[str, str], prometheus: Prometheus
) -> None:
    with ExitStack() as stack:
        jaeger = Jaeger(tmp_path / "own-jaeger")
        destinations = {**destinations, "JAEGER_OTLP": jaeger.otlp_grpc}
        collector = stack.enter_context(
            running(Collector(tmp_path / "own-collector", "collector.yaml", **destinations))
        )
        program = application("backend-comes-later", collector.otlp_grpc)
        program.do("classify", 3)
        program.end()
        collector.kill()
        collector.start()
        stack.enter_context(running(jaeger))

        assert_all_arrived(3, program.service, jaeger, prometheus)


class Mute:
    """Takes connections and never answers; with a target, it passes on what comes, a piece each ``delay_s``."""

    def __init__(self, target: int | None = None, delay_s: float = 0.0) -> None:
        self._target = target
        self._delay_s = delay_s
        self._over = threading.Event()
        self._server = socket.create_server((LOOPBACK, 0))
        self.url = f"http://{LOOPBACK}:{self._server.getsockname()[1]}"
        self._open = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._open.append(client)
            if self._target is not None:
                server = socket.create_connection((LOOPBACK, self._target))
                self._open.append(server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._over.wait(self._delay_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_collector_that_never_answers_holds_up_neither_work_nor_exit(application: Start, protocol: str) -> None:
    mute = Mute()
    try:
        # what a user would set who wants a short exit; the default is 10 s
        program = application("nobody-answers", mute.url, protocol, OTEL_EXPORTER_OTLP_TIMEOUT="2")
        program.do("classify", 20)
        program.do("generate", 5)
        complaints = program.end()
    finally:
        mute.close()

    assert "inferspan" not in complaints.replace("inferspan-worker", ""), complaints


def test_slow_collector_gets_everything(
    application: Start, collector: Collector, jaeger: Jaeger, prometheus: Prometheus
) -> None:
    slow = Mute(collector.grpc_port, delay_s=0.3)
    try:
        program = application("collector-is-slow", slow.url, **PATIENT)
        program.do("classify", 20)
        program.end()
    finally:
        slow.close()

    assert_all_arrived(20, program.service, jaeger, prometheus)
