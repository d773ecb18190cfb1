"""When a warm-up is over: when the last requests take as long as those before them.

Two neighbouring windows are compared by their medians, which a single slow request does not move. They count as equal
if they differ by less than 3 %, or by less than what two windows of such scatter differ by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

WINDOW = 8
_TOLERANCE = 0.03
_CHANCE = 1.5
"""Standard errors of the difference of two medians that are still called chance."""
_SCATTER_MAX = 0.10
"""But chance excuses no more than this: where windows scatter so much, more of them are needed."""
_NORMAL = 1.4826 * 1.2533
"""From a median absolute deviation to the standard error of a median of one value, for normal values."""


def is_steady(latencies_s: Sequence[float]) -> bool:
    """Whether the last two windows of these latencies are alike."""
    if len(latencies_s) < 2 * WINDOW:
        return False
    before, last = latencies_s[-2 * WINDOW : -WINDOW], latencies_s[-WINDOW:]
    difference = abs(median(last) - median(before)) / median(before)
    chance = _CHANCE * (_standard_error(before) ** 2 + _standard_error(last) ** 2) ** 0.5 / median(before)
    return bool(difference <= max(_TOLERANCE, min(chance, _SCATTER_MAX)))


def _standard_error(values: Sequence[float]) -> float:
    middle = median(values)
    return float(_NORMAL * median(abs(value - middle) for value in values) / len(values) ** 0.5)
