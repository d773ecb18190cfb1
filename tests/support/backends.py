"""The real backends, as processes: OpenTelemetry Collector, Jaeger, Tempo, Prometheus, Alertmanager.

Each class starts one program with a file of ``collector-config/``, in which only addresses, folders and waiting times
are replaced, on free ports of the loopback; it waits until the program says that it is ready, and reads it through its
own API. A program that ends, or is not ready in time, fails the test with the last lines of its log; one that is
missing skips it, with one line.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "collector-config"

sys.path.insert(0, str(ROOT / "scripts"))
try:
    import backends as builds
finally:
    sys.path.pop(0)

READY_S = 60.0
ARRIVAL_S = 60.0
STOP_S = 15.0
LOG_LINES = 25
LOOPBACK = "127.0.0.1"

Config = dict[str, Any]
Edit = Callable[[Config], None]
P = TypeVar("P", bound="Program")


def _find(name: str) -> Path | None:
    if name == "tempo":
        found = os.environ.get("INFERSPAN_TEMPO", "").strip() or shutil.which("tempo")
        return Path(found) if found else None
    built = builds.path(name)
    return built if built.is_file() else None


# Found when pytest collects: a running test has an environment without the variables that say where.
PROGRAMS = {name: _find(name) for name in ("tempo", *builds.names())}
"""Where each program is, None if it is not there: built by ``scripts/backends.py``, or (Tempo) the user's own."""


def need(name: str) -> Path:
    """Where the program is; without it the test is skipped."""
    found = PROGRAMS[name]
    if found is None and name == "tempo":
        reason = "TEMPO IS NOT TESTED: no tempo on PATH, and INFERSPAN_TEMPO names none"
    else:
        reason = f"{name} IS NOT BUILT, AND NOTHING THAT NEEDS IT TESTED: run `make backends` (it takes Go)"
    if found is None:
        pytest.skip(reason)
    if not found.is_file():
        pytest.fail(f"INFERSPAN_TEMPO names {found}, and there is no such file")
    return found


def free_ports(number: int) -> list[int]:
    """That many different free ports."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def until(answer: Callable[[], Any], wanted: str, patience_s: float = ARRIVAL_S, pause_s: float = 0.2) -> Any:
    """Ask until the answer is true, and return it; after ``patience_s`` the test fails, and says what was wanted."""
    deadline = time.monotonic() + patience_s
    while not (found := answer()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s:.0f} s in vain: {wanted}")
        time.sleep(pause_s)
    return found


class Program:
    """One process. ``url`` is where its API is; :meth:`start` and :meth:`stop` may be called again and again."""

    name: str
    ready_path: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.binary = need(self.name)
        self.log = folder / f"{self.name}.log"
        self.url = ""
        self._ready_url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Its arguments, the binary first."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables that it gets besides."""
        return {}

    def start(self) -> None:
        """Start it, and return when it is ready.

        Fails:
            where it ends, or is not ready within READY_S, with the last lines of its log.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "INFERSPAN_"))}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**kept, "GOMAXPROCS": "2", **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            status = self._process.poll()
            if status is not None:
                pytest.fail(f"{self.name} ended with status {status} instead of starting:\n{self.last_lines()}")
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"{self.name} is not ready after {READY_S:.0f} s:\n{self.last_lines()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as a service manager does; kill it where that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as the kernel does when memory is out: it cannot save anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def last_lines(self) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-LOG_LINES:])

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        """What its API answers."""
        return httpx.get(f"{self.url}{path}", params=parameters, timeout=30)

    def json(self, path: str, **parameters: Any) -> Any:
        """The same as JSON; any status but 2xx fails the test with what it said."""
        answer = self.get(path, **parameters)
        if not answer.is_success:
            pytest.fail(f"{self.name} answered {answer.status_code} to {answer.url}:\n{answer.text[:2000]}")
        return answer.json()

    def until(self, answer: Callable[[], Any], wanted: str, patience_s: float = ARRIVAL_S) -> Any:
        """:func:`until`, with this program's log in the failure."""
        try:
            return until(answer, wanted, patience_s)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure.msg}\nthe last lines of {self.name}:\n{self.last_lines()}")

    def write(self, source: Path, *edits: Edit | None) -> Path:
        """A copy of a YAML file with its parts replaced, in the program's own folder."""
        config = yaml.safe_load(source.read_text("utf-8"))
        for edit in filter(None, edits):
            edit(config)
        target = self.folder / source.name
        target.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
        return target

    def _is_ready(self) -> bool:
        try:
            return httpx.get(self._ready_url, timeout=1).is_success
        except httpx.TransportError:
            return False


@contextmanager
def running(started: P) -> Iterator[P]:
    """The program, started, and killed at the end: nobody needs what it would still save."""
    try:
        started.start()
        yield started
    finally:
        started.kill()


class Jaeger(Program):
    """``collector-config/jaeger.yaml``, as it stands: all through its variables."""

    name = "jaeger"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = CONFIG / "jaeger.yaml"
        grpc, http, query, query_grpc, health = (f"{LOOPBACK}:{port}" for port in free_ports(5))
        self.otlp_grpc, self.otlp_http = grpc, f"http://{http}"
        self.url = f"http://{query}"
        self._ready_url = f"http://{health}/status"
        self._variables = {
            "OTLP_GRPC_LISTEN": grpc,
            "OTLP_HTTP_LISTEN": http,
            "UI_LISTEN": query,
            "QUERY_GRPC_LISTEN": query_grpc,
            "HEALTH_LISTEN": health,
        }

    def command(self) -> list[str]:
        return [str(self.binary), "--config", str(self.config)]

    def environment(self) -> Mapping[str, str]:
        return self._variables

    def services(self) -> set[str]:
        """Names of the services that sent traces."""
        return set(self.json("/api/services")["data"] or ())

    def traces(self, service: str, **search: Any) -> list[Any]:
        """Traces of a service, newest first, as the UI gets them; ``search`` is of the UI's own form."""
        search = {"limit": 500, **search, "service": service}
        return list(self.json("/api/traces", **search)["data"] or ())

    def trace(self, trace_id: str) -> Any:
        """One trace, or None while it is not there."""
        answer = self.get(f"/api/traces/{trace_id}")
        return answer.json()["data"][0] if answer.is_success else None


class Tempo(Program):
    """``collector-config/tempo.yaml``, with ports, folders and shorter waits put in."""

    name = "tempo"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        grpc, http, query, internal, gossip = free_ports(5)
        self.otlp_grpc, self.otlp_http = f"{LOOPBACK}:{grpc}", f"http://{LOOPBACK}:{http}"
        self.url = f"http://{LOOPBACK}:{query}"
        self._ready_url = f"{self.url}/ready"
        data = folder / "data"

        def edit(config: Config) -> None:
            config.setdefault("server", {}).update(
                http_listen_address=LOOPBACK,
                http_listen_port=query,
                grpc_listen_address=LOOPBACK,
                grpc_listen_port=internal,
            )
            protocols = config["distributor"]["receivers"]["otlp"]["protocols"]
            protocols["grpc"]["endpoint"], protocols["http"]["endpoint"] = f"{LOOPBACK}:{grpc}", f"{LOOPBACK}:{http}"
            config["memberlist"] = {
                "abort_if_cluster_join_fails": False,
                "bind_addr": [LOOPBACK],
                "bind_port": gossip,
            }
            config.setdefault("live_store", {}).update(
                # what is fresh can be searched within seconds
                max_trace_live="2s",
                max_trace_idle="1s",
                flush_check_period="1s",
                max_block_duration="1s",
                shutdown_marker_dir=str(data / "live-store" / "marker"),
                wal={"path": str(data / "live-store" / "traces")},
            )
            config.setdefault("query_frontend", {})["query_end_cutoff"] = "1s"
            config.setdefault("backend_scheduler", {})["local_work_path"] = str(data / "work")
            storage = config["storage"]["trace"]
            storage["wal"] = {"path": str(data / "wal")}
            storage["local"] = {"path": str(data / "blocks")}
            storage["blocklist_poll"] = "1s"
            # it would send to a Prometheus that is not there
            config.pop("metrics_generator", None)
            config.get("overrides", {}).get("defaults", {}).pop("metrics_generator", None)

        self.config = self.write(CONFIG / "tempo.yaml", edit)

    def command(self) -> list[str]:
        return [str(self.binary), f"-config.file={self.config}", "-config.expand-env=true"]

    def search(self, traceql: str, limit: int = 100, spans: int = 20) -> list[Any]:
        """Traces that a TraceQL query finds, each with the ``spanSets`` that matched."""
        now = int(time.time())
        found = self.json("/api/search", q=traceql, start=now - 3600, end=now + 60, limit=limit, spss=spans)
        # It leaves out leading zeros of an id.
        return [{**trace, "traceID": trace["traceID"].zfill(32)} for trace in found.get("traces") or ()]

    def trace(self, trace_id: str) -> Any:
        """One trace as OTLP JSON, or None while it is not there. Some versions say ``batches``."""
        answer = self.get(f"/api/v2/traces/{trace_id}")
        found = (answer.json().get("trace") if answer.is_success else None) or {}
        spans = found.get("resourceSpans") or found.get("batches")
        return {"resourceSpans": spans} if spans else None


class Prometheus(Program):
    """``collector-config/prometheus/prometheus.yaml``, without its rules unless ``rules`` says otherwise.

    ``edit`` may change the loaded configuration further: intervals, rule files, where Alertmanager is.
    """

    name = "prometheus"

    def __init__(self, folder: Path, edit: Edit | None = None) -> None:
        super().__init__(folder)
        (port,) = free_ports(1)
        self._address = f"{LOOPBACK}:{port}"
        self.url = f"http://{self._address}"
        self.otlp_http = f"{self.url}/api/v1/otlp"
        self._ready_url = f"{self.url}/-/ready"

        def plain(config: Config) -> None:
            for part in ("scrape_configs", "rule_files", "alerting"):
                config.pop(part, None)

        self.config = self.write(CONFIG / "prometheus" / "prometheus.yaml", edit or plain)

    def command(self) -> list[str]:
        return [
            str(self.binary),
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self._address}",
            "--web.enable-otlp-receiver",
            "--enable-feature=exemplar-storage",
        ]

    def query(self, promql: str) -> list[Any]:
        """An instant query: ``[{"metric": {...}, "value": [time, "text"]}]``."""
        return list(self.json("/api/v1/query", query=promql)["data"]["result"])

    def value(self, promql: str) -> float | None:
        """The number that a query gives, None where it gives nothing; more than one series fails the test."""
        found = self.query(promql)
        assert len(found) <= 1, f"{promql} gives {len(found)} series"
        return float(found[0]["value"][1]) if found else None

    def query_range(self, promql: str, start: float, end: float, step: float) -> list[Any]:
        """A range query: ``[{"metric": {...}, "values": [[time, "text"], ...]}]``; times in seconds since 1970."""
        found = self.json("/api/v1/query_range", query=promql, start=start, end=end, step=step)
        return list(found["data"]["result"])

    def exemplars(self, selector: str) -> list[Any]:
        """Exemplars of the last hour: ``[{"labels": {"trace_id": ...}, "value": "text", "timestamp": ...}]``."""
        now = time.time()
        found = self.json("/api/v1/query_exemplars", query=selector, start=now - 3600, end=now + 60)["data"]
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def alerts(self) -> list[Any]:
        """Alerts that are pending or firing."""
        return list(self.json("/api/v1/alerts")["data"]["alerts"])


class Alertmanager(Program):
    """``collector-config/alertmanager.yaml``; ``edit`` may change it further."""

    name = "alertmanager"

    def __init__(self, folder: Path, edit: Edit | None = None, config: Path | None = None) -> None:
        super().__init__(folder)
        (port,) = free_ports(1)
        self.address = f"{LOOPBACK}:{port}"
        self.url = f"http://{self.address}"
        self._ready_url = f"{self.url}/-/ready"
        self.config = self.write(config or CONFIG / "alertmanager.yaml", edit)

    def command(self) -> list[str]:
        return [
            str(self.binary),
            f"--config.file={self.config}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",
        ]

    def alerts(self) -> list[Any]:
        """Alerts that it has, as its API gives them."""
        return list(self.json("/api/v2/alerts"))


class Collector(Program):
    """One of the Collector's files, by its name in ``collector-config/``, as it stands: all through its variables."""

    name = "otelcol"

    def __init__(self, folder: Path, config: str = "collector.yaml", **variables: str) -> None:
        super().__init__(folder)
        self.config = CONFIG / config
        self.grpc_port, self.http_port, health = free_ports(3)
        self.otlp_grpc = f"http://{LOOPBACK}:{self.grpc_port}"
        self.otlp_http = f"http://{LOOPBACK}:{self.http_port}"
        self.url = f"http://{LOOPBACK}:{health}"
        self._ready_url = self.url
        self._variables = {
            "OTLP_GRPC_LISTEN": f"{LOOPBACK}:{self.grpc_port}",
            "OTLP_HTTP_LISTEN": f"{LOOPBACK}:{self.http_port}",
            "HEALTH_LISTEN": f"{LOOPBACK}:{health}",
            "QUEUE_DIRECTORY": str(folder / "queue"),
            **variables,
        }

    def command(self) -> list[str]:
        return [str(self.binary), "--config", str(self.config)]

    def environment(self) -> Mapping[str, str]:
        return self._variables
