"""Rows, lengths and tokens of a batch, from shapes, and from ids and masks only where they are on the host anyway.

An id on a GPU is never copied: the count is then the number of positions, an upper bound, and marked so. What
counts as a token is what the attention mask does not mask, so special tokens are in and padding is out. Generated
tokens of a row end with its end-of-sequence token, which counts; what pads a finished row does not.

This is not a tokenizer: text is never looked at.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from inferspan.core.batch import Batch, Output

_OTHER_INPUTS = (
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    "pixel_values_videos",
    "bbox",
    "inputs",
)
_FINISH_REASONS_MAX = 64


def read_batch(inputs: Any, pad_id: int | None = None) -> Batch | None:
    """The batch in a model's keyword arguments or a pipeline's model inputs; ``None`` if there is none to see."""
    if not isinstance(inputs, Mapping):
        return None
    ids: Any = inputs.get("input_ids")
    if hasattr(ids, "device") and hasattr(ids, "dtype") and len(getattr(ids, "shape", ())) >= 1:
        return _read_ids(ids, inputs.get("attention_mask"), pad_id)
    for name in _OTHER_INPUTS:
        tensor: Any = inputs.get(name)
        if _is_tensor(tensor) and len(tensor.shape) >= 1:
            return Batch(rows=int(tensor.shape[0]), device=str(tensor.device))
    return None


def read_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, has_ids: bool) -> Batch | None:
    """The batch in the arguments of a model: what transformers' names say, else its first tensor. ``has_ids``: one
    that looks like token ids without being named so is taken for them."""
    found = (read_tensor(value, has_ids) for value in (*args, *kwargs.values()))
    named = read_batch(kwargs) or read_batch(args[0] if args else None)
    return named or next(filter(None, found), None)


def read_tensor(tensor: Any, has_ids: bool = True) -> Batch | None:
    """The batch in one argument of a model, that has no name."""
    if not _is_tensor(tensor) or len(tensor.shape) < 1:
        return None
    if has_ids and are_ids(tensor):
        return _read_ids(tensor, None, None)
    return Batch(rows=int(tensor.shape[0]), device=str(tensor.device))


def are_ids(tensor: Any) -> bool:
    """Whether a tensor that came without a name holds token ids, rather than audio, images or embeddings."""
    return _is_tensor(tensor) and len(tensor.shape) == 2 and not getattr(tensor.dtype, "is_floating_point", True)


def begins_with(ids: Any, start: Any) -> bool:
    """Whether each row of ``ids`` begins with that of ``start``; false where they are not on the host."""
    array, head = _host_array(ids), _host_array(start)
    if array is None or head is None or not len(head):
        return False
    # a sequence returned more than once for its prompt (beams, several choices) repeats it
    repeated = head.repeat(len(array) // len(head), axis=0)
    return array.shape[0] == repeated.shape[0] and bool((array[:, : head.shape[1]] == repeated).all())


def read_output(
    ids: Any, prompt_length: int, end_ids: frozenset[int], limit: int | None, pad_id: int | None = None
) -> Output | None:
    """Tokens in ``generate()``'s sequences, shape ``(rows, prompt_length + steps)``, or ``(prompts, choices, …)``.

    Rows that ended early can be distinguished only on the host. One row needs no look: the loop ends when it does.
    ``pad_id`` is given where a row may end by something else than an end-of-sequence token: what pads it shows where.
    """
    if not _is_tensor(ids) or len(ids.shape) not in (2, 3) or getattr(ids.dtype, "is_floating_point", True):
        return None
    rows, length = math.prod(ids.shape[:-1]), int(ids.shape[-1]) - prompt_length
    if length < 0:
        return None
    array = _host_array(ids)
    if array is not None:
        return _count_rows(array.reshape(rows, -1)[:, prompt_length:], end_ids, limit, pad_id)
    if rows == 1:
        reasons = ("stop",) if limit is not None and length < limit else ()
        return Output(length, True, reasons, length)
    return Output(rows * length, False, (), length)


def _read_ids(ids: Any, mask: Any, pad_id: int | None) -> Batch:
    shape = ids.shape
    length, positions = int(shape[-1]), int(math.prod(shape))
    rows = positions // length if length else int(shape[0])
    batch = Batch(rows, length, positions, True, positions, str(ids.device))
    if getattr(mask, "shape", None) == shape:
        array = _host_array(mask)
        if array is None:
            batch.exact = False
        else:
            batch.tokens = int(sys.modules["numpy"].count_nonzero(array))
    elif pad_id is not None:
        array = _host_array(ids)
        if array is None:
            batch.exact = rows == 1
        else:
            batch.tokens = int((array != pad_id).sum())
    return batch


def _count_rows(new: Any, end_ids: frozenset[int], limit: int | None, pad_id: int | None) -> Output:
    rows, length = (int(size) for size in new.shape)
    # Without an end-of-sequence id a row ends at the limit, or earlier by a stop string or the user's criterion.
    otherwise = "stop" if limit is not None and length < limit else "length"
    if not length or not (end_ids or pad_id is not None):
        return Output(rows * length, True, (otherwise,) * min(rows, _FINISH_REASONS_MAX), length)
    ended = new < 0  # an id is never negative: all false
    for end_id in end_ids:
        ended = ended | (new == end_id)
    finished = ended.any(axis=1)
    lengths = ended.argmax(axis=1) + 1
    lengths[~finished] = length
    if pad_id is not None:
        padding = (new[:, ::-1] != pad_id).argmax(axis=1)
        padding[finished] = 0
        lengths -= padding
        finished = finished | (padding > 0)
    reasons = tuple("stop" if stop else otherwise for stop in finished[:_FINISH_REASONS_MAX].tolist())
    return Output(int(lengths.sum()), True, reasons, int(lengths.max()))


def rows_of(ids: Any) -> list[list[int]] | None:
    """The first rows of ids of shape ``(rows, length)`` or ``(prompts, choices, length)``, where they are on the
    host."""
    if not _is_tensor(ids) or len(ids.shape) not in (2, 3) or getattr(ids.dtype, "is_floating_point", True):
        return None
    array = _host_array(ids)
    if array is None:
        return None
    rows: list[list[int]] = array.reshape(-1, array.shape[-1])[:_FINISH_REASONS_MAX].tolist()
    return rows


def _is_tensor(value: Any) -> bool:
    return value is not None and hasattr(value, "device") and hasattr(value, "shape") and hasattr(value, "dtype")


def _host_array(tensor: Any) -> Any:
    """A numpy view of a plain CPU tensor. numpy, not torch operators: those would go through the program's own
    dispatch modes (FakeTensorMode, FlopCounterMode), vmap levels and autograd."""
    try:
        if tensor.device.type != "cpu":
            return None
        return tensor.numpy()
    except Exception:  # noqa: BLE001 - fake, batched, quantized or grad-requiring tensors: not on the host for us
        return None
