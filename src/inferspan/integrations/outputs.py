"""Tokens in what a generation returned, row by row, and how each row ended.

The tokens of a row end with its end-of-sequence token, which counts; what pads a finished row does not. Loaded with the
first ``generate()``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from inferspan.core.batch import Output
from inferspan.integrations.tensors import cache_length, host_array, is_tensor

_FINISH_REASONS_MAX = 64


class Verdicts:
    """What the stopping criteria said of each row after each token, where that is on the host: ``lengths`` are the
    tokens that each had got when it ended. The ids do not show it where what pads a row also ends one."""

    def __init__(self) -> None:
        self.steps = 0
        self.lengths: Any = None
        self._running: Any = None

    def note(self, done: Any) -> None:
        """They said this after one more token."""
        self.steps += 1
        array = host_array(done)
        if self.steps == 1 and array is not None:
            self.lengths, self._running = sys.modules["numpy"].ones(array.shape, int), ~array
        elif array is None or self.lengths is None or array.shape != self.lengths.shape:
            self.lengths = None
        else:
            self.lengths += self._running
            self._running = self._running & ~array


class Ends(NamedTuple):
    """How the rows of a generation end: by one of ``ids``, or at ``limit`` new tokens, which is ``None`` where it is
    not known or time ran out before. ``pad_id`` is what fills up rows that something else has stopped (stop strings,
    criteria of the program's), ``verdicts`` what that said. ``is_known`` is false where the ids are on a device."""

    ids: frozenset[int] = frozenset()
    limit: int | None = None
    pad_id: int | None = None
    verdicts: Verdicts | None = None
    is_known: bool = True


def read_output(ids: Any, prompt_length: int, ends: Ends) -> Output | None:
    """Tokens in ``generate()``'s sequences, shape ``(rows, prompt_length + steps)``, or ``(prompts, choices, …)``.

    Rows that ended early can be distinguished only on the host. One row needs no look: the loop ends when it does.
    """
    if not is_tensor(ids) or len(ids.shape) not in (2, 3) or getattr(ids.dtype, "is_floating_point", True):
        return None
    rows, length = math.prod(ids.shape[:-1]), int(ids.shape[-1]) - prompt_length
    if length < 0:
        return None
    array = host_array(ids) if ends.is_known else None
    if array is not None:
        return _count_rows(array.reshape(rows, -1)[:, prompt_length:], ends)
    reasons = ("stop",) if rows == 1 and ends.limit is not None and length < ends.limit else ()
    return Output(rows * length, rows == 1, reasons, length)


def _count_rows(new: Any, ends: Ends) -> Output:
    rows, length = (int(size) for size in new.shape)
    # Without an end-of-sequence id a row ends at the limit, or earlier by a stop string or the user's criterion.
    otherwise = "stop" if ends.limit is not None and length < ends.limit else "length"
    if not length:
        return Output(0, True, (otherwise,) * min(rows, _FINISH_REASONS_MAX), 0)
    ended = new < 0  # an id is never negative: all false
    for end_id in ends.ids:
        ended = ended | (new == end_id)
    finished = ended.any(axis=1)
    lengths = ended.argmax(axis=1) + 1
    lengths[~finished] = length
    exact, verdicts = True, ends.verdicts
    if verdicts is not None and verdicts.steps == length and getattr(verdicts.lengths, "shape", None) == (rows,):
        if ends.ids:  # without any, rows that were stopped go on as long as the others
            lengths = verdicts.lengths
        finished = finished | (verdicts.lengths < length)
    elif ends.pad_id is not None and ends.ids and rows > 1:
        if ends.pad_id in ends.ids:  # it may be the last token of a row, or what pads one that was stopped
            last = new[range(rows), lengths - 1]
            exact = not bool((finished & (last == ends.pad_id)).any())
        padding = (new[:, ::-1] != ends.pad_id).argmax(axis=1)
        padding[finished] = 0
        lengths -= padding
        finished = finished | (padding > 0)
    reasons = tuple("stop" if stop else otherwise for stop in finished[:_FINISH_REASONS_MAX].tolist())
    return Output(int(lengths.sum()), exact, reasons, int(lengths.max()))


def begins_with(ids: Any, start: Any) -> bool | None:
    """Whether each row of ``ids`` begins with that of ``start``; ``None`` where they are not on the host."""
    array, head = host_array(ids), host_array(start)
    if array is None or head is None or not len(head):
        return None
    # a sequence returned more than once for its prompt (beams, several choices) repeats it
    repeated = head.repeat(len(array) // len(head), axis=0)
    return array.shape[0] == repeated.shape[0] and bool((array[:, : head.shape[1]] == repeated).all())


def cached_tokens(inputs: Mapping[str, Any], pad_id: int | None) -> int | None:
    """How many tokens of these ids are in the cache that came with them, and are not computed again; ``None`` where
    there is none, or only the ids behind it were passed."""
    ids: Any = inputs.get("input_ids")
    mask: Any = inputs.get("attention_mask")
    past = cache_length(inputs.get("past_key_values")) if is_tensor(ids) and len(ids.shape) == 2 else None
    if not past or past >= ids.shape[1] or (mask is not None and getattr(mask, "shape", None) != ids.shape):
        return None
    array = host_array(ids if mask is None else mask)
    if array is None or (mask is None and pad_id is None):
        return int(ids.shape[0]) * past
    return int((array[:, :past] != (pad_id if mask is None else 0)).sum())
