"""Blocks of the program's own: what runs in them, and what outlasts them, is recorded."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

import inferspan
from support import tiny
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30]])
STEP = ("tokenize", "forward", "detokenize")


def texts() -> Iterator[str]:
    yield from ("the cat", "the dog", "the mat")


def classifier() -> transformers.Pipeline:
    return transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())


@pytest.mark.promise("a lazy pipeline from an `inference()` block that is consumed after it", "an inference of its own")
@pytest.mark.parametrize("inside", [0, 1])
def test_lazy_result_belongs_to_the_block_while_that_lasts_and_is_an_inference_after(
    recorder: Recorder, inside: int
) -> None:
    with inferspan.inference("answer"):
        result = iter(classifier()(texts()))
        for _ in range(inside):
            next(result)
    assert len(list(result)) == 3 - inside

    trees = recorder.trees()
    after = ("text-classification BertForSequenceClassification", *STEP * (3 - inside))
    assert trees[0] == (("answer", *STEP * inside) if inside else "answer")
    assert trees[1:] == [after]


@pytest.mark.promise("`generate()` in a phase of the program's own", "with its prefill, decode and tokens")
def test_generate_in_a_phase_of_the_programs_own_is_recorded_in_it(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block, block.phase("write"):
        tiny.causal_lm().generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)

    assert recorder.trees() == [("answer", ("write", "prefill", "decode"))]
    attributes = recorder.attributes("answer")
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (3, 4)


class Marking(BaseStreamer):
    """Marks what comes, which the hooks count as well."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def put(self, value: Any) -> None:
        self.block.token()

    def end(self) -> None:
        pass


@pytest.mark.promise("`block.token()` while a `generate()` runs in the block", "nothing: its tokens are counted once")
@pytest.mark.parametrize("in_phase", [False, True])
def test_tokens_that_are_generated_and_marked_are_counted_once(recorder: Recorder, in_phase: bool) -> None:
    lm = tiny.causal_lm()
    with inferspan.inference("answer") as block, block.phase("write") if in_phase else nullcontext():
        lm.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False, streamer=Marking(block))

    assert recorder.trees() == [("answer", ("write" if in_phase else "forward", "prefill", "decode"))]
    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == 4


@pytest.mark.parametrize("in_phase", [False, True])
def test_tokens_that_are_marked_besides_a_generation_are_added_to_it(recorder: Recorder, in_phase: bool) -> None:
    lm = tiny.causal_lm()
    with inferspan.inference("answer") as block:
        block.token()
        with block.phase("write") if in_phase else nullcontext():
            block.token()
            lm.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
            block.token()
        block.token()

    assert recorder.trees() == [("answer", ("write" if in_phase else "forward", "prefill", "decode"))]
    assert recorder.attributes("answer")["gen_ai.usage.output_tokens"] == 8


# A phase that has generated is still of one task


class Net(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + 1


def in_a_task(work: Callable[[], Any]) -> None:
    async def task() -> None:
        work()

    async def main() -> None:
        await asyncio.create_task(task())

    asyncio.run(main())


def in_a_greenlet(work: Callable[[], Any]) -> None:
    other = sys.modules["greenlet"].greenlet(work)
    other.gr_context = contextvars.copy_context()
    other.switch()


@pytest.mark.parametrize("take_turns", [in_a_task, in_a_greenlet])
@pytest.mark.promise("a model called by another task in a phase that has generated", "an inference of its own")
def test_model_called_by_another_task_in_a_phase_that_has_generated_is_recorded(
    recorder: Recorder, greenlet: Any, take_turns: Callable[[Callable[[], Any]], None]
) -> None:
    net, lm = Net().eval(), tiny.causal_lm()
    with inferspan.inference("answer") as block, block.phase("write"):
        lm.generate(IDS, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        net(torch.ones(1))  # a part of the phase
        take_turns(lambda: (net(torch.ones(1)), lm(IDS)))

    assert recorder.trees() == [("answer", ("write", "prefill", "decode"), "forward", "forward")]


def test_model_called_by_another_greenlet_inside_of_a_model_is_recorded(recorder: Recorder, greenlet: Any) -> None:
    net = Net().eval()

    class Outer(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            in_a_greenlet(lambda: net(values))
            return net(values)  # a part of this one

    Outer().eval()(torch.ones(1))

    assert recorder.trees() == [("forward", "forward")]
