"""fastotel's span processor, which encodes and sends natively: every fact of ours arrives as the SDK would send it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
import transformers
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext

import inferspan
from inferspan.emit.fastpath import DirectWriter, writer_of
from support import tiny


@pytest.fixture
def received() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server, and the bodies of what was sent there."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", bodies
    server.shutdown()
    server.server_close()


def facts(request: Any) -> dict[bytes, list[Any]]:
    """All that is said of each span, by its id."""

    def texts(messages: Any) -> list[str]:
        return sorted(map(str, messages))

    found = {}
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            scope = of_scope.scope
            around = [*texts(of_resource.resource.attributes), scope.name, scope.version, *texts(scope.attributes)]
            for span in of_scope.spans:
                attributes, span_events = texts(span.attributes), list(span.events)
                del span.attributes[:], span.events[:]
                events = [(event.name, event.time_unix_nano, *texts(event.attributes)) for event in span_events]
                found[span.span_id] = [*around, of_scope.schema_url, attributes, events, str(span)]
    return found


def test_every_fact_arrives_as_the_sdk_would_send_it(received: tuple[str, list[bytes]]) -> None:
    fastotel = pytest.importorskip("fastotel", reason="fastotel is not installed: it needs Python 3.11")
    address, bodies = received
    provider, memory = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    native = fastotel.OTLPSpanProcessor(endpoint=address)
    provider.add_span_processor(native)
    assert type(writer_of(provider.get_tracer("any"))) is DirectWriter, "it would be sent the dear way"
    inferspan.instrument(tracer_provider=provider, capture_content="SPAN_ONLY", devices="never")
    try:
        classify = transformers.pipeline(
            "text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer(), top_k=2
        )
        classify(["the cat sat", "ein Kätzchen 🐱"], batch_size=2)
        tiny.causal_lm().generate(torch.ones(2, 3, dtype=torch.long), max_new_tokens=4, pad_token_id=0)
        with pytest.raises((TypeError, ValueError)):
            classify(3)
        with inferspan.inference("block") as block:
            block.set_attribute("texts", ["a", "b"])
            block.set_attribute("numbers", [1, 2])
            block.set_attribute("large", 2**62)
            block.set_attribute("small", 1e-300)
            block.set_attribute("no", False)
        tracer = provider.get_tracer("the program's")
        tracer.start_span("linked", links=[Link(SpanContext(3, 4, True), {"why": "queue"})]).end()
        inferspan.force_flush()
        assert provider.force_flush()
    finally:
        inferspan.uninstrument()
        provider.shutdown()

    sent: dict[bytes, list[Any]] = {}
    for body in bodies:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        sent.update(facts(request))
    spans = memory.get_finished_spans()
    assert len(spans) >= 10
    assert sent == facts(encode_spans(spans))
