"""``generate()`` called directly, in every mode: one trace each, exact facts, and results that are what they are
without us."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

from support import tiny
from support.recorder import MODEL_FACTS, Recorder

IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
ONE = IDS[:1]
REPEATING = torch.tensor([[10, 20, 30, 40] * 3])

ROOT = {
    "gen_ai.operation.name": "text_completion",
    "gen_ai.provider.name": "huggingface",
    "gen_ai.request.model": "LlamaForCausalLM",
    "gen_ai.request.max_tokens": 6,
    "inferspan.cold": False,
    "inferspan.device": "cpu",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
    "inferspan.time_per_output_token": ...,
    "inferspan.time_to_first_token": ...,
}
TWO_ROWS = {
    **ROOT,
    "gen_ai.usage.input_tokens": 8,
    "gen_ai.usage.output_tokens": 12,
    "gen_ai.response.finish_reasons": ("length", "length"),
    "inferspan.batch.size": 2,
    "inferspan.sequence.length": 4,
}
ONE_ROW = {
    **ROOT,
    "gen_ai.usage.input_tokens": 4,
    "gen_ai.usage.output_tokens": 6,
    "gen_ai.response.finish_reasons": ("length",),
    "inferspan.batch.size": 1,
    "inferspan.sequence.length": 4,
}

GENERATION = ("forward", "prefill", "decode")


def lm(**overrides: Any) -> transformers.LlamaForCausalLM:
    """A model that never ends by itself."""
    return tiny.causal_lm(eos_token_id=None, **overrides)


def t5() -> transformers.T5ForConditionalGeneration:
    return tiny.seq2seq_lm(eos_token_id=None)


def agreeing_draft() -> transformers.LlamaForCausalLM:
    """A draft model that always proposes two tokens, which are right."""
    draft = lm()
    draft.generation_config.num_assistant_tokens = 2
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return draft


def sample_by_hand(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
    """A decoding method of the caller's own, for ``custom_generate``."""
    return model._sample(input_ids, **kwargs)


def embedded(model: Any) -> torch.Tensor:
    return model.get_input_embeddings()(IDS).detach()


def frozen(result: Any) -> Any:
    """Comparable byte for byte, types included."""
    if isinstance(result, torch.Tensor):
        return result.dtype, tuple(result.shape), result.numpy().tobytes()
    if isinstance(result, dict):
        return type(result), [(key, frozen(value)) for key, value in result.items()]
    if isinstance(result, (list, tuple)):
        return type(result), [frozen(value) for value in result]
    if isinstance(result, transformers.cache_utils.Cache):
        return type(result)
    return result


def outcome(call: Callable[[], Any]) -> Any:
    """What the call gives, and how far it takes the random streams."""
    torch.manual_seed(7)
    random.seed(7)
    result = frozen(call())
    return result, torch.get_rng_state().tolist(), random.getstate()


def same_off_and_on(recorder: Recorder, call: Callable[[], Any]) -> None:
    """Instruments, and asserts that the call gives the same as before."""
    plain = outcome(call)
    recorder.instrument()
    call()  # the first inference of a model is cold; this one's spans are forgotten
    recorder.clear()
    assert outcome(call) == plain


MODES = [
    pytest.param(lm, lambda m: m.generate(IDS, max_new_tokens=6), TWO_ROWS, id="greedy"),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, do_sample=True, temperature=0.7, top_p=0.9, top_k=20),
        {
            **TWO_ROWS,
            "gen_ai.request.temperature": 0.7,
            "gen_ai.request.top_p": 0.9,
            "gen_ai.request.top_k": 20,
            "inferspan.request.do_sample": True,
        },
        id="sample",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, do_sample=True, min_p=0.1, repetition_penalty=1.5),
        {
            **TWO_ROWS,
            "inferspan.request.do_sample": True,
            "inferspan.request.min_p": 0.1,
            "inferspan.request.repetition_penalty": 1.5,
        },
        id="sample-penalized",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, num_beams=3),
        {**TWO_ROWS, "inferspan.request.num_beams": 3},
        id="beam",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, num_beams=3, num_return_sequences=2),
        {
            **TWO_ROWS,
            "gen_ai.request.choice.count": 2,
            "gen_ai.usage.output_tokens": 24,
            "gen_ai.response.finish_reasons": ("length",) * 4,
            "inferspan.request.num_beams": 3,
        },
        id="beam-several",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, num_beams=3, do_sample=True),
        {**TWO_ROWS, "inferspan.request.do_sample": True, "inferspan.request.num_beams": 3},
        id="beam-sample",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, do_sample=True, num_return_sequences=3),
        {
            **TWO_ROWS,
            "gen_ai.request.choice.count": 3,
            "gen_ai.usage.output_tokens": 36,
            "gen_ai.response.finish_reasons": ("length",) * 6,
            "inferspan.request.do_sample": True,
        },
        id="several-sequences",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, cache_implementation="static"),
        {**TWO_ROWS, "inferspan.request.cache_implementation": "static"},
        id="static-cache",
    ),
    pytest.param(lm, lambda m: m.generate(IDS, max_new_tokens=6, use_cache=False), TWO_ROWS, id="no-cache"),
    pytest.param(lm, lambda m: m.generate(IDS, max_new_tokens=6, prefill_chunk_size=2), TWO_ROWS, id="chunked-prefill"),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, custom_generate=sample_by_hand),
        TWO_ROWS,
        id="custom-generate",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(IDS, max_new_tokens=6, return_dict_in_generate=True, output_scores=True),
        TWO_ROWS,
        id="dict",
    ),
    pytest.param(
        lambda: tiny.gpt2(eos_token_id=None),
        lambda m: m.generate(IDS, max_new_tokens=6),
        {**TWO_ROWS, "gen_ai.request.model": "GPT2LMHeadModel"},
        id="gpt2",
    ),
    pytest.param(
        t5,
        lambda m: m.generate(IDS, max_new_tokens=6),
        {**TWO_ROWS, "gen_ai.request.model": "T5ForConditionalGeneration"},
        id="encoder-decoder",
    ),
    pytest.param(
        t5,
        lambda m: m.generate(IDS, max_new_tokens=6, num_beams=2),
        {**TWO_ROWS, "gen_ai.request.model": "T5ForConditionalGeneration", "inferspan.request.num_beams": 2},
        id="encoder-decoder-beam",
    ),
    pytest.param(
        t5,
        lambda m: m.generate(IDS, max_new_tokens=6, decoder_input_ids=torch.tensor([[0, 7], [0, 8]])),
        {**TWO_ROWS, "gen_ai.request.model": "T5ForConditionalGeneration"},
        id="encoder-decoder-begun",
    ),
    pytest.param(
        t5,
        lambda m: m.generate(IDS, max_new_tokens=6, decoder_input_ids=torch.tensor([[7, 8], [9, 7]])),
        {**TWO_ROWS, "gen_ai.request.model": "T5ForConditionalGeneration"},
        id="encoder-decoder-begun-without-start",
    ),
    pytest.param(lm, lambda m: m.generate(inputs=IDS, max_new_tokens=6), TWO_ROWS, id="inputs"),
    pytest.param(lm, lambda m: m.generate(input_ids=IDS, max_new_tokens=6), TWO_ROWS, id="input-ids"),
    pytest.param(
        lm,
        lambda m: m.generate(input_ids=IDS, inputs_embeds=embedded(m), max_new_tokens=6),
        TWO_ROWS,
        id="embeddings-and-ids",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(inputs_embeds=embedded(m), max_new_tokens=6),
        {**TWO_ROWS, "inferspan.usage.input_tokens.exact": False},
        id="embeddings",
    ),
    pytest.param(
        lm,
        lambda m: m.generate(max_new_tokens=6),
        {
            **{name: value for name, value in ROOT.items() if name != "inferspan.device"},
            "gen_ai.usage.output_tokens": 6,
            "gen_ai.response.finish_reasons": ("length",),
        },
        id="nothing",
    ),
]


@pytest.mark.parametrize(("make", "call", "attributes"), MODES)
def test_generate_mode_gives_one_exact_trace(
    make: Callable[[], Any], call: Callable[[Any], Any], attributes: dict[str, Any], bare_recorder: Recorder
) -> None:
    model = make()
    same_off_and_on(bare_recorder, lambda: call(model))
    name = f"text_completion {attributes['gen_ai.request.model']}"
    assert bare_recorder.trees() == [(name, GENERATION)]
    assert bare_recorder.attributes(name) == attributes
    shape = {key: attributes[key] for key in ("inferspan.batch.size", "inferspan.sequence.length") if key in attributes}
    assert bare_recorder.attributes("forward") == shape
    assert bare_recorder.attributes("prefill") == {}
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": 5}


def test_generate_first_inference_tells_the_model(recorder: Recorder) -> None:
    model = lm()
    model.generate(IDS, max_new_tokens=6)
    found = recorder.attributes("text_completion")
    assert {name: found.pop(name) for name in MODEL_FACTS} == {
        "inferspan.model.class": "LlamaForCausalLM",
        "inferspan.model.type": "llama",
        "inferspan.model.parameters": 44192,
        "inferspan.model.size": model.get_memory_footprint(),
        "inferspan.model.dtype": "float32",
        "inferspan.model.attention": "sdpa",
    }
    assert found == {**TWO_ROWS, "inferspan.cold": True}


def test_generate_one_token_has_no_decode(bare_recorder: Recorder) -> None:
    model = lm()
    same_off_and_on(bare_recorder, lambda: model.generate(IDS, max_new_tokens=1))
    assert bare_recorder.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill"))]
    expected = {
        **TWO_ROWS,
        "gen_ai.request.max_tokens": 1,
        "gen_ai.usage.output_tokens": 2,
    }
    del expected["inferspan.time_per_output_token"]
    assert bare_recorder.attributes("text_completion") == expected


# -- times and metric points -------------------------------------------------------------------------------------


def test_generate_times_lie_within_the_trace(recorder: Recorder) -> None:
    model = lm()
    model.generate(IDS, max_new_tokens=6)
    root, prefill, decode = (recorder.span(name) for name in ("text_completion", "prefill", "decode"))
    first = root.attributes["inferspan.time_to_first_token"]
    per_token = root.attributes["inferspan.time_per_output_token"]
    assert 0 < first < (root.end_time - root.start_time) * 1e-9
    assert 0 < per_token * 5 <= (decode.end_time - decode.start_time) * 1e-9
    assert first == pytest.approx((prefill.end_time - root.start_time) * 1e-9, abs=1e-6)
    assert prefill.end_time == decode.start_time


def test_generate_gives_the_points_of_its_facts(recorder: Recorder) -> None:
    lm().generate(IDS, max_new_tokens=6)
    recorder.spans()
    common = ("gen_ai.operation.name", "gen_ai.request.model")
    who = ("text_completion", "LlamaForCausalLM")
    assert recorder.counts("gen_ai.client.operation.duration", *common) == {who: 1}
    assert recorder.counts("gen_ai.server.time_to_first_token", *common) == {who: 1}
    assert recorder.counts("gen_ai.server.time_per_output_token", *common) == {who: 1}
    assert recorder.counts("inferspan.inter_token.duration", *common) == {who: 5}
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"forward": 1, "prefill": 1, "decode": 1}
    assert {
        point.attributes["gen_ai.token.type"]: (point.count, point.sum)
        for point in recorder.points("gen_ai.client.token.usage")
    } == {"input": (1, 8), "output": (1, 12)}
    assert [(point.count, point.sum) for point in recorder.points("inferspan.batch.rows")] == [(1, 2)]


def test_generate_long_gives_a_bounded_number_of_token_points(recorder: Recorder) -> None:
    lm().generate(ONE, max_new_tokens=40)
    recorder.spans()
    assert recorder.counts("inferspan.inter_token.duration", "gen_ai.operation.name") == {"text_completion": 16}


# -- more than one token a step, and a model inside ----------------------------------------------------------------


def test_generate_assisted_counts_the_target_only(bare_recorder: Recorder) -> None:
    model, draft = lm(), agreeing_draft()
    same_off_and_on(bare_recorder, lambda: model.generate(ONE, max_new_tokens=6, assistant_model=draft))
    assert bare_recorder.trees() == [("text_completion LlamaForCausalLM", GENERATION)]
    assert bare_recorder.attributes("text_completion") == {**ONE_ROW, "inferspan.request.assisted": True}
    # three tokens a step: two that were proposed, and the target's own
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": 1}


def test_generate_assisted_by_own_first_layer_counts_once(bare_recorder: Recorder) -> None:
    model = lm()
    steps = count_forwards(model)
    same_off_and_on(bare_recorder, lambda: model.generate(ONE, max_new_tokens=6, assistant_early_exit=1))
    assert bare_recorder.trees() == [("text_completion LlamaForCausalLM", GENERATION)]
    assert bare_recorder.attributes("text_completion") == {**ONE_ROW, "inferspan.request.assisted": True}
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": len(steps) // 3 - 1}


def test_generate_prompt_lookup_counts_tokens_not_steps(bare_recorder: Recorder) -> None:
    model = tiny.causal_lm()  # 4.57 cannot look up without an end-of-sequence token
    steps = count_forwards(model)
    settings = transformers.GenerationConfig(prompt_lookup_num_tokens=2)
    same_off_and_on(bare_recorder, lambda: model.generate(REPEATING, max_new_tokens=6, generation_config=settings))
    assert bare_recorder.trees() == [("text_completion LlamaForCausalLM", GENERATION)]
    assert bare_recorder.attributes("text_completion") == {
        **ONE_ROW,
        "gen_ai.usage.input_tokens": 12,
        "inferspan.sequence.length": 12,
        "inferspan.request.assisted": True,
    }
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": len(steps) // 3 - 1}


def count_forwards(model: Any) -> list[None]:
    """Grows by one with each forward of all the layers."""
    found: list[None] = []
    layers = model.config.num_hidden_layers
    model.register_forward_hook(lambda *_: found.append(None) if model.config.num_hidden_layers == layers else None)
    return found


class Rows(LogitsProcessor):
    """Counts the tokens that are computed, and changes nothing."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.tokens += input_ids.shape[0]
        return scores


def features(frames: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, tiny.MEL_BINS, frames, generator=torch.Generator().manual_seed(0))


WHISPER = {
    **{name: value for name, value in ROOT.items() if name != "gen_ai.request.max_tokens"},
    "gen_ai.request.model": "WhisperForConditionalGeneration",
    "inferspan.batch.size": 1,
}


def test_generate_whisper_short_audio_gives_one_trace(bare_recorder: Recorder) -> None:
    model = tiny.whisper()
    rows = Rows()
    same_off_and_on(bare_recorder, lambda: model.generate(features(100), logits_processor=LogitsProcessorList([rows])))
    tokens = rows.tokens // 3
    assert bare_recorder.trees() == [("text_completion WhisperForConditionalGeneration", GENERATION)]
    assert bare_recorder.attributes("text_completion") == {
        **WHISPER,
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert bare_recorder.attributes("forward") == {"inferspan.batch.size": 1}
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": tokens - 1}


def test_generate_whisper_long_audio_gives_one_trace_of_all_segments(bare_recorder: Recorder) -> None:
    model = tiny.whisper()
    rows = Rows()
    same_off_and_on(
        bare_recorder,
        lambda: model.generate(
            features(350),
            attention_mask=torch.ones(1, 350, dtype=torch.long),
            return_timestamps=True,
            logits_processor=LogitsProcessorList([rows]),
        ),
    )
    tokens = rows.tokens // 3
    assert tokens > 64, "several segments"
    assert bare_recorder.trees() == [("text_completion WhisperForConditionalGeneration", GENERATION)]
    assert bare_recorder.attributes("text_completion") == {**WHISPER, "gen_ai.usage.output_tokens": tokens}
    assert bare_recorder.attributes("decode") == {"inferspan.decode.steps": tokens - 1}


def test_generate_whisper_batch_counts_every_row(bare_recorder: Recorder) -> None:
    model = tiny.whisper()
    rows = Rows()
    same_off_and_on(
        bare_recorder, lambda: model.generate(features(100, rows=2), logits_processor=LogitsProcessorList([rows]))
    )
    assert bare_recorder.attributes("text_completion") == {
        **WHISPER,
        "gen_ai.usage.output_tokens": rows.tokens // 3,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "inferspan.batch.size": 2,
    }


def test_generate_with_a_configuration_tells_what_the_caller_set_in_it(recorder: Recorder) -> None:
    settings = transformers.GenerationConfig(max_new_tokens=2, num_beams=2, repetition_penalty=1.5)
    tiny.causal_lm().generate(ONE, generation_config=settings)
    attributes = recorder.attributes("text_completion")
    assert {name: value for name, value in attributes.items() if "request" in name} == {
        "gen_ai.request.model": "LlamaForCausalLM",
        "gen_ai.request.max_tokens": 2,
        "inferspan.request.num_beams": 2,
        "inferspan.request.repetition_penalty": 1.5,
    }
