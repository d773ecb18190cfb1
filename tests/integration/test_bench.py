"""``inferspan bench`` over tiny real models, in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from inferspan import semconv
from inferspan.bench import runner, targets
from inferspan.bench.progress import Silent
from inferspan.bench.recorder import Recorder
from inferspan.bench.result_file import load
from inferspan.bench.results import Result, Workload
from inferspan.cli import main
from inferspan.instrumentor import InferspanInstrumentor
from support import tiny

QUICK = ["--requests", "6", "--duration", "60", "--warmup", "0.001", "--idle", "0"]
CALLABLES = """
import itertools, torch

def echo():
    return lambda batch: list(batch)

def small():
    def call(batch):
        if len(batch) >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return call

def interrupted():
    numbers = itertools.count()
    def call(batch):
        if next(numbers) == 5:
            raise KeyboardInterrupt
    return call

def flaky():
    numbers = itertools.count()
    def call(batch):
        if next(numbers) % 3 == 1:
            raise ValueError("now and then")
    return call

def linear():
    return torch.nn.Linear(4, 2), lambda batch, length: torch.ones(batch, 4)

def broken():
    raise RuntimeError("cannot be made")
"""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    tiny.gpt2().save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tiny.classifier().save_pretrained(folder)
    tiny.word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callables_of_the_user.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def bench(*arguments: object, code: int = 0) -> Result:
    """The result that ``inferspan bench`` saves with these arguments, which ends with this exit code."""
    assert main(["bench", *map(str, arguments), *QUICK, "--quiet", "--save", "run.json"]) == code
    assert not InferspanInstrumentor().is_instrumented_by_opentelemetry
    return load("run.json")


def test_sweep_of_a_generating_pipeline(generator: Path) -> None:
    result = bench(generator, "--batch-sizes", "1,3", "--input-tokens", "8,20", "--output-tokens", 5)

    (target,) = result.targets
    assert (target.label, target.kind, target.task) == ("tiny-gpt2", "pipeline", "text-generation")
    assert target.model["class"] == "GPT2LMHeadModel"
    assert len(target.cold) == 1
    points = [(each.input_tokens, each.batch_size, each.output_tokens) for each in target.configurations]
    assert points == [(8, 1, 5), (8, 3, 5), (20, 1, 5), (20, 3, 5)]
    for configuration in target.configurations:
        samples = configuration.samples
        assert len(samples) == 6
        assert samples.input_tokens == [configuration.batch_size * (configuration.input_tokens or 0)] * 6
        assert samples.output_tokens == [configuration.batch_size * 5] * 6
        assert [len(intervals) for intervals in samples.inter_token_s] == [4] * 6
        assert samples.phases_s.keys() == {"tokenize", "forward", "prefill", "decode", "detokenize"}
        assert all(0 < first < whole for first, whole in zip(samples.time_to_first_token_s, samples.latency_s))  # type: ignore[operator]  # noqa: B905
        assert (configuration.operation, configuration.model) == ("text_completion", "tiny-gpt2")
        assert configuration.failure is None
        assert not configuration.partial
    assert {stage.name for stage in result.timeline.stages} == {"idle", "load", "cold", "warmup", "measure", "cooldown"}
    assert not result.partial


def test_classification_with_requests_of_a_file(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text('{"text": "a cat sat on the mat"}\n"the dog"\n')

    result = bench("--pipeline", "text-classification", classifier, "--data", "requests.jsonl", "--batch-sizes", 2)

    assert result.workload.data == "requests.jsonl"
    assert (result.workload.data_requests, result.targets[0].configurations[0].input_tokens) == (2, None)
    long, short = (len(tiny.word_tokenizer()(text).input_ids) for text in ("a cat sat on the mat", "the dog"))
    samples = result.targets[0].configurations[0].samples
    assert set(samples.input_tokens) == {long + short}
    assert samples.padding_ratio[0] == pytest.approx((long - short) / (2 * long))


@pytest.mark.parametrize("way", [(), ("--generate",)], ids=["pipeline", "generate"])
def test_streaming(generator: Path, way: tuple[str, ...]) -> None:
    result = bench(generator, *way, "--stream", "--input-tokens", 8, "--output-tokens", 4)

    assert result.workload.stream
    assert result.targets[0].kind == (way[0].strip("-") if way else "pipeline")
    assert len(result.targets[0].configurations[0].samples) == 6
    assert {type(first) for first in result.targets[0].configurations[0].samples.time_to_first_token_s} == {float}


def test_generate_by_hand_has_all_phases(generator: Path) -> None:
    result = bench(generator, "--generate", "--batch-sizes", 2, "--input-tokens", 8, "--output-tokens", 4)

    samples = result.targets[0].configurations[0].samples
    assert samples.phases_s.keys() == {"tokenize", "forward", "prefill", "decode", "detokenize"}
    assert samples.input_tokens == [16] * 6


def test_quantized_against_not_takes_turns(generator: Path) -> None:
    arguments = ("--input-tokens", 8, "--output-tokens", 2, "--against", "quantize=dynamic-int8")

    result = bench(generator, *arguments)

    plain, quantized = result.targets
    assert (plain.label, quantized.label) == ("tiny-gpt2", "tiny-gpt2 dynamic-int8")
    assert quantized.model["quantization"] == "dynamic-int8"
    measured = [(s.target, s.start_s) for s in result.timeline.stages if s.name == "measure"]
    order = [label for label, _ in sorted(measured, key=lambda each: each[1])]
    assert order[:4] == [plain.label, quantized.label, quantized.label, plain.label]
    assert plain.configurations[0].samples.turn == quantized.configurations[0].samples.turn == list(range(20))


@pytest.mark.parametrize("name", ["echo", "linear"])
def test_callables(name: str) -> None:
    result = bench(f"callables_of_the_user:{name}", "--batch-sizes", "1,4")

    assert [len(each.samples) for each in result.targets[0].configurations] == [6, 6]
    assert result.targets[0].kind == "callable"
    assert result.targets[0].configurations[0].operation == {"linear": "forward"}.get(name, name)


def test_out_of_memory_is_a_result_and_the_sweep_goes_on() -> None:
    result = bench("callables_of_the_user:small", "--batch-sizes", "1,4,2")

    one, four, two = result.targets[0].configurations
    assert four.failure is not None
    assert (four.failure.out_of_memory, four.failure.type) == (True, "torch.OutOfMemoryError")
    assert [len(each.samples) for each in (one, four, two)] == [6, 0, 6]
    assert not result.partial


def test_out_of_memory_at_the_first_call_is_told_with_its_batch_size() -> None:
    result = bench("callables_of_the_user:small", "--batch-sizes", "4,1")

    assert [len(each.samples) for each in result.targets[0].configurations] == [0, 6]
    assert any("the first call failed" in note for note in result.notes)


def test_interrupt_keeps_what_was_measured_and_marks_it() -> None:
    result = bench("callables_of_the_user:interrupted", "--batch-sizes", "1,2", code=130)

    (configuration,) = result.targets[0].configurations
    assert result.partial
    assert configuration.partial
    assert len(configuration.samples) == 4 - len(configuration.warmup.latency_s if configuration.warmup else [])


@pytest.mark.parametrize(("gate", "code"), [((), 0), (("--gate",), 1)], ids=["told", "gate"])
def test_what_fails_only_here_is_worse_and_a_gate_fails_for_it(gate: tuple[str, ...], code: int) -> None:
    bench(
        "callables_of_the_user:small",
        "--against",
        "callables_of_the_user:echo",
        "--batch-sizes",
        "1,4",
        *gate,
        code=code,
    )


def test_requests_that_fail_now_and_then_are_counted() -> None:
    result = bench("callables_of_the_user:flaky")

    (configuration,) = result.targets[0].configurations
    assert configuration.errors == {"ValueError": 2}
    assert len(configuration.samples) == 4


def test_open_loop_and_concurrency() -> None:
    open_loop = bench("callables_of_the_user:echo", "--rate", 500, "--concurrency", 2)
    closed_loop = bench("callables_of_the_user:echo", "--concurrency", 3)

    samples = open_loop.targets[0].configurations[0].samples
    assert (open_loop.workload.loop, closed_loop.workload.loop) == ("open", "closed")
    assert len(samples) == len(closed_loop.targets[0].configurations[0].samples) == 6
    assert all(due <= start for due, start in zip(samples.intended_s, samples.start_s))  # noqa: B905


def test_target_that_cannot_be_loaded_ends_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench("callables_of_the_user:broken", code=1)

    assert result.targets[0].failure is not None
    assert "callables_of_the_user:broken cannot be loaded: RuntimeError: cannot be made" in capsys.readouterr().err


def test_request_too_long_for_the_model_is_refused(generator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(generator, "--input-tokens", 250, "--output-tokens", 10, code=1)

    assert "250 input tokens and 10 output tokens are more than the model's 256 positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["x", "--stream", "--batch-sizes", "1,2"], "one sequence at a time", id="stream-batch"),
        pytest.param(["x", "--data", "none.jsonl"], "none.jsonl cannot be read", id="data"),
        pytest.param(["x", "--compare", "none.json"], "none.json: No such file", id="compare"),
        pytest.param(["x", "--against", "y,z=1"], "'z=1' is not KEY=VALUE", id="against"),
        pytest.param(["x", "--save", "no/folder/run.json"], "there is no such folder", id="save"),
        pytest.param(["x", "--otlp"], "OTEL_EXPORTER_OTLP_ENDPOINT, which is not set", id="otlp"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_output_of_a_run(generator: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["bench", str(generator), "--batch-sizes", "1,2", "--input-tokens", "8", "--output-tokens", "3", *QUICK]

    assert main(arguments) == 0

    output = capsys.readouterr()
    assert "GPT2LMHeadModel" in output.out
    for word in (
        "Latency in ms",
        "first token",
        "between tokens",
        "Throughput",
        "tokenize",
        "prefill",
        "the knee is at",
    ):
        assert word in output.out
    assert "measure: tiny-gpt2, batch 2, 8 tokens" in output.err


def test_json_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "callables_of_the_user:echo", "--batch-sizes", "1,2", "--json", *QUICK]) == 0

    found = json.loads(capsys.readouterr().out)
    one, two = found["targets"][0]["configurations"]
    assert (one["requests"], two["batch_size"]) == (6, 2)
    latency = one["times_s"]["latency"]
    assert 0 < latency["least"] <= latency["p50"]["value"] <= latency["p99"]["value"] <= latency["most"]
    assert found["targets"][0]["scaling"][0]["batch_sizes"] == [1, 2]
    assert found["comparisons"] == []


def test_figures_are_those_of_the_spans_that_production_exports(generator: Path) -> None:
    exporter = InMemorySpanExporter()
    recorder = Recorder(Resource.create(), [SimpleSpanProcessor(exporter)])
    workload = Workload("closed", input_tokens=[8], output_tokens=3, requests=5, duration_s=60.0)
    plan = runner.Plan([targets.Specification(str(generator))], workload, [], idle_s=0, cooldown_s=0)
    recorder.start()
    try:
        result = runner.run(plan, recorder, Silent())
    finally:
        recorder.stop()

    samples = result.targets[0].configurations[0].samples
    roots = [span for span in exporter.get_finished_spans() if span.name.startswith("text_completion")][-5:]
    assert samples.latency_s == pytest.approx([(span.end_time - span.start_time) * 1e-9 for span in roots])
    assert samples.time_to_first_token_s == [span.attributes[semconv.TIME_TO_FIRST_TOKEN] for span in roots]
    assert samples.cpu_s == [span.attributes[semconv.CPU_TIME] for span in roots]


@pytest.fixture
def collector() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """An OTLP collector on the loopback: its address, and what it was sent by path."""
    got: dict[str, list[bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.setdefault(self.path, []).append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", got
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def test_otlp_sends_the_run_and_its_baseline(
    generator: Path, collector: tuple[str, dict[str, list[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_service_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    metrics_service_pb2 = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[0])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")

    result = bench(generator, "--input-tokens", 8, "--output-tokens", 3, "--otlp")

    traces = [trace_service_pb2.ExportTraceServiceRequest.FromString(body) for body in collector[1]["/v1/traces"]]
    resources = [part for request in traces for part in request.resource_spans]
    names = [span.name for part in resources for scope in part.scope_spans for span in scope.spans]
    assert names.count("text_completion tiny-gpt2") >= len(result.targets[0].configurations[0].samples)
    assert "load tiny-gpt2" in names
    services = {a.value.string_value for part in resources for a in part.resource.attributes if a.key == "service.name"}
    assert services == {"inferspan-bench"}
    metrics = [metrics_service_pb2.ExportMetricsServiceRequest.FromString(body) for body in collector[1]["/v1/metrics"]]
    sent = {
        metric.name: metric
        for request in metrics
        for part in request.resource_metrics
        for scope in part.scope_metrics
        for metric in scope.metrics
    }
    assert {"inferspan.phase.duration", "inferspan.baseline"} <= sent.keys()
    assert len(sent["inferspan.baseline"].gauge.data_points) == 7
