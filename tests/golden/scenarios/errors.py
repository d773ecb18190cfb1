"""What raises, is cancelled or runs out of memory, and where: the caller's own exception, and a trace that says so."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import IDS, ONE, THREE, Items, called, each, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("errors")

SECRET = "secret words"


class QuotaExceeded(Exception):
    """An exception of the program's own."""


class GenerationCancelled(Exception):
    """A cancellation by its name."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "built-in": lambda: ValueError(SECRET),
    "own": lambda: QuotaExceeded(SECRET),
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(3),
    "cancelled task": asyncio.CancelledError,
    "cancelled by name": GenerationCancelled,
    "generator exit": GeneratorExit,
    "out of memory": lambda: torch.OutOfMemoryError(SECRET),
    "host memory": lambda: MemoryError(SECRET),
}


# -- pipelines ---------------------------------------------------------------------------------------------------------


class Failing(transformers.TextClassificationPipeline):
    """Raises in one phase, at the second item."""

    failing: str = ""
    error: BaseException
    calls = 0

    def maybe(self, phase: str) -> None:
        if self.failing == phase:
            self.calls += 1
            if self.calls == 2:
                raise self.error

    def preprocess(self, inputs: Any, **options: Any) -> Any:
        self.maybe("preprocess")
        return super().preprocess(inputs, **options)

    def _forward(self, model_inputs: Any, **options: Any) -> Any:
        self.maybe("forward")
        return super()._forward(model_inputs, **options)

    def postprocess(self, model_outputs: Any, **options: Any) -> Any:
        self.maybe("postprocess")
        return super().postprocess(model_outputs, **options)

    def texts(self) -> Iterator[str]:
        """The program's own generator, which may raise as well."""
        for text in THREE:
            self.maybe("generator")
            yield text


def _failing(phase: str, error: BaseException) -> Failing:
    options = {"model": tiny.classifier(), "tokenizer": tiny.word_tokenizer(), "device": "cpu"}
    pipe = transformers.pipeline("text-classification", pipeline_class=Failing, **options)
    pipe.failing, pipe.error = phase, error
    return pipe


_CALLED: dict[str, Callable[[Failing], Any]] = {
    "list": lambda p: p(THREE),
    "batches": lambda p: p(THREE, batch_size=2),
    "generator": lambda p: list(p(p.texts())),
    "data set": lambda p: list(p(Items(THREE))),
}


def _in_phase(phase: str, how: str, kind: str, stage: Stage) -> Any:
    stage.instrument()
    pipe = _failing(phase, ERRORS[kind]())
    return [raised(lambda: _CALLED[how](pipe)), pipe(THREE[0])]


for _phase in ("preprocess", "forward", "postprocess"):
    for _how in ("list", "generator"):
        GROUP[f"pipeline, {_phase}, {_how}"] = partial(_in_phase, _phase, _how, "own")
GROUP["pipeline, forward, batches"] = partial(_in_phase, "forward", "batches", "built-in")
GROUP["pipeline, forward, data set"] = partial(_in_phase, "forward", "data set", "built-in")
GROUP["pipeline, the program's generator"] = partial(_in_phase, "generator", "generator", "own")
for _kind in ERRORS:
    GROUP[f"pipeline, forward, {_kind}"] = partial(_in_phase, "forward", "list", _kind)


@GROUP
def pipeline_lazy_goes_on_behind_an_error(stage: Stage) -> Any:
    stage.instrument()
    result = iter(_failing("forward", ValueError(SECRET))(Items(THREE)))
    found = [next(result), raised(partial(next, result)), raised(partial(next, result))]
    del result
    gc.collect()
    return found


@GROUP
def pipeline_lazy_in_a_generator_that_is_closed(stage: Stage) -> Any:
    stage.instrument()
    pipe = _failing("", ValueError())

    def consume() -> Iterator[Any]:
        yield from pipe(each(THREE))

    generator = consume()
    first = next(generator)
    generator.close()
    gc.collect()
    return first


# -- generate() --------------------------------------------------------------------------------------------------------


class Raise(LogitsProcessor):
    """Raises at a step of the decoding loop, counted from 0."""

    def __init__(self, error: BaseException, step: int) -> None:
        self.error, self.step = error, step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] - IDS.shape[1] == self.step:
            raise self.error
        return scores


def _generate(model: Any, error: BaseException, step: int) -> Any:
    processors = LogitsProcessorList([Raise(error, step)])
    return model.generate(ONE, max_new_tokens=6, logits_processor=processors)


def _at_step(kind: str, step: int, stage: Stage) -> Any:
    stage.instrument()
    model = lm()
    return [raised(lambda: _generate(model, ERRORS[kind](), step)), model.generate(ONE, max_new_tokens=2)]


for _step in (0, 1, 3):
    GROUP[f"generate, step {_step}"] = partial(_at_step, "own", _step)
for _kind in ERRORS:
    GROUP[f"generate, {_kind}"] = partial(_at_step, _kind, 2)


class FailingStreamer(transformers.generation.BaseStreamer):
    """Takes some tokens, then raises."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def put(self, value: torch.Tensor) -> None:
        if not self.left:
            raise self.error
        self.left -= 1

    def end(self) -> None:
        pass


def _streamer(error: BaseException, after: int, stage: Stage) -> Any:
    stage.instrument()
    return raised(lambda: lm().generate(ONE, max_new_tokens=6, streamer=FailingStreamer(error, after)))


GROUP["streamer, at the prompt"] = partial(_streamer, ConnectionError(SECRET), 0)
GROUP["streamer, at the third token"] = partial(_streamer, ConnectionError(SECRET), 3)
GROUP["streamer, cancelled"] = partial(_streamer, GenerationCancelled(), 3)

_WRONG: dict[str, dict[str, Any]] = {
    "text for ids": {"input_ids": "words"},
    "ids twice": {"inputs": IDS, "input_ids": IDS},
    "unknown argument": {"input_ids": IDS, "no_such_argument": 1},
    "wrong beams": {"input_ids": IDS, "num_return_sequences": 3},
}


def _wrong(options: dict[str, Any], stage: Stage) -> Any:
    stage.instrument()
    return raised(lambda: tiny.causal_lm().generate(**options)).split()[:2]


GROUP.update({f"wrong call, {name}": partial(_wrong, options) for name, options in _WRONG.items()})


# -- models and content ------------------------------------------------------------------------------------------------


def _in_model(kind: str, stage: Stage) -> Any:
    stage.instrument()
    model = tiny.classifier()
    error = ERRORS[kind]()

    def fail(*_: Any) -> None:
        raise error

    model.bert.encoder.register_forward_hook(fail)
    return raised(lambda: called(model, IDS))


GROUP.update({f"model, {kind}": partial(_in_model, kind) for kind in ERRORS})


@GROUP
def model_out_of_host_memory(stage: Stage) -> Any:
    stage.instrument()
    model = tiny.classifier()
    model.register_forward_hook(lambda *_: torch.empty(10**16))
    return raised(lambda: called(model, IDS)).split()[:2]


@GROUP
def with_content(stage: Stage) -> Any:
    """The message is content."""
    stage.instrument(capture_content="SPAN_ONLY")
    return raised(lambda: _generate(lm(), ValueError(SECRET), 1))


@GROUP
def caught_in_a_block(stage: Stage) -> Any:
    """Only the phase has it."""
    stage.instrument()
    model = lm()
    with inferspan.inference("answer"):
        return raised(lambda: _generate(model, ValueError(SECRET), 1))


@GROUP
def chained(stage: Stage) -> Any:
    stage.instrument()

    def fail() -> None:
        try:
            called(tiny.classifier(), torch.tensor([[100_000]]))
        except IndexError as error:
            raise QuotaExceeded(SECRET) from error

    return raised(fail)
