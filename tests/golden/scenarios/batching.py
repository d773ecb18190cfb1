"""Continuous batching: one trace for each request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any

import torch
import transformers
from transformers.generation.continuous_batching import continuous_api

from golden.scenarios.parts import V4
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("batching")

PROMPTS = [[10, 20, 30], [40, 50, 60, 70]]


_LOGGERS = ("ContinuousBatchingLogger", "transformers.generation.continuous_batching.continuous_api")


def _alone(scenario: Callable[[Stage], Any], stage: Stage) -> Any:
    for name in _LOGGERS:  # errors on purpose
        stage.patch.setattr(logging.getLogger(name), "disabled", True)
    if V4:  # cannot read how much memory a CPU has
        from transformers.generation.continuous_batching import cache

        room = (torch.device("cpu"), 2**30, 0, 0)
        stage.patch.setattr(cache, "get_device_and_memory_breakdown", lambda: room)
    stage.instrument()
    return scenario(stage)


def batching(function: Callable[[Stage], Any]) -> Callable[[Stage], Any]:
    """Adds the scenario, for which continuous batching works on a CPU."""
    GROUP[function.__name__] = partial(_alone, function)
    return function


def _model() -> Any:
    found = tiny.causal_lm()
    if V4:
        found.set_attn_implementation("sdpa_paged")
    return found


def _settings(**generation: Any) -> dict[str, Any]:
    """A small cache, greedy decoding."""
    sizes = {"num_blocks": 32, "max_batch_tokens": 64}
    common = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0, **generation}
    config = transformers.GenerationConfig(**common, **(sizes if V4 else {}))
    if V4:
        return {"generation_config": config}
    batching_config = transformers.ContinuousBatchingConfig(page_size=256, **sizes)
    return {"generation_config": config, "continuous_batching_config": batching_config}


def _generate(model: Any, prompts: list[list[int]], **generation: Any) -> list[list[int]]:
    outputs = model.generate_batch(prompts, progress_bar=False, max_new_tokens=5, **_settings(**generation))
    return [output.generated_tokens for output in outputs.values()]


@contextmanager
def _manager(model: Any, **options: Any) -> Iterator[Any]:
    manager = model.init_continuous_batching(**_settings(), **options)
    try:
        yield manager
    finally:
        manager.stop(block=True)


def _wait_for(manager: Any, count: int) -> None:
    while count:
        output = manager.get_result(timeout=60)
        count -= output.status.name in ("FINISHED", "FAILED")


class Gate:
    """Holds the generation thread after so many forwards of the model, until it is opened."""

    def __init__(self, model: Any, forwards: int) -> None:
        self.left, self.reached, self.opened = forwards, Event(), Event()
        model.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            self.opened.wait(60)


@batching
def one_request(stage: Stage) -> Any:
    return _generate(_model(), PROMPTS[:1])


@batching
def two_requests_under_a_span(stage: Stage) -> Any:
    with stage.tracer.start_as_current_span("job"):
        return _generate(_model(), PROMPTS)


@batching
def no_end_token(stage: Stage) -> Any:
    return _generate(_model(), PROMPTS[:1], eos_token_id=None)


@batching
def content_of_requests(stage: Stage) -> Any:
    stage.close()
    stage.instrument(capture_content="SPAN_AND_EVENT")
    return _generate(_model(), PROMPTS[:1])


@batching
def requests_of_different_spans(stage: Stage) -> Any:
    with _manager(_model()) as manager:
        for index, prompt in enumerate(PROMPTS):
            with stage.tracer.start_as_current_span(f"http {index}"):
                manager.add_request(prompt, max_new_tokens=5)
        manager.start()
        _wait_for(manager, 2)


@batching
def streamed_request(stage: Stage) -> Any:
    with _manager(_model(), **({"streaming": True} if V4 else {})) as manager:
        manager.add_request(PROMPTS[0], "mine", 5, **({} if V4 else {"streaming": True}))
        manager.start()
        for output in manager.request_id_iter("mine"):
            if output.status.name == "FINISHED":
                return output.generated_tokens
    return None


@batching
def cancelled_request(stage: Stage) -> Any:
    model = _model()
    gate = Gate(model, 3)
    with _manager(model) as manager:
        name = manager.add_request(PROMPTS[0], max_new_tokens=50)
        manager.start()
        gate.reached.wait(60)
        manager.cancel_request(name)
        gate.opened.set()


@batching
def cancelled_in_the_queue(stage: Stage) -> Any:
    model = _model()
    gate = Gate(model, 1)
    with _manager(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
        gate.reached.wait(60)
        manager.cancel_request(manager.add_request(PROMPTS[1], max_new_tokens=5))
        gate.opened.set()
        _wait_for(manager, 1)


@batching
def failing_forward(stage: Stage) -> Any:
    def fail(*_: Any) -> None:
        raise ConnectionError("secret words")

    model = _model()
    gate = Gate(model, 2)
    with _manager(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
        gate.reached.wait(60)
        manager.add_request(PROMPTS[1], max_new_tokens=5)
        model.register_forward_pre_hook(fail)
        gate.opened.set()
        _wait_for(manager, 2)


@batching
def no_room_to_begin(stage: Stage) -> Any:
    def no_room(*_: Any, **__: Any) -> None:
        raise MemoryError("secret words")

    stage.patch.setattr(continuous_api, "PagedAttentionCache", no_room)
    with _manager(_model()) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()


@batching
def generate_beside_it(stage: Stage) -> Any:
    model, other = _model(), tiny.causal_lm()
    gate = Gate(model, 2)
    with _manager(model) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=5)
        manager.start()
        gate.reached.wait(60)
        found = other.generate(torch.tensor([[10, 20]]), max_new_tokens=3)
        gate.opened.set()
        _wait_for(manager, 1)
    return found


if not V4:

    @batching
    def several_sequences(stage: Stage) -> Any:
        outputs = _generate(_model(), PROMPTS[:1], num_return_sequences=3, do_sample=True)
        return [len(tokens) for tokens in outputs]

    @batching
    def failing_request(stage: Stage) -> Any:
        with _manager(_model()) as manager:
            manager.add_request(PROMPTS[0], max_new_tokens=5)
            manager.add_request(PROMPTS[1], max_new_tokens=5, no_such_setting=1)
            manager.start()
            _wait_for(manager, 2)
