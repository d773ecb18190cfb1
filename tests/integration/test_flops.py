"""FLOPs in closed form against ``FlopCounterMode``, which counts each operator while the model runs.

Each model comes small, where what is small beside the matrix products would show, and wide, in proportions like those
of real models. Attention and experts are the eager ones: the counter does not know the fused kernels.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from inferspan.probes.flops import shapes, walk
from inferspan.probes.flops.inventory import CallShapes
from support import tiny

EAGER = {"attn_implementation": "eager"}
STEPS = 6

# Sizes: (hidden, layers, heads, intermediate, vocabulary, positions of the prompt)
SMALL, WIDE = (32, 2, 4, 64, 400, 24), (128, 3, 8, 512, 1200, 96)


def _decoder(size: tuple[int, ...], **more: Any) -> dict[str, Any]:
    hidden, layers, heads, intermediate, vocabulary, _ = size
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "intermediate_size": intermediate,
        "pad_token_id": 0,
        **EAGER,
        **more,
    }


def _gpt2(size: tuple[int, ...]) -> Any:
    return tiny.gpt2(n_embd=size[0], n_layer=size[1], n_head=size[2], vocab_size=size[4], **EAGER)


def _llama(size: tuple[int, ...]) -> Any:
    return tiny.causal_lm(**_decoder(size))


def _qwen3(size: tuple[int, ...]) -> Any:
    config = transformers.Qwen3Config(**_decoder(size, head_dim=2 * size[0] // size[2]))
    return tiny.seeded(lambda: transformers.Qwen3ForCausalLM(config))


def _mistral(size: tuple[int, ...]) -> Any:
    config = transformers.MistralConfig(**_decoder(size, sliding_window=size[5] // 3))
    return tiny.seeded(lambda: transformers.MistralForCausalLM(config))


def _gemma3(size: tuple[int, ...]) -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"][: size[1]]
    config = transformers.Gemma3TextConfig(
        **_decoder(size, head_dim=size[0] // size[2], sliding_window=size[5] // 3, layer_types=kinds)
    )
    return tiny.seeded(lambda: transformers.Gemma3ForCausalLM(config))


def _mixtral(size: tuple[int, ...]) -> Any:
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    config = transformers.MixtralConfig(**_decoder(size, **experts))
    return tiny.seeded(lambda: transformers.MixtralForCausalLM(config))


def _qwen2_moe(size: tuple[int, ...]) -> Any:
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "experts_implementation": "eager"}
    config = transformers.Qwen2MoeConfig(
        **_decoder(size, moe_intermediate_size=size[0], shared_expert_intermediate_size=size[3], **experts)
    )
    return tiny.seeded(lambda: transformers.Qwen2MoeForCausalLM(config))


def _t5(size: tuple[int, ...]) -> Any:
    return tiny.seq2seq_lm(
        d_model=size[0],
        num_layers=size[1],
        num_heads=size[2],
        d_kv=size[0] // size[2],
        d_ff=size[3],
        vocab_size=size[4],
        **EAGER,
    )


def _whisper(size: tuple[int, ...]) -> Any:
    return tiny.whisper(
        d_model=size[0],
        encoder_layers=size[1],
        decoder_layers=size[1] + 1,
        encoder_attention_heads=size[2],
        decoder_attention_heads=size[2],
        encoder_ffn_dim=size[3],
        decoder_ffn_dim=size[3],
        **EAGER,
    )


def _bert(size: tuple[int, ...]) -> dict[str, Any]:
    hidden, layers, heads, intermediate, *_ = size
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        **EAGER,
    }


def _tagger(size: tuple[int, ...]) -> Any:
    config = tiny.bert_config(**_bert(size), num_labels=9)
    return tiny.seeded(lambda: transformers.BertForTokenClassification(config))


def _vit(size: tuple[int, ...]) -> Any:
    config = transformers.ViTConfig(**_bert(size), image_size=48, patch_size=8, num_labels=10)
    return tiny.seeded(lambda: transformers.ViTForImageClassification(config))


def _resnet(size: tuple[int, ...]) -> Any:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[size[0], 2 * size[0]], depths=[2, 2], num_labels=5
    )
    return tiny.seeded(lambda: transformers.ResNetForImageClassification(config))


def _hubert(size: tuple[int, ...]) -> Any:
    config = transformers.HubertConfig(
        **_bert(size),
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=15,
        num_conv_pos_embedding_groups=4,
        conv_pos_batch_norm=True,  # the counter of torch 2.4 stumbles over weights that are computed
        vocab_size=30,
    )
    return tiny.seeded(lambda: transformers.HubertForCTC(config))


DECODERS = {
    "GPT-2": _gpt2,
    "Llama": _llama,
    "Qwen3": _qwen3,
    "Mistral, windows": _mistral,
    "Gemma 3, windows in some layers": _gemma3,
    "Mixtral": _mixtral,
    "Qwen2-MoE, shared expert": _qwen2_moe,
}
ENCODER_DECODERS = {"T5": _t5, "Whisper": _whisper}
ENCODERS = {
    "BERT": lambda size: tiny.embedder(**_bert(size)),
    "BERT, sequence classification": lambda size: tiny.classifier(**_bert(size)),
    "BERT, token classification": _tagger,
}
OTHERS = {
    "ViT": (_vit, {"pixel_values": (3, 3, 48, 48)}),
    "ResNet": (_resnet, {"pixel_values": (2, 3, 64, 64)}),
    "HuBERT": (_hubert, {"input_values": (2, 4000)}),
}


@pytest.fixture(params=[pytest.param(SMALL, id="small"), pytest.param(WIDE, id="wide")])
def size(request: pytest.FixtureRequest) -> tuple[int, ...]:
    sizes: tuple[int, ...] = request.param
    return sizes


def _counted(function: Callable[[], Any]) -> tuple[int, Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


def _check_forward(model: Any, **inputs: Any) -> Any:
    inventory, work = walk.take_inventory(model), shapes.read_shapes((), inputs)
    assert inventory is not None
    assert work is not None
    found = inventory.forward(work)
    counted, result = _counted(lambda: model(**inputs))
    assert found.count == pytest.approx(counted, rel=0.01)
    assert found.exact
    return result


def _prompt(size: tuple[int, ...], rows: int = 2, **more: Any) -> dict[str, Any]:
    """Rows of ids; the first is padded by a third, which is computed all the same."""
    length = size[5]
    ids, mask = torch.randint(10, 300, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    return {"input_ids": ids, "attention_mask": mask, **more}


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
def test_forward_of_a_decoder_counts_prefill_and_cached_decode(make: Callable[..., Any], size: tuple[int, ...]) -> None:
    model = make(size)

    result = _check_forward(model, **_prompt(size), use_cache=True)
    _check_forward(model, input_ids=torch.ones(2, 1, dtype=torch.long), past_key_values=result.past_key_values)
    _check_forward(model, **_prompt(size), logits_to_keep=1)


@pytest.mark.parametrize("make", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS)
def test_forward_of_an_encoder_decoder_counts_both_and_the_encoder_once(
    make: Callable[..., Any], size: tuple[int, ...]
) -> None:
    model = make(size)
    first, next_ids = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 1, dtype=torch.long)

    result = _check_forward(model, **_source(model, size), decoder_input_ids=first, use_cache=True)
    encoded = (result.encoder_last_hidden_state,)
    _check_forward(model, encoder_outputs=encoded, decoder_input_ids=next_ids, past_key_values=result.past_key_values)


def _source(model: Any, size: tuple[int, ...]) -> dict[str, Any]:
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, tiny.MEL_BINS, tiny.AUDIO_RATE // tiny.MEL_HOP)}
    return _prompt(size)


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_forward_of_an_encoder_counts_its_head_once_for_what_it_sees(
    make: Callable[..., Any], size: tuple[int, ...]
) -> None:
    _check_forward(make(size), **_prompt(size))


@pytest.mark.parametrize(("make", "shapes"), OTHERS.values(), ids=OTHERS)
def test_forward_of_a_vision_or_audio_model_counts_its_convolutions(
    make: Callable[..., Any], shapes: dict[str, Any], size: tuple[int, ...]
) -> None:
    _check_forward(make(size), **{name: torch.randn(shape) for name, shape in shapes.items()})


GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several choices": {"num_return_sequences": 2, "do_sample": True},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("settings", GENERATIONS.values(), ids=GENERATIONS)
@pytest.mark.parametrize("make", [*DECODERS.values(), *ENCODER_DECODERS.values()], ids=[*DECODERS, *ENCODER_DECODERS])
def test_generation_counts_prefill_and_decode(
    make: Callable[..., Any], settings: dict[str, Any], size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = make(size)
    inputs = {**_source(model, size), **settings}
    if model.main_input_name == "input_features":
        inputs["decoder_input_ids"] = torch.ones(2, 3, dtype=torch.long)

    def generate(steps: int) -> int:
        # Whisper's own generate() calls the general one for each segment, with ids for the decoder
        general = transformers.GenerationMixin.generate
        lengths = {"max_new_tokens": steps, "min_new_tokens": steps, "pad_token_id": 0}
        return _counted(lambda: general(model, **inputs, **lengths))[0]

    first: list[CallShapes | None] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: first.append(shapes.read_shapes(args, kwargs)), with_kwargs=True
    )
    counted = generate(1)
    hook.remove()
    inventory, given = walk.take_inventory(model), shapes.read_shapes((), inputs)
    assert inventory is not None
    assert len(first) == 1
    assert first[0] is not None
    prefill, decode = inventory.generation(first[0], STEPS, given)
    assert prefill.count == pytest.approx(counted, rel=0.01)
    assert decode.count == pytest.approx(generate(STEPS) - counted, rel=0.01)
    assert prefill.exact
    assert decode.exact


def test_a_static_cache_is_not_asked_for_its_length() -> None:
    model = _llama(SMALL)
    cache = transformers.StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 4, dtype=torch.long), past_key_values=cache, use_cache=True)

    inputs = {"input_ids": torch.ones(1, 1, dtype=torch.long), "past_key_values": cache}
    with NoOperators():
        work = shapes.read_shapes((), inputs)
    assert work is not None
    assert work.past is None


class NoOperators(TorchDispatchMode):
    """Fails at the first operator that runs."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} ran")


def test_taking_and_reading_run_no_operator_and_keep_no_model() -> None:
    model = _mixtral(SMALL)
    inputs = _prompt(SMALL)
    with NoOperators():
        inventory, work = walk.take_inventory(model), shapes.read_shapes((inputs["input_ids"],), inputs)

    here = [weakref.ref(model), weakref.ref(inputs["input_ids"]), weakref.ref(next(model.parameters()))]
    del model, inputs
    gc.collect()
    assert [reference() for reference in here] == [None, None, None]
    assert inventory is not None
    assert work is not None
    assert inventory.forward(work).count > 0


def test_a_compiled_model_counts_as_the_one_inside() -> None:
    model = _llama(SMALL)
    assert walk.take_inventory(torch.compile(model, backend="eager")) == walk.take_inventory(model)


def test_llama_3_8b_agrees_with_the_formula_by_hand() -> None:
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    inventory = walk.take_inventory(model)
    assert inventory is not None

    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    head = 4096 * 128256
    prefill, decode = inventory.generation(CallShapes(rows=1, length=1000, keep=1), 11)
    assert prefill == (2 * (1000 * 32 * layer + head + 2 * 32 * 4096 * 1000 * 1000), True)
    keys = sum(range(1001, 1011))
    assert decode == (2 * (10 * (32 * layer + head) + 2 * 32 * 4096 * keys), True)
    norms = 65 * 4096
    assert inventory.weight_bytes == pytest.approx(2 * (32 * layer + head + norms + 4096), rel=1e-6)
    assert inventory.kv_bytes(3, 1000) == 3 * 1000 * 2 * 2 * 32 * 8 * 128
