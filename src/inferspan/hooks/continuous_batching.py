"""Continuous batching (``generate_batch`` and its manager): one inference for each request.

A request is submitted in the caller's context and computed in a background thread, together with others, often by
replayed CUDA graphs that call no Python at all. So its inference is opened where it is submitted, is current
nowhere, and follows the request's own state: out of the queue, first token, finished, failed, or dropped (cancelled).
The thread itself is muted: a forward there belongs to many requests.

The state is told apart by ``RequestState.status``, a property from 4.57 to 5.23; a request that the scheduler
restarts gets a new state object, which takes the inference over.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.hooks.patches import Patches
from inferspan.inference import scope
from inferspan.inference.error import type_name
from inferspan.inference.record import Inference, Phase
from inferspan.measure.generation import Generation
from inferspan.measure.tokens import Batch

_REQUEST = "_inferspan_request"

_submitting: ContextVar[_Request | None] = ContextVar("inferspan_submitting", default=None)


def _install_api(module: ModuleType, patches: Patches) -> None:
    manager = module.ContinuousBatchingManager
    patches.wrap(manager, "add_request", _add_request)
    patches.wrap(manager, "_run_generation_loop", _muted)
    patches.wrap(manager, "warmup", _muted)
    patches.wrap(module.ContinuousBatchProcessor, "_handle_request_error", _handle_request_error)
    router = getattr(module, "OutputRouter", None)
    if router is not None:
        patches.wrap(router, "fail_and_deliver", _fail_and_deliver)


def _install_requests(module: ModuleType, patches: Patches) -> None:
    state = module.RequestState
    patches.wrap(state, "__init__", _state_init)
    patches.wrap_property_setter(state, "status", _status)
    for name in ("update_and_check_completion", "update_with_token"):  # 5.x, 4.57
        patches.wrap(state, name, _update)
    patches.wrap(state, "create_equivalent_initial_request", _restart)


MODULES = {
    "transformers.generation.continuous_batching.continuous_api": _install_api,
    "transformers.generation.continuous_batching.requests": _install_requests,
}


class _Request:
    """What a request's state carries: its inference, and the times that its spans need."""

    __slots__ = ("__weakref__", "facts", "inference", "model_id", "parent", "phase", "queue", "started")

    def __init__(self, inference: Inference, model: Any) -> None:
        self.inference = inference
        self.facts = inference.model
        self.model_id = id(model)
        self.parent = inference.parent
        self.queue = inference.begin(semconv.QUEUE)
        self.phase: Phase | None = None
        self.started = False
        weakref.finalize(self, _dropped, inference).atexit = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> _Request | None:
        # RequestState.fork deep-copies the state for a further returned sequence: a request of its own.
        inference = scope.open_inference(semconv.TEXT_COMPLETION, self.facts, parent=self.parent)
        if inference is None:
            return None
        fork = object.__new__(_Request)
        _Request._take(fork, self, inference)
        return fork

    def _take(self, origin: _Request, inference: Inference) -> None:
        self.inference, self.facts, self.model_id = inference, origin.facts, origin.model_id
        self.parent, self.queue = origin.parent, origin.queue
        self.phase, self.started = None, True
        weakref.finalize(self, _dropped, inference).atexit = False
        self.compute()

    def leave_queue(self) -> None:
        if not self.started:
            self.started = True
            self.inference.end(self.queue)
            self.compute()

    def compute(self) -> None:
        self.phase = self.inference.begin(semconv.FORWARD)
        self.phase.generation = self.inference.generation = Generation(self.model_id)
        self.phase.generation.tick()  # the loop begins; every further tick is a token

    def token(self) -> None:
        if self.phase is not None and self.phase.generation is not None:
            self.phase.generation.tick()

    def finish(self, state: Any, failed: str | None) -> None:
        inference = self.inference
        if self.phase is not None:
            if self.phase.generation is not None:
                self.phase.generation.end_ns = perf_counter_ns()
            self.phase.error = failed
            inference.end(self.phase)
            self.phase = None
        self._count(state)
        scope.close(inference, failed=failed)

    def _count(self, state: Any) -> None:
        prompt = getattr(state, "initial_tokens", None)
        if prompt is None:  # 4.57
            prompt = getattr(state, "full_prompt_ids", None) or []
        generated = getattr(state, "generated_tokens", None)
        if generated is None:
            generated = getattr(state, "static_outputs", None) or []
        # After a restart by the scheduler, what was generated before it stands behind the prompt.
        true_prompt = getattr(state, "_true_initial_tokens", 0) or len(prompt)
        produced = len(prompt) - true_prompt + len(generated)
        self.inference.add_batch(Batch(rows=1, length=true_prompt, tokens=true_prompt, positions=true_prompt))
        self.inference.add_output(produced, True)
        end_ids = getattr(state, "_eos_token_ids", None)
        if end_ids is None:
            end_ids = {getattr(state, "eos_token_id", None)}
        if generated:
            reason = "stop" if generated[-1] in end_ids else "length"
            self.inference.set(semconv.FINISH_REASONS, (reason,))


def _dropped(inference: Inference) -> None:
    # The last state that knew the request is gone, and it never finished: it was cancelled.
    if inference.end_ns is None:
        inference.cancelled = True
        scope.close(inference)


def _request_of(state: Any) -> _Request | None:
    found = vars(state).get(_REQUEST)
    return found if isinstance(found, _Request) else None


def _add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = _open(self, kwargs)
        if request is None:
            return original(self, *args, **kwargs)
        token = _submitting.set(request)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            scope.close(request.inference, error)
            raise
        finally:
            _submitting.reset(token)

    return add_request


def _open(manager: Any, kwargs: dict[str, Any]) -> _Request | None:
    try:
        model = manager.model
        inference = scope.open_inference(semconv.TEXT_COMPLETION, scope.model_facts(model), model=model)
        if inference is None:
            return None
        limit = kwargs.get("max_new_tokens")
        inference.set(semconv.MAX_TOKENS, limit if isinstance(limit, int) else None)
        if kwargs.get("streaming"):
            inference.stream = True
            inference.set(semconv.STREAM, True)
        device = getattr(model, "device", None)
        inference.set(semconv.DEVICE, None if device is None else str(device))
        return _Request(inference, model)
    except Exception:  # noqa: BLE001
        faults.note("continuous_batching.open")
        return None


def _muted(original: Callable[..., Any]) -> Callable[..., Any]:
    def muted(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = scope.ACTIVE.set(scope.MUTED)
        try:
            return original(self, *args, **kwargs)
        finally:
            scope.ACTIVE.reset(token)

    return muted


def _state_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        request = _submitting.get()
        if request is not None:
            vars(self)[_REQUEST] = request

    return __init__


def _status(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def status(self: Any, value: Any) -> None:
        original(self, value)
        request = _request_of(self)
        if request is None:
            return
        try:
            name = getattr(value, "name", "")
            if name == "FINISHED":
                request.finish(self, None)
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
            vars(self).pop(_REQUEST, None)
        return state

    return create_equivalent_initial_request


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
