"""``inferspan agent``: the device and host metrics of a whole machine, from one process.

It exports like any OpenTelemetry program, by the standard environment variables; processes with ``INFERSPAN_DEVICES``
at ``auto`` leave the devices to it. It needs no privileges: what the driver shows to root only stays absent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from inferspan import config, semconv
from inferspan.cli import CommandError, require
from inferspan.devices import choice
from inferspan.devices import instruments as device_instruments
from inferspan.devices.sampler import Sampler
from inferspan.emit.providers import SCOPE
from inferspan.version import __version__

_LAST_FLUSH_S = 10.0
_DEFAULTS = {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "otlp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    address = "[HOST:]PORT"
    parser.add_argument(
        "--health", metavar=address, default="13133", help="where GET / says whether it works (13133); off for none"
    )
    parser.add_argument(
        "--prometheus", metavar=address, help="let Prometheus scrape, beside OTLP; without a host on loopback only"
    )
    parser.add_argument("--no-otlp", action="store_true", help="export nothing over OTLP, only to Prometheus")
    parser.add_argument("--detail", metavar="LIST", help="read also: " + ", ".join(config.DEVICE_DETAILS))


def run(options: argparse.Namespace) -> int:
    require("agent", "agent", "opentelemetry.distro")
    try:
        settings = config.load({} if options.detail is None else {"devices_detail": options.detail})
        settings = dataclasses.replace(settings, devices="auto")
        _environment(options)
    except ValueError as error:
        raise CommandError(str(error)) from None
    stopped = _on_signals()
    sampler = choice.sampler(settings, "agent")
    try:
        shut_down = _provider(settings, sampler)
        health = None if options.health == "off" else _health(*_address(options.health), sampler)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot listen: {error}") from None
    where = "" if health is None else ", health on http://{}:{}/".format(*health.server_address[:2])
    print(f"inferspan agent {__version__}: running{where}", file=sys.stderr, flush=True)
    stopped.wait()
    shut_down()
    sampler.stop()
    if health is not None:
        health.shutdown()
    return 0


def _environment(options: argparse.Namespace) -> None:
    """What is not said otherwise: only metrics, and a name."""
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", "inferspan-agent")
    exporters = [] if options.no_otlp else os.environ["OTEL_METRICS_EXPORTER"].split(",")
    if options.prometheus is not None:
        require("agent --prometheus", "agent", "opentelemetry.exporter.prometheus")
        host, port = _address(options.prometheus)
        os.environ.update(OTEL_EXPORTER_PROMETHEUS_HOST=host, OTEL_EXPORTER_PROMETHEUS_PORT=str(port))
        exporters = [name for name in exporters if name not in ("prometheus", "none")] + ["prometheus"]
    os.environ["OTEL_METRICS_EXPORTER"] = ",".join(exporters) or "none"


def _provider(settings: config.Settings, sampler: Sampler) -> Any:
    """Set OpenTelemetry up by its environment variables; returns how to flush and end it."""
    from opentelemetry import metrics
    from opentelemetry.distro import OpenTelemetryConfigurator, OpenTelemetryDistro

    OpenTelemetryDistro().configure()
    OpenTelemetryConfigurator().configure()  # type: ignore[no-untyped-call]
    provider: Any = metrics.get_meter_provider()
    meter = provider.get_meter(SCOPE, __version__, semconv.SCHEMA_URL)
    device_instruments.create(meter, settings, lambda: sampler)
    return lambda: provider.shutdown(timeout_millis=_LAST_FLUSH_S * 1000)


def _on_signals() -> threading.Event:
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return stopped


def _health(host: str, port: int, sampler: Sampler) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"status": "the driver does not answer" if sampler.is_hung else "ok"}).encode() + b"\n"
            self.send_response(503 if sampler.is_hung else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Probes come every few seconds: not logged."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="inferspan-health", daemon=True).start()
    return server


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no [HOST:]PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
