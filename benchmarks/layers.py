"""What watching modules costs: the guarded ``__call__`` where nothing is recorded, and records where layers are.

    python benchmarks/layers.py [--rounds 20] [--layers 12] [--width 256]

The first table is of one call of a module that does nothing, in nanoseconds over a call of a class that is not guarded:
of an instance that nobody watches, and of one that is a layer in an inference that records none.

The second is of a Llama-like model of random weights on the host, one thread, by CPU time of the process: a forward
and a decoding step, with layers off, asked for but not recorded (one inference in so many), and recorded. What is
printed is the share that is added to ``off``. On a GPU a timed call has two events more; nothing of that is in here.

Rounds take turns, and each figure is the least of them all: the machine may have other work.
"""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Callable
from time import perf_counter_ns, process_time_ns
from typing import Any

import torch
import transformers
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

import inferspan

CALLS = 20000
STEPS = 16
MODES: dict[str, dict[str, Any]] = {
    "off": {},
    "asked for, not recorded": {"layers": "transformer", "layers_every": 1_000_000},
    "blocks": {"layers": "model.layers.?,model.layers.??"},
    "blocks, attention, MLP": {"layers": "transformer"},
}


class Nothing(torch.nn.Module):
    def forward(self, x: int) -> int:
        return x


class Around(torch.nn.Module):
    """Calls what it holds, many times."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.spent_ns = 0

    def forward(self, x: int) -> int:
        inner = self.inner
        start = perf_counter_ns()
        for _ in range(CALLS):
            inner(x)
        self.spent_ns = perf_counter_ns() - start
        return x


def instrument(**settings: Any) -> None:
    inferspan.instrument(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider(shutdown_on_exit=False),
        devices="never",
        **settings,
    )


def guards(rounds: int) -> dict[str, float]:
    """Nanoseconds of one call."""
    spent: dict[str, list[float]] = {"bare": [], "not watched": [], "a layer, not recorded": []}
    for _ in range(rounds):
        for name, found in spent.items():
            instrument(layers_every=1_000_000)
            kind = type("Kind", (Nothing,), {})
            around = Around(kind())
            handles = []
            if name == "not watched":
                handles = [inferspan.instrument_module(kind())]
                watched = kind()
                handles.append(inferspan.instrument_module(watched))
            elif name == "a layer, not recorded":
                handles = [inferspan.instrument_module(around, layers=1)]
                with torch.no_grad():
                    around(1)  # the one inference that is recorded
            with torch.no_grad():
                around(1)
            found.append(around.spent_ns / CALLS)
            for handle in handles:
                handle.remove()
            inferspan.uninstrument()
    return {name: min(found) for name, found in spent.items()}


def model_of(layers: int, width: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    return transformers.LlamaForCausalLM(config).eval()


def timed(call: Callable[[], Any]) -> float:
    """CPU milliseconds, the threads of ours included."""
    start = process_time_ns()
    call()
    inferspan.force_flush()
    return (process_time_ns() - start) / 1e6


def models(rounds: int, layers: int, width: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one forward, and of one step of a generation, by mode."""
    model = model_of(layers, width)
    ids = torch.arange(64).reshape(1, 64)
    spent: dict[str, dict[str, list[float]]] = {mode: {"forward": [], "step": []} for mode in MODES}
    with torch.no_grad():
        for _ in range(rounds):
            for mode, settings in MODES.items():
                instrument(**settings)
                for _ in range(2):  # the first of a model finds its layers, and is recorded
                    model(ids)
                inferspan.force_flush()
                gc.collect()
                spent[mode]["forward"].append(timed(lambda: model(ids)))
                tokens = timed(lambda: model.generate(ids, max_new_tokens=STEPS, do_sample=False, eos_token_id=None))
                spent[mode]["step"].append(tokens / STEPS)
                inferspan.uninstrument()
    return {mode: {name: min(found) for name, found in by.items()} for mode, by in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    found = guards(options.rounds)
    bare = found.pop("bare")
    print(f"one call of a module that does nothing: {bare:.0f} ns")
    for name, spent in found.items():
        print(f"  {name:24} {spent - bare:+.0f} ns")
    by_mode = models(options.rounds, options.layers, options.width)
    off = by_mode.pop("off")
    print(
        f"{options.layers} layers of width {options.width}: a forward of 64 tokens {off['forward']:.1f} ms, "
        f"a decoding step {off['step']:.1f} ms"
    )
    for mode, spent_by in by_mode.items():
        shares = "  ".join(
            f"{name} {spent / off[name] - 1:+.1%} ({(spent - off[name]) * 1e3 / options.layers:+.0f} µs a layer)"
            for name, spent in spent_by.items()
        )
        print(f"  {mode:24} {shares}")


if __name__ == "__main__":
    main()
