"""Records made by hand: plans, inferences, phases and generations, without a program around them.

Times are in milliseconds after 0, where a test says them. No probe applies unless rows of a table are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from opentelemetry.context import Context

from inferspan.config import Settings
from inferspan.core.model import ModelInfo
from inferspan.core.plan import Plan, Probes
from inferspan.core.probe import CallSite, Probe, Row
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Generation
from inferspan.emit.pipeline import Pipeline

MS = 1_000_000


def row(probe: Probe, *, on_device: bool = False) -> Row:
    """A line of a table of probes that always applies."""
    return Row(probe.name, lambda site: True, lambda: probe, on_device)


def plan(
    operation: str = "work",
    model: ModelInfo | str | None = None,
    *,
    name: str | None = None,
    probes: Probes | None = None,
    **settings: Any,
) -> Plan:
    info = ModelInfo(model) if isinstance(model, str) else model
    return Plan(Probes(()) if probes is None else probes, Settings(**settings), operation, info, name=name)


def inference(
    operation: str = "work",
    model: ModelInfo | str | None = None,
    *,
    of: Plan | None = None,
    name: str | None = None,
    hand_over: Callable[[list[Phase]], None] = lambda phases: None,
    **settings: Any,
) -> Inference:
    """One that begins now, alone. ``hand_over`` gets the forwards beyond ``children_max``, as they come."""
    of = plan(operation, model, name=name, **settings) if of is None else of
    return Inference(of, Context(), lambda overflow: hand_over(overflow.phases))


def ended(made: Inference, start_ms: float = 0, end_ms: float | None = 100) -> Inference:
    """The same, from one moment to another."""
    made.start_ns = round(start_ms * MS)
    made.end_ns = None if end_ms is None else round(end_ms * MS)
    return made


def phase(of: Inference | None, name: str, start_ms: float = 0, end_ms: float = 0, *, calls: int = 1) -> Phase:
    """A finished phase, kept by its inference if it has one."""
    made = Phase(name, of, round(start_ms * MS))
    made.end_ns, made.calls, made.busy_ns = round(end_ms * MS), calls, round((end_ms - start_ms) * MS)
    made.is_ended = True
    if of is not None:
        of.phases.kept.append(made)
    return made


def generation(start_ms: float, *tokens_ms: float, end_ms: float | None) -> Generation:
    """One whose tokens came at these times."""
    made = Generation()
    made.start_ns, made.end_ns = round(start_ms * MS), None if end_ms is None else round(end_ms * MS)
    made.steps = len(tokens_ms)
    if tokens_ms:
        made.first_token_ns, made.last_token_ns = round(tokens_ms[0] * MS), round(tokens_ms[-1] * MS)
    made.intervals_ns = [round((later - earlier) * MS) for earlier, later in pairwise(tokens_ms)]
    return made


def table(*probes: Probe, on_device: bool = False) -> Probes:
    """A table of probes that always apply, loaded."""
    made = Probes(tuple(row(probe, on_device=on_device) for probe in probes))
    made.prepare(CallSite(Settings(), None, None, None), on_device=on_device)
    return made


def pipeline(probes: Probes) -> Pipeline:
    """One that has no providers and no thread: for what it does with the probes."""
    made = object.__new__(Pipeline)
    made._probes = probes
    return made


def present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are known, without the prefix that is ours."""
    return {name.removeprefix("inferspan."): value for name, value in attributes.items() if value is not None}
