"""What a decoded token costs, and a generation besides.

    python benchmarks/tokens.py [--rounds 100]

A tiny GPT-2 on one thread generates few tokens and many; the difference of the two is what the tokens in between cost,
the rest is the generation's. CPU time of the calling thread, in one process: without, with ``floor``, with inferspan,
in turns. ``floor`` is the least that can be done from Python at the same places: a method in front of
``PreTrainedModel.__call__`` that only calls it, and one that reads a clock where the loop asks whether to go on.

Each figure is the 30th percentile of the rounds: this is about small differences, and the machine may have other work.
"""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Callable
from time import perf_counter_ns, thread_time_ns
from typing import Any

import torch
import transformers
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from transformers.generation import GenerationMixin

import inferspan

FEW, MANY = 8, 104
ASKS = "_has_unfinished_sequences"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=None)
    ).eval()
    inputs = torch.ones((1, 4), dtype=torch.long)
    mask = torch.ones_like(inputs)

    def spent(tokens: int) -> float:
        """Microseconds of one call."""
        begun = thread_time_ns()
        model.generate(inputs, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return (thread_time_ns() - begun) / 1000

    modes: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "off": (lambda: None, lambda: None),
        "floor": (floor, no_floor),
        "ours": (ours, inferspan.uninstrument),
    }
    found: dict[tuple[str, int], list[float]] = {}
    gc.disable()
    for _ in range(rounds):
        for mode, (begin, end) in modes.items():
            begin()
            spent(2 * FEW)
            for tokens in (FEW, MANY):
                found.setdefault((mode, tokens), []).append(spent(tokens))
            end()
        gc.collect()
    figures = {key: sorted(values)[len(values) * 3 // 10] for key, values in found.items()}
    per_token = {mode: (figures[mode, MANY] - figures[mode, FEW]) / (MANY - FEW) for mode in modes}
    per_call = {mode: figures[mode, FEW] - FEW * per_token[mode] for mode in modes}
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {rounds} rounds")
    print(f"off    a token {per_token['off']:7.1f} µs   a generation {per_call['off']:6.0f} µs")
    for mode in ("floor", "ours"):
        token, call = per_token[mode] - per_token["off"], per_call[mode] - per_call["off"]
        print(f"{mode:6} a token {token:+7.1f} µs   a generation {call:+6.0f} µs")


def ours() -> None:
    inferspan.instrument(tracer_provider=PROVIDER, meter_provider=METER_PROVIDER, devices="never")


def floor() -> None:
    asks = getattr(GenerationMixin, ASKS)
    times = []

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(transformers.PreTrainedModel, self).__call__(*args, **kwargs)

    def clocked(self: Any, *args: Any, **kwargs: Any) -> Any:
        unfinished = asks(self, *args, **kwargs)
        times.append(perf_counter_ns())
        return unfinished

    clocked.original = asks  # type: ignore[attr-defined]
    transformers.PreTrainedModel.__call__ = __call__  # type: ignore[method-assign]
    setattr(GenerationMixin, ASKS, clocked)


def no_floor() -> None:
    del transformers.PreTrainedModel.__call__
    setattr(GenerationMixin, ASKS, getattr(GenerationMixin, ASKS).original)


PROVIDER = TracerProvider(shutdown_on_exit=False)
PROVIDER.add_span_processor(SpanProcessor())
METER_PROVIDER = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)

if __name__ == "__main__":
    main()
