"""The program that ``soak.py`` checks: inferences of every kind at once, while things go wrong around them.

It runs in rounds. In each, threads and an event loop infer, and an operator flushes, forks, uninstruments, replaces
providers and has the exporter fail; then all come to rest, all is flushed, and memory, threads and file descriptors
are read. Each inference has a number, an attribute of its root span, and each that has been recorded is written to the
ledger, a pipe, with the tree that must arrive.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import psutil
import torch
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import inferspan
from inferspan import faults
from inferspan.instrumentor import state
from support import cheap, tiny

SERIAL = "soak.serial"
THREADS = 3
TASKS = 4
FORKS = 2
CHILDREN_MAX = 64
HUNG_S = 120.0
STACKS = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the program
PHASES = ("preprocess", "forward", "postprocess")
GENERATION = ("forward", "prefill", "decode")


class Ledger:
    """What has happened, for the one who counts: a line of JSON each, written at once, so that forks may share it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, **told: Any) -> None:
        line = json.dumps(told, default=str).encode() + b"\n"
        assert len(line) <= 4096, line[:200]  # what a pipe takes as a whole
        os.write(self._descriptor, line)

    def dropped(self, spans: Any, reason: str) -> None:
        """The exporter has not sent these."""
        spans = list(spans)
        for start in range(0, len(spans), 40):
            part = spans[start : start + 40]
            serials = [span.attributes[SERIAL] for span in part if SERIAL in span.attributes]
            traces = sorted({f"{span.context.trace_id:032x}" for span in part})
            self.write(kind="dropped", reason=reason, serials=serials, traces=traces)


class Exporter(SpanExporter):
    """OTLP over HTTP, which fails for a while on request. A forked child has connections of its own."""

    fault: str | None = None

    def __init__(self, endpoint: str, ledger: Ledger) -> None:
        self._endpoint = f"{endpoint}/v1/traces"
        self._ledger = ledger
        self._pid = os.getpid()
        self._inner = OTLPSpanExporter(self._endpoint)

    def export(self, spans: Any) -> SpanExportResult:
        if os.getpid() != self._pid:
            self._pid, self._inner = os.getpid(), OTLPSpanExporter(self._endpoint)
        fault = Exporter.fault
        if fault == "slow":
            time.sleep(0.5)
        elif fault is not None:
            self._ledger.dropped(spans, f"exporter {fault}")
            if fault == "raises":
                raise ConnectionError("as planned")
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._ledger.dropped(spans, "exporter gave up")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class MetricExporter(OTLPMetricExporter):
    """Of the program alone: a forked child has the sums of its parent so far in its own."""

    pid = os.getpid()

    def export(self, *args: Any, **kwargs: Any) -> MetricExportResult:
        return super().export(*args, **kwargs) if os.getpid() == self.pid else MetricExportResult.SUCCESS


class Soak:
    """The whole run. ``seconds`` of rounds of ``round_s`` each."""

    def __init__(self, endpoint: str, ledger: Ledger, seconds: float, round_s: float, seed: int) -> None:
        self.endpoint, self.ledger = endpoint, ledger
        self.seconds, self.round_s = seconds, round_s
        self.random = random.Random(seed)
        self.serials = count(1)
        self.pid = os.getpid()
        self.transitions = 0
        self.retired: list[Any] = []
        self.resting = threading.Event()
        self.longest_flush_s = 0.0
        self.faults = 0
        self.instances = count(1)

    def run(self) -> None:
        self.replace_providers()
        self.instrument()
        self.make_models()
        deadline = time.monotonic() + self.seconds
        rounds = 0
        while time.monotonic() < deadline:
            self.one_round(rounds)
            rounds += 1
        self.leave_open()
        self.ledger.write(kind="end", longest_flush_s=self.longest_flush_s, faults=self.faults)

    def make_models(self) -> None:
        self.pipe, self.lm, self.module = cheap.pipeline(), cheap.language_model(), cheap.module()
        inferspan.instrument_module(self.module)  # that lasts over uninstrument()
        self.tokenizer = tiny.word_tokenizer()

    # -- the world around -----------------------------------------------------------------------------------------

    def instrument(self) -> None:
        inferspan.instrument(children_max=CHILDREN_MAX, devices="never")

    def replace_providers(self) -> None:
        """New global providers, by force. The old ones end when all has come to rest."""
        self.retired += [
            found for found in (trace._TRACER_PROVIDER, metrics_internal._METER_PROVIDER) if found is not None
        ]
        resource = Resource.create({"service.name": "soak", "service.instance.id": str(next(self.instances))})
        tracer_provider = TracerProvider(resource=resource)
        exporter = Exporter(self.endpoint, self.ledger)
        # room for all that comes while an exporter tries again: what the SDK drops it does not report
        tracer_provider.add_span_processor(BatchSpanProcessor(exporter, 1 << 18, schedule_delay_millis=500))
        # It collects at rest only: at a fork it could hold locks of the SDK that the child would wait for.
        reader = PeriodicExportingMetricReader(MetricExporter(f"{self.endpoint}/v1/metrics"), 3_600_000)
        trace._TRACER_PROVIDER = tracer_provider
        metrics_internal._METER_PROVIDER = MeterProvider([reader], resource=resource)

    @contextmanager
    def transition(self) -> Iterator[None]:
        """What runs meanwhile may be recorded, in part or not at all."""
        self.transitions += 1
        try:
            yield
        finally:
            self.transitions += 1

    def operate(self) -> None:
        """One thing that an operator, or bad luck, does."""
        {
            "flush": self.flush,
            "flush provider": lambda: trace.get_tracer_provider().force_flush(),
            "fork": self.fork,
            "fork inside": self.fork_inside,
            "reinstrument": self.reinstrument,
            "replace": self.replace_providers,
            "fault": self.fault,
            "collect": gc.collect,
        }[
            self.random.choices(
                ("flush", "flush provider", "fork", "fork inside", "reinstrument", "replace", "fault", "collect"),
                (4, 3, 4, 2, 1, 1, 2, 1),
            )[0]
        ]()

    def flush(self) -> None:
        start = time.monotonic()
        if not inferspan.force_flush() and Exporter.fault is None:
            self.ledger.write(kind="bad", what="a flush has failed")
        self.longest_flush_s = max(self.longest_flush_s, time.monotonic() - start)

    def reinstrument(self) -> None:
        with self.transition():
            inferspan.uninstrument()
            time.sleep(self.random.uniform(0, 0.2))
            self.instrument()

    def fault(self) -> None:
        self.faults += 1
        Exporter.fault = self.random.choice(("fails", "raises", "slow"))
        time.sleep(self.random.uniform(0.5, 2))
        Exporter.fault = None

    def fork(self) -> None:
        serials = [next(self.serials) for _ in range(3)]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                contextvars.Context().run(self.in_child, serials)
                status = 0
            except BaseException as error:  # noqa: BLE001
                self.ledger.write(kind="bad", what=f"in a child: {type(error).__name__} {str(error)[:500]}")
            finally:
                os._exit(status)
        deadline = time.monotonic() + HUNG_S
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.ledger.write(kind="bad", what="a child hangs", stack=_stack_of(child))
                os.kill(child, 9)
                os.waitpid(child, 0)
                return
            time.sleep(0.01)
        if ended[1]:
            self.ledger.write(kind="bad", what=f"a child ended with {ended[1]}")
        self.ledger.write(kind="fork")

    def fork_inside(self) -> None:
        self.block(next(self.serials), self.random, inside=self.fork)

    def in_child(self, serials: list[int]) -> None:
        reporter = state.pipeline
        assert reporter is not None
        assert not reporter._worker._records, "the child has inherited records"
        for serial in serials:
            self.random.choice((self.single, self.call_module, self.generate, self.standalone))(serial, self.random)
        assert inferspan.force_flush(), "the child's flush has failed"

    # -- inferences -------------------------------------------------------------------------------------------------

    def recorded(self, serial: int, expected: Any, attributes: dict[str, Any], before: int, marked: list[bool]) -> None:
        """Write to the ledger that an inference has ended. ``marked`` says, once marked, whether that was certain."""
        undisturbed = self.transitions == before and before % 2 == 0
        if not marked:
            if undisturbed:
                self.ledger.write(kind="bad", what="an inference was not recorded", serial=serial, tree=expected)
            else:
                self.ledger.write(kind="disturbed")
            return
        self.ledger.write(
            kind="inference",
            serial=serial,
            tree=expected if undisturbed else None,
            attributes=attributes if undisturbed else {},
            sure=all(marked),
            on_metrics=os.getpid() == self.pid and expected[0] != "standalone",
        )

    def marking(self, serial: int) -> tuple[Callable[[], None], list[bool]]:
        """What puts the number on the root span, and whether it has."""
        marked: list[bool] = []

        def mark() -> None:
            if marked:
                return
            before = self.transitions
            span = trace.get_current_span()
            if span.is_recording():
                span.set_attribute(SERIAL, serial)
                marked.append(before == self.transitions and before % 2 == 0)

        return mark, marked

    @contextmanager
    def inference(self, serial: int, expected: Any, **attributes: Any) -> Iterator[Callable[[], None]]:
        """Around the program's own call; an exception that was ``Planned`` ends here."""
        before = self.transitions
        mark, marked = self.marking(serial)
        try:
            with cheap.stamped(mark):
                yield mark
        except Planned:
            pass
        finally:
            self.recorded(serial, expected, attributes, before, marked)

    def single(self, serial: int, rng: random.Random) -> None:
        with self.inference(serial, ["cheap", *PHASES]):
            self.pipe(1)

    def list(self, serial: int, rng: random.Random) -> None:
        items = rng.choice((2, 3, 10, 40))
        with self.inference(serial, ["cheap", *_kept(PHASES * items)], **_dropped(3 * items), items=items):
            self.pipe(list(range(items)))

    def lazy(self, serial: int, rng: random.Random) -> None:
        items = rng.choice((1, 5, 30))
        expected = ["cheap", *_kept(PHASES * items)]
        with self.inference(serial, expected, **_dropped(3 * items), **_items(items)):
            for _ in self.pipe(item for item in range(items)):
                pass

    def lazy_abandoned(self, serial: int, rng: random.Random) -> None:
        taken = rng.choice((1, 4))
        with self.inference(serial, ["cheap", *PHASES * taken], abandoned=True, **_items(taken)):
            stream = iter(self.pipe(item for item in range(10)))
            for _ in range(taken):
                next(stream)
            del stream

    def fails(self, serial: int, rng: random.Random) -> None:
        reached = rng.randrange(3)
        phase = PHASES[reached]
        with self.inference(serial, ["cheap", *PHASES, *PHASES[: reached + 1]], error=Planned.__qualname__):
            self.pipe([0, (phase, Planned())])

    def lazy_fails(self, serial: int, rng: random.Random) -> None:
        with self.inference(serial, ["cheap", *PHASES, *PHASES[:2]], error=Planned.__qualname__):
            list(self.pipe(item for item in (0, ("forward", Planned()), 2)))

    def generate(self, serial: int, rng: random.Random) -> None:
        tokens = rng.choice((2, 8, 20))
        with self.inference(serial, ["text_completion", GENERATION], output=tokens, input=2):
            cheap.generate(self.lm, tokens)

    def generate_fails(self, serial: int, rng: random.Random) -> None:
        step = rng.choice((0, 3))
        expected = ["forward", "prefill"] if step == 0 else GENERATION
        with self.inference(serial, ["text_completion", expected], error=Planned.__qualname__):
            cheap.generate(self.lm, 8, fails_at=cheap.FailsAt(step, Planned()))

    def call_module(self, serial: int, rng: random.Random) -> None:
        with self.inference(serial, "forward"):
            self.module(torch.ones(2))

    def module_fails(self, serial: int, rng: random.Random) -> None:
        with self.inference(serial, "forward", error=Planned.__qualname__):
            self.module(Planned())

    def standalone(self, serial: int, rng: random.Random) -> None:
        with self.inference(serial, ["standalone", "tokenize"]) as mark:
            tracer = trace.get_tracer("soak")
            if self.transitions % 2:  # a span of the program's own is recorded whether or not we are
                return
            with tracer.start_as_current_span("standalone"):
                mark()
                self.tokenizer("the cat sat on the mat")

    def block(self, serial: int, rng: random.Random, inside: Callable[[], None] | None = None) -> None:
        steps = [rng.choice(("a", "b", "model")) for _ in range(rng.randrange(1, 5))]
        expected = []
        for step in steps:
            name = "forward" if step == "model" else step
            if step == "model" or expected[-1:] != [name]:
                expected.append(name)
        with self.inference(serial, ["block", *expected], input=7) as mark, inferspan.inference("block") as block:
            mark()
            if inside is not None:
                inside()
            block.set_tokens(input=7)
            for step in steps:
                if step == "model":
                    self.module(torch.ones(1))
                else:
                    with block.phase(step):
                        pass

    def block_fails(self, serial: int, rng: random.Random) -> None:
        with (
            self.inference(serial, ["block", "a"], error=Planned.__qualname__) as mark,
            inferspan.inference("block") as block,
        ):
            mark()
            with block.phase("a"):
                raise Planned

    async def in_task(self, serial: int, rng: random.Random) -> None:
        with self.inference(serial, ["task", "wait", "forward"]) as mark:
            async with inferspan.inference("task") as block:
                mark()
                async with block.phase("wait"):
                    await asyncio.sleep(0.001)
                self.module(torch.ones(1))

    async def in_task_together(self, serial: int, rng: random.Random) -> None:
        async def part(block: Any) -> None:
            async with block.phase("part"):
                await asyncio.sleep(0.002)

        with self.inference(serial, ["together", "part", "part"]) as mark:
            async with inferspan.inference("together") as block:
                mark()
                await asyncio.gather(part(block), part(block))

    async def in_task_cancelled(self, serial: int, rng: random.Random) -> None:
        async def work() -> None:
            async with inferspan.inference("cancelled") as block:
                mark()
                async with block.phase("wait"):
                    await asyncio.sleep(60)

        with self.inference(serial, ["cancelled", "wait"], cancelled=True) as mark:
            task = asyncio.ensure_future(work())
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def work(self, seed: int) -> None:
        rng = random.Random(seed)
        kinds = (
            *(self.single, self.list, self.lazy, self.lazy_abandoned, self.fails, self.lazy_fails),
            *(self.generate, self.generate_fails, self.call_module, self.module_fails),
            *(self.standalone, self.block, self.block_fails),
        )
        while not self.resting.is_set():
            # each where nothing is current, as a server's requests are
            contextvars.Context().run(rng.choice(kinds), next(self.serials), rng)
            time.sleep(0.002)

    def work_async(self, seed: int) -> None:
        async def worker(seed: int) -> None:
            rng = random.Random(seed)
            while not self.resting.is_set():
                await rng.choice((self.in_task, self.in_task_together, self.in_task_cancelled))(next(self.serials), rng)
                await asyncio.sleep(0.005)

        async def all_workers() -> None:
            await asyncio.gather(*(worker(seed + place) for place in range(TASKS)))

        asyncio.run(all_workers())

    # -- rounds -----------------------------------------------------------------------------------------------------

    def one_round(self, number: int) -> None:
        self.resting.clear()
        threads = [
            threading.Thread(target=self.guarded, args=(self.work, self.random.random()), daemon=True)
            for _ in range(THREADS)
        ]
        threads.append(threading.Thread(target=self.guarded, args=(self.work_async, number), daemon=True))
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + self.round_s
        while time.monotonic() < deadline:
            self.operate()
            time.sleep(self.random.uniform(0.05, 0.5))
        self.resting.set()
        for thread in threads:
            thread.join(HUNG_S)
            if thread.is_alive():
                self.ledger.write(kind="bad", what="a thread hangs", stack=_stack_of_thread(thread))
                os._exit(3)
        self.rest()

    def guarded(self, work: Callable[[Any], None], seed: Any) -> None:
        try:
            work(seed)
        except BaseException as error:
            self.ledger.write(kind="bad", what=f"{type(error).__name__} in the program: {str(error)[:500]}")
            logging.exception("in the program")

    def rest(self) -> None:
        gc.collect()
        self.flush()
        for provider in self.retired:
            provider.shutdown()
        self.retired.clear()
        gc.collect()
        process = psutil.Process()
        self.ledger.write(
            kind="rest",
            memory=process.memory_info().rss,
            threads=threading.active_count(),
            files=process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
            faults=faults.counts(),
        )

    def leave_open(self) -> None:
        """What runs when the program ends is ended and exported, too."""
        serial = next(self.serials)
        mark, marked = self.marking(serial)
        with cheap.stamped(mark):
            self.left = iter(self.pipe(item for item in range(10)))
            next(self.left)
        self.recorded(serial, ["cheap", *PHASES], {"abandoned": True}, self.transitions, marked)
        begun = threading.Event()

        def wait() -> None:
            serial = next(self.serials)
            mark, marked = self.marking(serial)
            with inferspan.inference("block"):
                mark()
                self.recorded(serial, "block", {"abandoned": True}, self.transitions, marked)
                begun.set()
                threading.Event().wait()

        threading.Thread(target=wait, daemon=True).start()
        begun.wait(HUNG_S)


class Planned(Exception):
    """What fails here fails on purpose."""


def _kept(phases: tuple[str, ...]) -> tuple[str, ...]:
    return phases[:CHILDREN_MAX]


def _dropped(phases: int) -> dict[str, int]:
    return {"children_dropped": phases - CHILDREN_MAX} if phases > CHILDREN_MAX else {}


def _items(items: int) -> dict[str, int]:
    return {"items": items} if items > 1 else {}


def _stack_of_thread(thread: threading.Thread) -> str:
    import traceback

    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame))[-2000:]


def _stack_of(child: int) -> str:
    """Where all threads of a child are: it is asked to write it to the file that was opened before it was forked."""
    import signal

    STACKS.seek(0)
    STACKS.truncate()
    os.kill(child, signal.SIGUSR1)
    time.sleep(1)
    STACKS.seek(0)
    return STACKS.read().decode()[:3000]


def main() -> None:
    import faulthandler
    import signal

    endpoint, descriptor, seconds, round_s, seed = sys.argv[1:]
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, STACKS)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(threadName)s %(name)s: %(message)s")
    Soak(endpoint, Ledger(int(descriptor)), float(seconds), float(round_s), int(seed)).run()


if __name__ == "__main__":
    main()
