"""Lazy results of pipelines: what a generator or ``Dataset`` as input gives.

The inference stays open, but is current only inside ``__next__``, never across a yield; it ends with the last item, an
error, or when the result is dropped (at the time of the last item, since nobody knows when the consumer lost interest).
Nothing is consumed early, and the result keeps its type. A result that is iterated once more, or goes on after an item
that failed, is one more inference.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Lazy
from inferspan.integrations.patching import Patches

TYPE = "PipelineIterator"
"""Name of the class of a result that is computed as it is consumed."""
_MARK = "_inferspan_lazy"


def install(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.PipelineIterator, "__iter__", _iter)
    patches.wrap(module.PipelineIterator, "__next__", _next)


@faults.guarded("pipelines.lazy", False)
def keep_open(result: Any, inference: Inference) -> bool:
    """The inference goes with its result. Whether it does."""
    inference.lazy = Lazy(inference.start_ns)
    inference.set(semconv.LAZY, True)
    _attach(LazyResult(inference.plan, inference), result)
    return True


@faults.guarded("pipelines.lazy")
def keep_for_later(result: Any, plan_of: Callable[[], Plan | None]) -> None:
    """A lazy result from an ``inference()`` block is part of that while it lasts, and after it an inference."""
    plan = plan_of()
    if plan is not None:
        _attach(LazyResult(plan, None), result)


class LazyResult:
    """What a lazy result carries: its inference, if it has one yet. It stays behind when the result is pickled or
    copied."""

    __slots__ = ("inference", "plan")

    def __init__(self, plan: Plan, inference: Inference | None) -> None:
        self.plan = plan
        self.inference = inference

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def step(self, function: Callable[..., Any], result: Any) -> Any:
        """One step of the consumer, inside the inference."""
        known = self.inference
        if known is None or known.failure is not None or known.is_abandoned:
            self.begin_again()  # a Dataset goes on after an item that failed, any result after uninstrument()
        inference = self.inference
        if inference is None or inference.end_ns is not None:
            return function(result)
        active = current.enter(inference)
        start_ns = perf_counter_ns()
        try:
            item = function(result)
        except BaseException as error:
            _leave(inference, active, start_ns)
            current.close(inference, None if isinstance(error, StopIteration) else error)
            raise
        _leave(inference, active, start_ns)
        return item

    def begin_again(self) -> None:
        """One more inference, unless one is open or another one runs here."""
        ended = self.inference
        if (ended is not None and ended.end_ns is None) or current.here() is not None:
            return
        inference = current.open_inference(self.plan)
        if inference is not None:
            inference.lazy = Lazy(inference.start_ns)
            if ended is not None:
                inference.set(semconv.PREPROCESS_WORKERS, ended.attributes.get(semconv.PREPROCESS_WORKERS))
            inference.set(semconv.LAZY, True)
            self.inference = inference


def _leave(inference: Inference, active: current.Active, start_ns: int) -> None:
    current.leave(active)
    lazy = inference.lazy
    if inference.end_ns is None and lazy is not None:
        lazy.last_ns = perf_counter_ns()
        lazy.busy_ns += lazy.last_ns - start_ns


def _attach(lazy: LazyResult, result: Any) -> None:
    vars(result)[_MARK] = lazy
    weakref.finalize(result, _abandon, lazy).atexit = False


def _abandon(lazy: LazyResult) -> None:
    # Called by the garbage collector, in whatever thread: nobody else knows the inference any more, so that nothing in
    # here can wait for a lock.
    inference = lazy.inference
    if inference is not None and inference.end_ns is None and inference.lazy is not None:
        inference.is_abandoned = True
        current.close(inference, end_ns=inference.lazy.last_ns)


def _iter(original: Callable[..., Any]) -> Callable[..., Any]:
    def __iter__(self: Any) -> Any:
        lazy = vars(self).get(_MARK)
        if lazy is None:
            return original(self)
        lazy.begin_again()
        return lazy.step(original, self)

    return __iter__


def _next(original: Callable[..., Any]) -> Callable[..., Any]:
    def __next__(self: Any) -> Any:
        lazy = vars(self).get(_MARK)
        return original(self) if lazy is None else lazy.step(original, self)

    return __next__
