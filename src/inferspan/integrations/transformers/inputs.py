"""What a ``generate()`` call was given, and which settings it will use.

A setting may come with the call, in a configuration that is passed, or from the model's own; these are read anew for
each call, since programs set them on the model after loading it.
"""

from __future__ import annotations

from typing import Any

from inferspan import semconv
from inferspan.core.batch import Batch
from inferspan.core.probe import DecodingLoop
from inferspan.integrations.tensors import are_ids, begins_with, read_batch
from inferspan.integrations.torch.describe import id_set, is_of_library

_PROPOSING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")

_ASKING = ("PrefixConstrainedLogitsProcessor",)  # of transformers, but with a function of the program's

_RECORDED = {
    "max_new_tokens": (semconv.MAX_TOKENS, int),
    "temperature": (semconv.TEMPERATURE, float),
    "top_p": (semconv.TOP_P, float),
    "top_k": (semconv.TOP_K, int),
    "min_p": (semconv.MIN_P, float),
    "do_sample": (semconv.DO_SAMPLE, bool),
    "num_beams": (semconv.NUM_BEAMS, int),
    "repetition_penalty": (semconv.REPETITION_PENALTY, float),
    "cache_implementation": (semconv.CACHE_IMPLEMENTATION, str),
}
_ACCEPTED: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool, int), str: (str,)}

_default_configs: dict[type, Any] = {}


def recorded_settings(config: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The caller's own settings as attributes, from the call and a configuration passed with it."""
    found = {}
    for name, (attribute, kind) in _RECORDED.items():
        value = kwargs[name] if name in kwargs else _set_in(config, name)
        if isinstance(value, _ACCEPTED[kind]):
            found[attribute] = kind(value)
    choices = kwargs.get("num_return_sequences")
    if isinstance(choices, int) and choices != 1:
        found[semconv.CHOICE_COUNT] = choices
    return found


def _set_in(config: Any, name: str) -> Any:
    """What the caller has set in a configuration; 4.57 fills in the rest with defaults."""
    if config is None:
        return None
    default = _default_configs.get(type(config))
    if default is None:
        default = _default_configs[type(config)] = type(config)()
    value = getattr(config, name, None)
    return None if value == getattr(default, name, None) else value


def in_force(name: str, model: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A setting as the call, the configuration passed and the model have it, ``None`` where they do not."""
    return (
        kwargs.get(name),
        getattr(kwargs.get("generation_config"), name, None),
        getattr(getattr(model, "generation_config", None), name, None),
    )


def is_assisted(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a draft model or prompt look-up proposes tokens."""
    return any(value is not None for name in _PROPOSING for value in in_force(name, model, kwargs))


def special_ids(model: Any, kwargs: dict[str, Any]) -> tuple[frozenset[int], int | None]:
    """End-of-sequence ids and padding id in force: of the call, else of the configuration passed, else the model's."""
    end_ids = next(filter(None, map(id_set, in_force("eos_token_id", model, kwargs))), frozenset())
    pad_id = next((value for value in in_force("pad_token_id", model, kwargs) if isinstance(value, int)), None)
    return end_ids, pad_id


def batch_of(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch | None:
    """What the call was given."""
    inputs = dict(kwargs)
    unnamed = args[0] if args else kwargs.get("inputs")
    if unnamed is not None and inputs.get("input_ids") is None:
        inputs["input_ids" if are_ids(unnamed) else "inputs"] = unnamed
    end_ids, pad_id = special_ids(model, kwargs)
    return read_batch(inputs, None if pad_id in end_ids else pad_id)


def loop_of(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_assisted: bool) -> DecodingLoop:
    """What the decoding loop will run on, read before it."""
    proposes = is_assisted or any(in_force("use_mtp", model, kwargs))
    is_even = not proposes and all(value is None for value in in_force("prefill_chunk_size", model, kwargs))
    return DecodingLoop(model, args, kwargs, is_even, len(args) < 3 and _is_plain(kwargs))


def _is_plain(kwargs: dict[str, Any]) -> bool:
    """Whether no code of the program's own is asked in each step."""
    if kwargs.get("custom_generate") is not None or kwargs.get("prefix_allowed_tokens_fn") is not None:
        return False
    for given in (kwargs.get("logits_processor"), kwargs.get("stopping_criteria")):
        if given is None or (isinstance(given, list) and not given):
            continue
        kinds = {type(item) for item in given} if isinstance(given, list) else {type(given)}
        if not all(is_of_library(kind.__call__) and kind.__name__ not in _ASKING for kind in kinds):
            return False
    return True


def prompt_length(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sequences: Any) -> int:
    """Length of what stands before the generated tokens in each returned row."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        ids = kwargs.get("decoder_input_ids")
        # transformers puts the start token before ids that lack it
        start = 0 if ids is not None and begins_with(sequences, ids) else 1
    else:
        ids = kwargs.get("input_ids")
        if ids is None:
            ids = args[0] if args else kwargs.get("inputs")
        # From embeddings alone only the new tokens come back; from nothing at all, after one start token.
        start = 0 if ids is not None or kwargs.get("inputs_embeds") is not None else 1
    shape = getattr(ids, "shape", None)
    return start + (int(shape[-1]) if shape is not None and len(shape) else 0)


def limit(model: Any, kwargs: dict[str, Any], prompt: int) -> int | None:
    """How many tokens a row may get at most, ``None`` where that is not known (and nothing but a limit ends it)."""
    names = {"max_new_tokens": 0, "max_length": prompt}
    if kwargs.get("inputs_embeds") is not None:
        del names["max_length"]  # it includes the embeddings, which do not come back
    for name, without in names.items():
        for value in in_force(name, model, kwargs):
            if isinstance(value, int):
                return value - without
    return None
