"""What a reader wants to know of one configuration, computed from its samples: times, rates, shares, memory, energy.

What was not measured is absent. Rates are of the configuration's whole time; energy is that of the boards over the
same time, their idle draw included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferspan.bench.results import Configuration, Result, Target
from inferspan.bench.statistics import Estimate, Scaling, Summary, fragmentation, known, scaling, summarize, throughput

__all__ = ["Figures", "as_json", "figures_of", "scaling_of"]

PHASES = ("queue", "tokenize", "preprocess", "forward", "prefill", "decode", "detokenize", "postprocess")
"""In the order in which they happen; any other comes after them."""


@dataclass(slots=True)
class Figures:
    """Of one configuration. ``times_s`` are summaries in seconds by name: ``latency``, ``time_to_first_token``,
    ``inter_token``, each phase, ``gpu`` and ``cpu``; shares are 0 to 1."""

    times_s: dict[str, Summary]
    requests_per_s: Estimate | None = None
    items_per_s: Estimate | None = None
    input_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    gpu_share: float | None = None
    """GPU time / latency."""
    cpu_share: float | None = None
    """CPU time of the process / (time * CPUs it may use). Only where one request runs at a time: else each has the CPU
    time of all."""
    flops_per_s: float | None = None
    flops_utilization: float | None = None
    resident_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    device_bytes: int | None = None
    """What the allocator had allocated after the last request."""
    fragmentation: float | None = None
    energy_per_request_j: float | None = None
    energy_per_output_token_j: float | None = None


def figures_of(result: Result, configuration: Configuration) -> Figures:
    """All of it."""
    samples, seconds = configuration.samples, configuration.duration_s
    count = len(samples)
    series: dict[str, Sequence[Any]] = {
        "latency": samples.latency_s,
        "time_to_first_token": samples.time_to_first_token_s,
        "inter_token": samples.inter_token_s,
        **{name: samples.phases_s[name] for name in sorted(samples.phases_s, key=_place)},
        "gpu": samples.gpu_s,
        "cpu": samples.cpu_s,
    }
    found = Figures({name: summary for name, rows in series.items() if (summary := summarize(rows)) is not None})
    found.resident_peak_bytes = configuration.resident_peak_bytes
    found.device_peak_bytes = configuration.device_peak_bytes
    found.device_bytes = next((held for held in reversed(samples.device_bytes) if held is not None), None)
    found.fragmentation = fragmentation(samples)
    if not count or not seconds:
        return found
    found.requests_per_s = throughput(configuration)
    if found.requests_per_s is not None:
        found.items_per_s = found.requests_per_s.times(configuration.batch_size)
    found.input_tokens_per_s = _sum_over(samples.input_tokens, seconds)
    found.output_tokens_per_s = _sum_over(samples.output_tokens, seconds)
    found.flops_per_s = _sum_over(samples.flops, seconds)
    latency_s = sum(samples.latency_s)
    found.gpu_share = _sum_over(samples.gpu_s, latency_s)
    cpus = result.environment.machine.get("cpus_usable") or result.environment.machine.get("cpus")
    if isinstance(cpus, int) and result.workload.concurrency == 1 and result.workload.rate is None:
        found.cpu_share = _sum_over(samples.cpu_s, latency_s * cpus)
    used = known(samples.flops_utilization)
    found.flops_utilization = float(used.mean()) if len(used) else None
    if configuration.energy_j is not None:
        found.energy_per_request_j = configuration.energy_j / count
        tokens = sum(known(samples.output_tokens))
        found.energy_per_output_token_j = configuration.energy_j / tokens if tokens else None
    return found


def scaling_of(target: Target) -> dict[int | None, Scaling]:
    """How the target scales with the batch size, by input tokens; only where there are several sizes."""
    points: dict[int | None, list[tuple[int, float, float]]] = {}
    for configuration in target.configurations:
        rate, summary = throughput(configuration), summarize(configuration.samples.latency_s)
        if rate is not None and summary is not None:
            size = configuration.batch_size
            points.setdefault(configuration.input_tokens, []).append((size, rate.value * size, summary.p50.value))
    return {length: found for length, rows in points.items() if (found := scaling(rows)) is not None}


def as_json(result: Result) -> dict[str, Any]:
    """The run with its figures in place of raw samples, for ``--json``."""
    return {
        "format": "inferspan-bench-figures",
        "version": 1,
        "created": result.created,
        "inferspan": result.inferspan,
        "command": result.command,
        "partial": result.partial,
        "notes": result.notes,
        "workload": dataclasses.asdict(result.workload),
        "environment": dataclasses.asdict(result.environment),
        "targets": [_target_as_json(result, target) for target in result.targets],
    }


def _target_as_json(result: Result, target: Target) -> dict[str, Any]:
    cold = target.cold
    return {
        "name": target.name,
        "label": target.label,
        "kind": target.kind,
        "task": target.task,
        "model": target.model,
        "failure": None if target.failure is None else dataclasses.asdict(target.failure),
        "load_s": target.load_s,
        "load_resident_bytes": target.load_resident_bytes,
        "cold_s": cold.latency_s[0] if cold.latency_s else None,
        "idle": None if target.idle is None else dataclasses.asdict(target.idle),
        "cooldown": None if target.cooldown is None else dataclasses.asdict(target.cooldown),
        "configurations": [
            {
                "batch_size": configuration.batch_size,
                "input_tokens": configuration.input_tokens,
                "output_tokens": configuration.output_tokens,
                "requests": len(configuration.samples),
                "errors": configuration.errors,
                "partial": configuration.partial,
                "steady": configuration.warmup is not None and configuration.warmup.steady,
                "failure": None if configuration.failure is None else dataclasses.asdict(configuration.failure),
                **dataclasses.asdict(figures_of(result, configuration)),
            }
            for configuration in target.configurations
        ],
        "scaling": [
            {"input_tokens": length, **dataclasses.asdict(found)} for length, found in scaling_of(target).items()
        ],
    }


def _place(phase: str) -> tuple[int, str]:
    return (PHASES.index(phase) if phase in PHASES else len(PHASES), phase)


def _sum_over(rows: Sequence[Any], divisor: float) -> float | None:
    """The sum over ``divisor``, where it is known of every request."""
    return sum(rows) / divisor if rows and None not in rows and divisor else None
