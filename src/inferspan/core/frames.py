"""Generators that have entered a block: which of them run on this thread, and so what runs in them.

A web framework takes the steps of a generator on one thread after the other, each in a copy of the request's context;
programs let generators take turns, and do other things between two steps. So the context says nothing of what a
generator has entered, or names one that waits. The stack is certain: a generator whose frame is on it runs here, one
whose frame is not waits for its next step, and what runs meanwhile is not inside of it.

One that ``contextlib`` makes a context manager of is none of them: it waits while the body runs, which is inside.

A frame is known by its identity and code alone; to hold it would keep alive what a generator that is dropped lets go.
"""

from __future__ import annotations

import contextlib
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from types import CodeType, FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferspan.core.current import Active

_GENERATORS = CO_GENERATOR | CO_ASYNC_GENERATOR
_CONTEXT_MANAGERS = contextlib.contextmanager.__code__.co_filename

innermost: dict[int, tuple[CodeType, Active]] = {}
"""What each generator has entered last and not left, by the identity of its frame."""


def enter(active: Active, frame: FrameType | None) -> None:
    """``active`` was entered by a method with this frame, for the code that called it."""
    frame = None if frame is None else frame.f_back
    if frame is None:
        return
    code, caller = frame.f_code, frame.f_back
    if code.co_flags & _GENERATORS and (caller is None or caller.f_code.co_filename != _CONTEXT_MANAGERS):
        active.generator = id(frame)
        innermost[id(frame)] = code, active


def leave(active: Active) -> None:
    """It was left, by that code or when its generator was closed."""
    if innermost.get(active.generator, (None, None))[1] is active:
        outer = active.outer
        while outer is not None and (outer.is_left or outer.generator != active.generator):
            outer = outer.outer
        if outer is None:
            innermost.pop(active.generator, None)
        else:
            innermost[active.generator] = innermost[active.generator][0], outer


def running(frame: FrameType | None) -> list[int]:
    """The generators that are on the stack from ``frame`` on, the innermost first."""
    found = []
    while frame is not None:
        known = innermost.get(id(frame))
        if known is not None and known[0] is frame.f_code:
            found.append(id(frame))
        frame = frame.f_back
    return found
