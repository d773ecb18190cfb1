"""The pictures of docs/backends.md, made anew from a run: a service, a Collector, Jaeger and Prometheus, four minutes.

    make backends
    .venv/bin/pip install matplotlib 'inferspan[test]'
    .venv/bin/python scripts/pictures.py

Runs examples/serve.py under `opentelemetry-instrument` with a steady load, a rush and a steady load again; then writes
the part of docs/backends.md between its marks (a trace as the terminal draws it and as Jaeger's API gives it) and
docs/pictures/prometheus.svg (what Prometheus answers to four queries). Nothing in them is made up.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import matplotlib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.backends import LOOPBACK, Collector, Jaeger, Prometheus, free_ports, running, until  # noqa: E402

PAGE = ROOT / "docs" / "backends.md"
PICTURE = ROOT / "docs" / "pictures" / "prometheus.svg"
SERVICE = "chat"
# The web framework's spans of each piece of a streamed answer: as many as tokens, and all alike.
PIECE = "POST /chat http send"
# Seconds, and how many ask at the same time.
LOAD = ((60, 1), (90, 4), (90, 1))
PAUSE_S = 0.5
QUESTION = {"text": "Which ship is the captain on?"}

WINDOW = "30s"
OF_CHAT = f'job="{SERVICE}",gen_ai_request_model="tiny-llama-random"'
DURATION = f"gen_ai_client_operation_duration_seconds_bucket{{{OF_CHAT}}}"
FIRST_TOKEN = f"gen_ai_server_time_to_first_token_seconds_bucket{{{OF_CHAT}}}"
PHASES = f"inferspan_phase_duration_seconds_sum{{{OF_CHAT}"
PANELS = (
    (
        "How long an answer takes",
        "s",
        {
            f"p{quantile * 100:.0f}": f"histogram_quantile({quantile}, sum by (le) (rate({DURATION}[{WINDOW}])))"
            for quantile in (0.5, 0.9, 0.99)
        },
    ),
    (
        "Tokens generated",
        "tokens/s",
        {"tokens/s": f'sum(rate(gen_ai_client_token_usage_sum{{{OF_CHAT},gen_ai_token_type="output"}}[{WINDOW}]))'},
    ),
    (
        "Time spent, by phase",
        "s per s",
        {
            phase: f'sum(rate({PHASES},inferspan_phase="{phase}"}}[{WINDOW}]))'
            for phase in ("prefill", "decode", "tokenize")
        },
    ),
    (
        "Time to the first token",
        "s",
        {
            f"p{quantile * 100:.0f}": f"histogram_quantile({quantile}, sum by (le) (rate({FIRST_TOKEN}[{WINDOW}])))"
            for quantile in (0.5, 0.9)
        },
    ),
)


def serve(stack: ExitStack, folder: Path, collector: Collector) -> tuple[str, Path]:
    """The service's address and its console, once it answers."""
    (port,) = free_ports(1)
    console = folder / "console"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "INFERSPAN_"))}
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, "examples/serve.py"],
        cwd=ROOT,
        env={
            **kept,
            "PORT": str(port),
            "COLUMNS": "100",
            "PYTHONIOENCODING": "utf-8",
            "HF_HUB_OFFLINE": "1",
            "OTEL_SERVICE_NAME": SERVICE,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp_grpc,
            "OTEL_TRACES_EXPORTER": "otlp,inferspan_console",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            "INFERSPAN_DEVICES": "never",
        },
        stdout=console.open("wb"),
        stderr=subprocess.STDOUT,
    )
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)
    url = f"http://{LOOPBACK}:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/openapi.json", timeout=1).is_success
        except httpx.TransportError:
            return False

    until(answers, "the service", patience_s=180)
    return url, console


def ask(url: str, until_time: float, pause_s: float) -> None:
    with httpx.Client(timeout=60) as client:
        while time.time() < until_time:
            client.post(f"{url}/chat", json=QUESTION).raise_for_status()
            time.sleep(pause_s)


def run_load(url: str) -> None:
    for seconds, clients in LOAD:
        end = time.time() + seconds
        pause_s = PAUSE_S if clients == 1 else 0.0
        threads = [threading.Thread(target=ask, args=(url, end, pause_s)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def waterfall(console: Path) -> str:
    """The last trace of a chat that the terminal has drawn."""
    drawings = re.split(r"\n(?=trace [0-9a-f]{8}…)", console.read_text("utf-8"))
    chats = [drawing for drawing in drawings if "decode" in drawing]
    drawing = re.split(r"\n\n|\nINFO", chats[-1].strip())[0]
    return "\n".join(line for line in drawing.splitlines() if PIECE not in line)


def table(trace: Any) -> str:
    """A trace of Jaeger's API: each span below its parent, in the order of their start, with its main values."""
    shown = {
        "http.route": "{}",
        "gen_ai.usage.input_tokens": "{} tokens in",
        "gen_ai.usage.output_tokens": "{} out",
        "inferspan.time_to_first_token": "first token after {:.1f} ms",
        "inferspan.decode.steps": "{} steps",
    }
    spans = [span for span in trace["spans"] if span["operationName"] != PIECE]
    spans.sort(key=lambda span: (span["startTime"], -span["duration"]))
    start = spans[0]["startTime"]
    lines = ["| span | starts | takes | says |", "| --- | --: | --: | --- |"]

    def add(span: Any, depth: int) -> None:
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        if "inferspan.time_to_first_token" in tags:
            tags["inferspan.time_to_first_token"] *= 1000
        says = ", ".join(text.format(tags[name]) for name, text in shown.items() if name in tags)
        name = "&nbsp;" * 4 * depth + f"`{span['operationName']}`"
        starts, takes = (span["startTime"] - start) / 1e3, span["duration"] / 1e3
        lines.append(f"| {name} | {starts:.1f} ms | {takes:.1f} ms | {says} |")
        for child in spans:
            if any(each["spanID"] == span["spanID"] for each in child["references"]):
                add(child, depth + 1)

    add(spans[0], 0)
    return "\n".join(lines)


def draw(prometheus: Prometheus, start: float, end: float) -> None:
    matplotlib.use("svg")
    # Text stays text, and the same run gives the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "inferspan", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9.6, 5.4), sharex=True, layout="constrained")
    for axis, (title, unit, queries) in zip(axes.flat, PANELS, strict=True):
        for label, query in queries.items():
            for series in prometheus.query_range(query, start, end, step=3):
                points = [(float(at) - start, float(value)) for at, value in series["values"] if value != "NaN"]
                axis.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
        axis.set_title(title, loc="left")
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.axvspan(LOAD[0][0], LOAD[0][0] + LOAD[1][0], alpha=0.08, color="gray", linewidth=0)
        if len(queries) > 1:
            axis.legend(frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def write(drawing: str, listed: str) -> None:
    text = PAGE.read_text("utf-8")
    for name, part in (("terminal", f"```\n{drawing}\n```"), ("jaeger", listed)):
        pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)
    PAGE.write_text(text, "utf-8")


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        jaeger = stack.enter_context(running(Jaeger(folder / "jaeger")))
        prometheus = stack.enter_context(running(Prometheus(folder / "prometheus")))
        destinations = {
            "JAEGER_OTLP": jaeger.otlp_grpc,
            "PROMETHEUS_OTLP": prometheus.otlp_http,
            "TEMPO_OTLP": f"{LOOPBACK}:{free_ports(1)[0]}",
        }
        collector = stack.enter_context(running(Collector(folder / "collector", **destinations)))
        with ExitStack() as serving:
            url, console = serve(serving, folder, collector)
            start = time.time()
            run_load(url)
            end = time.time()
        trace_id = re.search(r"trace ([0-9a-f]{8})…", drawing := waterfall(console))
        assert trace_id is not None
        found = until(
            lambda: [each for each in jaeger.traces(SERVICE) if each["traceID"].startswith(trace_id[1])],
            "the trace in Jaeger",
        )
        draw(prometheus, start, end)
        write(drawing, table(found[0]))


if __name__ == "__main__":
    main()
