"""In what two environments differ, of the fields that matter for times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferspan.bench.results import Result, Scalar, Target

__all__ = ["MATTERS", "Difference", "of_runs", "of_targets"]

_REFUSE, _WARN = True, False
MATTERS: dict[str, bool] = {
    "workload.loop": _REFUSE,
    "workload.concurrency": _REFUSE,
    "workload.rate": _REFUSE,
    "workload.stream": _REFUSE,
    "workload.data_sha256": _REFUSE,
    "workload.seed": _WARN,
    "machine.architecture": _REFUSE,
    "machine.cpu_model": _REFUSE,
    "machine.cpus_usable": _REFUSE,
    "machine.cpu_quota": _REFUSE,
    "machine.system": _WARN,
    "machine.release": _WARN,
    "machine.libc": _WARN,
    "machine.memory_bytes": _WARN,
    "machine.memory_limit_bytes": _WARN,
    "machine.cpu_governor": _WARN,
    "machine.cpu_boost": _WARN,
    "machine.on_battery": _WARN,
    "devices.name": _REFUSE,
    "devices.memory_bytes": _WARN,
    "devices.driver": _WARN,
    "devices.power_limit_w": _WARN,
    "devices.pcie_generation": _WARN,
    "devices.pcie_width": _WARN,
    "target.kind": _REFUSE,
    "target.task": _REFUSE,
    "model.device": _REFUSE,
    "model.*": _WARN,
    "versions.*": _WARN,
    "settings.*": _WARN,
}
"""Whether a difference refuses the comparison. Of the machine it only warns where one side does not know."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that differs. ``refuses``: whether a comparison makes no sense then."""

    field: str
    baseline: Scalar
    candidate: Scalar
    refuses: bool = False

    def __str__(self) -> str:
        baseline, candidate = ("unknown" if side is None else str(side) for side in (self.baseline, self.candidate))
        return f"{self.field} is {baseline} in the baseline, {candidate} here"


def of_runs(baseline: Result, candidate: Result) -> list[Difference]:
    """Of workload, machine, devices, versions and settings."""
    before, after = baseline.environment, candidate.environment
    return [
        *_differing("workload", _workload(baseline), _workload(candidate)),
        *_differing("machine", before.machine, after.machine),
        *_differing("devices", _devices(baseline), _devices(candidate)),
        *_differing("versions", before.versions, after.versions),
        *_differing("settings", before.settings, after.settings),
    ]


def of_targets(baseline: Target, candidate: Target) -> list[Difference]:
    """Of the way it is called, and of the model."""
    called = ({"kind": each.kind, "task": each.task} for each in (baseline, candidate))
    return [*_differing("target", *called), *_differing("model", baseline.model, candidate.model)]


def _differing(group: str, before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> list[Difference]:
    found = []
    for name in dict.fromkeys([*before, *after]):
        refuses = MATTERS.get(f"{group}.{name}", MATTERS.get(f"{group}.*"))
        old, new = before.get(name), after.get(name)
        if refuses is not None and old != new:
            unknown = group == "machine" and (old is None or new is None)
            found.append(Difference(f"{group}.{name}", old, new, refuses and not unknown))
    return found


def _workload(result: Result) -> dict[str, Scalar]:
    names = [name.partition(".")[2] for name in MATTERS if name.startswith("workload.")]
    return {name: getattr(result.workload, name) for name in names}


def _devices(result: Result) -> dict[str, Scalar]:
    """Each field of all boards together, as one text."""
    boards = result.environment.devices
    names = dict.fromkeys(name for board in boards for name in board)
    return {name: ", ".join(str(board.get(name)) for board in boards) for name in names}
