"""FLOPs in closed form against ``FlopCounterMode`` on eight architectures, and what the counting costs.

    python benchmarks/flops.py

Widths, heads, experts and vocabularies are those of published models, with random weights; of the larger ones fewer
layers. Attention and experts are eager, as the counter does not know the fused kernels. One thread, whose CPU time is
taken: the machine may have other work.
"""

from __future__ import annotations

import gc
import platform
import statistics
from collections.abc import Callable
from time import thread_time
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from inferspan.probes.flops import shapes, walk

ROWS, PROMPT, STEPS = 2, 128, 8

EAGER = {"attn_implementation": "eager"}
LLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8}
MIXTRAL = {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2 (small)": ("GPT2LMHeadModel", {}),
    "Llama (TinyLlama 1.1B, 4 layers)": ("LlamaForCausalLM", {**LLAMA, "num_hidden_layers": 4, "vocab_size": 32000}),
    "Qwen3 (0.6B, 4 layers)": (
        "Qwen3ForCausalLM",
        {**QWEN3, "num_hidden_layers": 4, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "BERT (base)": ("BertModel", {}),
    "T5 (small)": ("T5ForConditionalGeneration", {}),
    "ViT (base)": ("ViTForImageClassification", {}),
    "Whisper (tiny)": ("WhisperForConditionalGeneration", {}),
    "Mixtral (a quarter as wide, 4 layers)": (
        "MixtralForCausalLM",
        {**MIXTRAL, "num_hidden_layers": 4, "vocab_size": 32000, "experts_implementation": "eager"},
    ),
}


def make(name: str, settings: dict[str, Any]) -> Any:
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    return cls(cls.config_class(**settings, **EAGER)).eval()


def inputs_of(model: Any) -> dict[str, Any]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(ROWS, 3, 224, 224)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(ROWS, 80, 3000), "decoder_input_ids": torch.full((ROWS, 4), 50258)}
    ids = torch.randint(1000, 20000, (ROWS, PROMPT))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def counted(function: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def median_us(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = thread_time()
        function()
        times.append((thread_time() - begun) * 1e6)
    return statistics.median(times)


def calls_of(model: Any, inputs: dict[str, Any]) -> dict[str, tuple[Callable[[], Any], dict[str, Any], int]]:
    """For each call: what runs it, its arguments, and its steps (0: a forward)."""
    if not model.can_generate():
        return {"forward": (lambda: model(**inputs), inputs, 0)}

    def generate(**settings: Any) -> Callable[[], Any]:
        # Whisper's own prepares the ids of its decoder and then calls this one
        general = transformers.GenerationMixin.generate
        lengths = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "pad_token_id": 0, "decoder_start_token_id": 0}
        return lambda: general(model, **inputs, **settings, **lengths)

    first = dict(inputs)
    if model.config.is_encoder_decoder:
        first.setdefault("decoder_input_ids", torch.ones(ROWS, 1, dtype=torch.long))
    return {
        "forward": (lambda: model(**first), first, 0),
        f"generate {STEPS}": (generate(), inputs, STEPS),
        "3 beams": (generate(num_beams=3), inputs, STEPS),
    }


def deep_us(layers: int) -> float:
    """Taking the inventory of a Llama with so many layers, whose weights take no memory."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers))
    return median_us(lambda: walk.take_inventory(model), 15)


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{ROWS} rows, prompt of {PROMPT} tokens; GFLOPs\n")
    print("| Model | Call | Inferspan | FlopCounterMode | Ratio | Exact |\n|---|---|---:|---:|---:|---|")
    costs = []
    for title, (name, settings) in MODELS.items():
        model = make(name, settings)
        inputs = inputs_of(model)
        inventory = walk.take_inventory(model)
        assert inventory is not None
        calls = calls_of(model, inputs)
        for call, (function, arguments, steps) in calls.items():
            work = shapes.read_shapes((), arguments)
            assert work is not None
            first: list[Any] = []
            hook = model.register_forward_pre_hook(
                lambda _, args, kwargs, first=first: first.append(shapes.read_shapes(args, kwargs)), with_kwargs=True
            )
            truth = counted(function)
            hook.remove()
            parts = inventory.generation(first[0], steps, work) if steps else (inventory.forward(work),)
            ours = sum(part.count for part in parts)
            exact = "yes" if all(part.exact for part in parts) else "no"
            print(f"| {title} | {call} | {ours / 1e9:.3f} | {truth / 1e9:.3f} | {ours / truth:.4f} | {exact} |")
        with torch.no_grad():
            function, arguments, *_ = calls["forward"]
            forward_us = median_us(function, 5)
        taking_us = median_us(lambda model=model: walk.take_inventory(model), 15)
        reading_us = median_us(lambda arguments=arguments: shapes.read_shapes((), arguments), 201)
        form_us = median_us(lambda inventory=inventory, work=work: inventory.forward(work), 201)
        modules = sum(1 for _ in model.modules())
        costs.append(f"| {title} | {modules} | {taking_us:.0f} | {reading_us:.1f} | {form_us:.1f} | {forward_us:.0f} |")
        del model, inputs, calls, function, arguments
        gc.collect()
    print(
        "\nMedian µs of CPU time\n\n| Model | Modules | Inventory, once | Shapes, each call | Closed form | Forward |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    print("\n".join(costs))
    print(f"\nInventory of a Llama with 32 layers {deep_us(32):.0f}, with 300 layers {deep_us(300):.0f}")


if __name__ == "__main__":
    main()
