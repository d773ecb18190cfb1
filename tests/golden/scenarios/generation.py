"""``generate()`` called directly, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

from golden.scenarios.parts import IDS, MASK, ONE, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("generation")

Call = Callable[[Any], Any]
REPEATING = torch.tensor([[10, 20, 30, 40] * 3])
SIX = {"max_new_tokens": 6}


def _mode(make: Callable[[], Any], call: Call, stage: Stage) -> Any:
    stage.instrument()
    return call(make())


def _t5() -> Any:
    return tiny.seq2seq_lm(eos_token_id=None)


def _agreeing() -> Any:
    """A draft model that always proposes two tokens, which are right."""
    draft = lm()
    draft.generation_config.num_assistant_tokens = 2
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return draft


def _embedded(model: Any) -> torch.Tensor:
    return model.get_input_embeddings()(IDS).detach()


def _by_hand(model: Any, input_ids: torch.Tensor, **options: Any) -> Any:
    """A decoding method of the caller's own."""
    return model._sample(input_ids, **options)


class EndRow(LogitsProcessor):
    """Ends row 0 with token 2 at its third new token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, 2] = -1e9
        if input_ids.shape[1] == IDS.shape[1] + 2:
            scores[0, 2] = 1e9
        return scores


class StopAt(transformers.StoppingCriteria):
    """Stops all rows at a length."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> Any:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 7)


class Silent(transformers.generation.BaseStreamer):
    """Takes the tokens, and does nothing with them."""

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


def _left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = IDS.clone(), MASK.clone()
    ids[0, :2], mask[0, :2] = 0, 0
    return ids, mask


def _padded(model: Any) -> Any:
    ids, mask = _left_padded()
    return model.generate(ids, attention_mask=mask, pad_token_id=0, **SIX)


def _padded_without_mask(model: Any) -> Any:
    return model.generate(_left_padded()[0], pad_token_id=0, **SIX)


def _with_text(model: Any) -> Any:
    tokenizer = tiny.text_tokenizer()
    return model.generate(ONE, max_new_tokens=20, stop_strings=["e"], tokenizer=tokenizer)


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
PENALIZED = {"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.5}
CONFIGURED = {"max_new_tokens": 3, "num_beams": 2, "repetition_penalty": 1.5, "do_sample": False}

_MODES: dict[str, tuple[Callable[[], Any], Call]] = {
    "greedy": (lm, lambda m: m.generate(IDS, **SIX)),
    "greedy, masked": (lm, lambda m: m.generate(IDS, attention_mask=MASK, **SIX)),
    "greedy, padded": (lm, _padded),
    "greedy, padded without a mask": (lm, _padded_without_mask),
    "one token": (lm, lambda m: m.generate(IDS, max_new_tokens=1)),
    "forty tokens": (lm, lambda m: m.generate(ONE, max_new_tokens=40)),
    "maximum length": (lm, lambda m: m.generate(IDS, max_length=9)),
    "minimum length": (tiny.causal_lm, lambda m: m.generate(IDS, min_new_tokens=4, **SIX)),
    "sample": (lm, lambda m: m.generate(IDS, **SIX, **SAMPLED)),
    "sample, penalized": (lm, lambda m: m.generate(IDS, **SIX, **PENALIZED)),
    "several sequences": (lm, lambda m: m.generate(IDS, do_sample=True, num_return_sequences=3, **SIX)),
    "beam": (lm, lambda m: m.generate(IDS, num_beams=3, **SIX)),
    "beam, ended": (tiny.causal_lm, lambda m: m.generate(IDS, num_beams=3, max_new_tokens=20)),
    "beam, several": (lm, lambda m: m.generate(IDS, num_beams=3, num_return_sequences=2, **SIX)),
    "beam, sampled": (lm, lambda m: m.generate(IDS, num_beams=3, do_sample=True, **SIX)),
    "static cache": (lm, lambda m: m.generate(IDS, cache_implementation="static", disable_compile=True, **SIX)),
    "no cache": (lm, lambda m: m.generate(IDS, use_cache=False, **SIX)),
    "chunked prefill": (lm, lambda m: m.generate(IDS, prefill_chunk_size=2, **SIX)),
    "custom generate": (lm, lambda m: m.generate(IDS, custom_generate=_by_hand, **SIX)),
    "dict": (lm, lambda m: m.generate(IDS, return_dict_in_generate=True, output_scores=True, **SIX).sequences),
    "guidance": (lm, lambda m: m.generate(IDS, guidance_scale=1.5, **SIX)),
    "gpt2": (lambda: tiny.gpt2(eos_token_id=None), lambda m: m.generate(IDS, **SIX)),
    "encoder-decoder": (_t5, lambda m: m.generate(IDS, **SIX)),
    "encoder-decoder, beam": (_t5, lambda m: m.generate(IDS, num_beams=2, **SIX)),
    "encoder-decoder, begun": (
        _t5,
        lambda m: m.generate(IDS, decoder_input_ids=torch.tensor([[0, 7], [0, 8]]), **SIX),
    ),
    "by keyword": (lm, lambda m: m.generate(inputs=IDS, **SIX)),
    "embeddings": (lm, lambda m: m.generate(inputs_embeds=_embedded(m), **SIX)),
    "embeddings and ids": (lm, lambda m: m.generate(input_ids=IDS, inputs_embeds=_embedded(m), **SIX)),
    "nothing": (lm, lambda m: m.generate(**SIX)),
    "end in one row": (
        tiny.causal_lm,
        lambda m: m.generate(IDS, logits_processor=LogitsProcessorList([EndRow()]), **SIX),
    ),
    "several end ids": (tiny.causal_lm, lambda m: m.generate(IDS, eos_token_id=[2, *range(3, 200)], **SIX)),
    "stop strings": (lm, _with_text),
    "stopping criterion": (
        lm,
        lambda m: m.generate(IDS, stopping_criteria=transformers.StoppingCriteriaList([StopAt()]), **SIX),
    ),
    "configuration": (
        lm,
        lambda m: m.generate(ONE, generation_config=transformers.GenerationConfig(**CONFIGURED)),
    ),
    "streamer": (lm, lambda m: m.generate(ONE, streamer=Silent(), **SIX)),
    "assisted": (lm, lambda m: m.generate(ONE, assistant_model=_agreeing(), **SIX)),
    "assisted, another draft": (lm, lambda m: m.generate(ONE, assistant_model=tiny.draft_lm(), **SIX)),
    "assisted by its own first layer": (lm, lambda m: m.generate(ONE, assistant_early_exit=1, **SIX)),
    "prompt look-up": (tiny.causal_lm, lambda m: m.generate(REPEATING, prompt_lookup_num_tokens=2, **SIX)),
    "bfloat16": (lambda: lm().to(torch.bfloat16), lambda m: m.generate(IDS, **SIX)),
    "eager attention": (lambda: lm(attn_implementation="eager"), lambda m: m.generate(IDS, **SIX)),
}


GROUP.update({name: partial(_mode, make, call) for name, (make, call) in _MODES.items()})


@GROUP
def warm(stage: Stage) -> Any:
    """The second inference of a model: the first one tells the model's facts."""
    model = lm()
    stage.warmed(lambda: model.generate(ONE, max_new_tokens=1))
    return model.generate(IDS, **SIX)


@GROUP
def goes_on_from_a_cache(stage: Stage) -> Any:
    stage.instrument()
    model = lm()
    first = model.generate(IDS, max_new_tokens=3, return_dict_in_generate=True, use_cache=True)
    return model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4)


@GROUP
def streamed_in_a_thread(stage: Stage) -> Any:
    """The trace is that of the streamer's maker."""
    model, tokenizer = tiny.causal_lm(), tiny.text_tokenizer()
    stage.warmed(lambda: model.generate(ONE, max_new_tokens=1))
    with stage.tracer.start_as_current_span("request"):
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True)
        thread = Thread(target=model.generate, kwargs={"input_ids": ONE, "streamer": streamer, **SIX})
        thread.start()
        chunks = list(streamer)
        thread.join()
    return chunks


@GROUP
def streamed_under_another_span(stage: Stage) -> Any:
    model, tokenizer = tiny.causal_lm(), tiny.text_tokenizer()
    stage.warmed(lambda: model.generate(ONE, max_new_tokens=1))
    with stage.tracer.start_as_current_span("maker"):
        streamer = transformers.TextIteratorStreamer(tokenizer)
    with stage.tracer.start_as_current_span("caller"):
        model.generate(ONE, streamer=streamer, **SIX)
    return list(streamer)


class Inner(LogitsProcessor):
    """Generates with another model at the first step."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == IDS.shape[1]:
            self.model.generate(ONE, max_new_tokens=2)
        return scores


@GROUP
def nested(stage: Stage) -> Any:
    """A generation inside another one is part of it."""
    stage.instrument()
    return lm().generate(IDS, logits_processor=LogitsProcessorList([Inner(lm(hidden_size=16))]), **SIX)


@GROUP
def with_spans_of_the_program(stage: Stage) -> Any:
    """A hook of the program's opens a span inside each forward."""
    stage.instrument()
    model = lm()

    def hook(*_: Any) -> None:
        with stage.tracer.start_as_current_span("mine"):
            pass

    model.register_forward_hook(hook)
    return model.generate(ONE, max_new_tokens=3)


@GROUP
def two_generations_two_collections(stage: Stage) -> Any:
    """The delta reader begins anew, the cumulative one goes on."""
    stage.instrument()
    model = lm()
    first = model.generate(IDS, **SIX)
    stage.collect()
    return [first, model.generate(ONE, max_new_tokens=3)]


@GROUP
def generate_of_a_peft_model(stage: Stage) -> Any:
    import peft

    model = peft.get_peft_model(lm(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", r=2)).eval()
    stage.instrument()
    return model.generate(input_ids=IDS, **SIX)
