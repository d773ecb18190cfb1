"""Exporters and providers at their worst: the program does what it would have done, and nothing is told twice."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.ledger import Ran, both

START = """
import os, sys, threading, time
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from support.ledger import Spans, batched, connect, infer, is_on, note, set_providers
import inferspan
"""
END = """
print([infer(n) for n in range(30)])
sys.exit(3)
"""


def counted(ran: Ran) -> float:
    return sum(ran.points("gen_ai.client.operation.duration").values())


def dropped(ran: Ran) -> dict[str, float]:
    return ran.points("inferspan.overhead.dropped", "inferspan.drop.reason")


# -- exporters ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("an exporter that raises", "the SDK logs it and drops the batch; the metrics are complete")
@pytest.mark.parametrize("processor", ["SimpleSpanProcessor", "BatchSpanProcessor"])
def test_exporter_that_raises_is_the_sdks_to_log(tmp_path: Path, processor: str) -> None:
    code = f"""
class Raises(Spans):
    def export(self, spans):
        super().export(spans)
        raise RuntimeError("no")
connect({processor}(Raises()))
"""
    ran = both(tmp_path, START + code + END, same_errors=False)

    assert ran.exported() == Counter(range(30))
    assert counted(ran) == 30
    assert "inferspan" not in ran.stderr.replace("inferspan/telemetry", "").split("Traceback")[0]


@pytest.mark.fault(
    "an exporter that hangs",
    "no inference waits; flush, exit and `uninstrument()` wait `flush_timeout`, then go on without the rest",
)
@pytest.mark.parametrize(
    ("processor", "end"),
    [
        pytest.param("SimpleSpanProcessor", "sys.exit(3)", id="simple"),
        pytest.param("SimpleSpanProcessor", "inferspan.force_flush(0.5) and print('flushed')\nsys.exit(3)", id="flush"),
        pytest.param("SimpleSpanProcessor", "inferspan.uninstrument()\nsys.exit(3)", id="uninstrument"),
        pytest.param("BatchSpanProcessor", "inferspan.force_flush(0.5)\nos._exit(3)", id="batch, flush"),
    ],
)
def test_exporter_that_hangs_holds_nobody_for_long(tmp_path: Path, processor: str, end: str) -> None:
    code = f"""
class Hangs(SpanExporter):
    def export(self, spans):
        threading.Event().wait()
connect({processor}(Hangs()), flush_timeout=0.5)
print([infer(n) for n in range(30)], flush=True)
if is_on():
    {end.replace(chr(10), chr(10) + "    ")}
os._exit(3)
"""
    both(tmp_path, START + code)


@contextmanager
def collector(*answers: int) -> Iterator[tuple[str, list[str]]]:
    """An OTLP endpoint that gives these answers, the last for good, and the names of the roots that it accepted."""
    accepted: list[str] = []
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = left.pop(0) if len(left) > 1 else left[0]
            if status == 200:
                request = ExportTraceServiceRequest.FromString(body)
                scopes = (scope for resource in request.resource_spans for scope in resource.scope_spans)
                accepted.extend(span.name for scope in scopes for span in scope.spans if span.name == "answer")
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", accepted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


OTLP = """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
connect(BatchSpanProcessor(OTLPSpanExporter(endpoint=os.environ["ENDPOINT"], timeout=2)))
"""


@pytest.mark.fault("a backend that answers 4xx or 5xx", "lost, as all spans are: the SDK's exporter logs it")
@pytest.mark.fault("a backend that answers 503 once", "the SDK's exporter tries again: received once")
@pytest.mark.parametrize(
    ("answers", "received"),
    [
        pytest.param([400], 0, id="4xx"),
        pytest.param([500], 0, id="5xx"),
        pytest.param([503, 200], 30, id="503, then 200"),
    ],
)
def test_backend_that_refuses_leaves_the_program_as_it_was(
    tmp_path: Path, answers: Sequence[int], received: int
) -> None:
    with collector(*answers) as (endpoint, accepted):
        ran = both(tmp_path, START + OTLP + END, same_errors=False, ENDPOINT=endpoint)

    assert accepted == ["answer"] * received
    assert counted(ran) == 30


@pytest.mark.fault("a backend that refuses connections", "lost, as all spans are: the SDK's exporter logs it")
def test_backend_that_refuses_connections_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    ran = both(tmp_path, START + OTLP + END, same_errors=False, ENDPOINT="http://127.0.0.1:9/v1/traces")

    assert counted(ran) == 30


@pytest.mark.fault(
    "an exporter that answers after the shutdown", "exported once; the exit waits for it as the SDK does"
)
def test_exporter_that_answers_after_the_shutdown_exports_once(tmp_path: Path) -> None:
    code = """
class Slow(Spans):
    begun = threading.Event()
    def export(self, spans):
        self.begun.set()
        time.sleep(1)
        return super().export(spans)
connect(BatchSpanProcessor(Slow(), schedule_delay_millis=50))
print([infer(n) for n in range(20)])
if is_on():
    Slow.begun.wait()
    threading.Thread(target=trace.get_tracer_provider().shutdown).start()
print([infer(n) for n in range(20, 30)])
sys.exit(3)
"""
    ran = both(tmp_path, START + code, same_errors=False)

    exported = ran.exported(None)
    assert set(exported.values()) <= {1}
    assert set(range(20)) <= set(exported)


@pytest.mark.fault(
    "an exporter that runs a model itself", "its inferences are not recorded, so there is no end of them"
)
@pytest.mark.parametrize("processor", ["SimpleSpanProcessor", "BatchSpanProcessor"])
def test_exporter_that_infers_makes_no_telemetry_of_it(tmp_path: Path, processor: str) -> None:
    code = f"""
class Infers(Spans):
    def export(self, spans):
        for span in spans:
            with inferspan.inference("summary") as block, block.phase("think"):
                pass
        return super().export(spans)
connect({processor}(Infers()))
"""
    ran = both(tmp_path, START + code + END)

    assert ran.exported() == Counter(range(30))
    assert ran.spans("summary") == []


@pytest.mark.fault(
    "a span processor that runs a model itself", "its inferences are not recorded, so there is no end of them"
)
def test_span_processor_that_infers_makes_no_telemetry_of_it(tmp_path: Path) -> None:
    code = """
class Infers(SpanProcessor):
    def on_end(self, span):
        with inferspan.inference("summary") as block, block.phase("think"):
            pass
connect(Infers(), batched(Spans()))
"""
    ran = both(tmp_path, START + code + END)

    assert ran.exported() == Counter(range(30))
    assert ran.spans("summary") == []


# -- queues ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "a queue that is full (a span processor that blocks)",
    "children, then roots too, are dropped and counted as `queue_full`",
)
@pytest.mark.fault("our queue full", "children, then roots too, are dropped and counted as `queue_full`")
def test_queue_that_is_full_drops_and_counts(tmp_path: Path) -> None:
    code = """
class Blocks(SpanProcessor):
    begun, go_on = threading.Event(), threading.Event()
    def on_end(self, span):
        self.begun.set()
        self.go_on.wait()
connect(Blocks(), batched(Spans()), queue_max=2)
print(infer(0))
is_on() and Blocks.begun.wait()
print([infer(n) for n in range(1, 31)])
Blocks.go_on.set()
"""
    ran = both(tmp_path, START + code)

    # one is being told, two wait whole, six alone, the other 22 and all their children not at all
    assert set(ran.exported(None)) == set(range(9))
    assert [len(ran.spans("answer")), len(ran.spans("think"))] == [9, 3]
    assert dropped(ran) == {"queue_full": 6 + 22 * 2}


@pytest.mark.promise("more children than `children_max`", "the rest is counted, on the root and as `children_max`")
def test_children_over_the_limit_are_counted(tmp_path: Path) -> None:
    code = """
connect(children_max=3)
with inferspan.inference("answer") as block:
    block.set_attribute("number", 1)
    for number in range(10):
        with block.phase(f"think {number}"):
            pass
note(ended=1)
"""
    ran = both(tmp_path, START + code)

    assert ran.exported(("answer", "think 0", "think 1", "think 2")) == ran.ended()
    assert ran.spans("answer")[0]["attributes"]["inferspan.children.dropped"] == 7
    assert dropped(ran) == {"children_max": 7}


@pytest.mark.lost(
    "spans beyond the queue of the SDK's `BatchSpanProcessor` (newer ones warn); the metrics are complete"
)
def test_queue_of_the_sdk_that_is_full_drops_without_our_knowledge(tmp_path: Path) -> None:
    code = """
class Stalls(Spans):
    go_on = threading.Event()
    def export(self, spans):
        self.go_on.wait(10)
        return super().export(spans)
class Counts(BatchSpanProcessor):
    ended = 0
    def on_end(self, span):
        super().on_end(span)
        self.ended += 1
processor = Counts(Stalls(), max_queue_size=8, max_export_batch_size=8)
connect(processor)
print([infer(n) for n in range(30)])
while is_on() and processor.ended < 60:
    time.sleep(0.01)
Stalls.go_on.set()
"""
    ran = both(tmp_path, START + code, same_errors=False)

    exported = ran.exported(None)
    assert 0 < len(exported) < 30
    assert set(exported.values()) == {1}
    assert counted(ran) == 30


# -- providers ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "a provider that is replaced",
    "each inference goes as a whole to the one in force when it is emitted; exported once",
)
def test_provider_that_is_replaced_between_and_within_inferences(tmp_path: Path) -> None:
    code = """
connect()
print([infer(n) for n in range(10)])
inferspan.force_flush()
first = trace.get_tracer_provider()
with inferspan.inference("answer") as block:
    block.set_attribute("number", 10)
    with block.phase("think"):
        if is_on():
            second = TracerProvider()
            second.add_span_processor(batched(Spans()))
            trace._TRACER_PROVIDER = second
note(ended=10)
print([infer(n) for n in range(11, 30)])
"""
    ran = both(tmp_path, START + code)

    assert ran.exported() == ran.ended() == Counter(range(30))


@pytest.mark.lost("inferences after the program has shut its provider down: the SDK takes no more")
@pytest.mark.fault(
    "a provider that is shut down early", "what ended before is exported; after it the SDK takes no more"
)
def test_provider_that_is_shut_down_early_has_what_ended_before(tmp_path: Path) -> None:
    code = """
connect()
print([infer(n) for n in range(10)])
is_on() and trace.get_tracer_provider().shutdown()
"""
    ran = both(tmp_path, START + code + END.replace("range(30)", "range(10, 30)"), same_errors=False)

    assert ran.exported() == Counter(range(10))
    assert "inferspan" not in ran.stderr


@pytest.mark.fault("a provider that is set late", "what is emitted from then on is exported")
def test_provider_that_is_set_late_gets_what_comes(tmp_path: Path) -> None:
    code = """
is_on() and inferspan.instrument()
print([infer(n) for n in range(10)])
inferspan.force_flush()
is_on() and set_providers()
print([infer(n) for n in range(10, 30)])
"""
    ran = both(tmp_path, START + code)

    assert ran.exported() == Counter(range(10, 30))


@pytest.mark.fault(
    "a provider that does nothing (`OTEL_SDK_DISABLED`, a no-op one, none)", "nothing is exported, and nothing said"
)
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("connect()", id="disabled"),
        pytest.param("is_on() and inferspan.instrument()", id="none"),
        pytest.param(
            "is_on() and inferspan.instrument("
            "tracer_provider=trace.NoOpTracerProvider(), meter_provider=metrics.NoOpMeterProvider())",
            id="no-op",
        ),
    ],
)
def test_provider_that_does_nothing_is_no_trouble(tmp_path: Path, code: str) -> None:
    ran = both(tmp_path, START + code + END, OTEL_SDK_DISABLED="true")

    assert ran.spans() == []


# -- what the program hangs into the SDK -------------------------------------------------------------------------------


@pytest.mark.fault("a sampler that raises", "the inference is not recorded, and counted as `fault`; one warning")
@pytest.mark.fault("a log handler that raises", "our warning is lost, the program goes on")
@pytest.mark.parametrize("logging", ["", "logging"])
def test_sampler_that_raises_is_counted(tmp_path: Path, logging: str) -> None:
    code = """
import logging
class Raises(Sampler):
    def should_sample(self, *args, **kwargs):
        raise RuntimeError("no")
    def get_description(self):
        return "raises"
class Handler(logging.Handler):
    def emit(self, record):
        raise RuntimeError("no log either")
if "logging" in os.environ.get("WITH", ""):
    logging.getLogger().addHandler(Handler())
if is_on():
    set_providers(sampler=Raises())
    inferspan.instrument()
"""
    ran = both(tmp_path, START + code + END, same_errors=False, WITH=logging)

    assert ran.spans() == []
    assert dropped(ran) == {"fault": 30}
    assert ran.stderr.count("inferspan: a fault in scope.open") == (0 if logging else 1)


@pytest.mark.fault(
    "a span processor that raises", "other processors and the metrics get theirs; counted as `fault`, one warning"
)
@pytest.mark.parametrize("where", ["on_start", "on_end"])
def test_span_processor_that_raises_is_counted(tmp_path: Path, where: str) -> None:
    code = f"""
class Raises(SpanProcessor):
    def {where}(self, *args, **kwargs):
        raise RuntimeError("no")
connect(batched(Spans()), Raises())
"""
    ran = both(tmp_path, START + code + END, same_errors=False)

    assert dropped(ran) == {"fault": 30}
    assert ran.stderr.count("inferspan: a fault in") == 1
    if where == "on_end":
        assert ran.exported(None) == Counter(range(30))
        assert counted(ran) == 30


@pytest.mark.fault("a view that raises", "its metric is missing, the spans are complete; counted, one warning")
def test_view_that_raises_leaves_the_spans(tmp_path: Path) -> None:
    code = """
from opentelemetry.sdk.metrics.view import View
class Raises(View):
    def _match(self, instrument):
        raise RuntimeError("no")
if is_on():
    set_providers(views=[Raises(instrument_name="gen_ai.client.operation.duration")])
    inferspan.instrument()
"""
    ran = both(tmp_path, START + code + END, same_errors=False)

    assert ran.exported() == ran.ended() == Counter(range(30))
    assert ran.stderr.count("inferspan: a fault in telemetry.metrics") == 1


@pytest.mark.fault(
    "a log processor that raises (where content goes into events)", "the spans are complete; counted, one warning"
)
def test_log_processor_that_raises_leaves_the_spans(tmp_path: Path) -> None:
    code = """
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
class Raises(LogRecordProcessor):
    def on_emit(self, record):
        raise RuntimeError("no")
    emit = on_emit
    def shutdown(self):
        pass
    def force_flush(self, timeout_millis=30000):
        return True
if is_on():
    provider = LoggerProvider()
    provider.add_log_record_processor(Raises())
    _logs.set_logger_provider(provider)
connect(capture_content="EVENT_ONLY")
from inferspan.core import current, messages
def tell(n):
    plan = current.make_plan("answer") if current.settings() else None
    inference = current.open_inference(plan)
    if inference is not None:
        inference.set("number", n)
        inference.content = messages.Content([("user", "Hello")], [("assistant", "Hi")])
        current.run(inference, int, (), {})
    note(ended=n)
print([tell(n) for n in range(30)])
"""
    ran = both(tmp_path, START + code, same_errors=False)

    assert ran.exported(("answer",)) == ran.ended() == Counter(range(30))
    assert ran.stderr.count("inferspan: a fault in telemetry.events") == 1
    assert dropped(ran) == {"fault": 30}
