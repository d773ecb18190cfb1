"""What threads that share one model still get done: calls a second with inferspan, over those without.

    python benchmarks/throughput.py [--workload classify|generate] [--threads 8] [--rounds 6] [--seconds 4]

The programs of ``overhead.py`` in fresh processes that take turns, each called from several threads, until all is
flushed. Where the model is small they wait for the interpreter, so this is the CPU time of ``overhead.py`` in another
form. Each figure is the mean of the upper half of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time

import overhead
import workloads


def measure(mode: str, workload: str, threads: int, seconds: float, shape: dict[str, object]) -> float:
    """Calls a second in this process."""
    call, flush = workloads.prepare(mode, workload, shape)
    counts = [0] * threads
    begin = threading.Barrier(threads + 1)

    def work(place: int) -> None:
        begin.wait()
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            call()
            counts[place] += 1

    for _ in range(20):
        call()
    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    for worker in workers:
        worker.start()
    begin.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    flush()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default="classify")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(measure(options.mode, options.workload, options.threads, options.seconds, options.shape))
        return
    shape = overhead.run(overhead.__file__, "--mode", "shape", "--workload", options.workload)
    modes = ("off", "bare", "equal", "floor", "ours")
    found: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(options.rounds):
        for mode in modes:
            given = ["--mode", mode, "--shape", json.dumps(shape), *sys.argv[1:]]
            found[mode].append(overhead.run(__file__, *given))
    print(
        f"{options.workload}, {options.threads} threads, {options.rounds} rounds of {options.seconds:g} s, calls per s"
    )
    best = {mode: statistics.mean(sorted(rates)[len(rates) // 2 :]) for mode, rates in found.items()}
    for mode in modes:
        print(f"{mode:6} {best[mode]:7.1f}  {best[mode] / best['off']:.3f} of off")


if __name__ == "__main__":
    main()
