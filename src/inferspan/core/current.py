"""The one answer to "what is running here", and the way in and out of an inference.

:func:`here` says it: nothing, or an :class:`Active`: an inference between its phases, or one of its phases, in which
everything nested belongs to that phase and makes no record of its own. Where recording is suppressed
(:func:`run_suppressed`: a draft model's ``generate``, what ``from_pretrained`` runs) it is a phase of no inference.

Each :class:`Active` knows the one outside of it, so that the answer is right however they were entered and left:

- what has ended or was left is nothing, wherever its context was copied to: what is outside of it counts;
- a phase belongs to the thread and task that entered it: elsewhere it is nothing, so what runs there is an inference of
  its own, below the span that is current;
- an inference that is open may get phases from any thread or task;
- whoever is left out of order, or in another context, leaves nothing behind in either.

What is opened here is handed to a :class:`~inferspan.core.state.Sink` when it closes. There is one sink while
instrumented, none otherwise: a wrapper that somebody kept beyond ``uninstrument()`` finds none and passes straight
through.
"""

from __future__ import annotations

import sys
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from inspect import currentframe
from threading import get_ident
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import set_span_in_context

from inferspan import faults
from inferspan.core import frames, rank
from inferspan.core.errors import Failure, failure_of, is_cancellation
from inferspan.core.model import Describer, ModelInfo
from inferspan.core.plan import Plan, Probes
from inferspan.core.probe import CallSite, begin, end
from inferspan.core.record import Inference, Phase, StandalonePhase
from inferspan.core.state import Sink, state

if TYPE_CHECKING:
    from opentelemetry.trace import Link

    from inferspan.config import Settings

_SUPPRESSED = Phase("suppressed", None, 0)


class Active:
    """An inference, or one of its phases, that was entered and not left.

    ``context_before`` is OpenTelemetry's context that was current before an inference made its own current. A phase
    is of the thread ``ident`` and of the ``task`` in it. ``shade`` is left together with it. ``generator`` says whose
    code has entered it, where that is a generator's (:mod:`inferspan.core.frames`).
    """

    # Defaults are the class's, and there is no __init__: one is made for each phase.
    inference: Inference | None = None
    phase: Phase | None = None
    outer: Active | None = None
    context_before: Context | None = None
    is_left: bool = False
    ident: int = 0
    task: Any = None
    shade: Active | None = None
    generator: int = 0
    is_of_parent: bool = False  # entered before this process was forked

    @property
    def is_suppressed(self) -> bool:
        return self.phase is _SUPPRESSED


class _Inside(Context):
    """OpenTelemetry's context inside of an inference. Copies of the program's context have it, and spans of its own put
    it back when they end, so it may be current when the inference is over: then it stands for the one before."""

    active: Active


_active: ContextVar[Active | None] = ContextVar("inferspan_active", default=None)
innermost = _active.get
"""What was entered last in this context, whether it still counts or not: for paths that are taken at each token."""

_modules = sys.modules


def _task() -> Any:
    """What takes turns with others on this thread: the asyncio or trio task, or the greenlet, unless that is the
    thread's own. Where neither is loaded and no event loop runs there is none, which the paths of each call see for
    themselves."""
    if _get_running_loop() is not None:
        return current_task()
    trio, greenlet = _modules.get("trio"), _modules.get("greenlet")
    if trio is not None:
        with suppress(RuntimeError, AttributeError):  # not inside of trio, or a thread is just importing it
            return trio.lowlevel.current_task()
    getcurrent = getattr(greenlet, "getcurrent", None)  # absent while a thread is just importing it
    found = None if getcurrent is None else getcurrent()
    return None if found is None or found.parent is None else found


def entered_last() -> Active | None:
    """The innermost that code which runs here has entered, whether it still counts or not."""
    return _of_generators() if frames.innermost else _active.get()


def _of_generators() -> Active | None:
    """The same where generators have entered some: one of theirs counts while they run."""
    active, running = _active.get(), frames.running(currentframe())
    while active is not None and (_is_over(active) or (active.generator and active.generator not in running)):
        active = active.outer
    if running:
        inside, outer = frames.innermost[running[0]][1], active
        while outer is not None and outer is not inside:
            outer = outer.outer
        inside.ident, inside.task = get_ident(), _task()  # it goes where its generator goes
        active = inside if outer is None else active
    return active


def here() -> Active | None:
    """What is running here: ``None`` for nothing."""
    active = _of_generators() if frames.innermost else _active.get()
    while active is not None and (
        active.is_left or ((inference := active.inference) is not None and inference.end_ns is not None)
    ):
        active = active.outer
    if active is None or active.phase is None:
        return active
    if active.ident != get_ident():
        return None
    is_alone = _get_running_loop() is None and "trio" not in _modules and "greenlet" not in _modules
    return active if active.task is (None if is_alone else _task()) else None


def open_here(active: Active | None = None) -> Inference | None:
    """The inference that runs here, or runs where this was innermost, and is in none of its phases."""
    if active is None:
        active = _of_generators() if frames.innermost else _active.get()
    while active is not None:
        inference = active.inference
        if active.is_left or (inference is not None and inference.end_ns is not None):
            active = active.outer
        else:
            return None if active.phase is not None else inference
    return None


def settings() -> Settings | None:
    """The settings in force; ``None`` while not instrumented."""
    return state.settings


def connect(sink: Sink, settings: Settings, probes: Probes, describer: Describer) -> None:
    """Begin to hand records to ``sink``."""
    rank.read_environment()
    state.probes, state.describer = probes, describer
    state.plans.clear()
    # What applies everywhere is loaded now: a signal handler that infers may come in the midst of a later import.
    probes.prepare(CallSite(settings, None, None, None), on_device=False)
    state.settings, state.sink = settings, sink


def disconnect() -> None:
    """Record nothing any more."""
    state.settings = state.sink = None


def may_open() -> bool:
    """Whether a hook that meets no inference should open one here and now."""
    settings = state.settings
    if settings is None or (otel_context.get_current() and not is_instrumentation_enabled()):
        return False
    return not settings.ranks or rank.is_one_of(settings.ranks)


def model_info(model: Any) -> ModelInfo:
    """What is known of a model instance, named as the settings say."""
    assert state.describer is not None
    settings = state.settings
    return state.models.info_of(model, state.describer, "basename" if settings is None else settings.local_model_name)


# -- open and close ------------------------------------------------------------------------------------------------


def plan(owner: Any, key: Any, make: Callable[[Any, Any, Any], Plan], model: Any = None) -> Plan | None:
    """The plan of a call site: of an owner (a pipeline, a model) and a key. ``make`` is asked for it, with owner, key
    and model, if it is new or does not hold any more: other settings, or a model that has changed."""
    settings = state.settings
    if settings is None:
        return None
    plans = state.plans.by_owner.get(id(owner))
    plan = None if plans is None else plans.get(key)
    if plan is not None and plan.settings is settings and plan.model() is model:
        info = plan.info
        if info is None or (not info.is_stale and (info.witness is None or info.witness.look() == info.seen)):
            return plan
    return state.plans.keep(owner, key, make(owner, key, model))


def make_plan(
    operation: str, *, model: Any = None, info: ModelInfo | None = None, name: str | None = None, source: str = ""
) -> Plan:
    """A plan under the settings in force.

    Args:
        operation: value of ``gen_ai.operation.name``.
        model: the instance that does the work, if there is one.
        info: what is known of it; by default that is asked.
        name: of the root span; by default the operation and the model's name.
        source: the integration that asks, for its own use.
    """
    assert state.settings is not None
    if info is None and model is not None:
        info = model_info(model)
    return Plan(state.probes, state.settings, operation, info, name=name, model=model, source=source)


def open_inference(
    plan: Plan | None,
    *,
    model: Any = None,
    parent: Context | None = None,
    links: tuple[Link, ...] = (),
) -> Inference | None:
    """Open an inference and start its root span, not yet current. ``None`` if it must not or cannot be recorded.

    Args:
        plan: what was decided for the call site.
        model: the instance itself, to describe it on its first inference.
        parent: context to take the parent from, by default the current one.
        links: of the root span.
    """
    sink = state.sink
    if plan is None or sink is None:
        return None
    around = otel_context.get_current()
    if (around or plan.settings.ranks) and not may_open():
        return None
    try:
        parent = around if parent is None else parent
        if parent.__class__ is _Inside:
            parent = _parent_of(parent)
        inference = Inference(plan, parent, sink.submit)
        inference.links = links
        inference.attributes.update(plan.attributes)
        info = plan.info
        if info is not None and (info.cold or not info.is_described):
            _meet(inference, info, model)
        elif info is not None:
            inference.cold = info.cold
        begin(inference, inference.marks, plan.beginning, model)
        inference.root = sink.start_root(inference, parent)
        inference.context = set_span_in_context(inference.root, parent)
        state.open[id(inference)] = inference
        overlap = inference.overlap
        overlap.serial = state.last_serial = next(state.serials)
        overlap.is_alone = len(state.open) == 1  # close() looks whether another one began
        inference.hooks_ns = perf_counter_ns() - inference.start_ns
        return inference
    except Exception:  # noqa: BLE001 - a user's sampler or span processor may raise anything
        faults.note("scope.open")
        return None


def _meet(inference: Inference, info: ModelInfo, model: Any) -> None:
    """The first inference of a model, or the first since it changed."""
    inference.cold = info.take_cold()
    if not info.is_described and model is not None and state.describer is not None:
        info.is_described = True
        inference.attributes.update(state.describer.describe(model, info))


def _outside(context: Context) -> Context:
    """The context; where it is that of an inference which is over, the one outside of it."""
    while isinstance(context, _Inside):
        over, inference = context.active, context.active.inference
        is_over = over.is_left or (inference is not None and inference.end_ns is not None)
        if not is_over or over.context_before is None:
            break
        if over.is_of_parent and not over.is_left:  # it goes on in the parent, and is above what the child does
            break
        context = over.context_before
    return context


def _parent_of(context: Context) -> Context:
    """The same, for a record: that of an inference without a way to its record, or they would hold each other."""
    context = _outside(context)
    inference = context.active.inference if isinstance(context, _Inside) else None
    return context if inference is None or inference.context is None else inference.context


def close(
    inference: Inference,
    error: BaseException | None = None,
    *,
    failed: str | None = None,
    end_ns: int | None = None,
    is_claimed: bool = False,
) -> None:
    """The inference is over: hand it on, once.

    ``error`` is the exception that ended it; ``failed`` its type alone, where the exception is not at hand.
    """
    if not is_claimed and not inference.claim():  # somebody else has closed it, or does so now
        return
    try:
        now = perf_counter_ns()
        with inference.phases.lock:  # from here on no phase of another thread is added
            inference.end_ns = now if end_ns is None else end_ns
            inference.phases.is_closed = True
        overlap = inference.overlap
        overlap.is_alone = overlap.is_alone and overlap.serial == state.last_serial
        overlap.open_after = len(state.open) - 1
        if inference.self_phase is not None and inference.self_phase.marks:
            end(inference.self_phase, inference.self_phase.marks)
        if inference.marks:
            end(inference, inference.marks)
        if error is not None:
            _fail(inference, error)
        elif failed is not None:
            inference.failure = Failure(failed, "", None)
        inference.hooks_ns += perf_counter_ns() - now
        if state.sink is not None:
            state.sink.submit(inference)
    except Exception:  # noqa: BLE001
        faults.note("scope.close")
    finally:  # not before: abandon_open() waits for what another thread hands on just now
        state.open.pop(id(inference), None)


def _fail(inference: Inference, error: BaseException) -> None:
    settings = inference.plan.settings
    for probe in inference.plan.inference_probes:
        try:
            mark = probe.failed(inference, error)
            if mark is not None:
                inference.marks.append((probe, mark))
        except Exception:  # noqa: BLE001 - it loses only itself
            faults.note("probes.failed")
    inference.is_cancelled = is_cancellation(error)
    if not inference.is_cancelled:
        with_message, length = settings.content_on_spans, settings.content_length
        inference.failure = failure_of(error, with_message=with_message, message_length=length)


# -- enter and leave -------------------------------------------------------------------------------------------------


def enter(inference: Inference, inside: Phase | None = None) -> Active:
    """Make the inference and its root span current in this context; ``inside`` a phase, where it has no others."""
    assert inference.context is not None
    active = Active()
    active.inference, active.phase, active.ident = inference, inside, get_ident()
    before = otel_context.get_current()
    active.context_before = before if before.__class__ is not _Inside else _outside(before)
    if _active.get() is None and inside is None and not frames.innermost:
        _active.set(active)
    else:
        _enter(active)
    context = _Inside(inference.context)
    context.active = active
    otel_context.attach(context)
    return active


def enter_phase(phase: Phase) -> Active:
    """Make a phase current in this context."""
    active = Active()
    active.inference, active.phase = phase.inference, phase
    _enter(active)
    return active


def _enter(active: Active) -> None:
    outer = _active.get()
    if outer is not None:
        outer = _not_over(outer)
    if frames.innermost:
        outer = _of_generators()
    active.outer, active.ident = outer, get_ident()
    if active.phase is not None and (_get_running_loop() is not None or "trio" in _modules or "greenlet" in _modules):
        active.task = _task()
    _active.set(active)


def _is_over(active: Active) -> bool:
    """Whether it counts no more, wherever its context may have gone."""
    return active.is_left or (active.inference is not None and active.inference.end_ns is not None)


def _not_over(active: Active | None) -> Active | None:
    """The innermost that counts. What is over between it and the next one outside is not held on to: a consumer that
    begins one answer before it has closed the last would hold them all."""
    while active is not None and _is_over(active):
        active = active.outer
    while active is not None and active.outer is not None and _is_over(active.outer):
        active.outer = active.outer.outer
    if active is not None and active.context_before is not None:
        active.context_before = _outside(active.context_before)
    return active


def leave(active: Active) -> None:
    """Undo :func:`enter` or :func:`enter_phase`, in whatever context and order.

    Where another one was entered after it, that one still counts, and takes this one away with itself. In another
    context than it was entered in nothing of it is current; where it was, :func:`here` passes over it.
    """
    active.is_left = True
    if active.shade is not None:
        active.shade.is_left = True
    if active.generator:
        frames.leave(active)
    if _active.get() is active:
        outer = active.outer
        _active.set(outer if outer is None or not _is_over(outer) else _not_over(outer))
    if active.context_before is not None and (context := otel_context.get_current()).__class__ is _Inside:
        outside = _outside(context)
        if outside is not context:
            otel_context.attach(outside)


def run(
    inference: Inference,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inside: Phase | None = None,
) -> Any:
    """Call ``function`` once inside the inference, and close that with what came of it."""
    active = enter(inference, inside)
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        leave(active)
        close(inference, error)
        raise
    leave(active)
    close(inference)
    return result


def run_phase(
    phase: Phase,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    discard_at: type[BaseException] | tuple[()] = (),
) -> Any:
    """Call ``function`` once inside a phase, and end the phase. Where it raises ``discard_at``, nothing has happened in
    the phase, and it is not kept."""
    # As enter_phase() does, spelled out for the usual case: this runs three times in a call of a pipeline.
    outer = _active.get()
    if (
        outer is None
        or outer.is_left
        or frames.innermost
        or _get_running_loop() is not None
        or "trio" in _modules
        or "greenlet" in _modules
    ):
        active = enter_phase(phase)
    else:
        active = Active()
        active.inference, active.phase, active.outer, active.ident = phase.inference, phase, outer, get_ident()
        _active.set(active)
    try:
        return function(*args, **kwargs)
    except discard_at:
        phase.discard()
        raise
    except BaseException as error:
        phase.cut_off(error)
        raise
    finally:
        if _active.get() is active and outer is not None and not outer.is_left and outer is active.outer:
            active.is_left = True
            _active.set(outer)
        else:
            leave(active)
        if phase.inference is not None:
            phase.inference.phases.end(phase)


def run_suppressed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``function`` once where no hook records."""
    active = enter_suppressed()
    try:
        return function(*args, **kwargs)
    finally:
        leave(active)


def enter_suppressed() -> Active:
    """Have no hook record in this context, until that is left."""
    return enter_phase(_SUPPRESSED)


def forget_all() -> None:
    """Nothing runs here, whatever this context says: a forked process that goes on with other work."""
    _active.set(None)
    frames.innermost.clear()


# -- phases -----------------------------------------------------------------------------------------------------------


def begin_phase(name: str) -> Phase | None:
    """Begin a phase here: of the inference that is current, else a standalone one; ``None`` inside another phase."""
    active = here()
    if active is None:
        return Phase(name, None, perf_counter_ns()) if may_open() else None
    if active.phase is not None or active.inference is None:
        return None
    return active.inference.begin(name)


def end_phase(phase: Phase, model: str | None = None) -> None:
    """The phase is over: give it to its inference, or on its own to the sink."""
    if phase.inference is not None:
        phase.inference.end(phase)
        return
    phase.end_ns = perf_counter_ns()
    phase.busy_ns = phase.end_ns - phase.start_ns
    phase.calls = 1
    if state.sink is not None:
        state.sink.submit_standalone(StandalonePhase(phase, _parent_of(otel_context.get_current()), model))


def begin_forward(phase: Phase, model: Any, device: str | None, since_ns: int) -> None:
    """The phase is a forward of ``model``, whose input is on ``device``, as torch writes it: have the probes note its
    beginning. Hooks have been at work ``since_ns``."""
    inference = phase.inference
    if inference is None or state.describer is None:
        return
    try:
        phase.is_forward = True
        plan = inference.plan
        on = plan.devices.get(device) if plan.model() is model else None
        if on is None:
            on = state.describer.device_of(model, device)
            if plan.model() is model:
                plan.devices[device] = on
        of_forward, of_inference = plan.by_device.get(on) or plan.prepare_on(on)
        if of_inference:
            begin(inference, inference.marks, [it for it in of_inference if inference.mark_of(it.name) is None], model)
        if phase.marks is None:
            phase.marks = []
        phase.has_ends = begin(phase, phase.marks, of_forward, model) or phase.has_ends
    except Exception:  # noqa: BLE001
        faults.note("scope.measure")
    finally:
        spent = perf_counter_ns() - since_ns
        # where the phase is the inference itself, that it was opened is in there
        inference.hooks_ns = spent if phase is inference.self_phase else inference.hooks_ns + spent


def model_called(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A model is called in a phase: the outermost one of it."""
    for probe, mark in phase.marks or ():
        try:
            probe.model_called(phase, mark, model, args, kwargs)
        except Exception:  # noqa: BLE001 - it loses only itself
            faults.note("probes.model_called")
