"""From raw samples to figures with intervals, and from a batch sweep to where it saturates.

Latencies are skewed and remember each other: a slow request comes with slow neighbours. So no normal distribution is
assumed, and samples are resampled in blocks of the series, whose length is chosen from its autocorrelation (Politis
and Romano 1994; Politis and White 2004, corrected by Patton, Politis and White 2009). All intervals are of 95 %.

Percentiles are those of numpy's default, linear between neighbours. One with fewer than two samples expected above
it has no interval: it would be too short by far (docs/bench.md has the coverage). The resampling is seeded, so the
same samples give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inferspan.bench.results import Configuration, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Places = NDArray[np.int64]

__all__ = [
    "Estimate",
    "Scaling",
    "Summary",
    "block_length",
    "fragmentation",
    "intervals_s",
    "known",
    "scaling",
    "summarize",
    "throughput",
]

LEVEL = 0.95
_PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
_ABOVE_MIN = 2.0
_SAMPLES_MIN = 5
_RESAMPLES_MAX = 1000
_RESAMPLES_MIN = 250
_RESAMPLED_MAX = 10_000_000
"""Values drawn in all, of a long series: what keeps one figure below about a second."""
_CHUNK = 1_000_000
"""Values drawn at a time: what keeps memory below about 50 MB."""

SATURATED = 0.95
"""Share of the best throughput at which a batch size counts as saturated."""
UNEVEN = 0.15
"""Share of the line's latency by which a batch size stands out from the others."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, absent where the samples do not support one."""

    value: float
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Estimate:
        """The figure in other units; ``factor`` is not negative."""
        return Estimate(
            self.value * factor,
            None if self.low is None else self.low * factor,
            None if self.high is None else self.high * factor,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one series, in its unit. ``deviation`` is the standard deviation, absent for a single sample."""

    count: int
    mean: Estimate
    deviation: Estimate | None
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate
    least: float
    most: float


def known(values: Sequence[Any]) -> Floats:
    """The values that are there; items of lists one after the other."""
    found: list[float] = []
    for value in values:
        if isinstance(value, list):
            found.extend(value)
        elif value is not None:
            found.append(value)
    return np.asarray(found, dtype=np.float64)


def summarize(values: Sequence[Any], seed: int = 0) -> Summary | None:
    """Figures of a series in the order of time; ``None`` where nothing is known."""
    series = known(values)
    count = len(series)
    if not count:
        return None
    figures = _figures(series[None, :])[0]
    low = high = np.full(len(figures), np.nan)
    if count >= _SAMPLES_MIN:
        resampled = np.concatenate([_figures(series[places]) for places in resamples(series, seed)])
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)

    def estimate(place: int, supported: bool = True) -> Estimate:
        ends = (float(low[place]), float(high[place])) if supported and count >= _SAMPLES_MIN else (None, None)
        return Estimate(float(figures[place]), *ends)

    return Summary(
        count,
        mean=estimate(0),
        deviation=estimate(1) if count > 1 else None,
        **{
            name: estimate(place, count * (1 - share) > _ABOVE_MIN - 1e-6)
            for place, (name, share) in enumerate(_PERCENTILES.items(), 2)
        },
        least=float(series.min()),
        most=float(series.max()),
    )


def _figures(rows: Floats) -> Floats:
    """Mean, standard deviation and percentiles of each row."""
    deviation = rows.std(axis=1, ddof=1) if rows.shape[1] > 1 else np.zeros(len(rows))
    return np.column_stack([rows.mean(axis=1), deviation, np.quantile(rows, list(_PERCENTILES.values()), axis=1).T])


def resamples(series: Floats, seed: int) -> Iterator[Places]:
    """Places of the stationary bootstrap, some rows at a time: blocks of geometric length, on a circle."""
    rng = np.random.default_rng(seed)
    count = len(series)
    left = int(min(_RESAMPLES_MAX, max(_RESAMPLES_MIN, _RESAMPLED_MAX / count)))
    position = np.arange(count)
    length = block_length(series)
    while left > 0:
        rows = min(left, max(1, _CHUNK // count))
        left -= rows
        begins = rng.random((rows, count)) < 1 / length
        begins[:, 0] = True
        start = rng.integers(count, size=(rows, count))
        begun = np.maximum.accumulate(np.where(begins, position, 0), axis=1)
        yield (np.take_along_axis(start, begun, axis=1) + position - begun) % count


def block_length(series: Floats) -> float:
    """Mean length of a block: from the series' autocorrelation, at least the cube root of its length.

    The lower bound is for short series, whose autocorrelation comes out too small.
    """
    count = len(series)
    centred = series - series.mean()
    variance = float(centred @ centred) / count
    least = float(count ** (1 / 3))
    if count < 2 * _SAMPLES_MIN or variance == 0:
        return least
    run = max(5, int(np.log10(count) ** 0.5))
    lags = min(int(np.ceil(count**0.5)) + run, count - 1)
    correlation = np.array([centred[lag:] @ centred[: count - lag] for lag in range(lags + 1)]) / (count * variance)
    small = np.abs(correlation[1:]) < 2 * (np.log10(count) / count) ** 0.5
    quiet = [first for first in range(len(small) - run + 1) if small[first : first + run].all()]
    # the last lag before the correlation has died away; with nothing quiet, the last one that is not small
    last = quiet[0] if quiet else int(np.flatnonzero(~small)[-1]) + 1 if not small.all() else 0
    bandwidth = min(2 * max(last, 1), lags)
    lag = np.arange(-bandwidth, bandwidth + 1)
    window = np.clip(2 * (1 - np.abs(lag) / bandwidth), 0, 1)
    covariance = window * correlation[np.abs(lag)] * variance
    spectrum = float(covariance.sum())
    if spectrum <= 0:
        return least
    curvature = float((np.abs(lag) * covariance).sum())
    length = (curvature / spectrum) ** (2 / 3) * count ** (1 / 3) if curvature > 0 else 1.0
    return float(min(max(length, least), 3 * count**0.5, count / 3))


def intervals_s(samples: Samples) -> Floats:
    """Times between the ends of consecutive requests, of each turn from its first start on.

    Their mean is the reciprocal of the throughput, with requests that failed in it as lost time.
    """
    start, turn = np.asarray(samples.start_s), np.asarray(samples.turn)
    intended, latency = np.asarray(samples.intended_s), np.asarray(samples.latency_s)
    if not len(start) == len(turn) == len(intended) == len(latency):
        return np.zeros(0)  # a column is not known
    end = intended + latency
    found = [np.diff(np.sort(end[turn == one]), prepend=start[turn == one].min()) for one in np.unique(turn)]
    return np.concatenate(found) if found else np.zeros(0)


def throughput(configuration: Configuration, seed: int = 0) -> Estimate | None:
    """Requests per second; times the batch size that is items, times the mean of tokens that is tokens."""
    summary = summarize(list(intervals_s(configuration.samples)), seed)
    if summary is None or not configuration.duration_s:
        return None
    mean = summary.mean
    rate = len(configuration.samples) / configuration.duration_s
    # the interval is that of the times between ends, moved to the rate over the whole time
    return Estimate(
        rate,
        None if not mean.high else rate * mean.value / mean.high,
        None if not mean.low else rate * mean.value / mean.low,
    )


def fragmentation(samples: Samples) -> float | None:
    """The largest share of the reserved bytes that lay in split blocks after a request."""
    return max((share for share in samples.fragmentation if share is not None), default=None)


@dataclass(frozen=True, slots=True)
class Scaling:
    """A sweep over the batch size, all lists in the order of ``batch_sizes``."""

    batch_sizes: list[int]
    efficiency: list[float]
    """Items per second of each, as a share of what the smallest batch's would be if it grew with the batch."""
    knee: int
    """Where throughput divided by latency is largest (Kleinrock's power): up to here a larger batch gives more than
    it costs, from here on it costs more latency than it gives throughput."""
    saturated: int | None
    """The smallest with 95 % of the best throughput; ``None`` where the largest batch is the first that has it."""
    overhead_s: float
    """Latency that does not depend on the batch, of the line through all (least squares of relative errors)."""
    item_s: float
    """Latency that each item adds."""
    uneven: dict[int, float]
    """Batch sizes whose latency is off the line through the others by over 15 %, and by how much of it."""


def scaling(points: Sequence[tuple[int, float, float]]) -> Scaling | None:
    """Scaling of (batch size, items per second, median latency in seconds); ``None`` for fewer than two sizes."""
    points = sorted({point[0]: point for point in points if point[0] > 0}.values())
    if len(points) < 2:
        return None
    size, rate, latency = (np.asarray(column, np.float64) for column in zip(*points, strict=True))
    sizes = [int(one) for one in size]
    saturated = sizes[int(np.argmax(rate >= SATURATED * rate.max()))]
    overhead, item = _line(size, latency)
    return Scaling(
        sizes,
        efficiency=[float(share) for share in rate / size / (rate[0] / size[0])],
        knee=sizes[int(np.argmax(rate / latency))],
        saturated=None if saturated == sizes[-1] else saturated,
        overhead_s=overhead,
        item_s=item,
        uneven=_uneven(size, latency),
    )


def _line(size: Floats, latency: Floats) -> tuple[float, float]:
    """Intercept and slope, neither below 0, with the least sum of squared relative errors."""
    weighted = np.column_stack([1 / latency, size / latency])
    overhead, item = np.linalg.lstsq(weighted, np.ones(len(size)), rcond=None)[0]
    if overhead < 0:
        return 0.0, float(np.mean(size / latency) / np.mean((size / latency) ** 2))
    if item < 0:
        return float(np.mean(1 / latency) / np.mean((1 / latency) ** 2)), 0.0
    return float(overhead), float(item)


def _uneven(size: Floats, latency: Floats) -> dict[int, float]:
    if len(size) < 4:
        return {}
    found = {}
    for place in range(len(size)):
        others = np.arange(len(size)) != place
        overhead, item = _line(size[others], latency[others])
        off = float(latency[place] / (overhead + item * size[place]) - 1)
        if abs(off) > UNEVEN:
            found[int(size[place])] = off
    return found
