"""Programs that call ``generate()``: every way to hand over ids, masks and settings, every mode, every way to end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch
import transformers
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from judge.batching import V4
from judge.observe import Case, Clock, Loop, Seen, Truth
from judge.program import Choices, Family
from support import tasks, tiny

PAD, EOS, FIRST_WORD = 0, 2, 40
"""Ids of the tiny models: what is below the last is no word of a prompt."""

IMAGE_TOKENS = (tasks.SIDE // tasks.PATCH) ** 2


EAGER = {"attn_implementation": "eager"}
EXPERTS = {"experts_implementation": "eager"}
"""torch's counter does not know the fused kernels."""


def _mistral() -> Any:
    config = transformers.MistralConfig(
        **{**tiny.llama_config().to_dict(), "model_type": "mistral", "sliding_window": 6}
    )
    config._attn_implementation = "eager"
    return tiny.seeded(lambda: transformers.MistralForCausalLM(config))


def _mixtral() -> Any:
    settings = {**tiny.llama_config().to_dict(), "model_type": "mixtral"}
    config = transformers.MixtralConfig(**settings, num_local_experts=4, num_experts_per_tok=2, **EXPERTS)
    config._attn_implementation = "eager"
    return tiny.seeded(lambda: transformers.MixtralForCausalLM(config))


def _mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=PAD, eos_token_id=EOS
    )
    return tiny.seeded(lambda: transformers.MambaForCausalLM(config))


def _bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=300,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        init_std=0.3,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        attn_implementation="eager",
    )
    return tiny.seeded(lambda: transformers.BartForConditionalGeneration(config))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": partial(tiny.causal_lm, **EAGER),
    "gpt2": partial(tiny.gpt2, **EAGER),
    "mistral": _mistral,
    "mixtral": _mixtral,
    "mamba": _mamba,
    "t5": tiny.seq2seq_lm,
    "bart": _bart,
    "llava": lambda: tasks._llava().model,
    "captioner": lambda: tasks._captioner(
        tiny.seeded(lambda: transformers.ViTModel(transformers.ViTConfig(**tasks.VISION)))
    ),
    "whisper": tiny.whisper,
}

ENCODERS = ("t5", "bart", "captioner", "whisper")
NO_IDS = ("captioner", "whisper")
BEAMS = ("beams", "beams of choices", "sampled beams")
ASSISTED = ("lookup", "assisted")

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20},
    "choices": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams of choices": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2, "top_k": 10},
    "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
    "assisted": {"do_sample": False},
    "guidance": {"do_sample": False, "guidance_scale": 1.5},
}

AXES: dict[str, tuple[Any, ...]] = {
    "model": tuple(MODELS),
    "rows": ("1", "2", "2 ragged", "3 ragged"),
    "ids": ("keyword", "positional", "inputs", "embeds", "embeds and ids", "none"),
    "mask": ("int", "bool", "float", "absent"),
    "mode": tuple(MODES),
    "settings": ("kwargs", "config", "positional config", "own", "split", "overridden"),
    "limit": ("new 6", "new 1", "new 2", "new 9", "length 20", "default"),
    "eos": ("none", "int", "list", "tensor"),
    "pad": ("own", "eos", "absent"),
    "stop": ("none", "string", "criterion", "criterion for all"),
    "cache": ("dynamic", "off", "past", "static"),
    "streamer": (False, True),
    "dict": (False, True),
    "where": ("direct", "span", "block", "twice", "thread", "threads"),
    "seed": tuple(range(8)),
}


def rows(c: Choices) -> int:
    return int(c["rows"][0])


def ragged(c: Choices) -> bool:
    return c["rows"].endswith("ragged")


def allows(c: Choices) -> bool:
    """Whether transformers runs it, and the judge knows what it is."""
    rows_of_one = not c["streamer"] or (c["rows"] == "1" and c["mode"] in ("greedy", "sample", "guidance", *ASSISTED))
    return all(
        (
            rows_of_one,
            c["mode"] not in ASSISTED
            or (c["rows"] == "1" and c["cache"] == "dynamic" and c["model"] in ("llama", "gpt2")),
            c["mode"] not in ASSISTED or (c["stop"] == "none" and c["ids"] in ("keyword", "positional")),
            c["mode"] != "lookup" or not V4 or c["eos"] != "none",  # 4.57 needs one
            c["mode"] != "guidance" or c["model"] in ("llama", "gpt2", "mistral"),
            c["mode"] not in BEAMS or c["stop"] == "none",
            c["stop"] != "string" or c["model"] in ("llama", "gpt2", "mistral"),
            c["model"] not in NO_IDS or (c["ids"] == "keyword" and not ragged(c) and c["mask"] == "int"),
            c["model"] not in ("llava", "mamba")
            or (c["ids"] in ("keyword", "inputs") and c["cache"] in ("dynamic", "off")),
            c["ids"] not in ("embeds", "embeds and ids") or c["model"] in ("llama", "gpt2", "mistral", "mixtral", "t5"),
            c["ids"] != "embeds and ids" or c["model"] != "t5",
            c["ids"] != "embeds" or c["mask"] != "absent" or not ragged(c),
            c["ids"] != "none" or (c["model"] in ("llama", "gpt2") and c["rows"] == "1" and c["mask"] == "absent"),
            c["cache"] != "past"
            or (
                c["model"] in ("llama", "gpt2")
                and c["ids"] in ("keyword", "positional")
                and c["mode"] in ("greedy", "sample")
                and c["where"] not in ("twice", "threads")
            ),
            c["cache"] != "static" or (c["model"] in ("llama", "mistral") and c["where"] != "threads"),
            c["pad"] == "own" or c["eos"] != "none",
            c["model"] != "whisper"
            or (c["mode"] in ("greedy", "sample") and c["stop"] == "none" and c["limit"] != "length 20"),
            c["where"] != "threads" or (c["mode"] in ("greedy", "beams", "guidance") and not c["streamer"]),
        )
    )


# -- what is handed over -----------------------------------------------------------------------------------------------


class _Ends(StoppingCriteria):
    """A criterion of the program's own: each row ends by what it wrote, or all of them at one length."""

    def __init__(self, length: int | None) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self.length is not None:
            return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)
        return input_ids[:, -1] % 3 == 0


def prompts(random: Random, number: int, are_ragged: bool, left: bool, pad: int, image: int | None = None) -> Any:
    """Ids, their mask, and the number of tokens in each row."""
    length = random.randint(4, 9)
    lengths = [length] * number
    if are_ragged:
        lengths = [length, *(random.randint(2, length - 1) for _ in range(number - 1))]
        random.shuffle(lengths)
    ids, mask = [], []
    extra = [] if image is None else [image] * IMAGE_TOKENS
    for own in lengths:
        words = [*extra, *(random.randint(FIRST_WORD, 290) for _ in range(own))]
        padding, kept = [pad] * (length - own), [0] * (length - own)
        ids.append([*padding, *words] if left else [*words, *padding])
        mask.append([*kept, *[1] * len(words)] if left else [*[1] * len(words), *kept])
    return torch.tensor(ids), torch.tensor(mask), [own + len(extra) for own in lengths]


def build(model: str) -> Any:
    """A model that nothing ends but what the program sets."""
    built = MODELS[model]()
    if hasattr(built, "set_attn_implementation") and model != "mamba":
        built.set_attn_implementation("eager")
    config = built.generation_config
    if model != "whisper":
        config.eos_token_id, config.pad_token_id = None, PAD
    return built


def make(c: Choices) -> Case:
    """The program, ready to run."""
    random = Random(c["seed"])
    model = build(c["model"])
    is_encoder = c["model"] in ENCODERS
    image = model.config.image_token_index if c["model"] == "llava" else None
    settings = _settings(c)
    pad = EOS if c["pad"] == "eos" and c["eos"] != "none" else PAD
    ids, mask, lengths = prompts(random, rows(c), ragged(c), not is_encoder, pad, image)
    handed = _inputs(c, model, ids, mask)
    settings = _with_ends(c, model, ids, handed, settings)
    if ragged(c) and settings.get("pad_token_id") not in (None, pad):
        ids[mask == 0] = settings["pad_token_id"]
    draft = tiny.draft_lm() if c["model"] == "llama" else tiny.gpt2(n_embd=16, n_layer=1)
    draft.generation_config.eos_token_id, draft.generation_config.pad_token_id = None, PAD
    clock = Clock()
    past = _past(model, ids, handed.get("attention_mask")) if c["cache"] == "past" else None
    clock.of(model)

    def run() -> Any:
        args, kwargs = _arguments(c, model, handed, dict(settings), ids)
        if past is not None:
            kwargs["past_key_values"] = past
        if c["streamer"]:
            kwargs["streamer"] = clock
        if c["mode"] == "assisted":
            kwargs["assistant_model"] = draft
        if c["stop"] == "string":
            kwargs["tokenizer"] = tiny.text_tokenizer()
        return model.generate(*args, **kwargs)

    if c["settings"] == "own":
        model.generation_config.update(**settings)
    return Case(run, partial(_truth, c, model, ids, lengths, settings), clock, same=_sequences)


def _settings(c: Choices) -> dict[str, Any]:
    settings = dict(MODES[c["mode"]])
    kind, _, number = c["limit"].partition(" ")
    if kind == "new":
        settings["max_new_tokens"] = int(number)
    elif kind == "length":
        settings["max_length"] = int(number) + (IMAGE_TOKENS if c["model"] == "llava" else 0)
    if c["cache"] == "off":
        settings["use_cache"] = False
    if c["cache"] == "static":
        settings["cache_implementation"] = "static"
    if c["dict"]:
        settings["return_dict_in_generate"] = True
    return settings


def _inputs(c: Choices, model: Any, ids: Any, mask: Any) -> dict[str, Any]:
    handed: dict[str, Any] = {}
    if c["model"] == "whisper":
        return {"input_features": torch.ones(rows(c), tiny.MEL_BINS, tiny.AUDIO_RATE // tiny.MEL_HOP)}
    if c["model"] in ("captioner", "llava"):
        random = torch.Generator().manual_seed(c["seed"])
        handed["pixel_values"] = torch.rand(rows(c), 3, tasks.SIDE, tasks.SIDE, generator=random)
        if c["model"] == "captioner":
            return handed
    if c["mask"] != "absent":
        handed["attention_mask"] = {"int": mask, "bool": mask.bool(), "float": mask.float()}[c["mask"]]
    if c["ids"] in ("embeds", "embeds and ids"):
        with torch.no_grad():
            handed["inputs_embeds"] = model.get_input_embeddings()(ids).clone()
    if c["ids"] in ("keyword", "embeds and ids"):
        handed["input_ids"] = ids
    elif c["ids"] == "inputs":
        handed["inputs"] = ids
    elif c["ids"] == "positional":
        handed[""] = ids
    elif c["ids"] == "none":
        handed = {}
    return handed


def _with_ends(c: Choices, model: Any, ids: Any, handed: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what ends a row: tokens that the model writes indeed, found by a run that nothing ends."""
    if c["eos"] == "none" and c["stop"] in ("none", "criterion", "criterion for all"):
        return settings
    torch.manual_seed(c["seed"])
    args = [handed[""]] if "" in handed else []
    kwargs = {name: value for name, value in handed.items() if name}
    plain = {name: value for name, value in settings.items() if name not in ("prompt_lookup_num_tokens",)}
    written = _sequences(model.generate(*args, **kwargs, **plain))
    end = written[-1][min(2, len(written[-1]) - 1) - min(4, len(written[-1]))]
    if c["eos"] != "none":
        settings["eos_token_id"] = {"int": end, "list": [end, 7], "tensor": torch.tensor([end, 7])}[c["eos"]]
        if c["pad"] == "eos":
            settings["pad_token_id"] = end
        elif c["pad"] == "absent":
            model.generation_config.pad_token_id = None
    if c["stop"] == "string":
        settings["stop_strings"] = [tiny.text_tokenizer().decode([end]).strip() or "the"]
    return settings


def _arguments(c: Choices, model: Any, handed: dict[str, Any], settings: dict[str, Any], ids: Any) -> Any:
    kwargs = {name: value for name, value in handed.items() if name}
    args = [handed[""]] if "" in handed else []
    if c["stop"].startswith("criterion"):
        length = None if c["stop"] == "criterion" else (0 if c["ids"] == "embeds" else ids.shape[1]) + 3
        kwargs["stopping_criteria"] = StoppingCriteriaList([_Ends(length)])
    pad = {"pad_token_id": model.generation_config.pad_token_id}
    if c["settings"] == "config":
        kwargs["generation_config"] = GenerationConfig(**{**pad, **settings})
    elif c["settings"] == "positional config" and args:
        args.append(GenerationConfig(**{**pad, **settings}))
        if "stopping_criteria" in kwargs:
            args += [None, kwargs.pop("stopping_criteria")]
    elif c["settings"] == "split":
        names = sorted(settings)
        kwargs["generation_config"] = GenerationConfig(
            **pad, **{name: settings[name] for name in names[::2] if name != "pad_token_id"}
        )
        kwargs.update({name: settings[name] for name in [*names[1::2], "pad_token_id"] if name in settings})
    elif c["settings"] == "overridden":
        other = {"temperature": 0.3, "top_k": 5} if settings.get("do_sample") else {}
        kwargs["generation_config"] = GenerationConfig(**pad, max_new_tokens=4, **other)
        kwargs.update(settings)
    elif c["settings"] != "own":
        kwargs.update(settings)
    return args, kwargs


def _past(model: Any, ids: Any, mask: Any) -> Any:
    past = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :3], attention_mask=None if mask is None else mask[:, :3], past_key_values=past)
    return past


# -- what that is ------------------------------------------------------------------------------------------------------


def _sequences(result: Any) -> list[list[int]]:
    return getattr(result, "sequences", result).tolist()


def finish_of(reasons: set[str]) -> set[str]:
    """What may be said of a row that transformers ended for these reasons. One that ended by an end-of-sequence token
    has stopped. One that came to its limit and to another end in the same step has done both."""
    if "eos" in reasons:
        return {"stop"}
    return {"length" if reason == "length" else "stop" for reason in reasons}


def ended_by_criteria(loop: Loop) -> tuple[int, list[set[str]]]:
    """Tokens and reasons of rows of which transformers said at each step whether they go on."""
    rows = [loop.ended[row] for row in sorted(loop.ended)]
    return sum(step for step, _ in rows), [finish_of(reasons) for _, reasons in rows]


def written_on(loop: Loop, finish: list[set[str]]) -> tuple[int, list[set[str]]]:
    """The same where there is no end-of-sequence token: transformers then writes on a row that has ended, until all
    have. These tokens are returned, and either may be said of such a row."""
    rows = [loop.ended[row][0] for row in sorted(loop.ended)]
    both = [{*may, "length"} if step < loop.steps else may for step, may in zip(rows, finish, strict=True)]
    return loop.steps * len(rows), both


def ended_by_walking(sequences: list[list[int]], prompt: int, ends: set[int]) -> tuple[int, list[set[str]]]:
    """The same of finished sequences, by walking to the first end-of-sequence token."""
    total, finish = 0, []
    for row in sequences:
        reason = {"length"}
        for token in row[prompt:]:
            total += 1
            if token in ends:
                reason = {"stop"}
                break
        finish.append(reason)
    return total, finish


def cache_bytes(cache: Any) -> int | None:
    """Bytes of keys and values in a returned cache."""
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    if any(part is not None for part in parts):
        sizes = [cache_bytes(part) for part in parts if part is not None]
        return None if None in sizes else sum(size or 0 for size in sizes)
    layers = getattr(cache, "layers", None)
    if not layers or not all(isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in layers):
        return None
    return sum(part.numel() * part.element_size() for layer in layers for part in (layer.keys, layer.values))


def _ends(settings: dict[str, Any]) -> set[int]:
    found = settings.get("eos_token_id")
    if isinstance(found, torch.Tensor):
        found = found.tolist()
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def _truth(
    c: Choices, model: Any, ids: Any, lengths: list[int], settings: dict[str, Any], result: Any, seen: Seen
) -> Truth:
    sequences, ends = _sequences(result), _ends(settings)
    prompt = 0 if c["ids"] == "embeds" else ids.shape[1]
    if c["ids"] == "none" or c["model"] in ENCODERS:
        prompt = 1
    unknown: set[str] = set()
    if c["mode"] in BEAMS or c["mode"] in ASSISTED:
        tokens, finish = ended_by_walking(sequences, prompt, ends)
    elif c["model"] == "whisper":
        tokens, finish = 0, []
        for loop in seen.loops:
            of_loop, reasons = ended_by_criteria(loop)
            tokens, finish = tokens + of_loop, [*finish, *reasons]
        if len(seen.loops) > 1:
            unknown |= {"finish"}
    else:
        tokens, finish = ended_by_criteria(seen.loops[0])
        if not ends:
            tokens, finish = written_on(seen.loops[0], finish)
    # of what is proposed, 4.57 asks the criteria too
    steps = None if c["mode"] in ASSISTED else sum(loop.steps for loop in seen.loops)
    forward = ("forward", "prefill") if steps == 1 else ("forward", "prefill", "decode")
    reads = c["model"] not in NO_IDS and c["ids"] != "none"
    if c["ids"] == "none":
        unknown |= {"input_tokens", "length"}
    is_masked = c["mask"] != "absent" or _infers_mask(c, settings, model)
    count = sum(lengths) if is_masked else ids.numel()
    if c["mode"] in ASSISTED:
        unknown |= {"tree"}
    if c["mode"] == "assisted":
        unknown |= {"flops"}
    cache = getattr(result, "past_key_values", None)
    return Truth(
        tree=(f"text_completion {type(model).__name__}", forward),
        rows=rows(c),
        length=ids.shape[1] if reads else None,
        input_tokens=count if reads else None,
        positions=ids.numel() if reads else None,
        output_tokens=tokens,
        finish=finish,
        steps=steps,
        flops=seen.flops,
        cache_bytes=None if cache is None else cache_bytes(cache),
        settings=_said(c, settings, ids),
        unknown=frozenset(unknown | ({"cache_bytes"} if cache is None or c["cache"] == "static" else set())),
    )


def _infers_mask(c: Choices, settings: dict[str, Any], model: Any) -> bool:
    """Whether transformers finds the padding by itself: where ids are padded by what is not an end of sequences."""
    pad = settings.get("pad_token_id", model.generation_config.pad_token_id)
    return c["ids"] != "embeds" and pad is not None and pad not in _ends(settings)


def _said(c: Choices, settings: dict[str, Any], ids: Any) -> dict[str, Any]:
    """The settings in force, by the names that spans have for them. What is not set has transformers' default."""
    limit = settings.get("max_new_tokens")
    return {
        "gen_ai.request.max_tokens": limit,
        "gen_ai.request.temperature": settings.get("temperature", 0.3 if _other(c, settings) else 1.0),
        "gen_ai.request.top_p": settings.get("top_p", 1.0),
        "gen_ai.request.top_k": settings.get("top_k", 5 if _other(c, settings) else 50),
        "gen_ai.request.choice.count": settings.get("num_return_sequences", 1),
        "inferspan.request.do_sample": settings["do_sample"],
        "inferspan.request.num_beams": settings.get("num_beams", 1),
    } | ({} if limit is not None or c["settings"] != "overridden" else {"gen_ai.request.max_tokens": ...})


def _other(c: Choices, settings: dict[str, Any]) -> bool:
    return c["settings"] == "overridden" and bool(settings["do_sample"])


FAMILY = Family("generate", AXES, allows, make, share=6)
