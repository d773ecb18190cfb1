"""The extremes that ``soak.py --case`` runs, each in a process of its own: one result as a line of JSON.

What the process holds is read after a first part, the warm-up, and at the end. ``cost`` is the CPU time of twice as
much over that of once: 2 is linear.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import sys
import threading
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any

import psutil
import torch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import inferspan
from inferspan import faults, semconv
from inferspan.core import current
from inferspan.instrumentor import state
from support import cheap

CHILDREN = {"asyncio": 1}
WARM = 0.4  # by then the queue has been as long as it gets
THREADS = 8
TASKS = 64


class Count(SpanExporter):
    """Counts roots, the spans of the largest trace, and children that are missing."""

    def __init__(self) -> None:
        self.roots = 0
        self.missing = 0
        self._traces: dict[int, int] = {}
        self.largest = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            trace_id = span.context.trace_id
            self._traces[trace_id] = self._traces.get(trace_id, 0) + 1
            if span.parent is None:  # which comes last
                self.roots += 1
                self.missing += span.attributes.get(semconv.CHILDREN_DROPPED, 0)
                self.largest = max(self.largest, self._traces.pop(trace_id))
        return SpanExportResult.SUCCESS


class Watch:
    """What the process holds, after the warm-up and at most; ``step`` is called now and then."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.queue = 0
        self.threads = 0
        self.cpu: list[float] = []
        self.held: list[int] = []

    def step(self) -> None:
        reporter = state.pipeline
        assert reporter is not None
        self.queue = max(self.queue, len(reporter._worker._records))
        self.threads = max(self.threads, threading.active_count())

    def mark(self) -> None:
        """The end of one part."""
        gc.collect()
        self.cpu.append(process_time())
        self.held.append(self._process.memory_info().rss)

    def growth_mb(self) -> float:
        """Since the end of the first part, the warm-up."""
        return (self.held[-1] - self.held[0]) / 1e6

    def cost(self) -> float:
        """CPU time of both halves behind the warm-up over that of the first of them."""
        return (self.cpu[2] - self.cpu[0]) / (self.cpu[1] - self.cpu[0])


def stream(number: int, watch: Watch) -> dict[str, Any]:
    """One lazy pipeline over so many items: one inference."""
    pipe = cheap.pipeline()
    marks = {int(number * WARM), int(number * (1 + WARM) / 2)}
    for place, _ in enumerate(pipe(item for item in range(number))):
        if place % 1000 == 0:
            watch.step()
        if place in marks:
            watch.mark()
    watch.mark()
    return {"roots": 1, "cost": watch.cost()}


def threads(number: int, watch: Watch) -> dict[str, Any]:
    """Calls of a module in eight threads."""
    module = cheap.module()

    def work(calls: int) -> None:
        x = torch.ones(1)
        for place in range(calls):
            module(x)
            if place % 100 == 0:
                watch.step()

    def part(share: float) -> None:
        running = [threading.Thread(target=work, args=(int(number * share) // THREADS,)) for _ in range(THREADS)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    _in_parts(part, watch)
    return {"roots": number, "cost": watch.cost()}


def asynchronous(number: int, watch: Watch) -> dict[str, Any]:
    """Blocks in 64 tasks of one event loop."""

    async def work(calls: int) -> None:
        for _ in range(calls):
            async with inferspan.inference("job") as block, block.phase("wait"):
                await asyncio.sleep(0)
            watch.step()

    async def all_tasks(calls: int) -> None:
        await asyncio.gather(*(work(calls // TASKS + (place < calls % TASKS)) for place in range(TASKS)))

    _in_parts(lambda share: asyncio.run(all_tasks(int(number * share))), watch)
    return {"roots": number, "cost": watch.cost()}


def long_generation(number: int, watch: Watch) -> dict[str, Any]:
    """One ``generate()`` of half as many tokens, then one of so many."""
    model = cheap.language_model()
    return _doubled(number, watch, lambda tokens: cheap.generate(model, tokens), roots=2)


def continuous_batching(number: int, watch: Watch) -> dict[str, Any]:
    """Half as many requests at once to a manager, then so many to another."""
    model = cheap.language_model()

    def run(requests: int) -> None:
        found = cheap.generate_batch(model, requests, 4)
        assert len(found) == requests

    return _doubled(number, watch, run, roots=number // 2 + number)


RUN: dict[str, Callable[[int, Watch], dict[str, Any]]] = {
    "stream": stream,
    "threads": threads,
    "asyncio": asynchronous,
    "long-generation": long_generation,
    "continuous-batching": continuous_batching,
}


def _in_parts(run: Callable[[float], None], watch: Watch) -> None:
    for share in (WARM, (1 - WARM) / 2, (1 - WARM) / 2):
        contextvars.Context().run(run, share)
        inferspan.force_flush()
        watch.mark()


def _doubled(number: int, watch: Watch, run: Callable[[int], Any], roots: int) -> dict[str, Any]:
    """The same with half and with all, with Inferspan and without, and how the CPU time grows."""
    took: dict[tuple[bool, int], float] = {}
    run(10)
    for instrumented in (True, False):
        if not instrumented:
            inferspan.uninstrument()
        for size in (number // 2, number):
            start = process_time()
            run(size)
            inferspan.force_flush()
            took[instrumented, size] = process_time() - start
            if instrumented:
                watch.step()
                watch.mark()
    return {
        "roots": roots + (1 if roots == 2 else 10),
        "cost": took[True, number] / took[True, number // 2],
        "cost without": took[False, number] / took[False, number // 2],
        "against without": took[True, number] / took[False, number],
    }


def main() -> None:
    name, number = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    exporter = Count()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, 1 << 18))
    meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    inferspan.instrument(tracer_provider=provider, meter_provider=meter_provider, devices="never")
    queue_max = current.settings().queue_max  # type: ignore[union-attr]
    watch = Watch()
    before = threading.active_count()
    reporter: Any = state.pipeline
    found = RUN[name](number, watch)
    inferspan.force_flush()
    provider.force_flush()
    over = reporter._over_children_max
    # where a root is left out, it is counted with its children
    dropped = (reporter._worker.children_dropped - max(0, exporter.missing - over)) // (1 + CHILDREN.get(name, 0))
    print(
        json.dumps(
            {
                "growth_mb": watch.growth_mb(),
                "memory_mb": watch.held[-1] / 1e6,
                "queue": watch.queue,
                "queue_max": queue_max,
                "threads": threading.active_count() - before,
                "lost": found.pop("roots") - exporter.roots - dropped,
                "dropped": dropped,
                "faults": sum(faults.counts().values()),
                "spans": exporter.largest,
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
