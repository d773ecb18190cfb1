"""How often `inferspan bench` calls a thing slower than itself, and how often it finds a slowdown that is there.

    python benchmarks/bench_false_alarms.py turns [--runs 100] [--slowed 30]
    python benchmarks/bench_false_alarms.py files [--runs 100] [--slowed 30]
    python benchmarks/bench_false_alarms.py series [--runs 1000]

``turns`` runs ``inferspan bench A --against A`` again and again, each time in a fresh process, then ``A`` with 20 % of
its time added by ``sleep`` against ``A``. ``files`` runs ``inferspan bench A`` and compares each run with the next one,
then runs of the slowed ``A`` with those before. A is a small network on one thread, at batch sizes 1 and 4.

``series`` needs no model: made-up latencies (log-normal, one in 33 with a long tail on top, autocorrelation of the
first order), 5 configurations of 100 requests, compared in the same way. That is the test by itself, without what a
machine does between two runs.

Printed are the comparisons with at least one regression: what would have failed a build.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inferspan.bench import comparison
from inferspan.bench.comparison import Comparison
from inferspan.bench.results import Configuration, Environment, Result, Samples, Target, Workload, load

SLOWDOWN = 0.2
BATCH_SIZES = "1,4"
LIMIT_S = 120


def plain() -> Callable[[list[Any]], Any]:
    """What is measured: about 6 ms of CPU time at batch size 1."""
    return _made(0.0)


def slowed() -> Callable[[list[Any]], Any]:
    """The same, sleeping for a fifth of the time that it took."""
    return _made(SLOWDOWN)


def _made(share: float) -> Callable[[list[Any]], Any]:
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(32)]).eval()

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
    parser.add_argument("mode", choices=("turns", "files", "series"))
    parser.add_argument("--runs", type=int, help="comparisons of a thing with itself (default: 100, of series 1000)")
    parser.add_argument("--slowed", type=int, default=30, help="comparisons with the slowed one (default: 30)")
    parser.add_argument("--requests", type=int, default=60, help="of each configuration (default: 60)")
    options = parser.parse_args()
    runs = options.runs or (1000 if options.mode == "series" else 100)
    if options.mode == "series":
        for memory in (0.0, 0.5, 0.8):
            _told(f"autocorrelation {memory}, with itself", (_series(seed, memory, 1.0) for seed in range(runs)))
            _told(
                f"autocorrelation {memory}, {SLOWDOWN:.0%} slower", (_series(seed, memory, 1.2) for seed in range(runs))
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        if options.mode == "turns":
            _told("with itself", (_turns("plain", path, options.requests) for _ in range(runs)))
            _told(f"{SLOWDOWN:.0%} slower", (_turns("slowed", path, options.requests) for _ in range(options.slowed)))
        else:
            _told("with itself", _files("plain", runs, path, options.requests))
            _told(f"{SLOWDOWN:.0%} slower", _files("slowed", options.slowed, path, options.requests))


def _turns(name: str, path: Path, requests: int) -> Comparison:
    run = _run(path, requests, f"bench_false_alarms:{name}", "--against", "bench_false_alarms:plain")
    return comparison.against(run)[0]


def _files(name: str, count: int, path: Path, requests: int) -> Iterator[Comparison]:
    before = _run(path, requests, "bench_false_alarms:plain")
    for _ in range(count):
        after = _run(path, requests, f"bench_false_alarms:{name}")
        yield comparison.compare(before, after)
        before = after if name == "plain" else _run(path, requests, "bench_false_alarms:plain")


def _run(path: Path, requests: int, *target: str) -> Result:
    command = [sys.executable, "-m", "inferspan.cli", "bench", *target, "--batch-sizes", BATCH_SIZES, "--quiet"]
    command += ["--requests", str(requests), "--idle", "0", "--save", str(path)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environ, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return load(path)


def _series(seed: int, memory: float, factor: float) -> Comparison:
    rng = np.random.default_rng(seed)

    def result(by: float) -> Result:
        configurations = [_configuration(2**power, _latencies(rng, memory) * by) for power in range(5)]
        target = Target("made-up", "callable", "made-up", configurations=configurations)
        return Result("inferspan.bench", 1, "", "", [], Workload("closed"), Environment(), [target])

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
