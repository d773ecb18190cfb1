"""The plan of a run: what is measured, at which points of the sweep, and who hears how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inferspan.bench import targets
from inferspan.bench.results import Workload

__all__ = ["Plan", "Progress", "steps", "sweep"]


class Progress(Protocol):
    """Hears how far the run is."""

    def begin(self, stage: str, about: str, steps: float = 0.0) -> None:
        """A stage begins, which is so much of the run's steps: one for each configuration of each target."""

    def advanced(self, share: float) -> None:
        """Of the stage."""


@dataclass(slots=True)
class Plan:
    """What is to be run. ``workload`` is what the result keeps of it; ``requests`` are those of a file."""

    specifications: Sequence[targets.Specification]
    workload: Workload
    command: list[str]
    requests: Sequence[Any] | None = None
    idle_s: float = 2.0
    cooldown_s: float = 2.0


def steps(plan: Plan) -> int:
    """Configurations of the whole run, all targets together."""
    return len(plan.specifications) * len(sweep(plan.workload))


def sweep(workload: Workload) -> list[tuple[int | None, int]]:
    """Input tokens and batch size of each point."""
    lengths: list[int | None] = [*workload.input_tokens] or [None]
    return [(length, size) for length in lengths for size in workload.batch_sizes or [1]]
