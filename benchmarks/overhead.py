"""What an inference costs with Inferspan, beside what spans written by hand would cost.

    python benchmarks/overhead.py [--rounds 10] [--calls 1500]

One classification of a tiny BERT, torch on one thread, in fresh processes that take turns:

    off    nothing
    bare   by hand: a root and three children, five attributes in all, no metrics
    ours   inferspan.instrument(), everything on
    out    the same, sampled out by a parent-based ratio sampler

Spans go through a BatchSpanProcessor whose exporter encodes them as OTLP and drops them; metrics have a reader. ``p50``
and ``p99`` are of single calls on the calling thread; ``cpu`` is process CPU time of the whole loop with the final
flush, per call, so that work put off to another thread counts too. Each figure is the mean of the lower half of the
rounds, since noise on a shared machine only adds; what is printed is the difference to ``off``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODES = ("off", "bare", "ours", "out")
TEXT = "the cat sat on the mat"


def measure(mode: str, calls: int) -> dict[str, float]:
    """One round in this process; microseconds."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import torch
    import transformers
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    from support import tiny

    class Drop(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    torch.set_num_threads(1)
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0 if mode == "out" else 1.0)))
    provider.add_span_processor(BatchSpanProcessor(Drop()))
    pipe = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
    call: Callable[[], Any] = lambda: pipe(TEXT)  # noqa: E731
    if mode == "bare":
        call = _by_hand(pipe, provider.get_tracer("bare"))
    elif mode != "off":
        import inferspan

        inferspan.instrument(tracer_provider=provider, meter_provider=MeterProvider([InMemoryMetricReader()]))
    for _ in range(200):
        call()
    times = []
    cpu = time.process_time()
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    provider.force_flush()
    cpu = time.process_time() - cpu
    times.sort()
    return {
        "p50": times[calls // 2] * 1e6,
        "p99": times[int(calls * 0.99)] * 1e6,
        "cpu": cpu / calls * 1e6,
    }


def _by_hand(pipe: Any, tracer: Any) -> Callable[[], Any]:
    def call() -> Any:
        with tracer.start_as_current_span("classify", attributes={"model": "bert", "task": "classification"}) as root:
            with tracer.start_as_current_span("tokenize"):
                inputs = pipe.preprocess(TEXT)
            with tracer.start_as_current_span("forward") as forward:
                forward.set_attribute("batch", 1)
                outputs = pipe.forward(inputs)
            with tracer.start_as_current_span("postprocess"):
                result = pipe.postprocess(outputs)
            root.set_attribute("tokens", 8)
            root.set_attribute("cold", False)
        return result

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=1500)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode, options.calls)))
        return
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(options.rounds):
        for mode in MODES:
            command = [sys.executable, __file__, "--mode", mode, "--calls", str(options.calls)]
            output = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
            found[mode].append(json.loads(output.splitlines()[-1]))
    base = {name: _lower_half([one[name] for one in found["off"]]) for name in ("p50", "p99", "cpu")}
    print(f"{options.rounds} rounds of {options.calls} calls, µs; off: " + _row(base, dict.fromkeys(base, 0.0), ""))
    for mode in MODES[1:]:
        print(f"{mode:5}" + _row({name: _lower_half([one[name] for one in found[mode]]) for name in base}, base, "+"))


def _lower_half(values: list[float]) -> float:
    kept = sorted(values)[: max(1, len(values) // 2)]
    return sum(kept) / len(kept)


def _row(figures: dict[str, float], base: dict[str, float], sign: str) -> str:
    return "  ".join(f"{name} {figures[name] - base[name]:{sign}.0f}" for name in figures)


if __name__ == "__main__":
    main()
