"""What a ``generate()`` call was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferspan.core.batch import Batch
from inferspan.core.probe import DecodingLoop
from inferspan.integrations.outputs import begins_with, cached_tokens
from inferspan.integrations.tensors import are_ids, read_batch, read_tensor
from inferspan.integrations.torch.describe import is_of_library
from inferspan.integrations.transformers.settings import Loop, pad_id_of

_ASKING = ("PrefixConstrainedLogitsProcessor",)  # of transformers, but with a function of the program's


def batch_of(model: Any, given: Mapping[str, Any]) -> Batch | None:
    """The rows and tokens to read, by transformers' names, else of what comes first."""
    batch = read_batch(_named(given), pad_id_of(model, given))
    return batch or read_tensor(next(iter(given.values()), None))


def cached_of(model: Any, given: Mapping[str, Any]) -> int | None:
    """How many of the tokens are in a cache that came with them."""
    return cached_tokens(_named(given), pad_id_of(model, given))


def _named(given: Mapping[str, Any]) -> Mapping[str, Any]:
    unnamed = given.get("inputs")
    if unnamed is None or given.get("input_ids") is not None:
        return given
    return {**given, "input_ids": unnamed} if are_ids(unnamed) else given


def loop_of(loop: Loop, is_assisted: bool) -> DecodingLoop:
    """What the decoding loop will run on, read before it."""
    proposes = is_assisted or loop.setting("use_mtp") is True
    is_even = not proposes and loop.setting("prefill_chunk_size") is None
    return DecodingLoop(loop.model, (), dict(loop.given), is_even, _is_plain(loop.given))


def _is_plain(given: Mapping[str, Any]) -> bool:
    """Whether no code of the program's own is asked in each step."""
    if given.get("custom_generate") is not None or given.get("prefix_allowed_tokens_fn") is not None:
        return False
    for added in (given.get("logits_processor"), given.get("stopping_criteria")):
        if added is None or (isinstance(added, list) and not added):
            continue
        kinds = {type(item) for item in added} if isinstance(added, list) else {type(added)}
        if not all(is_of_library(kind.__call__) and kind.__name__ not in _ASKING for kind in kinds):
            return False
    return True


def prompt_length(loop: Loop, sequences: Any, steps: int) -> int:
    """Length of what stands before the generated tokens in each returned row; ``steps`` were taken in the loop."""
    given, start = loop.given, 0
    if getattr(getattr(loop.model, "config", None), "is_encoder_decoder", False):
        ids = given.get("decoder_input_ids")
        # transformers puts the start token before ids that lack it
        begins = None if ids is None else begins_with(sequences, ids)
        if begins is None and ids is not None and steps and loop.setting("num_beams") in (None, 1):
            return int(sequences.shape[-1]) - steps  # on a device: each step has made one token
        start = 0 if begins else 1
    else:
        ids = given.get("input_ids")
        if ids is None:
            ids = given.get("inputs")
        # From embeddings alone only the new tokens come back; from nothing at all, after one start token.
        start = 0 if ids is not None or given.get("inputs_embeds") is not None else 1
    shape = getattr(ids, "shape", None)
    return start + (int(shape[-1]) if shape is not None and len(shape) else 0)
