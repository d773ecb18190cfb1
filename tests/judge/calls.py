"""Programs that call a model directly: language models, encoders, encoder-decoders, vision, video, speech."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from random import Random
from typing import Any

import torch
import transformers
from transformers import DynamicCache

from judge.generation import EAGER, MODELS, PAD, prompts, ragged, rows
from judge.observe import Case, Clock, Seen, Truth, counts_in_inference_mode
from judge.program import Choices, Family
from support import tasks, tiny

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    **EAGER,
}


def _of(model: str, config: str, **settings: Any) -> Any:
    shape = getattr(transformers, config)(**settings)
    return tiny.seeded(lambda: getattr(transformers, model)(shape))


TEXT: dict[str, Callable[[], Any]] = {
    "bert": partial(_of, "BertModel", "BertConfig", **SMALL),
    "bert classifier": partial(_of, "BertForSequenceClassification", "BertConfig", **SMALL),
    "bert tagger": partial(_of, "BertForTokenClassification", "BertConfig", **SMALL),
    "bert mask": partial(_of, "BertForMaskedLM", "BertConfig", **SMALL),
    "roberta": partial(_of, "RobertaForSequenceClassification", "RobertaConfig", **{**SMALL, "pad_token_id": 1}),
    "albert": partial(_of, "AlbertModel", "AlbertConfig", embedding_size=16, **SMALL),
    "distilbert": partial(
        _of,
        "DistilBertModel",
        "DistilBertConfig",
        vocab_size=300,
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=48,
        **EAGER,
    ),
    "electra": partial(_of, "ElectraForPreTraining", "ElectraConfig", embedding_size=16, **SMALL),
    "llama": MODELS["llama"],
    "llama classifier": lambda: tiny.seeded(
        lambda: transformers.LlamaForSequenceClassification(tiny.llama_config(num_labels=3, **EAGER))
    ),
    "gpt2": MODELS["gpt2"],
    "mistral": MODELS["mistral"],
    "mixtral": MODELS["mixtral"],
    "mamba": MODELS["mamba"],
    "t5": MODELS["t5"],
    "bart": MODELS["bart"],
}
DECODERS = ("llama", "llama classifier", "gpt2", "mistral", "mixtral", "mamba")
SEQ2SEQ = ("t5", "bart")

VISION = {**tasks.VISION, **EAGER}
AUDIO = {**tasks.WAV2VEC2, **EAGER}

OTHER: dict[str, Callable[[], Any]] = {
    "vit": partial(_of, "ViTForImageClassification", "ViTConfig", **VISION, num_labels=3),
    "vit tower": partial(_of, "ViTModel", "ViTConfig", **VISION),
    "deit": partial(_of, "DeiTForImageClassification", "DeiTConfig", **VISION),
    "dinov2": partial(_of, "Dinov2Model", "Dinov2Config", **VISION),
    "yolos": partial(
        _of,
        "YolosForObjectDetection",
        "YolosConfig",
        **{**VISION, "image_size": [tasks.SIDE, tasks.SIDE]},
        num_detection_tokens=5,
        num_labels=3,
    ),
    "segformer": partial(_of, "SegformerForSemanticSegmentation", "SegformerConfig", **tasks.SEGFORMER, num_labels=3),
    "resnet": partial(
        _of, "ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]
    ),
    "convnext": partial(
        _of, "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2
    ),
    "swin": partial(
        _of,
        "SwinModel",
        "SwinConfig",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
        **EAGER,
    ),
    "videomae": partial(_of, "VideoMAEForVideoClassification", "VideoMAEConfig", **VISION, num_frames=4, num_labels=3),
    "vivit": partial(
        _of,
        "VivitForVideoClassification",
        "VivitConfig",
        image_size=32,
        num_frames=4,
        tubelet_size=[2, 8, 8],
        **{**tasks.ENCODER, **EAGER},
    ),
    "wav2vec2": partial(_of, "Wav2Vec2ForCTC", "Wav2Vec2Config", **AUDIO, vocab_size=31),
    "wav2vec2 classifier": partial(_of, "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **AUDIO, num_labels=3),
    "hubert": partial(
        _of, "HubertModel", "HubertConfig", **{k: v for k, v in AUDIO.items() if k != "classifier_proj_size"}
    ),
    "ast": partial(
        _of,
        "ASTForAudioClassification",
        "ASTConfig",
        max_length=32,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        **{**tasks.ENCODER, **EAGER},
    ),
    "whisper": tiny.whisper,
    "clip images": lambda: (
        tasks._dual(
            "zero-shot-image-classification", "CLIP", config="CLIPConfig", model="CLIPModel"
        )().model.vision_model
    ),
    "clip": lambda: (
        tasks._dual("zero-shot-image-classification", "CLIP", config="CLIPConfig", model="CLIPModel")().model
    ),
    "llava": lambda: tasks._llava().model,
    "linear": lambda: tiny.seeded(
        lambda: torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    ),
}

AXES: dict[str, tuple[Any, ...]] = {
    "model": (*TEXT, *OTHER),
    "rows": ("1", "2", "2 ragged", "3 ragged"),
    "how": ("keyword", "ids positional", "both positional", "embeds", "four positional"),
    "mask": ("int", "bool", "float", "absent", "4d"),
    "cached": (0, 1, 3),
    "labels": (False, True),
    "grad": ("off", "inference", "on"),
    "where": ("direct", "span", "block", "twice", "thread", "threads"),
    "seed": tuple(range(8)),
}


def allows(c: Choices) -> bool:
    """Whether the model takes it, and the judge knows what it is."""
    if c["model"] in OTHER:
        texts = c["model"] in ("clip", "llava")
        return (
            c["how"] in ("keyword", "ids positional")[: 1 if texts or c["model"] == "whisper" else 2]
            and (c["mask"] == "int" or (texts and c["mask"] in ("bool", "absent")))
            and not c["cached"]
            and not c["labels"]
            and (texts or c["mask"] == "int")
            and (texts or not ragged(c))
        )
    return all(
        (
            c["mask"] != "4d" or (c["model"] in ("llama", "gpt2") and not c["cached"] and c["how"] != "embeds"),
            not c["cached"] or (c["model"] in ("llama", "gpt2") and c["where"] not in ("twice", "threads")),
            not c["cached"] or c["how"] != "embeds",
            c["how"] != "both positional" or c["model"] not in ("gpt2", "mamba"),
            c["how"] != "four positional" or c["model"].startswith(("bert", "roberta")),
            c["how"] != "embeds" or c["model"] not in SEQ2SEQ,
            not c["labels"] or (c["model"] in ("llama", "gpt2", "bert tagger", "bert mask") and not c["cached"]),
            c["model"] != "llama classifier" or c["mask"] != "4d",
        )
    )


def make(c: Choices) -> Case:
    """The program, ready to run."""
    if c["model"] in OTHER:
        return _make_other(c)
    random = Random(c["seed"])
    model = TEXT[c["model"]]()
    if hasattr(model, "set_attn_implementation") and c["model"] != "mamba":
        model.set_attn_implementation("eager")
    pad = getattr(model.config, "pad_token_id", None) or PAD
    ids, mask, lengths = prompts(random, rows(c), ragged(c), c["model"] in DECODERS, pad)
    masks = {"int": mask, "bool": mask.bool(), "float": mask.float(), "absent": None, "4d": _square(mask)}
    given = masks[c["mask"]]
    cache = None
    new, count = ids, sum(lengths) if given is not None else ids.numel()
    if c["cached"]:
        # all but the last few tokens are in the cache; the mask is of all, as transformers wants it
        cache = DynamicCache(config=model.config)
        before = ids.shape[1] - c["cached"]
        with torch.no_grad():
            model(ids[:, :before], attention_mask=None if given is None else mask[:, :before], past_key_values=cache)
        new = ids[:, before:]
        count = new.numel() if given is None else sum(row[-c["cached"] :].count(1) for row in mask.tolist())
    args, kwargs = _arguments(c, model, new, given)
    if cache is not None:
        kwargs["past_key_values"] = cache
    if c["labels"]:
        kwargs["labels"] = new.clone() % 2 if c["model"] == "bert tagger" else new.clone()
    clock = Clock()
    clock.of(model)

    # Of padding that the model was not told about it is a matter of view whether it is read.
    is_open = ragged(c) and given is None

    def truth(result: Any, seen: Seen) -> Truth:
        return Truth(
            tree="forward",
            phase="forward",
            rows=rows(c),
            length=new.shape[1],
            input_tokens=count,
            positions=new.numel(),
            flops=seen.flops if c["grad"] != "inference" or counts_in_inference_mode() else None,
            unknown=frozenset({"input_tokens"} if is_open else ()),
        )

    return Case(partial(_call, c, model, args, kwargs), truth, clock, same=_numbers)


def _call(c: Choices, model: Any, args: Any, kwargs: Any) -> Any:
    contexts: dict[str, Callable[[], Any]] = {
        "off": torch.no_grad,
        "inference": torch.inference_mode,
        "on": nullcontext,
    }
    if not isinstance(model, transformers.PreTrainedModel):
        model.eval()  # by which a module that is not transformers' becomes a model to us
    with contexts[c["grad"]]():
        return model(*args, **kwargs)


def _numbers(result: Any) -> Any:
    return (
        result
        if isinstance(result, torch.Tensor)
        else next(v for v in result.to_tuple() if isinstance(v, torch.Tensor))
    )


def _square(mask: Any) -> Any:
    """Who sees whom, as transformers makes it of a mask itself: added to the scores."""
    length = mask.shape[1]
    causal = torch.ones(length, length).tril().bool()
    seen = causal[None, None] & mask[:, None, None, :].bool()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def _arguments(c: Choices, model: Any, ids: Any, given: Any) -> tuple[list[Any], dict[str, Any]]:
    kwargs = {} if given is None else {"attention_mask": given}
    if c["model"] in SEQ2SEQ:
        kwargs["decoder_input_ids"] = torch.full((rows(c), 3), 50)
    if c["how"] == "embeds":
        embed = model.get_input_embeddings()
        with torch.no_grad():
            return [], {"inputs_embeds": embed(ids).clone(), **kwargs}
    if c["how"] == "keyword":
        return [], {"input_ids": ids, **kwargs}
    if c["how"] == "ids positional":
        return [ids], kwargs
    kwargs.pop("attention_mask", None)
    if c["how"] == "both positional":
        return [ids, given], kwargs
    return [ids, given, torch.zeros_like(ids), torch.arange(ids.shape[1])[None]], kwargs


# -- images, video, sound ----------------------------------------------------------------------------------------------


def _make_other(c: Choices) -> Case:
    random = torch.Generator().manual_seed(c["seed"])
    model = OTHER[c["model"]]()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    name, shape, more = _shape(c)
    tensor = torch.rand(rows(c), *shape, generator=random)
    if c["how"] == "keyword" and c["model"] != "linear":
        args, kwargs = [], {name: tensor, **more}
    else:
        args, kwargs = [tensor], more
    lengths: list[int] | None = None
    ids = None
    if c["model"] in ("clip", "llava"):
        image = model.config.image_token_index if c["model"] == "llava" else None
        ids, mask, lengths = prompts(Random(c["seed"]), rows(c), ragged(c), c["model"] == "llava", PAD, image)
        if c["model"] == "clip":
            ids = ids.clamp(max=150)
        kwargs["input_ids"] = ids
        if c["mask"] != "absent":
            kwargs["attention_mask"] = mask.bool() if c["mask"] == "bool" else mask
        else:
            lengths = [ids.numel()]
    clock = Clock()
    clock.of(model)

    def truth(result: Any, seen: Seen) -> Truth:
        whisper = {"input_tokens", "length"} if c["model"] == "whisper" else set()
        return Truth(
            tree="forward",
            phase="forward",
            rows=rows(c),
            length=None if ids is None else ids.shape[1],
            input_tokens=None if lengths is None else sum(lengths),
            positions=None if ids is None else ids.numel(),
            flops=seen.flops,
            unknown=frozenset(whisper),
        )

    return Case(partial(_call, c, model, args, kwargs), truth, clock, same=_numbers)


def _shape(c: Choices) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    model, image = c["model"], (3, tasks.SIDE, tasks.SIDE)
    if model in ("videomae", "vivit"):
        return "pixel_values", (4, *image), {}
    if model.startswith(("wav2vec2", "hubert")):
        return "input_values", (4000,), {}
    if model == "ast":
        return "input_values", (32, 16), {}
    if model == "whisper":
        frames = tiny.AUDIO_RATE // tiny.MEL_HOP
        return "input_features", (tiny.MEL_BINS, frames), {"decoder_input_ids": torch.full((rows(c), 3), 50)}
    if model == "linear":
        return "input", (8,), {}
    return "pixel_values", image, {}


FAMILY = Family("call", AXES, allows, make, share=3)
