"""What the less usual masks and packed rows say of the tokens in them. Loaded with the first of them.

Arrays are views of tensors on the host; nothing here runs an operator of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from inferspan.core.batch import Batch
from inferspan.integrations.tensors import host_array, is_tensor

_SIZE_MAX = 1 << 20
_MASKED = -1e4  # and less, in a mask that is added to the scores; biases by distance are smaller


def seen(mask: Any, shape: Any) -> int | None:
    """How many of the positions of ``shape`` are tokens by a mask of queries and keys, with or without heads, boolean,
    of ones and zeros, or added to the scores. ``None`` where it does not say."""
    if mask.size > _SIZE_MAX:
        return None
    kept = mask > _MASKED if mask.dtype.kind == "f" else mask != 0
    while kept.ndim > 3:
        kept = kept.any(axis=1)  # heads
    if kept.ndim != 3 or kept.shape[1] not in (1, shape[-1]) or kept.shape[0] not in (1, shape[0]):
        return None
    by_key = int(kept.any(axis=1).sum())
    if kept.shape[1] > 1:
        # What queries of padding see differs: nothing, what others see, or everything. Where the keys that any query
        # sees are not those that see themselves, or one query sees what comes after it and not all do, is not clear.
        sees_all = kept.all(axis=2)
        if by_key != kept.diagonal(axis1=1, axis2=2).sum():
            return None
        if (sees_all[:, :-1].any(axis=1) & ~sees_all.all(axis=1)).any():
            return None
    return by_key * (int(shape[0]) if kept.shape[0] == 1 else 1)


def unpack(batch: Batch, shape: Any, inputs: Mapping[str, Any]) -> None:
    """Sequences that stand one behind the other in one row, as flash-attention takes them: by the places where they
    begin, or by positions that begin anew."""
    bounds = inputs.get("cu_seq_lens_q", inputs.get("cu_seqlens"))
    positions = inputs.get("position_ids")
    if is_tensor(bounds) and len(bounds.shape) == 1 and bounds.shape[0] > 1:
        array = host_array(bounds)
        if array is None:
            batch.exact, batch.rows, batch.length = False, int(bounds.shape[0]) - 1, None
        else:
            _note(batch, array)
    elif batch.rows == 1 and getattr(positions, "shape", None) == shape and len(shape) == 2:
        array = host_array(positions)
        begins = [] if array is None else (array[0] == 0).nonzero()[0].tolist()
        if len(begins) > 1:
            _note(batch, [*begins, int(shape[-1])])


def _note(batch: Batch, bounds: Any) -> None:
    lengths = [int(end) - int(begin) for begin, end in pairwise(bounds)]
    batch.rows, batch.length, batch.tokens = len(lengths), max(lengths), int(bounds[-1])
