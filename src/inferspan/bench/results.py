"""The file that one run leaves behind: its classes, :func:`load`, :func:`save`, and its JSON schema.

Raw samples are kept, a column for each figure and a row for each request, so that whoever reads the file computes
what it needs. All offsets are seconds since the run began, on one clock. Times are seconds, sizes bytes, energy
joules, shares 0 to 1. What was not measured is absent: ``None``, or a column of no rows; never 0.

``version`` is that of the format. A file of an older version is brought up to date as it is read (``_UPGRADES``), a
field that this version does not know is ignored; a file of a newer version, a damaged or a foreign one is refused
with the name of the field.
"""

from __future__ import annotations

import dataclasses
import gzip
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

__all__ = [
    "FORMAT",
    "VERSION",
    "Configuration",
    "Environment",
    "Failure",
    "FormatError",
    "Rest",
    "Result",
    "Samples",
    "Stage",
    "Target",
    "Timeline",
    "Warmup",
    "Workload",
    "load",
    "save",
    "schema",
]

FORMAT = "inferspan-bench"
VERSION = 1

Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Scalar = bool | int | float | str | None
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class FormatError(ValueError):
    """A file that is no result, or a damaged one; the text names file and field."""


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
    """What the device's allocator had handed out then."""
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
    """As asked for on the command line: a Hub id, a folder, or ``module:function``."""
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
    """The command line, to run it again."""
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


_ADAPTER: TypeAdapter[Result] = TypeAdapter(Result)
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From that version to the next; each only renames and moves, so that the file means what it meant."""
PHASE_COLUMNS = ("phases_s", "phases_gpu_s", "phases_flops")
_ROWS = tuple(f.name for f in dataclasses.fields(Samples) if f.name not in PHASE_COLUMNS)
_GZIP_MAGIC = b"\x1f\x8b"


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result, plain or gzipped.

    Raises:
        FormatError: the file cannot be read, is no result of ``inferspan bench``, is damaged, or is too new.
    """
    try:
        data = Path(path).read_bytes()
        document = json.loads(gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path} is no JSON, or cut off: {error}") from error
    return parse(document, str(path))


def parse(document: Any, name: str = "document") -> Result:
    """A result from parsed JSON.

    Raises:
        FormatError: it is none; the text names the field.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FormatError(f'{name} is no result of `inferspan bench`: its field "format" is not "{FORMAT}"')
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError(f'{name}: field "version" is {version!r}, and should be a whole number above 0')
    if version > VERSION:
        raise FormatError(
            f'{name}: field "version" is {version}, and this Inferspan reads up to {VERSION}: pip install -U inferspan'
        )
    for step in range(version, VERSION):
        document = _UPGRADES[step](document)
    try:
        result = _ADAPTER.validate_json(json.dumps({**document, "version": VERSION}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FormatError(f'{name}: field "{_dotted(first["loc"])}": {first["msg"]}') from None
    _check_rows(result, name)
    return result


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result; gzipped if the name ends in ``.gz``. The file is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    text = json.dumps(to_document(result), separators=(",", ":"), allow_nan=False).encode()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_bytes(gzip.compress(text) if target.suffix == ".gz" else text)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def to_document(result: Result) -> dict[str, Any]:
    """The result as plain data for JSON: times to the nanosecond, and no columns or fields without a value."""
    found: dict[str, Any] = _plain(dataclasses.asdict(result))
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of the format, as ``docs/bench-result.schema.json`` has it."""
    found: dict[str, Any] = _bare(_ADAPTER.json_schema())
    parts = {name: {"description": _about(name), **part} for name, part in found.pop("$defs").items()}
    found["properties"]["format"]["const"] = FORMAT
    found["properties"]["version"]["const"] = VERSION
    found = {**found, "title": "Result of inferspan bench", "description": _about("Result"), "$defs": parts}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **dict(sorted(found.items(), reverse=True))}


def _about(name: str) -> str:
    """What a class is for; pydantic says it only from 2.13 on."""
    return inspect.cleandoc(globals()[name].__doc__)


def _bare(part: Any, names: bool = False) -> Any:
    """Without the titles that repeat the fields' names. ``names``: the keys of this part are fields."""
    if isinstance(part, dict):
        return {
            name: _bare(value, name in ("properties", "$defs"))
            for name, value in part.items()
            if names or name != "title"
        }
    if isinstance(part, list):
        return [_bare(item) for item in part]
    return int(part) if isinstance(part, float) and part.is_integer() else part


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None and item != []}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _dotted(location: tuple[int | str, ...]) -> str:
    """``targets[0].configurations[2].batch_size``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _check_rows(result: Result, name: str) -> None:
    line = result.timeline
    for field_ in dataclasses.fields(line)[2:]:
        rows = getattr(line, field_.name)
        if rows and len(rows) != len(line.offset_s):
            raise FormatError(
                f'{name}: field "timeline.{field_.name}" has {len(rows)} rows, and offset_s {len(line.offset_s)}'
            )
    for place, target in enumerate(result.targets):
        sets = {"cold": target.cold}
        for number, configuration in enumerate(target.configurations):
            sets[f"configurations[{number}].samples"] = configuration.samples
        for where, samples in sets.items():
            columns = {column: getattr(samples, column) for column in _ROWS}
            for group in PHASE_COLUMNS:
                columns.update({f"{group}.{phase}": rows for phase, rows in getattr(samples, group).items()})
            for column, rows in columns.items():
                if rows and len(rows) != len(samples):
                    raise FormatError(
                        f'{name}: field "targets[{place}].{where}.{column}" has {len(rows)} rows, '
                        f"and latency_s {len(samples)}"
                    )
