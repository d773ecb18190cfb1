"""How often the leak detection is wrong, and how late it is.

    python benchmarks/leaks.py simulated [--runs 1000] [--inferences 5000]    false alarms by kind of steady memory
    python benchmarks/leaks.py delay [--runs 200]    delay on simulated leaks, resident set and allocator
    python benchmarks/leaks.py real [--runs 10] [--traces DIRECTORY]   both, on real loops of torch on the CPU

``simulated`` and ``delay`` make readings with numpy and hand their blocks to the detection. ``real`` runs each loop in
a process of its own, on one thread of torch, reads /proc/self/statm after each inference, and replays the readings;
with ``--traces`` they are kept, and those that are there are not run again. A run is one key; an alarm is its first.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inferspan.probes import leaks
from inferspan.probes.leaks import ALLOCATOR, RESIDENT, Leak, Leaks, Noise

Array = Any
KIB, MIB = 1 << 10, 1 << 20
INFERENCES = 5000
BLOCK = leaks._BLOCK


class Trace(NamedTuple):
    """One reading for each inference."""

    held: Array
    others: Array
    collected: Array
    shapes: Array
    noise: Noise


# Simulated: memory that does not leak. Scales are drawn over orders of magnitude for each run.


def _scale(rng: Any, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _lengths(rng: Any) -> Array:
    drawn = rng.lognormal(rng.uniform(3, 4.5), rng.uniform(0.3, 1), INFERENCES)
    return np.clip(drawn.astype(int), 4, 2048)


def _every(rng: Any, period: int) -> Array:
    flags = np.zeros(INFERENCES, bool)
    flags[int(rng.integers(period)) :: period] = True
    return flags


def _first_seen(values: Array) -> Array:
    flags = np.zeros(len(values), bool)
    flags[np.unique(values, return_index=True)[1]] = True
    return flags


def _trace(
    rng: Any, held: Array, *, others: Array = None, collected: Array = None, shapes: Array = None, exact: bool = False
) -> Trace:
    """On top of ``held``: the weights, and for a resident set what results and others hold for a moment."""
    held = held + _scale(rng, 200, 8000) * MIB
    if not exact:
        held = held + rng.lognormal(0, 1, INFERENCES) * _scale(rng, 0.05, 8) * MIB
    grain = 512 if exact else 4096
    return Trace(
        np.asarray(held, dtype=np.int64) // grain * grain,
        np.zeros(INFERENCES, int) if others is None else others,
        _every(rng, int(_scale(rng, 5, 1000))) if collected is None else collected,
        np.zeros(INFERENCES, int) if shapes is None else shapes,
        ALLOCATOR if exact else RESIDENT,
    )


STEP = np.arange(INFERENCES)


def results(rng: Any) -> Trace:
    """Nothing but results of varying size that are still alive at the reading."""
    return _trace(rng, np.zeros(INFERENCES))


def warm_up(rng: Any) -> Trace:
    """20 MiB to 1 GiB that come smoothly, most of them in the first 3 to 60 inferences."""
    return _trace(rng, _scale(rng, 20, 1000) * MIB * (1 - np.exp(-STEP / _scale(rng, 3, 60))))


def longest_input(rng: Any) -> Trace:
    """Memory stays where the longest input so far took it."""
    lengths = _lengths(rng)
    return _trace(rng, np.maximum.accumulate(lengths) * _scale(rng, 0.02, 2) * MIB, shapes=lengths)


def first_shapes(rng: Any) -> Trace:
    """Each new shape costs 20 to 150 KiB in the mean, some of them much more, up to 1,024 of them (oneDNN's cache)."""
    shapes = _lengths(rng) * 8 + rng.integers(0, rng.integers(1, 5), INFERENCES)
    new = _first_seen(shapes) & (np.cumsum(_first_seen(shapes)) <= 1024)
    cost = rng.lognormal(0, 1.5, INFERENCES) / np.exp(1.5**2 / 2) * _scale(rng, 20, 150) * KIB
    return _trace(rng, np.cumsum(new * cost), shapes=shapes)


def small_cache(rng: Any) -> Trace:
    """A user's cache of at most 12 MiB that fills: keys by Zipf's law, entries of one size, which no shape shows."""
    new = _first_seen(np.minimum(rng.zipf(rng.uniform(1.05, 1.6), INFERENCES), int(_scale(rng, 1e3, 1e6))))
    entry = _scale(rng, 2, 1024) * KIB
    return _trace(rng, np.minimum(np.cumsum(new) * entry, rng.uniform(1, 12) * MIB))


def large_cache(rng: Any) -> Trace:
    """The same with 32 to 1,024 entries of 2 to 64 KiB: up to 64 MiB, filled at any pace."""
    new = _first_seen(np.minimum(rng.zipf(rng.uniform(1.05, 1.6), INFERENCES), int(_scale(rng, 1e3, 1e6))))
    return _trace(rng, np.minimum(np.cumsum(new), int(_scale(rng, 32, 1024))) * _scale(rng, 2, 64) * KIB)


def short_cache(rng: Any) -> Trace:
    """A cache or a pool of 8 to 128 entries, up to 8 MiB each, that every inference adds to until it is full."""
    return _trace(rng, np.minimum(STEP, int(_scale(rng, 8, 128))) * _scale(rng, 0.01, 8) * MIB)


def garbage(rng: Any) -> Trace:
    """4 KiB to 1 MiB an inference in cycles, freed by a collection every 20 to 700 inferences."""
    collected = _every(rng, int(_scale(rng, 20, 700)))
    since = STEP - np.maximum.accumulate(np.where(collected, STEP, 0))
    return _trace(rng, since * _scale(rng, 4, 1024) * KIB, collected=collected)


def steps(rng: Any) -> Trace:
    """One to seven steps of 20 MiB to 2 GiB, up or down: models and tables loaded and dropped."""
    held = np.full(INFERENCES, 16000.0)
    for at in rng.integers(0, INFERENCES, rng.integers(1, 8)):
        held[at:] += rng.uniform(20, 2000) * rng.choice((1, 1, -0.5))
    return _trace(rng, held * MIB)


def load(rng: Any) -> Trace:
    """Another model of 100 MiB to 10 GiB, loaded in another thread over 2 to 100 inferences."""
    part = np.clip((STEP - rng.integers(0, INFERENCES - 200)) / rng.integers(2, 100), 0, 1)
    return _trace(rng, _scale(rng, 100, 10000) * MIB * part)


def trimmed(rng: Any) -> Trace:
    """As longest_input, given back to the system every 100 to 2,000 inferences."""
    lengths, held = _lengths(rng), np.empty(INFERENCES)
    period = int(_scale(rng, 100, 2000))
    for start in range(0, INFERENCES, period):
        held[start : start + period] = np.maximum.accumulate(lengths[start : start + period])
    return _trace(rng, held * _scale(rng, 0.02, 1) * MIB, shapes=lengths)


def sessions(rng: Any) -> Trace:
    """State that comes and goes: a random walk of 4 to 200 MiB that returns within 30 to 2,000 inferences."""
    time_constant, size = _scale(rng, 30, 2000), _scale(rng, 4, 200) * MIB
    keep, value, walk = 1 - 1 / time_constant, rng.normal() * size, []
    for kick in (rng.normal(0, 1, INFERENCES) * size * np.sqrt(2 / time_constant)).tolist():
        value = value * keep + kick
        walk.append(value)
    return _trace(rng, np.array(walk) + 6 * size)


def busy(rng: Any, exact: bool = False) -> Trace:
    """A server under growing load, 1 to 64 in flight with 0.5 to 50 MiB each, for the most part never alone."""
    load = np.clip(STEP / _scale(rng, 200, 20000) + rng.uniform(0, 0.3), 0, 1) * _scale(rng, 1, 64)
    others = rng.poisson(load)
    held = others * _scale(rng, 0.5, 50) * MIB * rng.uniform(0.7, 1.3, INFERENCES)
    return _trace(rng, held, others=others, exact=exact)


def device_results(rng: Any) -> Trace:
    """An allocator's exact bytes with results of varying length."""
    lengths = _lengths(rng)
    return _trace(rng, lengths * _scale(rng, 512, 65536), shapes=lengths, exact=True)


def device_tables(rng: Any) -> Trace:
    """The same, and tables as long as the longest input so far."""
    lengths = _lengths(rng)
    held = lengths * _scale(rng, 512, 65536) + np.maximum.accumulate(lengths) * _scale(rng, 256, 8192)
    return _trace(rng, held, shapes=lengths, exact=True)


def device_busy(rng: Any) -> Trace:
    """As busy, on an allocator."""
    return busy(rng, exact=True)


STEADY: tuple[Callable[[Any], Trace], ...] = (
    results,
    warm_up,
    longest_input,
    first_shapes,
    small_cache,
    short_cache,
    garbage,
    steps,
    load,
    trimmed,
    sessions,
    busy,
    device_results,
    device_tables,
    device_busy,
    large_cache,
)


def first_alarm(trace: Trace) -> tuple[int, Leak] | None:
    """Inferences until the first alarm, and that; block by block, which is what ``Leaks.add`` does every 8 readings."""
    count = len(trace.held) // BLOCK

    def blocks(values: Array) -> Array:
        return values[: count * BLOCK].reshape(count, BLOCK)

    lows, others = blocks(trace.held).min(1).tolist(), blocks(trace.others).min(1).tolist()
    collected = blocks(trace.collected).any(1).tolist()
    fresh = blocks(np.cumsum(_first_seen(trace.shapes % leaks._SHAPE_BITS)))[:, -1].tolist()
    series = leaks._Series()
    for i in range(count):
        series.fresh = fresh[i]
        found = series.end_block((lows[i], others[i], collected[i]), trace.noise)
        if found is not None:
            return (i + 1) * BLOCK, found
    return None


def upper_bound(alarms: int, runs: int) -> float:
    """Of the rate, with 95 % confidence (Clopper and Pearson, one-sided), by bisection of the binomial's tail."""
    low, high = alarms / runs, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        term = tail = (1 - rate) ** runs
        for k in range(1, alarms + 1):
            term *= (runs - k + 1) / k * rate / (1 - rate)
            tail += term
        low, high = (rate, high) if tail > 0.05 else (low, rate)
    return high


def simulated(runs: int) -> None:
    print(f"{runs} runs of {INFERENCES} inferences each\n{'kind':15} alarms  rate below (95 %)")
    totals = [0, 0]
    for number, kind in enumerate(STEADY):
        alarms = sum(first_alarm(kind(np.random.default_rng([number, run]))) is not None for run in range(runs))
        print(f"{kind.__name__:15} {alarms:6}  {upper_bound(alarms, runs):.2%}", flush=True)
        if kind is not large_cache:
            totals = [totals[0] + alarms, totals[1] + runs]
    print(f"all but the last: {totals[0]} of {totals[1]}, rate below {upper_bound(*totals):.4%}")


def delay(runs: int) -> None:
    """Leaks that are there from the first inference, on top of results, first shapes or tables."""
    print(f"{runs} runs of {INFERENCES} inferences each\n{'leak':42} found  median  nine in ten")
    for base, sizes in (
        (results, (4, 16, 64, 256, 1024)),
        (first_shapes, (4, 16, 64, 256, 1024)),
        (device_tables, (0.5, 4, 64, 1024)),
    ):
        for size, every, tooth in [(s, 1, 0) for s in sizes] + [(64, 10, 0), (64, 1, 200)]:
            late = []
            for run in range(runs):
                rng = np.random.default_rng([99, run])
                trace = base(rng)
                held = trace.held + np.cumsum(rng.random(INFERENCES) < 1 / every) * int(size * KIB)
                if tooth:
                    held = held + STEP % tooth * 64 * KIB
                    trace = trace._replace(collected=(STEP % tooth == 0))
                found = first_alarm(trace._replace(held=held))
                late.append(INFERENCES * 10 if found is None else found[0])
            name = f"{base.__name__}: {size} KiB" + (f" in 1 of {every}" if every > 1 else "")
            _print_delay(name + (f", tooth of {tooth} x 64 KiB" if tooth else ""), late, INFERENCES)


def _print_delay(name: str, late: list[int], inferences: int) -> None:
    found = sum(each <= inferences for each in late)

    def at(share: float) -> str:
        value = sorted(late)[min(len(late) - 1, int(len(late) * share))]
        return str(value) if value <= inferences else "-"

    print(f"{name:42} {found:2}/{len(late)} {at(0.5):>7} {at(0.9):>12}", flush=True)


# Real: a loop in a process of its own.

REAL_STEADY = (("bert", 6000), ("threads", 6000), ("gpt2", 2500), ("fixed", 4000))
REAL_LEAKS = (
    ("bert", 1024, 1, 1500),
    ("bert", 256, 1, 1500),
    ("bert", 64, 1, 3000),
    ("bert", 0, 1, 8000),
    ("bert", 16, 1, 5000),
    ("bert", 4, 1, 5000),
    ("bert", 64, 10, 5000),
    ("threads", 64, 1, 3000),
    ("gpt2", 64, 1, 1000),
    ("fixed", 64, 1, 1500),
    ("fixed", 16, 1, 3000),
    ("fixed", 4, 1, 6000),
)


def loop(kind: str, inferences: int, leak_kib: int, every: int, seed: int, file: str) -> None:
    """In the child: run, read, save. ``leak_kib`` < 0 leaks nothing, 0 leaks the last hidden state."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if kind == "gpt2":
        gpt2 = transformers.GPT2Config(vocab_size=1000, n_embd=64, n_layer=2, n_head=2, n_positions=512)
        model = transformers.GPT2LMHeadModel(gpt2).eval()
    else:
        bert = transformers.BertConfig(
            vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
        )
        model = transformers.BertModel(bert).eval()
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    kept, rows, running = [], [], []

    def serve(count: int, rng: random.Random) -> None:
        output = None  # alive at the next reading, as in a program
        with torch.inference_mode():
            for i in range(count):
                running.append(0)
                batch, length = 4, 64
                if kind == "gpt2":
                    batch, length = rng.choice((1, 1, 2)), min(256, max(4, int(rng.lognormvariate(3, 0.7))))
                elif kind != "fixed":
                    batch, length = rng.choice((1, 1, 1, 2, 4)), min(512, max(4, int(rng.lognormvariate(3.5, 0.8))))
                ids = torch.randint(5, 1000, (batch, length))
                if kind == "gpt2":
                    output = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
                else:
                    output = model(input_ids=ids, output_hidden_states=leak_kib == 0)
                if leak_kib >= 0 and i % every == 0:
                    kept.append(torch.ones(leak_kib * KIB, dtype=torch.uint8) if leak_kib else output.hidden_states[-1])
                held = int(os.pread(statm, 128, 0).split()[1]) * 4096
                running.pop()
                collections = sum(generation["collections"] for generation in gc.get_stats())
                rows.append((held, len(running), collections, batch * 4096 + length, time.perf_counter_ns()))

    if kind == "threads":
        threads = [
            threading.Thread(target=serve, args=(inferences // 3, random.Random(seed * 10 + n))) for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        serve(inferences, random.Random(seed))
    np.save(file, np.array(rows, dtype=np.int64))


def replay(rows: Array) -> tuple[int, Leak] | None:
    """Inferences until the first alarm, through the public interface."""
    series = Leaks()
    collections = 0
    original, leaks._collections = leaks._collections, lambda: collections
    try:
        for i, (held, others, collections, shape, at_ns) in enumerate(rows.tolist()):  # noqa: B007 - the lambda's
            found = series.add("model", held, RESIDENT, at_ns=at_ns, shape=shape, others=others)
            if found is not None:
                return i + 1, found
    finally:
        leaks._collections = original
    return None


def real_run(folder: Path, kind: str, inferences: int, leak_kib: int, every: int, seed: int) -> Array:
    file = folder / f"{kind}-{inferences}-{leak_kib}-{every}-{seed}.npy"
    if not file.exists():
        arguments = ["child", kind, str(inferences), str(leak_kib), str(every), str(seed), str(file)]
        subprocess.run([sys.executable, __file__, *arguments], check=True, timeout=600)
    return np.load(file)


def real(runs: int, folder: Path) -> None:
    print(f"{'steady':10} inferences  grown in all (MiB)  alarms of {runs}")
    for kind, inferences in REAL_STEADY:
        traces = [real_run(folder, kind, inferences, -1, 1, seed) for seed in range(1, runs + 1)]
        grown = [float(trace[-8:, 0].min() - trace[:8, 0].min()) / MIB for trace in traces]
        alarms = sum(replay(trace) is not None for trace in traces)
        span = f"{min(grown):.0f} to {max(grown):.0f}"
        print(f"{kind:10} {inferences:10}  {span:>18}  {alarms:11}", flush=True)
    leaks_runs = max(1, runs // 3)
    print(f"\n{'leak':42} found  median  nine in ten")
    for kind, leak_kib, every, inferences in REAL_LEAKS:
        late = []
        for seed in range(1, leaks_runs + 1):
            found = replay(real_run(folder, kind, inferences, leak_kib, every, seed))
            late.append(inferences * 10 if found is None else found[0])
        name = f"{kind}: " + (f"{leak_kib} KiB" if leak_kib else "last hidden state")
        _print_delay(name + (f" in 1 of {every}" if every > 1 else ""), late, inferences)


def main() -> None:
    global INFERENCES, STEP
    if sys.argv[1:2] == ["child"]:
        kind, inferences, leak_kib, every, seed, file = sys.argv[2:]
        loop(kind, int(inferences), int(leak_kib), int(every), int(seed), file)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulated", "delay", "real"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--inferences", type=int, default=INFERENCES, help="in each simulated run")
    parser.add_argument("--traces", type=Path)
    arguments = parser.parse_args()
    INFERENCES, STEP = arguments.inferences, np.arange(arguments.inferences)
    if arguments.what == "simulated":
        simulated(arguments.runs or 1000)
    elif arguments.what == "delay":
        delay(arguments.runs or 200)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.traces or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            real(arguments.runs or 10, folder)


if __name__ == "__main__":
    main()
