"""What a decoded token costs, and a generation besides: the same loop with and without.

    python benchmarks/tokens.py [--rounds 20]

A tiny GPT-2 on one thread generates few tokens and many; the difference of the two, with inferspan and without it, is
what the tokens in between have cost, and the rest is the generation's. ``thread`` is CPU time of the calling thread,
``process`` that of all threads until everything is flushed to a processor that drops it. Rounds take turns, and each
figure is the mean of the lower half of them.
"""

from __future__ import annotations

import argparse
import gc
import platform
from time import process_time_ns, thread_time_ns

import torch
import transformers
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import inferspan

FEW, MANY, CALLS = 8, 208, 5
CLOCKS = {"thread": thread_time_ns, "process": process_time_ns}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=None)
    ).eval()
    inputs = torch.ones((1, 4), dtype=torch.long)
    mask = torch.ones_like(inputs)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)

    def spent(tokens: int, is_on: bool) -> dict[str, float]:
        """Microseconds of one call."""
        gc.collect()
        begun = {name: clock() for name, clock in CLOCKS.items()}
        ended = {}
        for _ in range(CALLS):
            model.generate(inputs, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        ended["thread"] = thread_time_ns()
        if is_on:
            inferspan.force_flush()
        ended["process"] = process_time_ns()
        return {name: (ended[name] - begun[name]) / CALLS / 1000 for name in CLOCKS}

    found: dict[tuple[str, int, bool], list[float]] = {}
    for _ in range(rounds):
        for is_on in (False, True):
            if is_on:
                inferspan.instrument(tracer_provider=provider, meter_provider=meter_provider, devices="never")
            spent(FEW, is_on)
            for tokens in (FEW, MANY):
                for name, value in spent(tokens, is_on).items():
                    found.setdefault((name, tokens, is_on), []).append(value)
            if is_on:
                inferspan.uninstrument()

    print(f"Python {platform.python_version()}, torch {torch.__version__}, {rounds} rounds")
    for name in CLOCKS:
        few, many = (
            _lower_half(found[name, tokens, True]) - _lower_half(found[name, tokens, False]) for tokens in (FEW, MANY)
        )
        token = (many - few) / (MANY - FEW)
        off = (_lower_half(found[name, MANY, False]) - _lower_half(found[name, FEW, False])) / (MANY - FEW)
        print(f"{name:8} a token {token:+6.2f} µs beside {off:.0f} µs, a generation {few - FEW * token:+6.0f} µs")


def _lower_half(values: list[float]) -> float:
    kept = sorted(values)[: max(1, len(values) // 2)]
    return sum(kept) / len(kept)


if __name__ == "__main__":
    main()
