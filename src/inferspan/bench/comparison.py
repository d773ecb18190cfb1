"""Whether one run is slower than another: two files, or the targets that took turns in one run.

Each figure of each configuration that both sides measured gets a change with its interval, a p-value corrected for
the number of tests (Holm), and a verdict (:mod:`~inferspan.bench.significance` has the tests). A regression is a
change for the worse that is significant *and* at least the threshold: significance alone would report every 2 %, the
threshold alone every noisy run. A configuration that fails on one side only, and requests that fail more often, are
verdicts too.

What no test of two runs can see is what makes one whole run unlike the next (another layout of memory, a warmer
machine); only the threshold guards against it. How often a thing is called slower than itself is in docs/bench.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from inferspan.bench.differences import Difference, of_runs, of_targets
from inferspan.bench.results import Configuration, Failure, Result, Samples, Target
from inferspan.bench.significance import change, fisher, holm, statistic
from inferspan.bench.statistics import Estimate, intervals_s

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Turns = dict[int, NDArray[np.float64]]

__all__ = ["THRESHOLD", "Comparison", "IncomparableError", "Row", "Verdict", "against", "compare", "name_of"]

THRESHOLD = 0.15
SIGNIFICANCE = 0.05
_SAMPLES_MIN = 5


class Verdict(str, Enum):
    """What a comparison says of one figure."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    UNCHANGED = "unchanged"
    UNCLEAR = "unclear"
    """No regression is shown, none is excluded: more requests would show."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one configuration on both sides."""

    target: str
    configuration: str
    figure: str
    unit: str = ""
    """``s``, ``1/s``, ``By``, ``1`` (a share), or empty where nothing was measured."""
    baseline: float | None = None
    candidate: float | None = None
    change: Estimate | None = None
    """Candidate / baseline - 1; with its interval where it was tested."""
    more_is_better: bool = False
    p_value: float | None = None
    """Corrected for the number of tests; absent where nothing was tested."""
    verdict: Verdict = Verdict.UNCHANGED
    reason: str = ""

    @property
    def worse(self) -> float:
        """The change for the worse, below 0 for the better."""
        return 0.0 if self.change is None else -self.change.value if self.more_is_better else self.change.value

    @property
    def worst(self) -> float:
        """The end of the interval that is for the worse."""
        if self.change is None or self.change.low is None or self.change.high is None:
            return self.worse
        return -self.change.low if self.more_is_better else self.change.high


@dataclass(slots=True)
class Comparison:
    """All verdicts, and what the reader must know beside them."""

    baseline: str
    candidate: str
    threshold: float = THRESHOLD
    took_turns: bool = False
    """Whether these are two targets of one run, of which neither need be the older one."""
    rows: list[Row] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    baseline_notes: list[str] = field(default_factory=list)
    """What the baseline's own run said to its reader."""

    @property
    def regressions(self) -> list[Row]:
        """What a build should fail for."""
        return [row for row in self.rows if row.verdict is Verdict.REGRESSION]

    @property
    def unclear(self) -> list[Row]:
        """What more requests would show."""
        return [row for row in self.rows if row.verdict is Verdict.UNCLEAR]


class IncomparableError(ValueError):
    """Two runs that cannot be compared; the text names the fields."""


def compare(baseline: Result, candidate: Result, *, threshold: float = THRESHOLD, force: bool = False) -> Comparison:
    """Compare two runs, target by target of the same label; a single target each is compared whatever its label.

    Raises:
        IncomparableError: they differ in what makes times incomparable, and ``force`` is not set.
    """
    found = Comparison(baseline.created, candidate.created, threshold)
    pairs = _pairs(baseline, candidate, found.notes)
    found.differences = of_runs(baseline, candidate)
    for before, after in pairs:
        found.differences += [each for each in of_targets(before, after) if each not in found.differences]
    refusing = [str(each) for each in found.differences if each.refuses]
    if refusing and not force:
        raise IncomparableError("; ".join(refusing))
    sides = (("baseline", baseline), ("new run", candidate))
    found.notes += [f"the {side} was interrupted" for side, run in sides if run.partial]
    found.baseline_notes = list(baseline.notes)
    _fill(found, pairs)
    return found


def against(result: Result, *, threshold: float = THRESHOLD) -> list[Comparison]:
    """Compare a run's first target with each of the others, its baselines, with which it took turns."""
    found = []
    for baseline in result.targets[1:]:
        candidate = result.targets[0]
        comparison = Comparison(baseline.label, candidate.label, threshold, took_turns=True)
        _fill(comparison, [(baseline, candidate)])
        found.append(comparison)
    return found


def name_of(configuration: Configuration) -> str:
    """``batch 8, 128 tokens in, 64 out``."""
    text = f"batch {configuration.batch_size}"
    if configuration.input_tokens is not None:
        text += f", {configuration.input_tokens} tokens in"
    if configuration.output_tokens is not None:
        text += f", {configuration.output_tokens} out"
    return text


def _pairs(baseline: Result, candidate: Result, notes: list[str]) -> list[tuple[Target, Target]]:
    if len(baseline.targets) == len(candidate.targets) == 1:
        before, after = baseline.targets[0], candidate.targets[0]
        if before.label != after.label:
            notes.append(f"the baseline is of {before.label}, the new run of {after.label}")
        return [(before, after)]
    old = {target.label: target for target in baseline.targets}
    new = {target.label: target for target in candidate.targets}
    if not old.keys() & new.keys():
        raise IncomparableError(f"no target in common: {', '.join(old)} in the baseline, {', '.join(new)} here")
    notes += [f"{label}: only in the baseline" for label in old if label not in new]
    notes += [f"{label}: only here" for label in new if label not in old]
    return [(old[label], new[label]) for label in old if label in new]


def _fill(found: Comparison, pairs: list[tuple[Target, Target]]) -> None:
    rows = [row for before, after in pairs for row in _rows(before, after, found)]
    corrected = iter(holm([row.p_value for row in rows if row.p_value is not None]))
    found.rows = [_judged(row, next(corrected), found.threshold) if row.p_value is not None else row for row in rows]


def _judged(row: Row, p_value: float, threshold: float) -> Row:
    threshold -= 1e-9  # a change of just so much counts
    verdict = Verdict.UNCHANGED
    if p_value < SIGNIFICANCE and (row.change is None or row.worse >= threshold):
        verdict = Verdict.REGRESSION
    elif p_value < SIGNIFICANCE and row.worse <= -threshold:
        verdict = Verdict.IMPROVEMENT
    elif p_value >= SIGNIFICANCE and row.worst >= threshold:
        verdict = Verdict.UNCLEAR
    return dataclasses.replace(row, p_value=p_value, verdict=verdict)


def _rows(before: Target, after: Target, found: Comparison) -> Iterator[Row]:
    """All figures, with raw p-values; and notes on what cannot be compared."""
    if before.failure or after.failure:
        yield _failed(Row(after.label, "all", "runs"), before.failure, after.failure)
        return
    old, new = ({_key(each): each for each in target.configurations} for target in (before, after))
    for key in dict.fromkeys([*old, *new]):
        one, other = old.get(key), new.get(key)
        if one is None or other is None:
            name = name_of(new[key] if one is None else old[key])
            found.notes.append(f"{after.label}, {name}: only {'here' if one is None else 'in the baseline'}")
            continue
        row = Row(after.label, name_of(other), "")
        if one.failure or other.failure:
            yield _failed(row, one.failure, other.failure)
        if one.partial or other.partial:
            found.notes.append(f"{row.target}, {row.configuration}: interrupted")
        if one.errors or other.errors:
            yield _errors(row, one, other)
        for figure in _FIGURES:
            yield from _tested(row, figure, one, other, found.took_turns)
        if not found.took_turns:  # targets in one process share its memory
            yield from _memory(row, one, other, found.threshold)


def _key(configuration: Configuration) -> tuple[int | None, ...]:
    return configuration.batch_size, configuration.input_tokens, configuration.output_tokens


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    column: str = ""
    share: float | None = None
    """Percentile of the column. Without it: items per second, from the mean time between ends."""


_FIGURES = (
    _Figure("latency P50", "latency_s", 0.50),
    _Figure("latency P95", "latency_s", 0.95),
    _Figure("first token P50", "time_to_first_token_s", 0.50),
    _Figure("per token P50", "time_per_output_token_s", 0.50),
    _Figure("items/s"),
)


def _tested(row: Row, figure: _Figure, one: Configuration, other: Configuration, took_turns: bool) -> Iterator[Row]:
    old, new = _by_turn(one.samples, figure), _by_turn(other.samples, figure)
    if took_turns:
        turns = [(old[turn], new[turn]) for turn in old if turn in new]
    else:
        turns = [(np.concatenate([*old.values()]), np.concatenate([*new.values()]))] if old and new else []
    if not turns:
        return
    before, after = (statistic(np.concatenate([turn[side] for turn in turns]), figure.share) for side in (0, 1))
    if before <= 0 or after <= 0:
        return  # too short for the clock
    is_rate = figure.share is None
    unit, shown = "s", (before, after)
    if is_rate:
        unit, shown = "1/s", (one.batch_size / before, other.batch_size / after)
    row = dataclasses.replace(
        row, figure=figure.name, unit=unit, baseline=shown[0], candidate=shown[1], more_is_better=is_rate
    )
    if min(sum(len(turn[side]) for turn in turns) for side in (0, 1)) < _SAMPLES_MIN:
        yield dataclasses.replace(
            row,
            change=Estimate(shown[1] / shown[0] - 1),
            verdict=Verdict.UNCLEAR,
            reason=f"fewer than {_SAMPLES_MIN} requests",
        )
        return
    found = change(turns, figure.share)
    ends = (found.low, found.high) if not is_rate else (1 / found.high, 1 / found.low)
    yield dataclasses.replace(
        row, change=Estimate(shown[1] / shown[0] - 1, ends[0] - 1, ends[1] - 1), p_value=found.p_value
    )


def _by_turn(samples: Samples, figure: _Figure) -> Turns:
    """The figure's times, by turn; what is not known of a request is left out."""
    values = [*intervals_s(samples)] if figure.share is None else getattr(samples, figure.column)
    turn = sorted(samples.turn) if figure.share is None else samples.turn
    found: dict[int, list[float]] = {}
    for number, value in zip(turn, values, strict=False):
        if value is not None:
            found.setdefault(number, []).append(value)
    return {number: np.asarray(each) for number, each in sorted(found.items())}


def _failed(row: Row, before: Failure | None, after: Failure | None) -> Row:
    kinds = [f"{side}: {_kind(each)}" for side, each in (("baseline", before), ("here", after)) if each is not None]
    verdict = Verdict.UNCHANGED if before and after else Verdict.REGRESSION if after else Verdict.IMPROVEMENT
    return dataclasses.replace(row, figure="runs", verdict=verdict, reason="; ".join(kinds))


def _kind(failure: Failure) -> str:
    return "out of memory" if failure.out_of_memory else failure.type


def _errors(row: Row, one: Configuration, other: Configuration) -> Row:
    (failed, total), (failed_here, total_here) = (
        (sum(each.errors.values()), sum(each.errors.values()) + len(each.samples)) for each in (one, other)
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(other.errors.items()))
    return dataclasses.replace(
        row,
        figure="failed",
        unit="1",
        baseline=failed / total if total else None,
        candidate=failed_here / total_here if total_here else None,
        p_value=fisher((failed, total), (failed_here, total_here)),
        reason=kinds,
    )


def _memory(row: Row, one: Configuration, other: Configuration, threshold: float) -> Iterator[Row]:
    """Peaks are one number each, and nearly the same in each run: the threshold alone decides."""
    for figure, column in (
        ("device peak", "device_peak_bytes"),
        ("resident peak", "resident_peak_bytes"),
    ):
        before, after = getattr(one, column), getattr(other, column)
        if before and after:
            row = dataclasses.replace(
                row, figure=figure, unit="By", baseline=before, candidate=after, change=Estimate(after / before - 1)
            )
            verdict = (
                Verdict.REGRESSION
                if row.worse >= threshold
                else Verdict.IMPROVEMENT
                if row.worse <= -threshold
                else Verdict.UNCHANGED
            )
            yield dataclasses.replace(row, verdict=verdict)
