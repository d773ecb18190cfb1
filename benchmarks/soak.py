"""Whether anything is lost, doubled, malformed or kept, however long a program runs and whatever goes wrong around it.

    python benchmarks/soak.py --minutes 30             everything at once, with a verdict
    python benchmarks/soak.py --case all               each extreme on its own: memory, queue, threads, cost
    python benchmarks/soak.py --case stream            one of them: stream, threads, asyncio, long-generation,
                                                       continuous-batching

One process (``soak_program.py``) infers in threads and in an event loop: pipelines of single inputs, lists and lazy
streams, ``generate()``, ``inference()`` blocks, modules, tokenizers; some fail, are cancelled or abandoned. Meanwhile
it flushes, forks, uninstruments and instruments again, replaces its providers, and its exporter fails, raises or is
slow. It sends OTLP to an OpenTelemetry Collector (``make backends`` builds one; without it straight here), which is
stopped and started again every minute and sends on to a receiver in this process. Each inference has a number on its
root span, so that every one is looked for, and its tree compared with what the program knows it has done.

The status is 1 if the verdict is bad.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console
from rich.table import Table

from inferspan import semconv

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
try:
    from support import backends, wellformed
    from support.wellformed import Span
finally:
    sys.path.pop(0)

SERIAL = "soak.serial"
SETTLED_S = 20.0
COLLECTOR_DOWN_EVERY_S = 60.0
COLLECTOR_DOWN_S = 1.5
MEMORY_MB = 25.0
EXIT_S = 180.0
TOLD_MAX = 10
CASES = {
    "stream": 1_000_000,
    "threads": 100_000,
    "asyncio": 100_000,
    "long-generation": 100_000,
    "continuous-batching": 10_000,
}
CASE_MB = 10.0
CASES_MB = {"continuous-batching": 50.0}  # whose requests are all open at once
CASE_S = 1800.0
SPANS_MAX = 67
TOGETHER = "together"

COLLECTOR = """
receivers:
  otlp:
    protocols:
      http: {endpoint: "${env:OTLP_HTTP_LISTEN}"}
exporters:
  otlp_http:
    endpoint: ${env:RECEIVER}
    compression: none
    retry_on_failure: {initial_interval: 200ms, max_interval: 1s, max_elapsed_time: 0s}
    sending_queue: {queue_size: 100000}
extensions:
  health_check: {endpoint: "${env:HEALTH_LISTEN}"}
service:
  extensions: [health_check]
  pipelines:
    traces: {receivers: [otlp], exporters: [otlp_http]}
    metrics: {receivers: [otlp], exporters: [otlp_http]}
  telemetry:
    metrics: {level: none}
"""


class Books:
    """What the program says that it has done, beside what has arrived. All of it is forgotten once it agrees."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.told: dict[int, Any] = {}
        self.traces: dict[bytes, list[Span]] = {}
        self.complete_at: dict[bytes, float] = {}
        self.arrived: dict[int, int] = {}
        self.settled: set[int] = set()
        self.torn: set[str] = set()
        self.numbers: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.bad: list[str] = []
        self.rests: list[Any] = []
        self.points: dict[str, int] = {}
        self.end: Any = None

    # -- what arrives ------------------------------------------------------------------------------------------------

    def take_traces(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self._take(span)

    def _take(self, span: Any) -> None:
        self.numbers["spans"] += 1
        attributes = {pair.key: _value(pair.value) for pair in span.attributes}
        found = Span(
            span.name,
            span.span_id,
            span.parent_span_id or None,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            attributes,
        )
        self.traces.setdefault(span.trace_id, []).append(found)
        if found.parent_id is None:
            self.complete_at[span.trace_id] = time.monotonic()

    def take_metrics(self, body: bytes) -> None:
        request = ExportMetricsServiceRequest.FromString(body)
        with self.lock:
            for resource in request.resource_metrics:
                (instance,) = (
                    pair.value.string_value
                    for pair in resource.resource.attributes
                    if pair.key == "service.instance.id"
                )
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == semconv.OPERATION_DURATION:
                            # a sum since the start of this provider
                            self.points[instance] = sum(point.count for point in metric.histogram.data_points)

    # -- what the program says ---------------------------------------------------------------------------------------

    def read(self, ledger: Any) -> None:
        for line in ledger:
            told = json.loads(line)
            with self.lock:
                getattr(self, "_read_" + told.pop("kind"))(told)

    def _read_inference(self, told: Any) -> None:
        self.numbers["inferences"] += 1
        if told.pop("on_metrics"):
            self.numbers["points" if told["sure"] else "points perhaps"] += 1
        self.told[told.pop("serial")] = told

    def _read_dropped(self, told: Any) -> None:
        self.dropped[told["reason"]] += len(told["serials"])
        self.torn.update(told["traces"])
        for serial in told["serials"]:
            self.settled.add(serial)

    def _read_bad(self, told: Any) -> None:
        self.complain(" ".join(f"{value}" for value in told.values()))

    def _read_disturbed(self, told: Any) -> None:
        self.numbers["points perhaps"] += 1

    def _read_fork(self, told: Any) -> None:
        self.numbers["forks"] += 1

    def _read_rest(self, told: Any) -> None:
        self.rests.append(told)

    def _read_end(self, told: Any) -> None:
        self.end = told

    def complain(self, what: str, kind: str = "other") -> None:
        self.numbers[kind] += 1
        if self.numbers[kind] <= TOLD_MAX:
            self.bad.append(what)

    # -- both --------------------------------------------------------------------------------------------------------

    def settle(self, older_s: float = SETTLED_S) -> None:
        """Compare what has been complete for so long with what the program wrote of it, and forget both."""
        with self.lock:
            limit = time.monotonic() - older_s
            for trace_id in [found for found, since in self.complete_at.items() if since <= limit]:
                del self.complete_at[trace_id]
                self._settle(trace_id, self.traces.pop(trace_id))

    def _settle(self, trace_id: bytes, spans: list[Span]) -> None:
        torn = trace_id.hex() in self.torn
        self.torn.discard(trace_id.hex())
        root = next(span for span in spans if span.parent_id is None)
        if not torn:
            for problem in wellformed.problems(spans, concurrent=root.name == TOGETHER):
                self.complain(f"{root.name}: {problem}", "malformed")
        serial = root.attributes.get(SERIAL)
        if serial is None:
            self.numbers["without a number"] += 1
            return
        told = self.told.pop(serial, None)
        if serial in self.settled:
            self.complain(f"{serial} came again, or was said to be dropped", "doubled")
        elif told is None:
            self.complain(f"{serial} {root.name} came, and nobody did it", "malformed")
        elif told["tree"] is not None and not torn:
            self._compare(serial, told, spans, root)
        self.settled.add(serial)

    def _compare(self, serial: int, told: Any, spans: list[Span], root: Span) -> None:
        queue_full = root.attributes.get(semconv.CHILDREN_DROPPED, 0) - told["attributes"].get("children_dropped", 0)
        if queue_full > 0:
            self.dropped["children, queue full"] += queue_full
            return
        try:
            found = wellformed.tree(spans)
        except ValueError:
            return  # more roots than one: that has been said
        found = (found[0].split()[0], *found[1:]) if isinstance(found, tuple) else found.split()[0]
        wanted = _tuples(told["tree"])
        if found != wanted:
            self.complain(f"{serial} came as {found}, and was {wanted}", "malformed")
        names = {
            name: key for name, key in ATTRIBUTES.items() if root.attributes.get(key) != told["attributes"].get(name)
        }
        names.pop("error", None)
        error = root.attributes.get(semconv.ERROR_TYPE, "").rpartition(".")[2]
        if error != told["attributes"].get("error", ""):
            names["error"] = semconv.ERROR_TYPE
        for name, key in names.items():
            if name in told["attributes"] or name not in ("input", "output"):
                self.complain(
                    f"{serial} {root.name}: {name} is {root.attributes.get(key)}, not {told['attributes'].get(name)}",
                    "malformed",
                )


ATTRIBUTES = {
    "items": semconv.ITEMS,
    "children_dropped": semconv.CHILDREN_DROPPED,
    "abandoned": semconv.ABANDONED,
    "cancelled": semconv.CANCELLED,
    "input": semconv.INPUT_TOKENS,
    "output": semconv.OUTPUT_TOKENS,
}


def _tuples(tree: Any) -> Any:
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


@contextmanager
def receiver(books: Books) -> Iterator[str]:
    """OTLP over HTTP into the books; the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            (books.take_traces if self.path.endswith("/traces") else books.take_metrics)(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def soak(seconds: float, round_s: float, seed: int, console: Console) -> bool:
    """The whole run; whether all was well."""
    books = Books()
    with tempfile.TemporaryDirectory() as name, receiver(books) as address:
        folder = Path(name)
        collector = _collector(folder, address)
        if collector is not None:
            collector.start()
        try:
            log = folder / "program.log"
            status = _run(
                books, collector, address if collector is None else collector.otlp_http, log, seconds, round_s, seed
            )
        finally:
            if collector is not None:
                collector.stop()  # it sends what it has
        lines = log.read_text(errors="replace").splitlines()
        books.settle(0)
        good = _verdict(books, status, seconds, collector is not None, lines, console)
        if not good:
            for problem in books.bad:
                console.print(problem, style="red", markup=False)
            console.print("the program's last lines:", *lines[-20:], sep="\n", markup=False)
    return good


def _collector(folder: Path, address: str) -> Any:
    if backends.PROGRAMS["otelcol"] is None:
        return None
    config = folder / "collector.yaml"
    config.write_text(COLLECTOR)
    return backends.Collector(folder / "collector", str(config), RECEIVER=address)


def _run(
    books: Books, collector: Any, endpoint: str, log: Path, seconds: float, round_s: float, seed: int
) -> int | str:
    reading, writing = os.pipe()
    with log.open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, str(HERE / "soak_program.py"), endpoint, *map(str, (writing, seconds, round_s, seed))],
            env=_environ(),
            pass_fds=(writing,),
            stdout=output,
            stderr=output,
        )
    os.close(writing)
    with os.fdopen(reading) as ledger:
        reader = threading.Thread(target=books.read, args=(ledger,), daemon=True)
        reader.start()
        deadline = time.monotonic() + seconds + EXIT_S
        down_at = time.monotonic() + COLLECTOR_DOWN_EVERY_S
        while program.poll() is None:
            if time.monotonic() > deadline:
                program.kill()
                program.wait()
                return "killed: it did not end"
            if collector is not None and time.monotonic() > down_at:
                collector.stop()
                time.sleep(COLLECTOR_DOWN_S)
                collector.start()
                books.numbers["collector restarts"] += 1
                down_at = time.monotonic() + COLLECTOR_DOWN_EVERY_S
            books.settle()
            time.sleep(0.5)
        reader.join(10)
    return program.returncode


def _verdict(
    books: Books, status: int | str, seconds: float, has_collector: bool, lines: list[str], console: Console
) -> bool:
    lost = [serial for serial, told in books.told.items() if serial not in books.settled and told["sure"]]
    for serial in lost:
        books.complain(f"lost: {serial} {books.told[serial]}", "lost")
    books.numbers["malformed"] += len([trace for trace in books.traces if trace.hex() not in books.torn])
    rests = books.rests
    warm = rests[max(1, len(rests) // 4) :]
    memory = _growth([rest["memory"] for rest in warm]) / 1e6
    steady = {name: warm[-1][name] - min(rest[name] for rest in warm) if warm else 0 for name in ("threads", "files")}
    faults = rests[-1]["faults"] if rests else {}
    points = sum(books.points.values())
    table = Table(title=f"Soak, {seconds / 60:g} minutes", title_justify="left")
    table.add_column("")
    table.add_column("found", justify="right")
    table.add_column("allowed", justify="right")
    verdicts = []

    def row(name: str, found: Any, allowed: str = "", good: bool = True) -> None:
        verdicts.append(good)
        table.add_row(name, str(found), allowed, style=None if good else "red")

    row("inferences", f"{books.numbers['inferences']:,}", "> 0", books.numbers["inferences"] > 0)
    row("spans", f"{books.numbers['spans']:,}")
    row("lost", books.numbers["lost"], "0", not books.numbers["lost"])
    row("doubled", books.numbers["doubled"], "0", not books.numbers["doubled"])
    row("malformed", books.numbers["malformed"], "0", not books.numbers["malformed"])
    for reason, number in sorted(books.dropped.items()):
        row(f"dropped: {reason}", f"{number:,}", "counted")
    few, many = books.numbers["points"], books.numbers["points"] + books.numbers["points perhaps"]
    row("inferences on metrics", f"{points:,}", f"{few:,} to {many:,}", few <= points <= many)
    row("memory growth after warm-up, MB", f"{memory:.1f}", f"< {MEMORY_MB:g}", memory < MEMORY_MB)
    row("memory at the end, MB", f"{rests[-1]['memory'] / 1e6:.0f}" if rests else "?")
    row("more threads than after warm-up", steady["threads"], "0", steady["threads"] <= 0)
    row("more files than after warm-up", steady["files"], "< 4", steady["files"] < 4)
    row("faults in inferspan", sum(faults.values()), "0", not faults)
    row("other complaints", books.numbers["other"], "0", not books.numbers["other"])
    row("longest flush, s", f"{books.end['longest_flush_s']:.1f}" if books.end else "?", "< 30", bool(books.end))
    row("forks", f"{books.numbers['forks']:,}")
    row("exporter's faults", books.end["faults"] if books.end else "?")
    row("Collector restarts", books.numbers["collector restarts"] if has_collector else "no Collector here")
    row("exit status", status, "0", status == 0)
    console.print(table)
    good = all(verdicts)
    console.print("[green]good[/]" if good else "[red]BAD[/]")
    return good


def _growth(values: list[float]) -> float:
    """From the first to the last of equally spaced values, by least squares."""
    count = len(values)
    if count < 3:
        return 0.0
    middle, mean = (count - 1) / 2, sum(values) / count
    slope = sum((x - middle) * (y - mean) for x, y in enumerate(values)) / sum((x - middle) ** 2 for x in range(count))
    return slope * (count - 1)


def run_cases(names: Sequence[str], scale: float, console: Console) -> bool:
    """Each in a process of its own; whether all was well."""
    table = Table(title="Extremes", title_justify="left")
    columns = (
        "",
        "number",
        "lost",
        "dropped",
        "growth, MB",
        "queue",
        "threads",
        "spans",
        "twice costs",
        "without",
        "with/without",
    )
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    good = True
    for name in names:
        number = int(CASES[name] * scale)
        command = [sys.executable, str(HERE / "soak_cases.py"), name, str(number)]
        output = subprocess.run(command, env=_environ(), capture_output=True, text=True, timeout=CASE_S, check=False)
        if output.returncode:
            console.print(*output.stderr.splitlines()[-20:], sep="\n", markup=False)
            good = False
            continue
        found = json.loads(output.stdout.splitlines()[-1])
        checks = {
            "lost": (found["lost"], found["lost"] == 0),
            "dropped": (f"{found['dropped']:,}", True),
            "growth": (f"{found['growth_mb']:.1f}", found["growth_mb"] < CASES_MB.get(name, CASE_MB)),
            # four times the setting: then inferences are left out, and counted
            "queue": (f"{found['queue']:,}", found["queue"] <= 4 * found["queue_max"] + 8),
            "threads": (found["threads"], found["threads"] <= 1),
            "spans": (found["spans"], found["spans"] <= SPANS_MAX),
            "cost": (f"{found['cost']:.2f}", found["cost"] < max(2.5, 1.25 * found.get("cost without", 0))),
            "without": (_figure(found, "cost without"), True),
            "against": (_figure(found, "against without"), True),
        }
        good = good and all(fine for _, fine in checks.values()) and not found["faults"]
        cells = [str(value) if fine else f"[red]{value}[/]" for value, fine in checks.values()]
        table.add_row(name, f"{number:,}", *cells)
    console.print(table)
    console.print("[green]good[/]" if good else "[red]BAD[/]")
    return good


def _figure(found: Any, name: str) -> str:
    return f"{found[name]:.2f}" if name in found else ""


def _environ() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--round", type=float, default=10.0, help="seconds between two rests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=("all", *CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the cases' numbers")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.case:
        names = list(CASES) if options.case == "all" else [options.case]
        return 0 if run_cases(names, options.scale, console) else 1
    return 0 if soak(options.minutes * 60, options.round, options.seed, console) else 1


if __name__ == "__main__":
    sys.exit(main())
