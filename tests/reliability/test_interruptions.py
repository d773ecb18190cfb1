"""What may interrupt an inference, in each of its phases: the same object comes out, and the trace is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import inferspan
from inferspan.core import current
from support import tiny
from support.recorder import Recorder

ERRORS = [
    pytest.param(lambda: KeyboardInterrupt(), "KeyboardInterrupt", id="KeyboardInterrupt"),
    pytest.param(lambda: SystemExit(4), "SystemExit", id="SystemExit"),
    pytest.param(lambda: asyncio.CancelledError(), None, id="CancelledError"),
    pytest.param(lambda: GeneratorExit(), None, id="GeneratorExit"),
]

Raise = Callable[..., Any]


class Pipeline(transformers.TextGenerationPipeline):
    """Raises where it is told to."""

    fails = ""
    fail: Raise

    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        return self.fail() if self.fails == "preprocess" else super().preprocess(*args, **kwargs)

    def postprocess(self, *args: Any, **kwargs: Any) -> Any:
        return self.fail() if self.fails == "postprocess" else super().postprocess(*args, **kwargs)


class Streamer:
    """Raises at a token, counted from the prompt."""

    def __init__(self, fail: Raise, at: int) -> None:
        self.fail, self.left = fail, at

    def put(self, value: Any) -> None:
        self.left -= 1
        if self.left < 0:
            self.fail()

    def end(self) -> None:
        pass


IDS = torch.tensor([[10, 20, 30]])


def piped(where: str, at: int = 99) -> Callable[[Raise], Any]:
    def run(fail: Raise) -> Any:
        pipeline = Pipeline(tiny.causal_lm(), tokenizer=tiny.text_tokenizer(), task="text-generation")
        pipeline.fails, pipeline.fail = where, fail
        settings = {"streamer": Streamer(fail, at), "min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
        return pipeline("Hello", **settings)

    return run


def generated(at: int) -> Callable[[Raise], Any]:
    return lambda fail: tiny.causal_lm().generate(
        IDS, streamer=Streamer(fail, at), min_new_tokens=6, max_new_tokens=6, do_sample=False
    )


def called(fail: Raise) -> Any:
    model = tiny.causal_lm()
    model.lm_head.register_forward_pre_hook(fail)
    with torch.no_grad():
        return model(IDS)


def in_phase(fail: Raise) -> Any:
    with inferspan.inference("answer") as block, block.phase("think"):
        fail()


def in_block(fail: Raise) -> Any:
    with inferspan.inference("answer"):
        fail()


async def _awaited(fail: Raise) -> Any:
    async with inferspan.inference("answer") as block, block.phase("think"):
        await asyncio.sleep(0)
        fail()


def in_coroutine(fail: Raise) -> Any:
    """Step by step: an event loop would not let an interrupt out as it is."""
    coroutine = _awaited(fail)
    while True:
        coroutine.send(None)


def in_tokenizer(fail: Raise) -> Any:
    class Tokenizer(transformers.PreTrainedTokenizerFast):
        def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
            return fail()

        _batch_encode_plus = _encode_plus

    return Tokenizer(tokenizer_object=tiny.text_tokenizer().backend_tokenizer)("Hello")


def in_lazy_pipeline(fail: Raise) -> Any:
    def texts() -> Any:
        yield "Hello"
        fail()

    pipeline = Pipeline(tiny.causal_lm(), tokenizer=tiny.text_tokenizer(), task="text-generation")
    return list(pipeline(texts(), max_new_tokens=2, do_sample=False))


GENERATION = ("forward", "prefill", "decode")
PIPELINE = "text_completion LlamaForCausalLM"
PLACES = [
    pytest.param(piped("preprocess"), (PIPELINE, "tokenize"), id="a pipeline's preprocess"),
    pytest.param(piped("", at=1), (PIPELINE, "tokenize", ("forward", "prefill")), id="its prefill"),
    pytest.param(piped("", at=4), (PIPELINE, "tokenize", GENERATION), id="its decode"),
    pytest.param(piped("postprocess"), (PIPELINE, "tokenize", GENERATION, "detokenize"), id="its postprocess"),
    pytest.param(generated(at=1), (PIPELINE, ("forward", "prefill")), id="prefill"),
    pytest.param(generated(at=4), (PIPELINE, GENERATION), id="decode"),
    pytest.param(called, "forward", id="a model's forward"),
    pytest.param(in_tokenizer, "tokenize", id="a tokenizer"),
    pytest.param(in_phase, ("answer", "think"), id="a phase"),
    pytest.param(in_coroutine, ("answer", "think"), id="a phase of a coroutine"),
    pytest.param(in_block, "answer", id="a block"),
    pytest.param(in_lazy_pipeline, (PIPELINE, "tokenize", GENERATION, "detokenize"), id="a lazy pipeline's input"),
]


@pytest.mark.fault(
    "`KeyboardInterrupt`, `SystemExit`, `asyncio.CancelledError`, `GeneratorExit` inside each phase",
    "the same object comes out; exported once, with its error or `inferspan.cancelled`",
)
@pytest.mark.parametrize(("make", "kind"), ERRORS)
@pytest.mark.parametrize(("run", "tree"), PLACES)
def test_interruption_comes_out_as_it_is_and_the_inference_is_exported_once(
    recorder: Recorder, run: Callable[[Raise], Any], tree: Any, make: Callable[[], BaseException], kind: str | None
) -> None:
    error = make()

    def fail(*_: Any) -> Any:
        raise error

    with pytest.raises(type(error)) as raised:
        run(fail)
    if type(error) is not GeneratorExit or run is not in_lazy_pipeline:
        assert raised.value is error
    assert (current.here(), len(current.state.open)) == (None, 0)

    assert recorder.trees() == [tree]
    root = recorder.spans()[0]
    attributes = root.attributes or {}
    assert attributes.get("error.type") == kind
    if tree != "tokenize":
        assert attributes.get("inferspan.cancelled", False) is (kind is None)
    assert root.status.status_code.name == ("ERROR" if kind else "UNSET")
