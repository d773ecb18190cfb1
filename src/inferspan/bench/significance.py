"""Tests for two series of skewed, autocorrelated times: block permutation, block bootstrap, Fisher, Holm.

A *turn* is a stretch of the run in which both sides were measured one after the other; its samples are exchanged
only among themselves, so what changes from turn to turn cancels. Two separate runs are one turn. Within a turn each
side is cut into blocks of the length that :func:`~inferspan.bench.statistics.block_length` gives, since neighbours
are alike and count as one. The seed is fixed: the same samples give the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inferspan.bench.statistics import LEVEL, block_length

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Whole = NDArray[np.int32]

__all__ = ["Change", "change", "fisher", "holm", "statistic"]

_PERMUTATIONS_FEW = 499
_CLEAR = 0.1
"""After the first few: a p-value above this will not be significant, and needs no more of them."""
_PERMUTATIONS_MAX = 4999
_PERMUTATIONS_MIN = 999
_RESAMPLES = 999
_DRAWN_MAX = 20_000_000
"""Values of all permutations together: what bounds the time that a long series takes."""
_CHUNK = 500_000
"""Values at a time: what bounds memory."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Change:
    """Candidate / baseline of one statistic, its interval, and the p-value of no difference (two-sided)."""

    ratio: float
    low: float
    high: float
    p_value: float


def statistic(values: Floats, share: float | None) -> float:
    """The percentile ``share`` (0 to 1), linear between neighbours, or the mean where that is ``None``."""
    return float(values.mean() if share is None else np.quantile(values, share))


def change(turns: Sequence[tuple[Floats, Floats]], share: float | None) -> Change:
    """Compare baseline and candidate, given as their samples above 0 of each turn, in the order of time."""
    blocks = _Blocks(turns)
    observed = math.log(
        statistic(np.concatenate([candidate for _, candidate in turns]), share)
        / statistic(np.concatenate([baseline for baseline, _ in turns]), share)
    )
    extreme, count = blocks.extreme(_PERMUTATIONS_FEW, observed, share), _PERMUTATIONS_FEW
    if extreme <= _CLEAR * count:
        more = int(min(_PERMUTATIONS_MAX, max(_PERMUTATIONS_MIN, _DRAWN_MAX / len(blocks.values)))) - count
        extreme, count = extreme + blocks.extreme(more, observed, share), count + more
    resampled = np.concatenate([*blocks.log_ratios(blocks.resamples(_RESAMPLES), share)])
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Change(math.exp(observed), math.exp(low), math.exp(high), (1 + extreme) / (1 + count))


class _Blocks:
    """All samples of both sides, sorted, each with the block that it is from.

    Permuting and resampling only change how often a block counts for a side, so a percentile is found in the sorted
    values by counting, without sorting again.
    """

    def __init__(self, turns: Sequence[tuple[Floats, Floats]]) -> None:
        length = max(block_length(np.concatenate([turn[side] for turn in turns])) for side in (0, 1))
        parts, side, turn = [], [], []
        for number, both in enumerate(turns):
            for which, samples in enumerate(both):
                cut = np.array_split(samples, max(1, round(len(samples) / length)))
                parts += cut
                side += [which] * len(cut)
                turn += [number] * len(cut)
        values = np.concatenate(parts).astype(np.float64)
        order = np.argsort(values, kind="stable")
        self.values: Floats = values[order]
        self._block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
        self._side, self._turn = np.asarray(side, np.int32), np.asarray(turn)
        self._turns = len(turns)
        self._rng = np.random.default_rng(_SEED)

    def extreme(self, count: int, observed: float, share: float | None) -> int:
        """Of so many permutations, those with a log ratio as far from 0 as the observed one."""
        return sum(
            int(np.sum(np.abs(found) >= abs(observed) - 1e-12))
            for found in self.log_ratios(self.permutations(count), share)
        )

    def permutations(self, count: int) -> Iterator[tuple[Whole, Whole]]:
        """How often each block counts for baseline and candidate: once, for one of them, by chance within its turn."""
        for rows in self._chunks(count):
            side = np.empty((rows, len(self._side)), np.int32)
            for turn in range(self._turns):
                here = self._turn == turn
                side[:, here] = self._rng.permuted(np.tile(self._side[here], (rows, 1)), axis=1)
            yield 1 - side, side

    def resamples(self, count: int) -> Iterator[tuple[Whole, Whole]]:
        """How often each block counts for its own side: of several turns whole ones are drawn, both sides together."""
        for rows in self._chunks(count):
            if self._turns > 1:
                times = self._rng.multinomial(self._turns, [1 / self._turns] * self._turns, size=rows)
                drawn = times.astype(np.int32)[:, self._turn]
            else:
                drawn = np.empty((rows, len(self._side)), np.int32)
                for which in (0, 1):
                    here = self._side == which
                    blocks = int(here.sum())
                    drawn[:, here] = self._rng.multinomial(blocks, [1 / blocks] * blocks, size=rows)
            yield drawn * (1 - self._side), drawn * self._side

    def log_ratios(self, drawn: Iterator[tuple[Whole, Whole]], share: float | None) -> Iterator[Floats]:
        for baseline, candidate in drawn:
            yield np.log(self._statistic(candidate, share) / self._statistic(baseline, share))

    def _statistic(self, times: Whole, share: float | None) -> Floats:
        """Of each row, in which block ``b`` counts ``times[:, b]`` times."""
        counted = times[:, self._block]
        if share is None:
            return np.asarray(counted @ self.values / counted.sum(axis=1))
        reached = counted.cumsum(axis=1, dtype=np.int32)
        rank = share * (reached[:, -1] - 1)
        lower, upper = (
            self.values[(reached > part[:, None]).argmax(axis=1)] for part in (np.floor(rank), np.ceil(rank))
        )
        return np.asarray(lower + (upper - lower) * (rank - np.floor(rank)))

    def _chunks(self, count: int) -> Iterator[int]:
        rows = max(1, _CHUNK // len(self.values))
        yield from (min(rows, count - done) for done in range(0, count, rows))


def holm(p_values: Sequence[float]) -> list[float]:
    """The same, corrected for their number (Holm 1979), in the same order."""
    corrected = [1.0] * len(p_values)
    so_far = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        so_far = max(so_far, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = so_far
    return corrected


def fisher(baseline: tuple[int, int], candidate: tuple[int, int]) -> float:
    """P-value that as many or more of the candidate fail by chance: (failed, all) of each (Fisher's exact test)."""
    failed, total = baseline[0] + candidate[0], baseline[1] + candidate[1]
    ways = sum(
        math.comb(candidate[1], here) * math.comb(baseline[1], failed - here)
        for here in range(candidate[0], min(failed, candidate[1]) + 1)
    )
    return ways / math.comb(total, failed)
