"""A table of what is done to modules: its columns, its rows, and how a cell is done without Inferspan and with it."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._dynamo

import inferspan
from support.checks import Check, Subject, is_there
from support.recorder import Recorder


@dataclass(frozen=True)
class Target:
    """What it is done to, and how Inferspan sees that."""

    name: str
    make: Callable[[], Subject]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_hand: Mapping[str, Any] | None = None
    """Arguments of ``instrument_module``, where that is how it is seen."""
    spans: int = 1
    """As many at least come of one call."""


@dataclass(frozen=True)
class Row:
    """One thing to do, on which targets."""

    name: str
    check: Check
    targets: tuple[Target, ...]
    needs: str = ""
    """What it cannot be done without: libraries, a newer torch, a start method, a C++ compiler."""


def cells(table: Iterable[Row]) -> list[Any]:
    """A table as pytest's parameters."""
    return [pytest.param(row, target, id=f"{row.name}-{target.name}") for row in table for target in row.targets]


def assert_same(row: Row, target: Target, recorder: Recorder) -> None:
    """The cell comes out the same without Inferspan and with it, which was there."""
    missing = [needed for needed in row.needs.split() if _is_missing(needed)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: THAT IT WORKS THE SAME WITH INFERSPAN IS NOT TESTED")
    without = _done(row, target, None)
    assert _done(row, target, recorder) == without
    if is_there():
        recorder.clear()
        subject = target.make()
        _see(subject, target)
        subject()
    assert len(recorder.spans()) >= target.spans, "Inferspan did not record, or does no more"


def _done(row: Row, target: Target, recorder: Recorder | None) -> Any:
    def come() -> None:
        if recorder is not None:
            recorder.instrument(**target.settings)

    def see(subject: Subject) -> None:
        if subject.root is not None:
            subject.root.eval()
        if recorder is not None:
            _see(subject, target)

    torch.manual_seed(0)
    torch._dynamo.reset()
    if not inspect.isgeneratorfunction(row.check):
        come()
        subject = target.make()
        see(subject)
        return row.check(subject)
    subject = target.make()
    steps = row.check(subject)
    next(steps)
    come()
    see(subject)
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise AssertionError("a check yields once")


def _see(subject: Subject, target: Target) -> None:
    if target.by_hand is not None:
        inferspan.instrument_module(subject.model, **target.by_hand)


_LIBRARIES = {"OpenLLMetry": "opentelemetry.instrumentation.transformers", "openlit": "openlit"}


def _is_missing(needs: str) -> bool:
    if needs.startswith("torch>="):
        return tuple(map(int, torch.__version__.split(".")[:2])) < tuple(map(int, needs[7:].split(".")))
    if needs in ("fork", "forkserver"):
        return needs not in multiprocessing.get_all_start_methods()
    if needs == "c++":
        return not any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
    return importlib.util.find_spec(_LIBRARIES.get(needs, needs)) is None
