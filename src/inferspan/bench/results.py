"""What one run leaves behind, as the classes of its file; :mod:`inferspan.bench.result_file` reads and writes it.

Raw samples are kept, a column for each figure and a row for each request, so that whoever reads the file computes
what it needs. All offsets are seconds since the run began, on one clock. Times are seconds, sizes bytes, energy
joules, shares 0 to 1. What was not measured is absent: ``None``, or a column of no rows; never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field

__all__ = [
    "FORMAT",
    "VERSION",
    "Configuration",
    "Environment",
    "Failure",
    "Rest",
    "Result",
    "Samples",
    "Stage",
    "Target",
    "Timeline",
    "Warmup",
    "Workload",
]

FORMAT = "inferspan-bench"
VERSION = 1

Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Scalar = bool | int | float | str | None
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(slots=True)
class Samples:
    """What was measured of each request: one call of the target with a whole batch.

    Columns are as long as ``latency_s``, in the order of the requests' starts, or have no rows where the figure is
    not known of any; an item is ``None`` where it is not known of that request. Failed requests have no row: they
    are counted in :attr:`Configuration.errors`.
    """

    __pydantic_config__ = _STRICT

    intended_s: list[Seconds] = field(default_factory=list)
    """When the request was due. In the closed loop the same as ``start_s``."""
    start_s: list[Seconds] = field(default_factory=list)
    """When it was made."""
    latency_s: list[Seconds] = field(default_factory=list)
    """From ``intended_s`` to the end of the request's root span."""
    turn: list[Count] = field(default_factory=list)
    """Which of the turns that several targets take (``--against``) it fell into; turns of one number are neighbours."""
    time_to_first_token_s: list[Seconds | None] = field(default_factory=list)
    """From ``intended_s``."""
    time_per_output_token_s: list[Seconds | None] = field(default_factory=list)
    """Mean over the request's tokens after the first."""
    inter_token_s: list[list[Seconds]] = field(default_factory=list)
    """Times between consecutive steps of decoding; at most INFERSPAN_TOKEN_POINTS_MAX, evenly spaced over its steps."""
    phases_s: dict[str, list[Seconds | None]] = field(default_factory=dict)
    """Time in each phase, by the name of its span. ``prefill`` and ``decode`` are parts of ``forward``."""
    gpu_s: list[Seconds | None] = field(default_factory=list)
    phases_gpu_s: dict[str, list[Seconds | None]] = field(default_factory=dict)
    cpu_s: list[Seconds | None] = field(default_factory=list)
    """CPU time of the whole process, all threads, meanwhile."""
    input_tokens: list[Count | None] = field(default_factory=list)
    """Of the whole batch; padding is not counted."""
    output_tokens: list[Count | None] = field(default_factory=list)
    padding_ratio: list[Share | None] = field(default_factory=list)
    flops: list[Count | None] = field(default_factory=list)
    phases_flops: dict[str, list[Count | None]] = field(default_factory=dict)
    flops_utilization: list[Share | None] = field(default_factory=list)
    """MFU of all forwards."""
    energy_j: list[Seconds | None] = field(default_factory=list)
    """Of the board, where the request was long enough to have one."""
    resident_bytes: list[Count | None] = field(default_factory=list)
    """Resident set of the process at the end of the request."""
    device_bytes: list[Count | None] = field(default_factory=list)
    """Bytes that the device's allocator had allocated then."""
    device_peak_bytes: list[Count | None] = field(default_factory=list)
    """The allocator's highest value in the request, or its upper bound."""
    device_reserved_bytes: list[Count | None] = field(default_factory=list)
    kv_cache_bytes: list[Count | None] = field(default_factory=list)
    """Keys and values at the end of the generation."""
    fragmentation: list[Share | None] = field(default_factory=list)
    """Share of the reserved bytes that lies in split blocks."""

    def __len__(self) -> int:
        return len(self.latency_s)


@dataclass(slots=True)
class Failure:
    """What ended a configuration."""

    __pydantic_config__ = _STRICT

    type: str
    message: str
    out_of_memory: bool = False


@dataclass(slots=True)
class Warmup:
    """Requests that were made before those that count. ``steady``: whether the latencies had settled at the end."""

    __pydantic_config__ = _STRICT

    steady: bool
    latency_s: list[Seconds] = field(default_factory=list)
    reason: str = ""
    """Why it ended: a sentence for the reader."""


@dataclass(slots=True)
class Configuration:
    """One point of the sweep, of one target."""

    __pydantic_config__ = _STRICT

    batch_size: Count
    """Items of one request."""
    input_tokens: Count | None = None
    """Asked for, of one item; ``None``: as the data has it."""
    output_tokens: Count | None = None
    """Asked for, of one item; ``None``: as the model ends, or nothing is generated."""
    operation: str | None = None
    """``gen_ai.operation.name`` of the root spans."""
    model: str | None = None
    """``gen_ai.request.model`` of the root spans."""
    warmup: Warmup | None = None
    samples: Samples = field(default_factory=Samples)
    duration_s: Seconds | None = None
    """Time in which these samples were taken, without the turns of another target: what throughput divides by."""
    energy_j: Seconds | None = None
    """Of the boards in that time, by their counters, idle draw included."""
    resident_peak_bytes: Count | None = None
    """Highest resident set of the process meanwhile, as the run's timeline saw it."""
    device_peak_bytes: Count | None = None
    """Highest value of the device's allocator meanwhile."""
    errors: dict[str, Count] = field(default_factory=dict)
    """Requests that failed, by type of the exception; the sweep goes on all the same."""
    failure: Failure | None = None
    """What ended it before its time; samples up to then are kept."""
    partial: bool = False
    """Whether it was interrupted, or never begun."""


@dataclass(slots=True)
class Rest:
    """The process and the devices while nothing is asked of them."""

    __pydantic_config__ = _STRICT

    duration_s: Seconds
    cpu_share: Share | None = None
    """CPU time of this process / (time * CPUs it may use)."""
    host_cpu_share: Share | None = None
    """The same of the whole machine: what others do meanwhile."""
    resident_bytes: Count | None = None
    device_bytes: Count | None = None
    device_reserved_bytes: Count | None = None
    power_w: Seconds | None = None
    """Mean, all boards that this process can see."""
    gpu_utilization: Share | None = None
    temperature_c: float | None = None


@dataclass(slots=True)
class Target:
    """One thing that was measured, and the sweep over it."""

    __pydantic_config__ = _STRICT

    name: str
    """As asked for on the command line: a Hub id, a folder without those above it, or ``module:function``."""
    kind: str
    """``pipeline``, ``generate`` or ``callable``."""
    label: str
    """Short and, within the file, unique."""
    task: str | None = None
    model: dict[str, Scalar] = field(default_factory=dict)
    """``class``, ``type``, ``revision``, ``dtype``, ``quantization``, ``attention``, ``compile``, ``device``,
    ``parameters``, ``size_bytes``, ``digest`` and so on, each only where it is known."""
    idle: Rest | None = None
    """After loading, before the first call."""
    load_s: Seconds | None = None
    load_resident_bytes: int | None = None
    """By how much the resident set grew as it was loaded."""
    cold: Samples = field(default_factory=Samples)
    """The first call: one row."""
    configurations: list[Configuration] = field(default_factory=list)
    cooldown: Rest | None = None
    failure: Failure | None = None
    """Why it could not be loaded or called at all."""


@dataclass(slots=True)
class Workload:
    """What was asked, of every target alike."""

    __pydantic_config__ = _STRICT

    loop: str
    """``closed``: each worker asks again when it has its answer; ``open``: requests come when they come."""
    concurrency: Count = 1
    """Closed loop: workers. Open loop: threads that serve."""
    rate: float | None = None
    """Open loop: mean arrivals per second, of a Poisson process."""
    stream: bool = False
    seed: int = 0
    batch_sizes: list[Count] = field(default_factory=list)
    input_tokens: list[Count] = field(default_factory=list)
    output_tokens: Count | None = None
    requests: Count | None = None
    """Requests of each configuration; ``None``: as many as ``duration_s`` allows."""
    duration_s: Seconds | None = None
    """Longest time of each configuration."""
    warmup_requests_max: Count = 0
    warmup_duration_max_s: Seconds = 0.0
    data: str | None = None
    """Name of the file of requests, without its folder."""
    data_sha256: str | None = None
    data_requests: Count | None = None


@dataclass(slots=True)
class Environment:
    """Everything that one needs to repeat the run, flat, so that two can be laid side by side."""

    __pydantic_config__ = _STRICT

    machine: dict[str, Scalar] = field(default_factory=dict)
    """``system``, ``architecture``, ``cpu_model``, ``cpus``, ``cpus_usable``, ``cpu_governor``, ``memory_bytes``, …"""
    devices: list[dict[str, Scalar]] = field(default_factory=list)
    """For each GPU ``name``, ``uuid``, ``driver``, ``memory_bytes``, ``power_limit_w``, ``sm_clock_hz``, …"""
    versions: dict[str, str] = field(default_factory=dict)
    """By name of the distribution; also ``python``, ``cuda``, ``cudnn``."""
    settings: dict[str, Scalar] = field(default_factory=dict)
    """Of torch and of the process: threads, TF32, determinism, environment variables that change speed."""


@dataclass(slots=True)
class Stage:
    """A stretch of the run: ``idle``, ``load``, ``cold``, ``warmup``, ``measure`` or ``cooldown``."""

    __pydantic_config__ = _STRICT

    name: str
    start_s: Seconds
    end_s: Seconds
    target: str | None = None
    """The target's label."""
    configuration: Count | None = None
    """Its place in the target's ``configurations``."""


@dataclass(slots=True)
class Timeline:
    """The process and the devices, read every so often over the whole run, with the stages that it went through."""

    __pydantic_config__ = _STRICT

    stages: list[Stage] = field(default_factory=list)
    offset_s: list[Seconds] = field(default_factory=list)
    resident_bytes: list[Count | None] = field(default_factory=list)
    cpu_share: list[Share | None] = field(default_factory=list)
    device_bytes: list[Count | None] = field(default_factory=list)
    device_reserved_bytes: list[Count | None] = field(default_factory=list)
    power_w: list[Seconds | None] = field(default_factory=list)
    gpu_utilization: list[Share | None] = field(default_factory=list)
    temperature_c: list[float | None] = field(default_factory=list)
    sm_clock_hz: list[Seconds | None] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """One run."""

    __pydantic_config__ = _STRICT

    format: str
    version: Count
    created: str
    """Start of the run: ISO 8601, UTC."""
    inferspan: str
    """Version of Inferspan that measured."""
    command: list[str]
    """The command line, to run it again; of paths the last part."""
    workload: Workload
    environment: Environment
    targets: list[Target]
    idle: Rest | None = None
    """Before anything was loaded."""
    timeline: Timeline = field(default_factory=Timeline)
    duration_s: Seconds | None = None
    partial: bool = False
    """Whether the run was interrupted: what was measured until then is here."""
    notes: list[str] = field(default_factory=list)
    """What the reader should know: never steady, clocks not locked, other load on the machine, …"""
