"""The program's providers, whenever they are set: found, drained before they flush or end, and left as they were."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.util._once import Once

import inferspan
from inferspan import integrations, semconv
from inferspan.emit import providers
from inferspan.emit.pipeline import Pipeline
from inferspan.emit.providers import _DrainFirst
from inferspan.instrumentor import state
from support import records
from support.recorder import Recorder

try:
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
except ImportError:
    from opentelemetry.sdk._logs.export import InMemoryLogExporter as InMemoryLogRecordExporter


@pytest.fixture
def no_providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As at the start of a program: no global provider is set, and each can be set once."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(metrics_internal, "_PROXY_METER_PROVIDER", metrics_internal._ProxyMeterProvider())
    yield
    inferspan.uninstrument()


def set_globally(recorder: Recorder) -> None:
    trace.set_tracer_provider(recorder.tracer_provider)
    metrics.set_meter_provider(recorder.meter_provider)


def work(name: str = "answer") -> None:
    with inferspan.inference(name):
        pass


def seen(recorder: Recorder) -> tuple[list[Any], dict[Any, float], list[Any]]:
    active = [point.value for point in recorder.points("inferspan.inference.active")]
    return recorder.trees(), recorder.counts("gen_ai.client.operation.duration", "gen_ai.operation.name"), active


# Found


def test_providers_set_before_are_used(no_providers: None) -> None:
    recorder = Recorder()
    set_globally(recorder)
    inferspan.instrument()
    work()

    assert seen(recorder) == (["answer"], {"answer": 1}, [0])


def test_providers_set_after_are_used(no_providers: None, caplog: pytest.LogCaptureFixture) -> None:
    inferspan.instrument()
    work("lost")
    recorder = Recorder()
    set_globally(recorder)
    work()

    assert seen(recorder)[0] == ["answer"]
    assert seen(recorder)[2] == [0]
    assert seen(recorder)[1]["answer"] == 1
    assert caplog.records == []


def test_providers_set_after_work_that_is_still_queued_get_its_points(no_providers: None) -> None:
    inferspan.instrument()
    work("early")
    inferspan.force_flush()
    recorder = Recorder()
    set_globally(recorder)
    work()

    assert recorder.trees() == ["answer"]


def test_providers_replaced_by_force_are_followed(no_providers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Recorder(), Recorder()
    set_globally(first)
    inferspan.instrument()
    work("one")
    inferspan.force_flush()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", second.tracer_provider)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", second.meter_provider)
    work("two")
    inferspan.force_flush()

    assert (seen(first)[:2], seen(second)[:2]) == ((["one"], {"one": 1}), (["two"], {"two": 1}))


def test_providers_passed_win_over_the_global_ones(no_providers: None) -> None:
    everywhere, passed = Recorder(), Recorder()
    set_globally(everywhere)
    passed.instrument()
    work()

    assert seen(passed)[:2] == (["answer"], {"answer": 1})
    assert (everywhere.trees(), everywhere.metric_names()) == ([], set())


def test_logger_provider_passed_gets_the_events(bare_recorder: Recorder) -> None:
    from inferspan.core import current
    from inferspan.core.messages import Content
    from support.messages import text_message

    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    bare_recorder.instrument(capture_content="EVENT_ONLY", logger_provider=provider)
    inference = current.open_inference(current.make_plan("chat"))
    assert inference is not None
    inference.content = Content([text_message("user", "Hello")], [text_message("assistant", "Hi")])
    current.close(inference)
    span = bare_recorder.span("chat")

    ((record),) = [finished.log_record for finished in exporter.get_finished_logs()]
    assert (record.event_name, record.trace_id, record.span_id, record.timestamp) == (
        "gen_ai.client.inference.operation.details",
        span.context.trace_id,
        span.context.span_id,
        span.end_time,
    )
    assert record.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "Hello"}]}]',
        "gen_ai.output.messages": '[{"role": "assistant", "parts": [{"type": "text", "content": "Hi"}]}]',
    }
    assert "gen_ai.input.messages" not in (span.attributes or {})
    assert _logs.get_logger_provider() is not provider


def test_scope_of_spans_and_points_is_ours_with_versions(recorder: Recorder) -> None:
    import torch
    import transformers

    work()
    found = recorder.span("answer").instrumentation_scope
    assert found is not None

    assert (found.name, found.version, found.schema_url) == (
        "inferspan",
        inferspan.__version__,
        "https://opentelemetry.io/schemas/1.37.0",
    )
    assert found.attributes == {
        "inferspan.transformers.version": transformers.__version__,
        "inferspan.torch.version": torch.__version__,
    }


def test_scope_has_the_version_of_a_library_from_when_it_is_imported(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_version_attributes", {})
    providers.put_versions_on_scope({"toylib.version": "toylib"})
    monkeypatch.setattr(integrations, "version_attributes", dict)
    bare_recorder.instrument()
    work()
    bare_recorder.spans()  # emits
    library = ModuleType("toylib")
    library.__version__ = "1.2"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toylib", library)
    work()

    scopes = [span.instrumentation_scope for span in bare_recorder.spans()]
    assert [dict(scope.attributes or {}) for scope in scopes if scope is not None] == [{}, {"toylib.version": "1.2"}]


# Drained


def test_flush_of_the_tracer_provider_emits_ours_first(bare_recorder: Recorder) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    inferspan.instrument(tracer_provider=provider, meter_provider=bare_recorder.meter_provider)
    work()

    assert provider.force_flush() is True
    assert [span.name for span in exporter.get_finished_spans()] == ["answer"]


def test_shutdown_of_the_tracer_provider_emits_ours_first(bare_recorder: Recorder) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    inferspan.instrument(tracer_provider=provider, meter_provider=bare_recorder.meter_provider)
    work()
    provider.shutdown()

    assert [span.name for span in exporter.get_finished_spans()] == ["answer"]


def test_flush_and_shutdown_of_the_meter_provider_emit_ours_first(bare_recorder: Recorder) -> None:
    collected: list[Any] = []

    class Reader(InMemoryMetricReader):
        def _receive_metrics(self, metrics_data: Any, *args: Any, **kwargs: Any) -> None:
            collected.append(metrics_data)
            super()._receive_metrics(metrics_data, *args, **kwargs)

    provider = MeterProvider([Reader()], shutdown_on_exit=False)
    inferspan.instrument(tracer_provider=bare_recorder.tracer_provider, meter_provider=provider)
    work()
    assert provider.force_flush() is True

    assert "gen_ai.client.operation.duration" in str(collected[-1].to_json())


def test_flush_of_ours_flushes_the_providers(bare_recorder: Recorder) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    inferspan.instrument(tracer_provider=provider, meter_provider=bare_recorder.meter_provider)
    work()

    assert inferspan.force_flush() is True
    assert [span.name for span in exporter.get_finished_spans()] == ["answer"]


def test_flush_while_not_instrumented_has_nothing_to_do() -> None:
    assert inferspan.force_flush() is True


def test_uninstrument_emits_what_is_finished(bare_recorder: Recorder) -> None:
    bare_recorder.instrument()
    work()
    inferspan.uninstrument()

    assert [span.name for span in bare_recorder.exporter.get_finished_spans()] == ["answer"]


def test_span_processors_added_later_are_drained_too(bare_recorder: Recorder) -> None:
    bare_recorder.instrument()
    exporter = InMemorySpanExporter()
    bare_recorder.tracer_provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    work()
    bare_recorder.tracer_provider.force_flush()

    assert [span.name for span in exporter.get_finished_spans()] == ["answer"]


# Left as they were


def processors(provider: TracerProvider) -> tuple[Any, ...]:
    return provider._active_span_processor._span_processors


def test_processor_of_ours_stands_first_and_goes_with_uninstrument(bare_recorder: Recorder) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = processors(provider)
    for _ in range(2):
        inferspan.instrument(tracer_provider=provider, meter_provider=bare_recorder.meter_provider)
        work()
        assert [type(processor) is _DrainFirst for processor in processors(provider)] == [True, False]
        inferspan.uninstrument()
        assert processors(provider) == before

    assert [span.name for span in exporter.get_finished_spans()] == ["answer", "answer"]


def test_processor_that_looks_at_starts_added_meanwhile_loses_no_root(recorder: Recorder) -> None:
    class Looks(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            pass

    with inferspan.inference("job") as block:
        recorder.tracer_provider.add_span_processor(Looks())
        block.set_attribute("one", 1)
        with block.phase("part"):
            pass

    assert recorder.trees() == [("job", "part")]
    assert recorder.span("job").attributes["one"] == 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("end", ["force_flush", "shutdown"])
def test_processors_that_flush_all_at_once_are_drained_before_and_left_as_they_were(
    bare_recorder: Recorder, threads: int, end: str
) -> None:
    group = ConcurrentMultiSpanProcessor(threads)
    provider = TracerProvider(active_span_processor=group, shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    before = set(vars(group))
    inferspan.instrument(tracer_provider=provider, meter_provider=bare_recorder.meter_provider)
    for _ in range(100):
        work()
    getattr(provider, end)()

    assert [span.name for span in exporter.get_finished_spans()] == ["answer"] * 100
    inferspan.uninstrument()
    assert set(vars(group)) == before


def test_provider_that_is_not_of_the_sdk_is_used_as_it_is(bare_recorder: Recorder) -> None:
    inferspan.instrument(tracer_provider=trace.NoOpTracerProvider(), meter_provider=bare_recorder.meter_provider)
    work()

    assert inferspan.force_flush() is True
    assert bare_recorder.counts("gen_ai.client.operation.duration") == {(): 1}


def test_random_numbers_of_the_program_are_undisturbed(recorder: Recorder) -> None:
    random.seed(0)
    expected = [random.random() for _ in range(3)]
    random.seed(0)
    found = []
    for _ in range(3):
        with inferspan.inference("answer") as block, block.phase("think"):
            pass
        inferspan.force_flush()
        found.append(random.random())

    assert found == expected


def test_trace_ids_after_the_same_seed_do_not_repeat(recorder: Recorder) -> None:
    for _ in range(3):
        random.seed(0)
        with inferspan.inference("answer") as block, block.phase("think"):
            pass
    spans = recorder.spans()

    assert len({span.context.span_id for span in spans}) == 6
    assert len({span.context.trace_id for span in spans}) == 3


def test_id_generator_of_the_programs_choice_is_kept() -> None:
    class Counting(RandomIdGenerator):
        def __init__(self) -> None:
            self.last = 0

        def generate_span_id(self) -> int:
            self.last += 1
            return self.last

        def generate_trace_id(self) -> int:
            return 99

    recorder = Recorder(id_generator=Counting())
    recorder.instrument()
    work()

    assert [(span.context.trace_id, span.context.span_id) for span in recorder.spans()] == [(99, 1)]


def test_id_generator_of_the_programs_own_tracers_is_not_touched(recorder: Recorder) -> None:
    work()

    assert type(recorder.tracer_provider.id_generator) is RandomIdGenerator
    assert type(recorder.tracer.id_generator) is RandomIdGenerator  # type: ignore[attr-defined]


# The end of the program

PROGRAM = """
import atexit, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
import inferspan

class Spans(SpanExporter):
    def export(self, spans):
        for span in spans:
            print("span", span.name, flush=True)
        return SpanExportResult.SUCCESS

class Metrics(MetricExporter):
    def export(self, data, timeout_millis=0, **kwargs):
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "gen_ai.client.operation.duration":
                        print("points", sum(point.count for point in metric.data.data_points), flush=True)
        return MetricExportResult.SUCCESS
    def force_flush(self, timeout_millis=0):
        return True
    def shutdown(self, timeout_millis=0, **kwargs):
        pass

def set_tracer():
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Spans(), schedule_delay_millis=3600000))
    trace.set_tracer_provider(provider)

def set_meter():
    reader = PeriodicExportingMetricReader(Metrics(), export_interval_millis=3600000)
    metrics.set_meter_provider(MeterProvider([reader]))

def tokenize():
    from inferspan.core import current
    current.end_phase(current.begin_phase("tokenize"))

def work(count=1):
    for number in range(count):
        with inferspan.inference("answer") as block, block.phase("think"):
            pass

def hold():  # or the background worker, which comes after 20 ms, may come before the provider
    from inferspan.instrumentor import state
    state.pipeline._worker._emitting.acquire()

def let_go():
    from inferspan.instrumentor import state
    state.pipeline._worker._emitting.release()
"""

BEFORE = "set_tracer(); set_meter(); inferspan.instrument()"
AFTER = "inferspan.instrument(); set_tracer(); set_meter()"


@pytest.mark.parametrize(
    ("ways", "status", "inferences", "opened"),
    [
        pytest.param(f"{BEFORE}; work(50)", 0, 50, 0, id="set before"),
        pytest.param(f"{AFTER}; work(50)", 0, 50, 0, id="set after"),
        pytest.param("inferspan.instrument(); set_meter(); set_tracer(); work(50)", 0, 50, 0, id="meter first"),
        pytest.param("set_tracer(); inferspan.instrument(); set_meter(); work(50)", 0, 50, 0, id="meter after"),
        pytest.param(
            "inferspan.instrument(); set_tracer(); hold(); work(1); set_meter(); let_go(); work(49)",
            *(0, 50, 0),
            id="meter late",
        ),
        pytest.param(f"{BEFORE}; work(50); sys.exit(3)", 3, 50, 0, id="sys.exit, set before"),
        pytest.param(f"{AFTER}; work(50); sys.exit(3)", 3, 50, 0, id="sys.exit, set after"),
        pytest.param(f"{AFTER}; work(50); 1 / 0", 1, 50, 0, id="exception"),
        pytest.param(
            f"{BEFORE}; work(1); block = inferspan.inference('open'); block.__enter__()", 0, 2, 1, id="still running"
        ),
        pytest.param(f"{BEFORE}; atexit.register(work, 50)", 0, 50, 0, id="in an exit handler, set before"),
        pytest.param(f"{BEFORE}; work(50); inferspan.uninstrument()", 0, 50, 0, id="uninstrumented before"),
        pytest.param(
            f"{BEFORE}; inferspan.uninstrument(); inferspan.instrument(); work(50)", 0, 50, 0, id="instrumented anew"
        ),
    ],
)
def test_exit_of_the_program_exports_every_span_and_point(ways: str, status: int, inferences: int, opened: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(ways)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()

    assert done.returncode == status
    assert {line: lines.count(line) for line in sorted(set(lines))} == {
        f"points {inferences}": 1,
        "span answer": inferences - opened,
        "span think": inferences - opened,
        **({"span open": opened} if opened else {}),
    }


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param(f"{BEFORE}; tokenize()", id="set before"),
        pytest.param(f"{AFTER}; tokenize()", id="set after"),
    ],
)
def test_exit_of_the_program_exports_phases_outside_of_any_inference(ways: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM + ways], capture_output=True, text=True, check=True)

    assert done.stdout == "span tokenize\n"


def test_points_that_are_told_before_there_is_a_meter_provider_are_the_only_ones_lost() -> None:
    ways = "inferspan.instrument(); set_tracer(); work(1); inferspan.force_flush(); set_meter(); work(49)"
    done = subprocess.run([sys.executable, "-c", PROGRAM + ways], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()

    assert {line: lines.count(line) for line in sorted(set(lines))} == {
        "points 49": 1,
        "span answer": 50,
        "span think": 50,
    }


def test_record_that_is_emitted_after_uninstrument_brings_nothing_back(bare_recorder: Recorder) -> None:
    bare_recorder.instrument()
    pipeline: Any = state.pipeline
    inferspan.uninstrument()
    before = processors(bare_recorder.tracer_provider)
    late = records.inference(name="late")
    late.end_ns = late.start_ns + 1
    pipeline._emit(late)

    assert processors(bare_recorder.tracer_provider) == before
    assert not any(isinstance(processor, _DrainFirst) for processor in before)


def test_collection_drains_once(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[float] = []
    drain = Pipeline.drain
    monkeypatch.setattr(Pipeline, "drain", lambda self, timeout_s: drained.append(timeout_s) or drain(self, timeout_s))
    recorder.reader.get_metrics_data()

    assert len(drained) == 1


def test_own_cost_never_goes_back(bare_recorder: Recorder) -> None:
    names = (semconv.OVERHEAD_HOOKS, semconv.OVERHEAD_WORKER)
    found = []
    for _ in range(3):
        bare_recorder.instrument()
        work()
        inferspan.force_flush()
        pipeline: Any = state.pipeline
        found.append([pipeline.observed()[name] for name in names])
        inferspan.uninstrument()

    assert all(
        0 < first < then for earlier, later in pairwise(found) for first, then in zip(earlier, later, strict=True)
    )
