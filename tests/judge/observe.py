"""What a program really did, seen from outside while Inferspan is off.

transformers is asked at its own seams: each stopping criterion says at each step which rows it ends, and that is when
and why a row ended, whatever ids, strings or functions decided it. torch counts the FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.generation import stopping_criteria
from transformers.generation.streamers import BaseStreamer


@dataclass
class Loop:
    """One decoding loop: how long its sequences were when it ended, and by what each row did."""

    steps: int = 0
    ended: dict[int, tuple[int, set[str]]] = field(default_factory=dict)

    def note(self, rows: int, done: dict[str, list[bool]]) -> None:
        self.steps += 1
        for row in range(rows):
            reasons = {reason for reason, flags in done.items() if flags[row]}
            if reasons and row not in self.ended:
                self.ended[row] = self.steps, reasons


@dataclass
class Seen:
    """Of one run: its decoding loops in the order in which they began, and torch's count of FLOPs."""

    loops: list[Loop] = field(default_factory=list)
    flops: int | None = None


REASONS = {"MaxLengthCriteria": "length", "EosTokenCriteria": "eos"}


class _Modules:
    """In place of the counter's record of modules, whose hooks fail where an output is cut from its graph."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


@contextmanager
def counted_flops() -> Iterator[list[int | None]]:
    """torch's count, by the plain kernels that its counter knows; ``None`` where there are none."""
    found: list[int | None] = []
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Modules()
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield found
    found.append(counter.get_total_flops() or None)


@cache
def counts_in_inference_mode() -> bool:
    """Whether torch's counter sees products of matrices there: until 2.5 it does not."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        torch.matmul(torch.ones(2, 2, 2), torch.ones(2, 2, 2))
    return counter.get_total_flops() > 0


@contextmanager
def watched() -> Iterator[Seen]:
    """Watch what runs inside."""
    seen, loops, kept = Seen(), {}, []
    together = stopping_criteria.StoppingCriteriaList.__call__

    def asked(self: Any, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if id(self) not in loops:
            kept.append(self)  # its id is not given to another one
            loops[id(self)] = Loop()
            seen.loops.append(loops[id(self)])
        done: dict[str, list[bool]] = {}
        answer = None
        for criterion in self:
            flags = criterion(input_ids, scores, **kwargs)
            answer = flags if answer is None else answer | flags
            reason = REASONS.get(type(criterion).__name__, "other")
            if isinstance(flags, bool):
                flags = [flags] * len(input_ids)
            done[reason] = [
                bool(a) or b for a, b in zip(flags, done.get(reason, [False] * len(input_ids)), strict=True)
            ]
        loops[id(self)].note(len(input_ids), done)
        return together(self, input_ids, scores, **kwargs) if answer is None else answer

    stopping_criteria.StoppingCriteriaList.__call__ = asked
    try:
        with counted_flops() as flops:
            yield seen
        seen.flops = flops[0]
    finally:
        stopping_criteria.StoppingCriteriaList.__call__ = together


class Clock(BaseStreamer):
    """What the program itself sees of time: when its streamer got tokens, when its model was called."""

    def __init__(self) -> None:
        self.puts: list[int] = []
        self.calls: list[tuple[int, int]] = []
        self._began = 0

    def put(self, value: Any) -> None:
        self.puts.append(time.time_ns())

    def end(self) -> None:
        pass

    def of(self, model: Any) -> None:
        """Note when each call of the model begins and ends."""

        def begins(*_: Any) -> None:
            self._began = time.time_ns()

        def ends(*_: Any) -> None:
            self.calls.append((self._began, time.time_ns()))

        model.register_forward_pre_hook(begins)
        model.register_forward_hook(ends)


@dataclass
class Truth:
    """What one inference was. ``None``: there is no such thing, or it cannot be known here and nothing is judged
    (``unknown`` names it)."""

    tree: Any = None
    rows: int | None = None
    length: int | None = None
    input_tokens: int | None = None
    positions: int | None = None
    output_tokens: int | None = None
    finish: list[set[str]] | None = None
    steps: int | None = None
    flops: int | None = None
    cache_bytes: int | None = None
    items: int | None = None
    calls: dict[str, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    phase: str = ""
    """Where it is one phase and nothing else: what that is called inside of a block."""


@dataclass
class Case:
    """A program made ready: ``run()`` does it once, ``truth(result, seen)`` says what that was.

    ``clock`` is in the program itself, both times; ``watch()`` comes before the run without us. Of several inferences
    there is a list, by the length of their input. ``same`` is what both runs must return alike."""

    run: Callable[[], Any]
    truth: Callable[[Any, Seen], Truth | list[Truth]]
    clock: Clock | None = None
    watch: Callable[[], None] = lambda: None
    same: Callable[[Any], Any] = lambda result: result
