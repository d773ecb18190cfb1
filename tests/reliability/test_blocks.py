"""Blocks of the program's own: what runs in them, and what outlasts them, is recorded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers

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
