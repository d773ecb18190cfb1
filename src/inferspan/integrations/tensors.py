"""Rows, lengths and tokens of a batch, from shapes, and from ids and masks only where they are on the host anyway.

An id on a GPU is never copied: the count is then the number of positions, an upper bound, and marked so. What
counts as a token is what the attention mask does not mask, so special tokens are in and padding is out; without a mask
it is what is not the padding id. What a generation returns is counted in :mod:`inferspan.integrations.outputs`.

This is not a tokenizer: text is never looked at.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from inferspan.core.batch import Batch
from inferspan.forks import Later

_OTHER_INPUTS = (
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    "pixel_values_videos",
    "bbox",
    "inputs",
    "encoder_outputs",
    "decoder_input_ids",
    "decoder_inputs_embeds",
)
_ROWS_MAX = 64
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "position_ids")
_masks = Later(f"{__package__}.masks")


def read_batch(inputs: Any, pad_id: int | None = None) -> Batch | None:
    """The batch in a model's arguments by name or a pipeline's model inputs; ``None`` if there is none to see."""
    if not isinstance(inputs, Mapping):
        return None
    ids: Any = inputs.get("input_ids")
    embeddings: Any = inputs.get("inputs_embeds")
    has_ids = hasattr(ids, "device") and hasattr(ids, "dtype") and len(getattr(ids, "shape", ())) >= 1
    is_embedded = embeddings is not None and is_tensor(embeddings) and len(embeddings.shape) == 3
    if is_embedded and not (has_ids and ids.shape == embeddings.shape[:-1]):
        return _read_tokens(embeddings, embeddings.shape[:-1], inputs, None)
    if has_ids:  # which the embeddings are of, if there are any
        return _read_tokens(ids, ids.shape, inputs, pad_id)
    for name in _OTHER_INPUTS:
        value: Any = inputs.get(name)
        tensor = getattr(value, "last_hidden_state", value)
        if is_tensor(tensor) and len(tensor.shape) >= 1:
            return Batch(rows=int(tensor.shape[0]), device=str(tensor.device))
    return None


def read_call(args: tuple[Any, ...], named: Mapping[str, Any], *, has_ids: bool, pad_id: int | None) -> Batch | None:
    """The batch in the arguments of a model: what transformers' names say, else its first tensor. ``has_ids``: one
    that looks like token ids without being named so is taken for them."""
    batch = read_batch(named, pad_id)
    if batch is not None:
        return batch
    values = (*args, *named.values())
    found = (*map(read_batch, values), *(read_tensor(value, has_ids) for value in values))
    return next(filter(None, found), None)


def read_tensor(tensor: Any, has_ids: bool = True) -> Batch | None:
    """The batch in one argument of a model, that has no name."""
    if not is_tensor(tensor) or len(tensor.shape) < 1:
        return None
    if has_ids and are_ids(tensor):
        return _read_tokens(tensor, tensor.shape, {}, None)
    return Batch(rows=int(tensor.shape[0]), device=str(tensor.device))


def are_ids(tensor: Any) -> bool:
    """Whether a tensor that came without a name holds token ids, rather than audio, images or embeddings."""
    return is_tensor(tensor) and len(tensor.shape) == 2 and not getattr(tensor.dtype, "is_floating_point", True)


def ids_of(value: Any) -> tuple[int, ...]:
    """One id, or a list or tensor of them, as transformers takes them; none where they are not on the host."""
    if isinstance(value, int):
        return (value,) if value >= 0 else ()
    if isinstance(value, (list, tuple)):
        return tuple(found for item in value for found in ids_of(item))
    array = value if type(value).__module__ == "numpy" else host_array(value)
    return () if array is None else ids_of(array.tolist())


def cache_length(cache: Any) -> int | None:
    """Cached positions; ``None`` where that number is itself on the device (static caches)."""
    if cache is None:
        return 0
    if isinstance(cache, tuple):  # of older models: for each layer its keys and values
        while isinstance(cache, tuple) and cache:
            cache = cache[0]
        return int(cache.shape[-2]) if is_tensor(cache) and len(cache.shape) > 2 else None
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if not isinstance(layers, list):
        return None
    layer = next((layer for layer in layers if hasattr(layer, "get_seq_length")), None)
    if layer is None or getattr(layer, "is_compileable", True):
        return None if layers else 0
    length = layer.get_seq_length()
    return length if isinstance(length, int) else None


def _read_tokens(tensor: Any, shape: Any, inputs: Mapping[str, Any], pad_id: int | None) -> Batch:
    """Of ids or embeddings, with ``shape`` of positions."""
    length, positions = int(shape[-1]), int(math.prod(shape))
    rows = positions // length if length else int(shape[0])
    batch = Batch(rows, length, positions, True, positions, str(tensor.device))
    mask = inputs.get("attention_mask")
    if mask is not None:
        tokens = _unmasked(mask, shape, inputs.get("past_key_values"))
    elif len(shape) < len(tensor.shape):
        tokens = positions if rows == 1 else None  # embeddings of several rows, which may be padded
    else:
        if any(inputs.get(name) is not None for name in _PACKED):
            _masks.unpack(batch, shape, inputs)
        array = None if pad_id is None else host_array(tensor)
        tokens = None if array is None else int((array != pad_id).sum())
        tokens = batch.tokens if pad_id is None else tokens
    if tokens is None:
        batch.exact = False
    else:
        batch.tokens = min(tokens, batch.tokens or 0)
    return batch


def _unmasked(mask: Any, shape: Any, cache: Any) -> int | None:
    """How many positions a mask leaves; ``None`` where it does not say, or not on the host. It may also be about what
    is in the cache, which stands before them, and with a cache of fixed size about what is to come."""
    if isinstance(mask, Mapping):  # one for each kind of layers
        mask = mask.get("full_attention")
    array = host_array(mask)
    if array is None or not array.ndim:
        return None
    length, width = int(shape[-1]), array.shape[-1]
    if width < length or (width > length and cache_length(cache) is None):
        return None
    array = array[..., width - length :]
    if array.ndim > len(shape):
        seen: int | None = _masks.seen(array, shape)
        return seen
    return int(sys.modules["numpy"].count_nonzero(array)) if array.shape == shape else None


def rows_of(ids: Any) -> list[list[int]] | None:
    """The first rows of ids of shape ``(rows, length)`` or ``(prompts, choices, length)``, where they are on the
    host."""
    if not is_tensor(ids) or len(ids.shape) not in (2, 3) or getattr(ids.dtype, "is_floating_point", True):
        return None
    array = host_array(ids)
    if array is None:
        return None
    rows: list[list[int]] = array.reshape(-1, array.shape[-1])[:_ROWS_MAX].tolist()
    return rows


def is_tensor(value: Any) -> bool:
    return value is not None and hasattr(value, "device") and hasattr(value, "shape") and hasattr(value, "dtype")


def host_array(tensor: Any) -> Any:
    """A numpy view of a plain CPU tensor. numpy, not torch operators: those would go through the program's own
    dispatch modes (FakeTensorMode, FlopCounterMode), vmap levels and autograd."""
    try:
        if tensor.device.type != "cpu":
            return None
        return tensor.numpy()
    except Exception:  # noqa: BLE001 - fake, batched, quantized or grad-requiring tensors: not on the host for us
        return None
