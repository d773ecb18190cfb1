"""Where the calling thread is: outside of any inference, in one, or in a phase of one; and the way in and out.

``ACTIVE`` says it. It is ``None`` outside; an :class:`Inference` between phases; a :class:`Phase` inside one, where
everything nested belongs to that phase and makes no record of its own. ``SUPPRESSED`` is a phase of nothing: inside it
no hook records (a draft model's ``generate``, the generation thread of continuous batching).

What is opened here is handed to a :class:`Sink` when it closes. There is one sink while instrumented, none
otherwise: a wrapper that somebody kept beyond ``uninstrument()`` finds none and passes straight through.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import get_current_span, set_span_in_context

from inferspan import faults
from inferspan.config import HOST_ALLOCATIONS
from inferspan.core import rank
from inferspan.core.errors import Failure, failure_of, is_cancellation
from inferspan.core.model import ModelInfo, describe, device_of, facts_of
from inferspan.core.record import Inference, Phase, StandalonePhase
from inferspan.probes import accelerator, host_allocations
from inferspan.probes.flops import walk
from inferspan.probes.out_of_memory import out_of_memory
from inferspan.probes.process import ResidentMemory, cpu_time_ns

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from inferspan.config import Settings
    from inferspan.probes.layers import Layers

Entered = tuple[Token[Context], Token["Inference | Phase | None"]]

SUPPRESSED = Phase("muted", None, 0)
_CLOSING_NS = 10**9
ACTIVE: ContextVar[Inference | Phase | None] = ContextVar("inferspan_active", default=None)


class Sink(Protocol):
    """What :mod:`inferspan.emit` is to the calling thread."""

    settings: Settings

    def start_root(self, inference: Inference, context: Context) -> Span:
        """Start the live root span; a span that is not recording where the trace is not sampled."""

    def begin_on_device(self, inference: Inference) -> None:
        """The inference begins to use ``inference.accelerator``, until it is submitted."""

    def submit(self, record: Inference | StandalonePhase) -> None:
        """Take a finished record. Never blocks and takes no lock: it may be called by the garbage collector."""

    def leave_process(self) -> None:
        """Tell everything finished and have the providers flush, if there was anything in this process."""


_sink: Sink | None = None
_memory: ResidentMemory | None = None
_open: dict[int, Inference] = {}
_serials = itertools.count(1)
_last_serial = 0
_fork_generation = 0


def connect(sink: Sink | None) -> None:
    """Begin, or with ``None`` stop, to hand records to ``sink``."""
    global _sink, _memory
    if sink is not None and sink.settings.process_stats and _memory is None:
        _memory = ResidentMemory()
    elif (sink is None or not sink.settings.process_stats) and _memory is not None:
        _memory.close()
        _memory = None
    if sink is not None and HOST_ALLOCATIONS in sink.settings.measure:
        host_allocations.start()
    elif sink is None:
        host_allocations.stop()
    rank.read_environment()
    _sink = sink


def settings() -> Settings | None:
    """The settings in force; ``None`` while not instrumented."""
    return None if _sink is None else _sink.settings


def open_count() -> int:
    """Inferences that have begun and not ended."""
    return len(_open)


def may_open() -> bool:
    """Whether a hook that meets no inference should open one here and now."""
    sink = _sink
    if sink is None or (otel_context.get_current() and not is_instrumentation_enabled()):
        return False
    return not sink.settings.ranks or rank.is_one_of(sink.settings.ranks)


def model_facts(model: Any) -> ModelInfo:
    """Facts of a model instance, named as the settings say."""
    return facts_of(model, _sink.settings.local_model_name if _sink is not None else "basename")


def open_inference(
    operation: str,
    facts: ModelInfo | None,
    *,
    name: str | None = None,
    model: Any = None,
    parent: Context | None = None,
) -> Inference | None:
    """Open an inference and start its root span, not yet current. ``None`` if it must not or cannot be recorded.

    Args:
        operation: value of ``gen_ai.operation.name``.
        facts: of its model, if it has one.
        name: of the root span; by default the operation and the model's name.
        model: the instance itself, to describe it on its first inference.
        parent: context to take the parent from, by default the current one.
    """
    sink = _sink
    # a replica of DataParallel runs in a thread, without a context: its inference is that of the whole
    if sink is None or not may_open() or "_is_replica" in getattr(model, "__dict__", ()):
        return None
    try:
        if name is None:
            name = operation if facts is None else f"{operation} {facts.name}"
        inference = Inference(name, operation, facts, sink.settings.children_max)
        inference.fork_generation = _fork_generation
        if facts is not None:
            inference.cold = facts.take_cold()
            if inference.cold and facts.load_ns is None and model is not None:
                inference.attributes.update(describe(model, facts))
        memory = _memory  # uninstrument() may come in between
        if memory is not None:
            inference.cpu_start_ns = cpu_time_ns()
            inference.memory_start_bytes = memory.recent_bytes(inference.start_ns)
        inference.parent = otel_context.get_current() if parent is None else parent
        inference.root = sink.start_root(inference, inference.parent)
        inference.context = set_span_in_context(inference.root, inference.parent)
        _open[id(inference)] = inference
        _count_company(inference)
        inference.hooks_ns = perf_counter_ns() - inference.start_ns
        return inference
    except Exception:  # noqa: BLE001 - a user's sampler or span processor may raise anything
        faults.note("scope.open")
        return None


def _count_company(inference: Inference) -> None:
    global _last_serial
    inference.serial = _last_serial = next(_serials)
    inference.is_alone = len(_open) == 1  # for now: close() looks whether another one began


layers_of: Callable[[Inference, Any], Layers | None] | None = None
"""Finds what records a model's layers in a forward. Set by :mod:`inferspan.integrations.torch.layers`."""


def measure(phase: Phase, model: Any, device: str | None, since_ns: int) -> None:
    """Begin to measure what a forward of ``model`` does, on ``device`` as torch writes it. :meth:`Inference.end` ends
    it. Hooks have been at work ``since_ns``."""
    inference, sink = phase.inference, _sink
    if inference is None or sink is None:
        return
    try:
        wanted = sink.settings.measure
        phase.is_measured = True
        if "flops" in wanted:
            phase.shapes = []
        if layers_of is not None:
            phase.layers = layers_of(inference, model)
        found = accelerator.of(device_of(model, device))
        if found is None:
            return
        if inference.accelerator is None:
            inference.accelerator = found
            if "memory" in wanted:
                inference.memory_before = found.memory()
            sink.begin_on_device(inference)
        if "gpu_time" in wanted:
            phase.timer = found.timer(sink.settings.gpu_timers_max)
    except Exception:  # noqa: BLE001
        faults.note("scope.measure")
    finally:
        spent = perf_counter_ns() - since_ns
        # where the phase is the inference itself, that it was opened is in there
        inference.hooks_ns = spent if phase is inference.whole else inference.hooks_ns + spent


def record_shapes(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A model is called in a phase: remember with which shapes, so that its FLOPs can be counted later."""
    try:
        if phase.shapes is None:
            return
        inventory = model_facts(model).inventory_of(model)
        work = None if inventory is None else walk.read_shapes(args, kwargs)
        if inventory is not None and work is not None:
            phase.shapes.append((inventory, work))
    except Exception:  # noqa: BLE001
        faults.note("scope.work")


def enter(inference: Inference, inside: Phase | None = None) -> Entered:
    """Make the inference and its root span current in this context; ``inside`` a phase, where it has no others."""
    assert inference.context is not None
    return otel_context.attach(inference.context), ACTIVE.set(inference if inside is None else inside)


def leave(entered: Entered) -> None:
    """Undo :func:`enter`."""
    try:
        ACTIVE.reset(entered[1])
    except ValueError:
        # A block that was left in another context than it was entered in (a generator of a web framework that runs
        # half in one thread, half in another): nothing was made current here, so there is nothing to undo.
        return
    otel_context.detach(entered[0])


def elapsed_ns(inference: Inference) -> int:
    """How long the inference has been running."""
    return perf_counter_ns() - inference.start_ns


def close(
    inference: Inference,
    error: BaseException | None = None,
    *,
    failed: str | None = None,
    end_ns: int | None = None,
) -> None:
    """The inference is over: hand it on, once.

    ``error`` is the exception that ended it; ``failed`` its type alone, where the exception is not at hand.
    """
    if _may_close(inference):
        _close(inference, error, failed, end_ns)


def _may_close(inference: Inference) -> bool:
    # dict.setdefault is atomic: of a consumer, the garbage collector and interpreter exit only one gets it.
    closer = object()
    return inference.fork_generation == _fork_generation and vars(inference).setdefault("closer", closer) is closer


def _close(inference: Inference, error: BaseException | None, failed: str | None, end_ns: int | None) -> None:
    try:
        now = perf_counter_ns()
        with inference.lock:  # from here on no phase of another thread is added
            inference.end_ns = now if end_ns is None else end_ns
        if inference.cpu_start_ns is not None:
            inference.cpu_time_ns = cpu_time_ns() - inference.cpu_start_ns
        memory = _memory
        if memory is not None:
            inference.memory_bytes = memory.recent_bytes(inference.end_ns)
        inference.is_alone = inference.is_alone and inference.serial == _last_serial
        inference.open_after = len(_open) - 1
        if inference.whole is not None and inference.whole.timer is not None:
            inference.whole.timer.stop()
        if inference.memory_before is not None and inference.accelerator is not None:
            inference.memory_after = inference.accelerator.memory()
        sink = _sink
        if sink is None:
            return
        if error is not None:
            inference.out_of_memory = out_of_memory(error)
            inference.cancelled = is_cancellation(error)
            if not inference.cancelled:
                inference.failure = failure_of(
                    error,
                    with_message=sink.settings.content_on_spans,
                    message_length=sink.settings.content_length,
                )
        elif failed is not None:
            inference.failure = Failure(failed, "", None)
        inference.hooks_ns += perf_counter_ns() - now
        sink.submit(inference)
    except Exception:  # noqa: BLE001
        faults.note("scope.close")
    finally:  # not before: abandon_open() waits for what another thread hands on just now
        _open.pop(id(inference), None)


def run(
    inference: Inference,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inside: Phase | None = None,
) -> Any:
    """Call ``function`` once inside the inference, and close that with what came of it."""
    entered = enter(inference, inside)
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        leave(entered)
        close(inference, error)
        raise
    leave(entered)
    close(inference)
    return result


def run_phase(phase: Phase, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``function`` once inside a phase of an inference, and end the phase."""
    token = ACTIVE.set(phase)
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        phase.cut_off(error)
        raise
    finally:
        ACTIVE.reset(token)
        if phase.inference is not None:
            phase.inference.end(phase)


def run_suppressed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``function`` once where no hook records."""
    token = ACTIVE.set(SUPPRESSED)
    try:
        return function(*args, **kwargs)
    finally:
        ACTIVE.reset(token)


def begin_phase(name: str) -> Phase | None:
    """Begin a phase here: of the inference that is active, else one on its own; ``None`` if nested or muted."""
    active = ACTIVE.get()
    if active is None:
        return Phase(name, None, perf_counter_ns()) if may_open() and not in_worker() else None
    if active.is_phase or active.inference is None:
        return None
    return active.inference.begin(name)


def end_phase(phase: Phase, model: str | None = None) -> None:
    """The phase is over: give it to its inference, or on its own to the sink."""
    inference = phase.inference
    if inference is not None:
        inference.end(phase)
        return
    phase.end_ns = perf_counter_ns()
    phase.busy_ns = phase.end_ns - phase.start_ns
    phase.calls = 1
    if _sink is not None:
        _sink.submit(StandalonePhase(phase, otel_context.get_current(), model))


def in_worker() -> bool:
    """Whether this process is a DataLoader worker, whose tokenizer is part of what the parent infers."""
    data = sys.modules.get("torch.utils.data")
    if data is None:
        return False
    get_worker_info = getattr(data, "get_worker_info", None)
    return get_worker_info is not None and get_worker_info() is not None


def has_current_span() -> bool:
    """Whether some span is current here."""
    return get_current_span().get_span_context().is_valid


def abandon_open() -> None:
    """The process ends, or is uninstrumented: close what still runs, with what is known of it. A lazy result ends
    with its last item."""
    found = list(_open.values())
    for inference in found:
        if not _may_close(inference):
            continue
        inference.abandoned = True
        with inference.lock:  # against a phase that ends just now
            inference.cut_off()
            last = inference._last_phase
            last_ns = inference.last_ns if last is None else max(inference.last_ns, last.end_ns)
            _close(inference, None, None, None if inference.busy_ns is None else last_ns)
    deadline_ns = perf_counter_ns() + _CLOSING_NS
    while any(id(inference) in _open for inference in found) and perf_counter_ns() < deadline_ns:
        sleep(0.001)


def leave_process() -> None:
    """The process ends without exit handlers: tell now what they would have told."""
    sink = _sink
    if sink is None:
        return
    try:
        abandon_open()
        sink.leave_process()
    except Exception:  # noqa: BLE001
        faults.note("scope.leave_process")


def _after_fork_in_child() -> None:
    # The child must not export its parent's inferences, nor record inside one that only the parent can end.
    global _fork_generation
    _fork_generation += 1
    _open.clear()
    if _memory is not None:
        _memory.reopen()
    if ACTIVE.get() is not None:
        ACTIVE.set(SUPPRESSED)


def _before_fork() -> None:
    # A root's ids are made when they are asked for: the child may be in the same trace, so both have to have them.
    # The current one may have ended: a task that was begun in it goes on in its context.
    for span in (get_current_span(), *(inference.root for inference in list(_open.values()))):
        with suppress(Exception):  # the current one may be of the program's making
            if span is not None:
                span.get_span_context()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
