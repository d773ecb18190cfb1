"""FLOPs and cache of ``generate()`` under any settings, and of direct calls in any form, as the spans have them.

What ``FlopCounterMode`` counts while the recorded call itself runs is the truth. A count may be absent, or say that it
is a bound; where it says nothing it is right, as it is for all that transformers does by itself.
``INFERSPAN_TEST_CASES`` tries more random settings.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import inferspan
from inferspan import semconv
from support import tiny
from support.recorder import Recorder

CASES = int(os.environ.get("INFERSPAN_TEST_CASES", "100"))
TOLERANCE = 0.01  # rotary angles, which the counter takes for a matrix product
EAGER = {"attn_implementation": "eager"}
WINDOW = 12
ENCODER_DECODERS = ("t5", "bart")


def _with_windows() -> Any:
    config = transformers.MistralConfig(**_sizes(), sliding_window=WINDOW)
    return tiny.seeded(lambda: transformers.MistralForCausalLM(config))


def _with_some_windows() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**_sizes(), head_dim=16, sliding_window=WINDOW, layer_types=kinds)
    return tiny.seeded(lambda: transformers.Gemma3ForCausalLM(config))


def _sizes() -> dict[str, Any]:
    return {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        **EAGER,
    }


def _captioner() -> Any:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    encoder = transformers.ViTConfig(**sizes, image_size=16, patch_size=4)
    decoder = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=400, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.pad_token_id = 0
    config._attn_implementation = "eager"
    return tiny.seeded(lambda: transformers.VisionEncoderDecoderModel(config))


def _bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=400,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        **EAGER,
    )
    return tiny.seeded(lambda: transformers.BartForConditionalGeneration(config))


def _classifier() -> Any:
    return tiny.classifier(hidden_size=64, intermediate_size=128, num_attention_heads=4, **EAGER)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny.causal_lm(**_sizes()),
    "gpt2": lambda: tiny.gpt2(n_embd=64, n_layer=2, n_head=4, vocab_size=400, n_positions=256, **EAGER),
    "windows": _with_windows,
    "some windows": _with_some_windows,
    "t5": lambda: tiny.seq2seq_lm(d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=128, vocab_size=400, **EAGER),
    "bart": _bart,
}
OTHERS: dict[str, Callable[[], Any]] = {
    "classifier": _classifier,
    "captioner": _captioner,
    "whisper": lambda: tiny.whisper(d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128, **EAGER),
    "encoder": lambda: model_of("t5").get_encoder(),
    "base": lambda: model_of("llama").model,
}


@cache
def model_of(name: str) -> Any:
    if name in OTHERS:
        return OTHERS[name]()
    model = MODELS[name]()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 300, (rows, length))


class Counted:
    """What the root span says, and what was computed meanwhile."""

    def __init__(self, recorder: Recorder, function: Callable[[], Any]) -> None:
        recorder.clear()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.result = function()
        self.computed = counter.get_total_flops()
        roots = [span for span in recorder.spans() if span.parent is None]
        assert len(roots) == 1, [span.name for span in roots]
        self.attributes = dict(roots[0].attributes or {})
        self.flops = self.attributes.get(semconv.FLOPS)
        self.claims_exact = self.flops is not None and self.attributes.get(semconv.FLOPS_EXACT, True)
        self.kv_bytes = self.attributes.get(semconv.KV_CACHE_SIZE)

    def check(self) -> None:
        """It says nothing that is not so."""
        if self.claims_exact:
            assert self.flops == pytest.approx(self.computed, rel=TOLERANCE)
        elif self.flops is not None:
            assert self.flops <= self.computed * (1 + TOLERANCE)
        held = _held(getattr(self.result, "past_key_values", None))
        if self.kv_bytes is not None and held is not None:
            assert self.kv_bytes == held

    def check_exact(self) -> None:
        self.check()
        assert self.claims_exact, self.attributes


def _held(cache: Any) -> int | None:
    """Bytes of what a cache holds, of an encoder's positions too."""
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    layers = [layer for part in (parts if any(parts) else [cache]) for layer in getattr(part, "layers", ())]
    return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in layers) if layers else None


# -- any settings ------------------------------------------------------------------------------------------------------


def _settings(chance: random.Random, name: str) -> tuple[dict[str, Any], bool]:
    """Random settings of a ``generate()``, and whether transformers does with them no more than run the model."""

    def sometimes(**settings: Any) -> dict[str, Any]:
        return settings if chance.random() < 0.3 else {}

    rows, length = chance.randint(1, 3), chance.randint(2, 30)
    found: dict[str, Any] = {"max_new_tokens": chance.randint(1, 8), "do_sample": chance.random() < 0.4}
    prompt = ids(rows, length)
    if chance.random() < 0.2 and name not in ENCODER_DECODERS:
        found["inputs_embeds"] = model_of(name).get_input_embeddings()(prompt).detach()
    else:
        found["input_ids"] = prompt
    if chance.random() < 0.5:
        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, : length // 3] = 0
        found["attention_mask"] = mask
    found |= sometimes(num_beams=chance.randint(2, 4))
    found |= sometimes(use_cache=False) if "inputs_embeds" not in found else {}
    if found["do_sample"]:
        found |= sometimes(temperature=0.7, top_k=5) | sometimes(num_return_sequences=found.get("num_beams", 2))
        found |= sometimes(top_p=0.9, min_p=0.01)
    found |= sometimes(repetition_penalty=1.2) | sometimes(no_repeat_ngram_size=2) | sometimes(min_new_tokens=2)
    found |= sometimes(eos_token_id=7) | sometimes(bad_words_ids=[[5]]) | sometimes(renormalize_logits=True)
    if not {"num_beams", "inputs_embeds"} & found.keys():
        found |= sometimes(watermarking_config=transformers.WatermarkingConfig(bias=2.5))
    found |= sometimes(return_dict_in_generate=True)
    found |= sometimes(output_scores=True, return_dict_in_generate=True, output_attentions=True)
    more: dict[str, Any] = {}
    if chance.random() < 0.4:
        more = chance.choice(UNUSUAL)(chance, name, found)
    found |= more
    if chance.random() < 0.3:  # the same in a configuration
        moved = {"max_new_tokens", "do_sample", "num_beams", "use_cache"} & found.keys()
        apart = {key: found.pop(key) for key in moved}
        found["generation_config"] = transformers.GenerationConfig(**apart, pad_token_id=0)
    return found, not more


def _guidance(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    if "num_beams" in found or "num_return_sequences" in found or "inputs_embeds" in found:
        return {}
    negative = {"negative_prompt_ids": ids(found["input_ids"].shape[0], 5)} if chance.random() < 0.5 else {}
    return {"guidance_scale": 1.5, **negative} if name not in ENCODER_DECODERS else {}


def _lookup(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_lookup_num_tokens": 2, "eos_token_id": 7} if _may_assist(found) else {}


def _draft(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"assistant_model": model_of(name)} if _may_assist(found) and name in ("llama", "gpt2") else {}


def _may_assist(found: dict[str, Any]) -> bool:
    one = not {"num_beams", "num_return_sequences", "inputs_embeds", "use_cache"} & found.keys()
    return one and found["input_ids"].shape[0] == 1


def _chunks(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"prefill_chunk_size": 4} if name == "llama" and not {"use_cache", "inputs_embeds"} & found.keys() else {}


def _static(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"cache_implementation": "static"} if name in ("llama", "gpt2") and "use_cache" not in found else {}


def _processor(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"logits_processor": [AskingModel(model_of(chance.choice(("llama", "gpt2"))))]}


def _linear(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"stopping_criteria": transformers.StoppingCriteriaList([AskingLinear()])}


def _function(chance: random.Random, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"prefix_allowed_tokens_fn": lambda row, seen: list(range(3, 300))}


UNUSUAL = (_guidance, _lookup, _draft, _chunks, _static, _processor, _linear, _function)


class AskingModel(transformers.LogitsProcessor):
    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.model(ids(1, 3))
        return scores


class AskingLinear(transformers.StoppingCriteria):
    def __init__(self) -> None:
        self.layer = nn.Linear(512, 512)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.layer(torch.ones(1, 512))
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("seed", range(CASES))
def test_any_settings_of_generate_are_counted_right_or_say_that_they_are_not(recorder: Recorder, seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    name = chance.choice(list(MODELS))
    settings, is_usual = _settings(chance, name)

    counted = Counted(recorder, lambda: model_of(name).generate(**settings))

    counted.check()
    if is_usual:
        counted.check_exact()


# -- what runs besides, kind by kind -----------------------------------------------------------------------------------


def _prompt(**more: Any) -> dict[str, Any]:
    return {"input_ids": ids(1, 20), "max_new_tokens": 6, "do_sample": False, **more}


def _prefix(name: str, length: int) -> Any:
    """A cache that has seen a prompt."""
    with torch.no_grad():
        return model_of(name)(input_ids=ids(1, length), use_cache=True).past_key_values


def _own_loop(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """A decoding method of the program's: two forwards for each token, as contrastive search has."""
    for _ in range(3):
        model._has_unfinished_sequences(False, False, input_ids.device)
        model(input_ids)
        logits = model(input_ids).logits
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=-1)
    model._has_unfinished_sequences(True, False, input_ids.device)
    return input_ids


def _around_sampling(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """One that computes more on what each forward gives, as DoLa does with hidden states."""
    result = model._sample(input_ids, **kwargs)
    model.get_output_embeddings()(torch.ones(1, 50, 64))
    return result


class AskingStreamer(transformers.generation.BaseStreamer):
    def put(self, value: torch.Tensor) -> None:
        model_of("gpt2")(ids(1, 3))

    def end(self) -> None:
        pass


class NestedGenerate(transformers.LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        model_of("gpt2").generate(ids(1, 3), max_new_tokens=2)
        return scores


def _lists_function() -> list[Any]:
    return [transformers.PrefixConstrainedLogitsProcessor(lambda row, seen: list(range(3, 300)), 1)]


BESIDES: dict[str, tuple[str, Callable[[], dict[str, Any]], bool | None]] = {
    # name of the model, settings, and whether the count is exact; None: absent
    "guidance": ("llama", lambda: _prompt(guidance_scale=1.5), False),
    "guidance, no cache": ("llama", lambda: _prompt(guidance_scale=1.5, use_cache=False), False),
    "guidance with a negative prompt": (
        "llama",
        lambda: _prompt(guidance_scale=1.5, negative_prompt_ids=ids(1, 6)),
        False,
    ),
    "guidance that does nothing": ("llama", lambda: _prompt(guidance_scale=1.0), True),
    "guidance in a configuration": (
        "llama",
        lambda: {
            "input_ids": ids(1, 20),
            "generation_config": transformers.GenerationConfig(guidance_scale=1.5, max_new_tokens=5, pad_token_id=0),
        },
        False,
    ),
    "a processor asks a model": ("llama", lambda: _prompt(logits_processor=[AskingModel(model_of("gpt2"))]), False),
    "a processor asks the same model": (
        "llama",
        lambda: _prompt(logits_processor=[AskingModel(model_of("llama"))]),
        False,
    ),
    "a processor asks its base": (
        "llama",
        lambda: _prompt(logits_processor=[AskingModel(model_of("llama").model)]),
        False,
    ),
    "a processor generates": ("llama", lambda: _prompt(logits_processor=[NestedGenerate()]), False),
    "a criterion asks a layer": ("llama", lambda: _prompt(stopping_criteria=[AskingLinear()]), False),
    "a function in a processor": ("llama", lambda: _prompt(logits_processor=_lists_function()), False),
    "a streamer asks a model": ("llama", lambda: _prompt(streamer=AskingStreamer()), False),
    "transformers' own processors": (
        "llama",
        lambda: _prompt(
            logits_processor=[transformers.TopKLogitsWarper(5)],
            stopping_criteria=transformers.StoppingCriteriaList([transformers.MaxTimeCriteria(60.0)]),
            watermarking_config=transformers.WatermarkingConfig(bias=2.5),
        ),
        True,
    ),
    "a decoding method of the program's": ("llama", lambda: _prompt(custom_generate=_own_loop), False),
    "one around transformers' own": ("llama", lambda: _prompt(custom_generate=_around_sampling), False),
    "a draft": ("llama", lambda: _prompt(assistant_model=model_of("llama")), None),
    "prompt look-up": ("llama", lambda: _prompt(prompt_lookup_num_tokens=2, eos_token_id=7), None),
    "early exit": ("llama", lambda: _prompt(assistant_early_exit=1), None),
    "a prompt in chunks": ("llama", lambda: _prompt(prefill_chunk_size=6), None),
    "a static cache": ("llama", lambda: _prompt(cache_implementation="static"), False),
    "a cache of the caller's": ("llama", lambda: _prompt(past_key_values=transformers.DynamicCache()), True),
    "a cache without windows": ("windows", lambda: _prompt(past_key_values=transformers.DynamicCache()), True),
    "a prefix in the cache": ("llama", lambda: _prompt(past_key_values=_prefix("llama", 15)), True),
    "a prefix in the cache, windows": ("windows", lambda: _prompt(past_key_values=_prefix("windows", 15)), True),
    "a prefix, only what is new": (
        "llama",
        lambda: _prompt(past_key_values=_prefix("llama", 15), attention_mask=torch.ones(1, 35, dtype=torch.long)),
        True,
    ),
    "ids for the decoder, with its start": (
        "t5",
        lambda: _prompt(decoder_input_ids=torch.tensor([[0, 5, 6]])),
        True,
    ),
    "ids for the decoder, without": ("t5", lambda: _prompt(decoder_input_ids=torch.tensor([[5, 6]])), True),
    "an encoder's output": (
        "t5",
        lambda: {**_prompt(encoder_outputs=model_of("t5").get_encoder()(ids(1, 20)))},
        True,
    ),
}


@pytest.mark.parametrize(("name", "make", "is_exact"), BESIDES.values(), ids=BESIDES)
def test_what_runs_besides_the_model_is_counted_or_said(
    recorder: Recorder, name: str, make: Callable[[], dict[str, Any]], is_exact: bool | None
) -> None:
    torch.manual_seed(0)
    settings = make()

    counted = Counted(recorder, lambda: model_of(name).generate(**settings))

    counted.check()
    assert (counted.flops is None) == (is_exact is None)
    assert counted.claims_exact is bool(is_exact)


def test_a_draft_with_a_tokenizer_of_its_own_has_no_count(recorder: Recorder) -> None:
    tokenizers = {"tokenizer": tiny.text_tokenizer(), "assistant_tokenizer": tiny.word_tokenizer()}
    draft = tiny.draft_lm(vocab_size=512)
    settings = _prompt(assistant_model=draft, **tokenizers)

    counted = Counted(recorder, lambda: model_of("llama").generate(**settings))

    assert counted.flops is None
    assert counted.kv_bytes is None


def test_what_ran_before_and_after_in_one_phase_adds_up(recorder: Recorder) -> None:
    def function() -> None:
        with inferspan.inference("summarize") as block, block.phase("forward"):
            model_of("gpt2")(ids(1, 7))
            model_of("llama").generate(**_prompt())

    counted = Counted(recorder, function)

    counted.check()
    counted = Counted(recorder, lambda: _blocked(lambda: model_of("llama").generate(**_prompt()), model_of("gpt2")))
    counted.check()


def _blocked(function: Callable[[], Any], then: Any) -> None:
    with inferspan.inference("summarize") as block, block.phase("forward"):
        function()
        then(ids(1, 7))


def test_several_loops_in_one_generate_have_no_count(recorder: Recorder) -> None:
    class Twice(type(model_of("llama"))):  # type: ignore[misc]
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            first = super().generate(*args, **kwargs)
            return super().generate(first, max_new_tokens=3, do_sample=False)

    model = tiny.seeded(lambda: Twice(model_of("llama").config)).eval()
    model.generation_config.pad_token_id = 0

    counted = Counted(recorder, lambda: model.generate(**_prompt()))

    assert counted.flops is None
    assert counted.kv_bytes is None


def test_a_forward_of_the_programs_own_class_is_not_exact(recorder: Recorder) -> None:
    class Twice(type(model_of("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            super().forward(*args, **kwargs)
            return super().forward(*args, **kwargs)

    model = tiny.seeded(lambda: Twice(model_of("llama").config)).eval()
    model.generation_config.pad_token_id = 0
    for function in (lambda: model(ids(1, 9)), lambda: model.generate(**_prompt())):
        counted = Counted(recorder, function)
        counted.check()
        assert not counted.claims_exact


def _multilingual() -> Any:
    model = tiny.whisper(d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128, **EAGER)
    token = tiny.whisper_tokenizer().convert_tokens_to_ids
    config = model.generation_config
    config.is_multilingual, config.lang_to_id = True, {"<|en|>": token("<|en|>")}
    config.task_to_id = {"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")}
    return model


@pytest.mark.parametrize(("language", "expected"), [(None, False), ("en", True)], ids=["looked for", "given"])
def test_whisper_runs_once_more_to_find_the_language(recorder: Recorder, language: str | None, expected: bool) -> None:
    model = _multilingual()
    features = torch.randn(1, tiny.MEL_BINS, tiny.AUDIO_RATE // tiny.MEL_HOP)
    given = {} if language is None else {"language": language}

    counted = Counted(recorder, lambda: model.generate(features, max_new_tokens=5, **given))

    counted.check()
    assert counted.claims_exact is expected


# -- direct calls ------------------------------------------------------------------------------------------------------


def _static(length: int) -> Any:
    cache = transformers.StaticCache(config=model_of("llama").config, max_cache_len=32)
    with torch.no_grad():
        model_of("llama")(input_ids=ids(1, length), past_key_values=cache, use_cache=True)
    return cache


def _encoded(length: int) -> Any:
    return model_of("t5").get_encoder()(ids(2, length))


FORWARDS: dict[str, tuple[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]], bool]] = {
    # name of the model, its arguments, and whether the count is exact
    "ids by position": ("llama", lambda: ((ids(2, 9),), {}), True),
    "ids and mask by position": ("llama", lambda: ((ids(2, 9), torch.ones(2, 9)), {}), True),
    "no cache": ("llama", lambda: ((ids(2, 9),), {"use_cache": False}), True),
    "labels": ("llama", lambda: ((), {"input_ids": ids(2, 9), "labels": ids(2, 9)}), True),
    "some logits": ("llama", lambda: ((), {"input_ids": ids(2, 9), "logits_to_keep": 3}), True),
    "all logits": ("llama", lambda: ((), {"input_ids": ids(2, 9), "logits_to_keep": 0}), True),
    "logits at places": (
        "llama",
        lambda: ((), {"input_ids": ids(2, 9), "logits_to_keep": torch.tensor([2, 5])}),
        True,
    ),
    "embeddings": ("llama", lambda: ((), {"inputs_embeds": torch.randn(2, 9, 64)}), True),
    "a mask for each pair": (
        "llama",
        lambda: ((), {"input_ids": ids(2, 9), "attention_mask": torch.zeros(2, 1, 9, 9)}),
        True,
    ),
    "packed sequences": (
        "llama",
        lambda: ((), {"input_ids": ids(1, 9), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])}),
        True,
    ),
    "a cache": ("llama", lambda: ((), {"input_ids": ids(1, 3), "past_key_values": _prefix("llama", 11)}), True),
    "a cache by position": (
        "llama",
        lambda: ((ids(1, 3), torch.ones(1, 14, dtype=torch.long), None, _prefix("llama", 11)), {}),
        True,
    ),
    "a cache with windows": (
        "windows",
        lambda: ((), {"input_ids": ids(1, 3), "past_key_values": _prefix("windows", 31)}),
        True,
    ),
    "a cache without windows": (
        "windows",
        lambda: ((), {"input_ids": ids(1, 3), "past_key_values": _unwindowed(31)}),
        True,
    ),
    "a static cache": ("llama", lambda: ((), {"input_ids": ids(1, 1), "past_key_values": _static(5)}), False),
    "attentions and hidden states": (
        "llama",
        lambda: ((), {"input_ids": ids(2, 9), "output_attentions": True, "output_hidden_states": True}),
        True,
    ),
    "labels of an encoder-decoder": ("t5", lambda: ((), {"input_ids": ids(2, 9), "labels": ids(2, 4)}), True),
    "ids of an encoder-decoder by position": (
        "t5",
        lambda: ((ids(2, 9), torch.ones(2, 9, dtype=torch.long), ids(2, 4)), {}),
        True,
    ),
    "an encoder's output": (
        "t5",
        lambda: ((), {"encoder_outputs": _encoded(9), "decoder_input_ids": ids(2, 4)}),
        True,
    ),
    "an encoder's output in a list": (
        "t5",
        lambda: ((), {"encoder_outputs": [_encoded(9)[0]], "decoder_input_ids": ids(2, 4)}),
        True,
    ),
    "an encoder's output and ids": (
        "t5",
        lambda: ((), {"input_ids": ids(2, 9), "encoder_outputs": _encoded(9), "labels": ids(2, 4)}),
        True,
    ),
    "embeddings of a decoder": (
        "t5",
        lambda: ((), {"input_ids": ids(2, 9), "decoder_inputs_embeds": torch.randn(2, 4, 64)}),
        True,
    ),
    "ids of the encoder for both": ("bart", lambda: ((ids(2, 9),), {}), True),
    "pixels and labels": ("captioner", lambda: ((torch.randn(2, 3, 16, 16),), {"labels": ids(2, 4)}), True),
    "audio and labels": (
        "whisper",
        lambda: ((), {"input_features": torch.randn(2, tiny.MEL_BINS, 100), "labels": ids(2, 4)}),
        True,
    ),
    "an encoder alone": ("encoder", lambda: ((ids(2, 9),), {}), False),
    "a base model alone": ("base", lambda: ((ids(2, 9),), {}), True),
    "a class for each row": (
        "classifier",
        lambda: ((), {"input_ids": ids(2, 9), "labels": torch.tensor([0, 1])}),
        True,
    ),
}


def _unwindowed(length: int) -> Any:
    with torch.no_grad():
        cache = transformers.DynamicCache()
        return model_of("windows")(input_ids=ids(1, length), past_key_values=cache, use_cache=True).past_key_values


@pytest.mark.parametrize(("name", "make", "is_exact"), FORWARDS.values(), ids=FORWARDS)
def test_direct_calls_are_counted_by_what_they_are_given(
    recorder: Recorder, name: str, make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]], is_exact: bool
) -> None:
    torch.manual_seed(0)
    model_of(name)
    with torch.no_grad():
        args, kwargs = make()

    counted = Counted(recorder, lambda: model_of(name)(*args, **kwargs))

    counted.check()
    assert counted.flops is not None
    assert counted.claims_exact is is_exact


# -- adapters ----------------------------------------------------------------------------------------------------------


def _disabled(model: Any) -> None:
    model.base_model.disable_adapter_layers()


ADAPTERS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "one": (lambda model: None, "first"),
    "another": (lambda model: model.set_adapter("second"), "second"),
    "both": (lambda model: model.base_model.set_adapter(["first", "second"]), "first+second"),
    "none": (_disabled, None),
    "merged": (lambda model: model.merge_adapter(["first"]), "first"),
}


@pytest.mark.parametrize(("change", "named"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_count_as_they_are_in_use_and_are_named(
    recorder: Recorder, change: Callable[[Any], Any], named: str | None
) -> None:
    peft = pytest.importorskip("peft")
    inside = tiny.causal_lm(**_sizes())
    inside.generation_config.pad_token_id = 0
    plain = Counted(recorder, lambda: inside.generate(**_prompt()))
    plain.check_exact()
    targets = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(inside, peft.LoraConfig(r=16, **targets), adapter_name="first").eval()
    model.add_adapter("second", peft.LoraConfig(r=4, **targets))
    Counted(recorder, lambda: model.generate(**_prompt())).check_exact()
    change(model)

    counted = Counted(recorder, lambda: model.generate(**_prompt()))

    counted.check_exact()
    assert (counted.flops == plain.flops) == (named is None or change is ADAPTERS["merged"][0])
    assert counted.attributes.get(semconv.MODEL_ADAPTER) == named
    points = recorder.points(semconv.OPERATION_DURATION)
    assert {point.attributes.get(semconv.MODEL_ADAPTER) for point in points} == {None, "first", named}


def test_adapters_that_compute_more_are_not_exact(recorder: Recorder) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", use_dora=True)
    model = peft.get_peft_model(tiny.causal_lm(**_sizes()), config).eval()
    model.generation_config.pad_token_id = 0

    counted = Counted(recorder, lambda: model.generate(**_prompt()))

    counted.check()
    assert not counted.claims_exact
