"""Continuous batching (``generate_batch`` and its manager): one inference for each request.

A request is submitted in the caller's context and computed in a background thread, together with others, often by
replayed CUDA graphs that call no Python at all. So its inference is opened where it is submitted, is current
nowhere, and follows the request's own state: out of the queue, first token, finished, failed, or dropped (cancelled).
In the thread itself recording is suppressed: a forward there belongs to many requests.

The state is known by ``RequestState.status``, a property from 4.57 to 5.23. A request that the scheduler
restarts gets a new state object with the same id, which takes the inference over; one with another id is a further
returned sequence, a request of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.batch import Batch
from inferspan.core.errors import type_name
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Generation
from inferspan.forks import Later
from inferspan.integrations.patching import Patches
from inferspan.integrations.tensors import ids_of

_settings = Later(f"{__package__}.settings")
_REQUEST = "_inferspan_request"

_submitting: ContextVar[_Request | None] = ContextVar("inferspan_submitting", default=None)


def install_api(module: ModuleType, patches: Patches) -> None:
    manager = module.ContinuousBatchingManager
    patches.wrap(manager, "add_request", _add_request)
    patches.wrap(manager, "_run_generation_loop", _suppressed)
    patches.wrap(manager, "_handle_critical_error", _handle_critical_error)
    patches.wrap(manager, "warmup", _suppressed)
    patches.wrap(module.ContinuousBatchProcessor, "_handle_request_error", _handle_request_error)
    router = getattr(module, "OutputRouter", None)
    if router is not None:
        patches.wrap(router, "fail_and_deliver", _fail_and_deliver)


def install_requests(module: ModuleType, patches: Patches) -> None:
    state = module.RequestState
    patches.wrap(state, "__init__", _state_init)
    patches.wrap_property_setter(state, "status", _status)
    for name in ("update_and_check_completion", "update_with_token"):  # 5.x, 4.57
        patches.wrap(state, name, _update)
    patches.wrap(state, "create_equivalent_initial_request", _restart)


def install_scheduler(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.Scheduler, "add_waiting_request", _add_waiting_request)
    patches.wrap(module.Scheduler, "clear_cancelled_requests", _clear_cancelled_requests)


class _Request:
    """What a request's state carries: its inference, and the times that its spans need."""

    __slots__ = ("__weakref__", "id", "inference", "phase", "queue", "settings")

    def __init__(self, inference: Inference, settings: dict[str, Any]) -> None:
        self.id: str | None = None
        self.inference = inference
        self.settings = settings
        inference.attributes.update(settings)
        self.queue: Phase | None = inference.begin(semconv.QUEUE)
        self.phase: Phase | None = None
        weakref.finalize(self, _dropped, inference).atexit = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> _Request | None:
        # RequestState.fork deep-copies the state for a further returned sequence, which is computed already.
        fork = self.fork()
        if fork is not None:
            fork.queue = None
            fork.compute()
        return fork

    def fork(self) -> _Request | None:
        """A request of its own with the same prompt, for the same caller."""
        origin = self.inference
        inference = current.open_inference(origin.plan, parent=origin.parent)
        if inference is None:
            return None
        inference.is_stream, inference.device = origin.is_stream, origin.device
        return _Request(inference, self.settings)

    def leave_queue(self) -> None:
        if self.queue is not None:
            self.inference.end(self.queue)
            self.queue = None
            self.compute()

    def compute(self) -> None:
        self.phase = self.inference.begin(semconv.FORWARD)
        self.phase.generation = self.inference.generation = Generation()
        self.phase.generation.tick()  # the loop begins; every further tick is a token

    def token(self) -> None:
        if self.phase is not None and self.phase.generation is not None:
            self.phase.generation.tick()

    def finish(self, state: Any, failed: str | None = None, *, cancelled: bool = False) -> None:
        inference = self.inference
        if inference.end_ns is not None:
            return
        phase = self.phase or self.queue
        if phase is not None:
            if phase.generation is not None:
                phase.generation.end_ns = perf_counter_ns()
            phase.error, phase.is_cut_off = failed, cancelled or failed is not None
            inference.end(phase)
            self.phase = self.queue = None
        self._count(state, ended_well=failed is None and not cancelled)
        inference.is_cancelled = cancelled
        current.close(inference, failed=failed)

    def _count(self, state: Any, *, ended_well: bool) -> None:
        prompt = getattr(state, "initial_tokens", None)
        if prompt is None:  # 4.57
            prompt = getattr(state, "full_prompt_ids", None) or []
        generated = getattr(state, "generated_tokens", None)
        if generated is None:
            generated = getattr(state, "static_outputs", None) or []
        # After a restart by the scheduler, what was generated before it stands behind the prompt.
        true_prompt = getattr(state, "_true_initial_tokens", 0) or len(prompt)
        produced = len(prompt) - true_prompt + len(generated)
        counts = self.inference.counts
        batch = Batch(rows=1, length=true_prompt, tokens=true_prompt, positions=true_prompt)
        self.inference.add_batch(None, batch)
        counts.add_output(produced, True)
        if generated and ended_well:
            end_ids = getattr(state, "_eos_token_ids", None) or ids_of(getattr(state, "eos_token_id", None))
            counts.finish_reasons = ("stop" if generated[-1] in end_ids else "length",)


def _dropped(inference: Inference) -> None:
    # The last state that knew the request is gone, and it never finished: it was cancelled.
    if inference.end_ns is None:
        inference.is_cancelled = True
        current.close(inference)


def _request_of(state: Any) -> _Request | None:
    try:
        found = vars(state).get(_REQUEST)
        if not isinstance(found, _Request):
            return None
        if found.id is not None and found.id != state.request_id:
            # Forked by way of a restart, where the cache had no room for a copy: it waits for its turn like any other.
            fork = vars(state)[_REQUEST] = found.fork()
            if fork is None:
                return None
            found = fork
        found.id = state.request_id
        return found
    except Exception:  # noqa: BLE001
        faults.note("continuous_batching.request")
        return None


def _add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = _open(self, args, kwargs)
        if request is None:
            return original(self, *args, **kwargs)
        token = _submitting.set(request)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            current.close(request.inference, error)
            raise
        finally:
            _submitting.reset(token)

    return add_request


def _make_plan(model: Any, _: str, __: Any) -> Plan:
    return current.make_plan(semconv.TEXT_COMPLETION, model=model)


@faults.guarded("continuous_batching.open")
def _open(manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Request | None:
    model = manager.model
    plan = current.plan(model, "continuous_batching", _make_plan, model)
    inference = current.open_inference(plan, model=model)
    if inference is None:
        return None
    _, _, limit, streaming, *_ = (*args, None, None, None, None)  # behind input_ids and request_id
    limit, config = kwargs.get("max_new_tokens", limit), getattr(manager, "generation_config", None)
    # without one that was passed it is the model's
    given = {} if config is getattr(model, "generation_config", None) else {"generation_config": config}
    settings = _settings.recorded_settings(given if limit is None else {**given, "max_new_tokens": limit})
    settings.pop(semconv.CHOICE_COUNT, None)  # each choice is a request of its own
    # of the manager in 4.57
    inference.is_stream = bool(kwargs.get("streaming", streaming) or getattr(manager, "streaming", False))
    device = getattr(model, "device", None)
    inference.device = None if device is None else str(device)
    return _Request(inference, settings)


def _suppressed(original: Callable[..., Any]) -> Callable[..., Any]:
    def suppressed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return current.run_suppressed(original, (self, *args), kwargs)

    return suppressed


def _state_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        request = _submitting.get()
        if request is not None:
            request.id = self.request_id
            vars(self)[_REQUEST] = request

    return __init__


def _status(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def status(self: Any, value: Any) -> None:
        original(self, value)
        try:
            request = _request_of(self)
            if request is None:
                return
            name = getattr(value, "name", "")
            if name == "FINISHED":
                request.finish(self)
            elif name == "FAILED":
                request.finish(self, vars(self).get("_inferspan_error", semconv.OTHER))
            elif name != "PENDING":
                request.leave_queue()
        except Exception:  # noqa: BLE001
            faults.note("continuous_batching.status")

    return status


def _update(original: Callable[..., Any]) -> Callable[..., Any]:
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = _request_of(self)
        if request is not None:
            request.token()
        return original(self, *args, **kwargs)

    return update


def _restart(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_equivalent_initial_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = original(self, *args, **kwargs)
        request = _request_of(self)
        if request is not None:
            vars(state)[_REQUEST] = request
        return state

    return create_equivalent_initial_request


def _add_waiting_request(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_waiting_request(self: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        _request_of(state)  # it has the id now by which it is known whose it is
        return original(self, state, *args, **kwargs)

    return add_waiting_request


def _clear_cancelled_requests(original: Callable[..., Any]) -> Callable[..., Any]:
    def clear_cancelled_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        cancelled = _cancelled_states(self)
        result = original(self, *args, **kwargs)
        for state in cancelled:
            _finish(state, cancelled=True)
        return result

    return clear_cancelled_requests


def _cancelled_states(scheduler: Any) -> list[Any]:
    try:
        if not scheduler._requests_to_cancel:
            return []
        queues = (scheduler.active_requests, scheduler.waiting_requests)
        # list() of a set is atomic: 4.57 adds to it from the caller's thread
        found = (queue.get(request_id) for request_id in list(scheduler._requests_to_cancel) for queue in queues)
        return [state for state in found if state is not None]
    except Exception:  # noqa: BLE001 - a scheduler of the program's own
        faults.note("continuous_batching.cancelled")
        return []


def _finish(state: Any, failed: str | None = None, *, cancelled: bool = False) -> None:
    try:
        request = _request_of(state)
        if request is not None:
            request.finish(state, failed, cancelled=cancelled)
    except Exception:  # noqa: BLE001
        faults.note("continuous_batching.finish")


def _handle_critical_error(original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_critical_error(self: Any, error: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = _waiting_states(self)
        result = original(self, error, *args, **kwargs)
        for state in waiting:  # 4.57 throws away what waits for a loop that could not even begin
            if isinstance(error, BaseException):
                _finish(state, type_name(error))
        return result

    return handle_critical_error


def _waiting_states(manager: Any) -> list[Any]:
    try:
        return list(manager.input_queue.queue)
    except Exception:  # noqa: BLE001 - a queue of another kind
        faults.note("continuous_batching.waiting")
        return []


def _remember_error(state: Any, error: Any) -> None:
    if _request_of(state) is not None and isinstance(error, BaseException):
        vars(state)["_inferspan_error"] = type_name(error)


def _handle_request_error(original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_request_error(self: Any, error: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        _remember_error(state, error)
        return original(self, error, state, *args, **kwargs)

    return handle_request_error


def _fail_and_deliver(original: Callable[..., Any]) -> Callable[..., Any]:
    def fail_and_deliver(self: Any, state: Any, error: Any, *args: Any, **kwargs: Any) -> Any:
        _remember_error(state, error)
        return original(self, state, error, *args, **kwargs)

    return fail_and_deliver
