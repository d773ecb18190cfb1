"""How often `inferspan bench` calls a thing slower than itself, and how often it finds a slowdown that is there.

    python benchmarks/bench_false_alarms.py turns [--runs 100] [--slowed 30]
    python benchmarks/bench_false_alarms.py files [--runs 100] [--slowed 30]
    python benchmarks/bench_false_alarms.py series [--runs 100]
    python benchmarks/bench_false_alarms.py intervals [--runs 200]

``turns`` does what ``inferspan bench A --against A`` does, again and again, each time in a fresh process, then the same
with an ``A`` that sleeps for 20 % of its time. ``files`` does ``inferspan bench A`` and compares each run with the one
before, then runs of the slowed ``A`` with runs of ``A``. A is a small network on one thread, at batch sizes 1 and 4.

``series`` needs no model: made-up latencies (log-normal, one in 33 with a long tail on top, autocorrelation of the
first order), 5 configurations of 100 requests, compared in the same way. That is the test by itself, without what a
machine does between two runs. ``intervals`` takes the same series and prints how often the 95 % interval of a figure
holds the truth.

Otherwise printed are the comparisons with at least one regression: what would have failed a build.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from inferspan.bench import comparison
from inferspan.bench.comparison import Comparison
from inferspan.bench.results import FORMAT, VERSION, Configuration, Environment, Result, Samples, Target, Workload
from inferspan.bench.statistics import summarize

SLOWDOWN = 0.2
BATCH_SIZES = (1, 4)
LIMIT_S = 120


def plain() -> Callable[[list[Any]], Any]:
    """What is measured: one or two milliseconds of CPU time at batch size 1."""
    return _made(0.0)


def slowed() -> Callable[[list[Any]], Any]:
    """The same, sleeping for a fifth of the time that it took."""
    return _made(SLOWDOWN)


def _made(share: float) -> Callable[[list[Any]], Any]:
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)]).eval()

    def call(batch: list[Any]) -> Any:
        started = time.perf_counter()
        with torch.inference_mode():
            found = model(torch.ones(16 * len(batch), 512))
        if share:
            time.sleep(share * (time.perf_counter() - started))
        return found

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mode", choices=("turns", "files", "series", "intervals"))
    parser.add_argument("--runs", type=int, help="comparisons of a thing with itself (default: 100), or series (200)")
    parser.add_argument("--slowed", type=int, default=30, help="comparisons with the slowed one (default: 30)")
    parser.add_argument("--requests", type=int, default=60, help="of each configuration (default: 60)")
    options = parser.parse_args()
    runs = options.runs or (200 if options.mode == "intervals" else 100)
    if options.mode == "intervals":
        _intervals(runs)
        return
    if options.mode == "series":
        for memory in (0.0, 0.5):
            _told(f"autocorrelation {memory}, with itself", (_series(seed, memory, 1.0) for seed in range(runs)))
            _told(
                f"autocorrelation {memory}, {SLOWDOWN:.0%} slower", (_series(seed, memory, 1.2) for seed in range(runs))
            )
        return
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None
    )
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["torch", "inferspan.bench.runner"])  # imported once, for all processes
    with context.Pool(1, maxtasksperchild=1) as pool:

        def run(*names: str) -> Result:
            found = pool.apply_async(_measured, (names, options.requests)).get(timeout=LIMIT_S)
            assert isinstance(found, Result)
            return found

        if options.mode == "turns":
            _told("with itself", (comparison.against(run("plain", "plain"))[0] for _ in range(runs)))
            slow = (comparison.against(run("slowed", "plain"))[0] for _ in range(options.slowed))
            _told(f"{SLOWDOWN:.0%} slower", slow)
        else:
            _told("with itself", _files(run, "plain", runs))
            _told(f"{SLOWDOWN:.0%} slower", _files(run, "slowed", options.slowed))


def _files(run: Callable[[str], Result], name: str, count: int) -> Iterator[Comparison]:
    before = run("plain")
    for _ in range(count):
        after = run(name)
        yield comparison.compare(before, after)
        before = after if name == "plain" else run("plain")


def _measured(names: Sequence[str], requests: int) -> Result:
    """One run of these targets, in this process."""
    from opentelemetry.sdk.resources import Resource

    from inferspan.bench import runner
    from inferspan.bench.progress import Silent
    from inferspan.bench.recorder import Recorder
    from inferspan.bench.targets import Specification

    workload = Workload(
        "closed", batch_sizes=list(BATCH_SIZES), requests=requests, warmup_requests_max=200, warmup_duration_max_s=10.0
    )
    specifications = [Specification(f"bench_false_alarms:{name}") for name in names]
    recorder = Recorder(Resource.create())
    recorder.start()
    try:
        return runner.run(runner.Plan(specifications, workload, [], idle_s=0.0, cooldown_s=0.0), recorder, Silent())
    finally:
        recorder.stop()


def _intervals(runs: int) -> None:
    names = ("mean", "deviation", "p50", "p90", "p95", "p99")
    draws = _latencies(np.random.default_rng(10**6), 0.0, 10**6)
    truth = [draws.mean(), draws.std(), *np.quantile(draws, [0.5, 0.9, 0.95, 0.99])]
    print("autocorrelation  requests  " + "".join(f"{name:>10}" for name in names))
    for memory in (0.0, 0.5, 0.8):
        for count in (20, 100, 500):
            held, seen = Counter[str](), Counter[str]()
            for seed in range(runs):
                found = summarize(_latencies(np.random.default_rng(seed), memory, count).tolist())
                for name, value in zip(names, truth, strict=True):
                    estimate = getattr(found, name)
                    if estimate.low is not None:
                        seen[name] += 1
                        held[name] += estimate.low <= value <= estimate.high
            shown = (f"{held[name] / seen[name]:.0%}" if seen[name] else "none" for name in names)
            print(f"{memory:15} {count:9}  " + "".join(f"{text:>10}" for text in shown), flush=True)


def _series(seed: int, memory: float, factor: float) -> Comparison:
    rng = np.random.default_rng(seed)

    def result(by: float) -> Result:
        configurations = [_configuration(2**power, _latencies(rng, memory) * by) for power in range(5)]
        target = Target("made-up", "callable", "made-up", configurations=configurations)
        return Result(FORMAT, VERSION, "", "", [], Workload("closed"), Environment(), [target])

    return comparison.compare(result(1.0), result(factor))


def _latencies(rng: np.random.Generator, memory: float, count: int = 100) -> np.ndarray[Any, Any]:
    noise = rng.normal(size=count + 50)
    for place in range(1, len(noise)):
        noise[place] = memory * noise[place - 1] + (1 - memory**2) ** 0.5 * noise[place]
    tail = 1 + (rng.random(count) < 0.03) * rng.exponential(1, count)
    return np.asarray(0.01 * np.exp(0.15 * noise[50:]) * tail)


def _configuration(batch_size: int, latency: np.ndarray[Any, Any]) -> Configuration:
    start = np.concatenate([[0.0], np.cumsum(latency)[:-1]]).tolist()
    samples = Samples(start, start, latency.tolist(), [0] * len(start))
    return Configuration(batch_size, samples=samples, duration_s=float(latency.sum()))


def _told(title: str, comparisons: Iterator[Comparison]) -> None:
    """Count and print; a line a comparison on standard error, so that one sees it live."""
    figures: Counter[str] = Counter()
    count = alarms = tests = 0
    for found in comparisons:
        count += 1
        tests += sum(row.p_value is not None for row in found.rows)
        alarms += bool(found.regressions)
        figures.update({row.figure for row in found.regressions})
        print(f"\r{title}: {count} comparisons, {alarms} with a regression", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    by_figure = ", ".join(f"{figure} {number}" for figure, number in figures.most_common())
    print(f"{title}: {alarms} of {count} ({tests // max(count, 1)} tests each){': ' + by_figure if by_figure else ''}")


if __name__ == "__main__":
    main()
