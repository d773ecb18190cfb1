"""What recording modules costs: the wrapped ``__call__`` where nothing is recorded, and records where layers are.

    python benchmarks/layers.py [--rounds 40]

The modules do nothing, so that only the cost is measured: compare it with what a layer of your model takes. CPU time of
the calling thread, torch on one thread; rounds take turns, and each figure is the least of them all, since the machine
may have other work.

First one call of a module: of a class that is not wrapped, of a class that is, and of a layer in an inference that
does not record any. Then one call of a block with attention and MLP, in an inference that records layers. Last what it
costs to emit a layer, as a span and points, once an inference, on the worker's thread (CPU time of the process). On
a GPU a timed call also records two events, which is not measured here.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from time import process_time_ns, thread_time_ns
from typing import Any

import torch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import inferspan

BLOCKS, TIMES = 12, 300
NEVER = {"layers_every": 1_000_000}


class Part(torch.nn.Module):
    """A part of a block, by its name and its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Linear(2, 2)

    def forward(self, x: int) -> int:
        return x


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Part(), Part()

    def forward(self, x: int) -> int:
        return self.mlp(self.attention(x))


class Stack(torch.nn.Module):
    """Calls its blocks so many times, and notes how long that took."""

    def __init__(self, kind: type[torch.nn.Module]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(kind() for _ in range(BLOCKS))
        self.times = TIMES
        self.spent_ns = 0

    def forward(self, x: int) -> int:
        blocks = list(self.blocks)
        start = thread_time_ns()
        for _ in range(self.times):
            for block in blocks:
                block(x)
        self.spent_ns = thread_time_ns() - start
        return x


def instrument(**settings: Any) -> None:
    inferspan.instrument(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
        devices="never",
        **settings,
    )


def call_ns(kind: type[torch.nn.Module], warm_ups: Iterable[int] = (0, 0), **settings: Any) -> float:
    """Nanoseconds of one call of a block."""
    instrument(**settings)
    stack = Stack(kind).eval()
    with torch.no_grad():
        for x in warm_ups:
            stack(x)
        stack(0)
    inferspan.uninstrument()
    return stack.spent_ns / (BLOCKS * TIMES)


def guarded_ns() -> float:
    """The same of instances that are not recorded, whose class has a model."""
    instrument()
    kind = type("Guarded", (Part,), {})
    model, stack = kind().eval(), Stack(kind).eval()
    with torch.no_grad():
        model(0)
        stack(0)
    inferspan.uninstrument()
    return stack.spent_ns / (BLOCKS * TIMES)


def emitting_ns(**settings: Any) -> float:
    """Nanoseconds of one inference with everything that is emitted for it."""
    instrument(**settings)
    stack = Stack(Block).eval()
    stack.times = 1
    best = float("inf")
    with torch.no_grad():
        for _ in range(5):
            inferspan.force_flush()
            start = process_time_ns()
            stack(0)
            inferspan.force_flush()
            best = min(best, process_time_ns() - start)
    inferspan.uninstrument()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = range(parser.parse_args().rounds)
    torch.set_num_threads(1)
    measures = {
        "bare": lambda: call_ns(Part),
        "guarded": guarded_ns,
        "asked for": lambda: call_ns(Part, layers="blocks.*", **NEVER),
        "block": lambda: call_ns(Block),
        "block asked for": lambda: call_ns(Block, layers="transformer", **NEVER),
        "block alone": lambda: call_ns(Block, layers="blocks.?,blocks.??"),
        "block with parts": lambda: call_ns(Block, layers="transformer"),
        "inference": emitting_ns,
        "inference emitted": lambda: emitting_ns(layers="transformer"),
    }
    found = {name: float("inf") for name in measures}
    for _ in rounds:
        for name, measure in measures.items():
            found[name] = min(found[name], measure())

    print(f"Python {platform.python_version()}, torch {torch.__version__}, least of {len(rounds)} rounds")
    print(f"one call of a module that does nothing {found['bare'] / 1e3:5.2f} µs")
    for name, words in (("guarded", "its class is wrapped"), ("asked for", "a layer, not recorded")):
        print(f"  {words:36} {(found[name] - found['bare']) / 1e3:+5.2f} µs")
    print(f"one call of a block of three           {found['block'] / 1e3:5.2f} µs")
    for name, words in (
        ("block asked for", "attention and MLP too, not recorded"),
        ("block alone", "the block recorded"),
        ("block with parts", "attention and MLP too, recorded"),
    ):
        print(f"  {words:36} {(found[name] - found['block']) / 1e3:+5.2f} µs")
    emitted = (found["inference emitted"] - found["inference"]) / BLOCKS - (found["block with parts"] - found["block"])
    print(f"emitting a layer, once an inference    {emitted / 1e3:5.0f} µs")


if __name__ == "__main__":
    main()
