"""The backends of all end-to-end tests, each started once: Collector in front of Jaeger, Tempo and Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import backends
from support.application import Application
from support.backends import Alertmanager, Collector, Jaeger, Prometheus, Tempo
from support.told import CLASSIFICATIONS, GENERATIONS

# Fixtures, and the program without which a test that uses one is skipped.
NEEDED = {
    "jaeger": "jaeger",
    "tempo": "tempo",
    "prometheus": "prometheus",
    "alertmanager": "alertmanager",
    "collector": "otelcol",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture, and at one place, so that a missing program is one line of the summary."""
    for fixture, program in NEEDED.items():
        if fixture in getattr(item, "fixturenames", ()):
            backends.need(program)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and data of the programs that live as long as the session."""
    return tmp_path_factory.mktemp("backends")


@pytest.fixture(scope="session")
def jaeger(folder: Path) -> Iterator[Jaeger]:
    with backends.running(Jaeger(folder / "jaeger")) as started:
        yield started


@pytest.fixture(scope="session")
def tempo(folder: Path) -> Iterator[Tempo]:
    with backends.running(Tempo(folder / "tempo")) as started:
        yield started


@pytest.fixture(scope="session")
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """With no rules and no targets: what is in it came over OTLP."""
    with backends.running(Prometheus(folder / "prometheus")) as started:
        yield started


@pytest.fixture(scope="session")
def alertmanager(folder: Path) -> Iterator[Alertmanager]:
    with backends.running(Alertmanager(folder / "alertmanager")) as started:
        yield started


@pytest.fixture(scope="session")
def destinations(jaeger: Jaeger, prometheus: Prometheus, request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables by which a Collector's file finds the backends; Tempo, where there is none, at a closed port."""
    found = {
        "JAEGER_OTLP": jaeger.otlp_grpc,
        "PROMETHEUS_OTLP": prometheus.otlp_http,
        "TEMPO_OTLP": f"{backends.LOOPBACK}:{backends.free_ports(1)[0]}",
    }
    if backends.PROGRAMS["tempo"]:
        found["TEMPO_OTLP"] = request.getfixturevalue("tempo").otlp_grpc
    return found


@pytest.fixture(scope="session")
def collector(folder: Path, destinations: dict[str, str]) -> Iterator[Collector]:
    """``collector.yaml``, in front of the others."""
    with backends.running(Collector(folder / "collector", "collector.yaml", **destinations)) as started:
        yield started


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Callable[..., Application]]:
    """Starts an application; what still runs when the test is over is killed."""
    with ExitStack() as stack:

        def start(service: str, endpoint: str, protocol: str = "grpc", **environ: str) -> Application:
            started = Application(tmp_path, service, endpoint, protocol, **environ)
            stack.callback(started.kill)
            return started

        yield start


@pytest.fixture(scope="session", params=["grpc", "http/protobuf"], ids=["grpc", "http"])
def service(request: pytest.FixtureRequest, folder: Path, collector: Collector) -> str:
    """The name of an application that classified, generated and failed, and sent it all by this protocol."""
    name = "seen-over-" + request.param.partition("/")[0]
    endpoint = collector.otlp_grpc if request.param == "grpc" else collector.otlp_http
    application = Application(folder, name, endpoint, request.param)
    try:
        application.do("classify", CLASSIFICATIONS)
        application.do("generate", GENERATIONS)
        application.do("fail", answer="ValueError")
        complaints = application.end()
    finally:
        application.kill()
    assert complaints == ""
    return name


@pytest.fixture(scope="session")
def complete(service: str, prometheus: Prometheus) -> str:
    """The same, once Prometheus has the last of it: the error came last."""
    last = f'inferspan_inference_errors_total{{job="{service}"}}'
    prometheus.until(lambda: prometheus.query(last), last)
    return service
