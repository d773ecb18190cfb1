"""What the benchmarks call, and the telemetry around it: a workload in the modes that are compared.

Modes:

    off      nothing
    bare     by hand: a root and three children, five attributes in all, no metrics
    equal    by hand: as many spans, attributes and metric points as ours
    floor    the least that as much telemetry can cost: around the same calls only clocks are read, and
             a thread makes spans and points of constants every 5 ms, past the tracer and the instruments
    points   the same without spans: the least for what is sampled out
    ours     inferspan.instrument(), everything on
    out      the same, sampled out by a parent-based ratio sampler
    sent     as ours, but sent by the SDK's exporter (OTLP over HTTP) to a server in another process
    native   as sent, by fastotel, which encodes and sends without the interpreter; where it is installed
    llmetry  opentelemetry-instrumentation-transformers, where it is installed and the workload is one that it sees
    openlit  OpenLIT, and genai: genai-otel-instrument, likewise; they send, so ``sent`` is what to compare them with

Settings and environment variables may follow: ``ours:metrics=false+measure=flops``,
``sent:OTEL_BSP_MAX_EXPORT_BATCH_SIZE=64``. But for ``sent`` and ``native``, spans go through a BatchSpanProcessor whose
exporter encodes them as OTLP and drops them; metrics have a reader.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORKLOADS = ("classify", "generate", "embed", "embed32")
MODES = ("off", "bare", "equal", "floor", "points", "ours", "out", "sent", "native", "llmetry", "openlit", "genai")
SINK = "BENCHMARK_SINK"
"""The variable that has the address of the server for ``sent`` and ``native``."""
PEERS = {
    # what is imported, and the workloads that it wraps
    "llmetry": ("opentelemetry.instrumentation.transformers", ("generate",)),
    "openlit": ("openlit", ("generate", "classify", "embed", "embed32")),
    "genai": ("genai_otel", ("generate", "classify", "embed", "embed32")),
}
TEXT = "the cat sat on the mat"
SENTENCE = "It is a truth universally acknowledged, that a single man in possession of a good fortune wants a wife."
NEW_TOKENS = 32


def installed(workload: str) -> list[str]:
    """The modes that can be run here."""
    return [
        mode
        for mode in MODES
        if mode not in PEERS or (workload in PEERS[mode][1] and importlib.util.find_spec(PEERS[mode][0].split(".")[0]))
    ]


def prepare(mode: str, workload: str, shape: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The call of a mode in this process, and what flushes what it has emitted."""
    import torch

    torch.set_num_threads(1)
    mode, _, given = mode.partition(":")
    settings = dict(pair.split("=") for pair in given.split("+") if pair)
    os.environ.update({name: settings.pop(name) for name in list(settings) if name.isupper()})
    provider, meter_provider = _providers(0.0 if mode == "out" else 1.0, mode)
    call, phases = _workload(workload)
    if mode == "bare":
        call = _by_hand(phases, provider.get_tracer("bare"))
    elif mode == "equal":
        call = _by_hand_equal(phases, provider.get_tracer("equal"), meter_provider.get_meter("equal"), shape)
    elif mode in ("floor", "points"):
        call = _floor(phases, provider, meter_provider.get_meter("floor"), shape, mode == "floor")
    elif mode in PEERS:
        _peer(mode, provider, meter_provider)
    elif mode != "off":
        import inferspan

        inferspan.instrument(tracer_provider=provider, meter_provider=meter_provider, **settings)
    return call, provider.force_flush


def _peer(mode: str, provider: Any, meter_provider: Any) -> None:
    if mode == "llmetry":
        from opentelemetry.instrumentation.transformers import TransformersInstrumentor

        TransformersInstrumentor().instrument(tracer_provider=provider)
        return
    # these make providers of their own, which send: to be compared with ``sent``
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = os.environ[SINK].removesuffix("/v1/traces")
    os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
    if mode == "openlit":
        import openlit

        openlit.init(collect_gpu_stats=False)
    else:
        import genai_otel

        genai_otel.instrument(enable_gpu_metrics=False)


def shape_of(workload: str) -> dict[str, Any]:
    """What one call of ours emits: attributes of each span, by its depth, and the points, by their attributes."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import inferspan
    from inferspan.emit.metrics import Points

    provider, meter_provider = _providers(1.0)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    points: list[int] = []
    add = Points._add

    def counted(self: Any, name: str, value: float, attributes: dict[str, str], context: Any) -> None:
        if name in self._instruments:
            points.append(len(attributes))
        add(self, name, value, attributes, context)

    inferspan.instrument(tracer_provider=provider, meter_provider=meter_provider)
    call, _ = _workload(workload)
    call()  # cold, and says so
    inferspan.force_flush()
    exporter.clear()
    Points._add = counted  # type: ignore[method-assign]
    call()
    inferspan.force_flush()
    spans = exporter.get_finished_spans()
    root = next(span for span in spans if span.parent is None)
    return {
        "root": len(root.attributes),
        "children": [len(span.attributes) for span in spans if span is not root],
        "points": points,
    }


def _providers(ratio: float, mode: str = "ours") -> tuple[Any, Any]:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class Drop(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)))
    if mode == "native":
        from fastotel import OTLPSpanProcessor

        provider.add_span_processor(OTLPSpanProcessor(endpoint=os.environ[SINK]))
    elif mode == "sent":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(os.environ[SINK])))
    else:
        provider.add_span_processor(BatchSpanProcessor(Drop()))
    return provider, MeterProvider([InMemoryMetricReader()])


Phases = Sequence[tuple[str, Callable[[Any], Any]]]


def _workload(name: str) -> tuple[Callable[[], Any], Phases]:
    """A call, and the same in the phases that one would put a span around."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import torch
    import transformers

    from support import tiny

    tokenizer = tiny.word_tokenizer()
    if name == "classify":
        pipe = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tokenizer)
        return lambda: pipe(TEXT), (
            ("tokenize", lambda _: pipe.preprocess(TEXT)),
            ("forward", pipe.forward),
            ("detokenize", pipe.postprocess),
        )
    if name.startswith("embed"):
        return _embedding([SENTENCE] * int(name.removeprefix("embed") or 1))
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=4, n_head=4, eos_token_id=None)
    ).eval()
    inputs = tokenizer(TEXT, return_tensors="pt").input_ids
    mask = torch.ones_like(inputs)

    def generate(_: Any = None) -> Any:
        return model.generate(inputs, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)

    return generate, (("forward", generate),)


def _embedding(sentences: list[str]) -> tuple[Callable[[], Any], Phases]:
    """Sentences embedded by all-MiniLM-L6-v2 as its authors trained it, in one batch."""
    from inferspan.cli.demo_models import embedder

    pipe = embedder()
    size = len(sentences)

    def tokenize(_: Any) -> Any:
        return pipe.tokenizer(sentences, return_tensors="pt", padding=True)

    return lambda: pipe(sentences, batch_size=size, return_tensors=True), (
        ("tokenize", tokenize),
        ("forward", pipe.forward),
        (
            "detokenize",
            lambda outputs: [pipe.postprocess([row.unsqueeze(0)], return_tensors=True) for row in outputs[0]],
        ),
    )


def _by_hand(phases: Phases, tracer: Any) -> Callable[[], Any]:
    def call() -> Any:
        with tracer.start_as_current_span("infer", attributes={"model": "tiny", "task": "some"}) as root:
            result = None
            for name, function in phases:
                with tracer.start_as_current_span(name) as span:
                    if name == "forward":
                        span.set_attribute("batch", 1)
                    result = function(result)
            root.set_attribute("tokens", 8)
            root.set_attribute("cold", False)
        return result

    return call


def _values(count: int) -> dict[str, Any]:
    kinds: tuple[Any, ...] = ("text", 8, 0.25, True)
    return {f"some.attribute.{place}": kinds[place % len(kinds)] for place in range(count)}


def _points(meter: Any, shape: dict[str, Any]) -> list[tuple[Any, dict[str, str]]]:
    return [
        (
            meter.create_histogram(f"some.histogram.{place}", "s"),
            {f"some.attribute.{key}": "text" for key in range(count)},
        )
        for place, count in enumerate(shape["points"])
    ]


def _by_hand_equal(phases: Phases, tracer: Any, meter: Any, shape: dict[str, Any]) -> Callable[[], Any]:
    points = _points(meter, shape)
    children = [*shape["children"]]

    def call() -> Any:
        left = list(children)
        with tracer.start_as_current_span("infer", attributes=_values(3)) as root:
            result = None
            for name, function in phases:
                with tracer.start_as_current_span(name) as span:
                    result = function(result)
                    if left:
                        span.set_attributes(_values(left.pop()))
            for count in left:  # prefill and decode, which hands cannot put around anything
                tracer.start_span("part", attributes=_values(count)).end()
            root.set_attributes(_values(shape["root"]))
            for histogram, attributes in points:
                histogram.record(0.25, attributes)
        return result

    return call


def _floor(phases: Phases, provider: Any, meter: Any, shape: dict[str, Any], with_spans: bool) -> Callable[[], Any]:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, TraceFlags

    from inferspan.emit.fastpath import FastInstrument

    points = [(FastInstrument(histogram, "histogram"), attributes) for histogram, attributes in _points(meter, shape)]
    tracer = provider.get_tracer("floor")
    sampled = TraceFlags(TraceFlags.SAMPLED)
    done: deque[list[int]] = deque()
    clock = time.time_ns

    def span(name: str, count: int, trace: int, parent: Any, start: int, end: int) -> Any:
        made = ReadableSpan(
            name=name,
            context=SpanContext(trace, random.getrandbits(64), False, sampled),
            parent=parent,
            resource=provider.resource,
            attributes=_values(count),
            instrumentation_scope=tracer._instrumentation_scope,
            start_time=start,
            end_time=end,
        )
        provider._active_span_processor.on_end(made)
        return made

    def emit() -> None:
        while True:
            time.sleep(0.005)
            while done:
                times = done.popleft()
                if with_spans:
                    trace = random.getrandbits(128)
                    root = span("infer", shape["root"], trace, None, times[0], times[-1])
                    for place, count in enumerate(shape["children"]):
                        start, end = times[1 + 2 * place : 3 + 2 * place] or (times[1], times[2])
                        span("part", count, trace, root.context, start, end)
                for streams, attributes in points:
                    streams.put(0.25, attributes, None)

    def call() -> Any:
        times = [clock()]
        result = None
        for _, function in phases:
            times.append(clock())
            result = function(result)
            times.append(clock())
        times.append(clock())
        done.append(times)
        return result

    threading.Thread(target=emit, daemon=True).start()
    return call
