"""A program that forks in the middle of inferences, from random threads, while the worker works.

    PYTHONPATH=tests python -m support.forks FORKS

Every inference has a number on its root span; the exporter appends a line for each to a file that parent and children
share. A child infers, flushes and exits. The last line of the output says, as JSON, what became of all that.
"""

from __future__ import annotations

import contextvars
import faulthandler
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count

import torch
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import inferspan
from inferspan import faults
from inferspan.instrumentor import state
from support import cheap

SERIAL = "fork.serial"
THREADS = 4
IN_CHILD = 3
LIMIT_S = 60.0


class ToFile(SpanExporter):
    """A line for each numbered span: the process and the number."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        serials = [span.attributes[SERIAL] for span in spans if span.attributes and SERIAL in span.attributes]
        # one call of the system, which appends as a whole
        os.write(self._descriptor, "".join(f"{os.getpid()} {serial}\n" for serial in serials).encode())
        return SpanExportResult.SUCCESS


class Forks:
    def __init__(self, forks: int) -> None:
        self.left = iter(range(forks))
        self.serials = count(1)
        self.owners: dict[int, int] = {}
        self.bad: list[str] = []
        self.children = 0
        self.inside = 0
        self.pipe, self.lm, self.module = cheap.pipeline(), cheap.language_model(), cheap.module()
        inferspan.instrument_module(self.module)

    def infer(self, serial: int, rng: random.Random, inside: object = None) -> None:
        """One inference; ``inside`` is called in the middle of it."""

        def mark() -> None:
            trace.get_current_span().set_attribute(SERIAL, serial)

        self.owners[serial] = os.getpid()
        with cheap.stamped(mark):
            kind = rng.randrange(4) if inside is None else 3
            if kind == 0:
                self.pipe([1, 2])
            elif kind == 1:
                cheap.generate(self.lm, 3)
            elif kind == 2:
                self.module(torch.ones(1))
            else:
                with inferspan.inference("block") as block:
                    mark()
                    with block.phase("a"):
                        if callable(inside):
                            inside()

    def work(self, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            for _ in range(rng.randrange(1, 10)):
                contextvars.Context().run(self.infer, next(self.serials), rng)
            if next(self.left, None) is None:
                return
            if rng.random() < 0.3:
                self.inside += 1
                contextvars.Context().run(self.infer, next(self.serials), rng, lambda: self.fork(rng))
            else:
                self.fork(rng)

    def fork(self, rng: random.Random) -> None:
        serials = [next(self.serials) for _ in range(IN_CHILD)]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                contextvars.Context().run(self.in_child, serials, rng)
                status = 0
            except BaseException as error:  # noqa: BLE001
                print(f"in a child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        self.owners.update(dict.fromkeys(serials, child))
        deadline = time.monotonic() + LIMIT_S
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGUSR1)  # it says where it is
                time.sleep(1)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = -1
                break
            time.sleep(0.002)
        self.children += 1
        if status:
            self.bad.append("a child hangs" if status == -1 else f"a child ended with {status}")

    def in_child(self, serials: list[int], rng: random.Random) -> None:
        reporter = state.pipeline
        assert reporter is not None
        assert not reporter._worker._records, "records of the parent"
        for serial in serials:
            self.infer(serial, rng)
        assert inferspan.force_flush(LIMIT_S / 2), "the flush has failed"

    def run(self) -> None:
        threads = [threading.Thread(target=self.work, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    with tempfile.TemporaryFile(buffering=0) as file:
        os.set_inheritable(file.fileno(), True)
        appending = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_APPEND)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(ToFile(appending), 1 << 18, schedule_delay_millis=100))
        meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        inferspan.instrument(tracer_provider=provider, meter_provider=meter_provider, devices="never")
        forks = Forks(int(sys.argv[1]))
        forks.run()
        flushed = inferspan.force_flush(LIMIT_S)
        file.seek(0)
        came = Counter(tuple(map(int, line.split())) for line in file.read().decode().splitlines())
    wanted = Counter({(owner, serial): 1 for serial, owner in forks.owners.items()})
    told = {
        "children": forks.children,
        "inside of an inference": forks.inside,
        "of the parent": sum(1 for owner in forks.owners.values() if owner == os.getpid()),
        "of children": sum(1 for owner in forks.owners.values() if owner != os.getpid()),
        "lost": sum((wanted - came).values()),
        "doubled": sum((came - wanted).values()),
        "bad": forks.bad,
        "faults": faults.counts(),
        "flushed": flushed,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
