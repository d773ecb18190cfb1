"""Figures, their intervals, and scaling, from made-up series with seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inferspan.bench.results import Configuration, Samples
from inferspan.bench.statistics import (
    Estimate,
    Scaling,
    block_length,
    fragmentation,
    intervals_s,
    known,
    scaling,
    summarize,
    throughput,
)


def series(seed: int, count: int, memory: float = 0.0) -> np.ndarray[Any, Any]:
    """Log-normal, with autocorrelation ``memory`` of the first order; median 1."""
    noise = np.random.default_rng(seed).normal(size=count + 50)
    for place in range(1, len(noise)):
        noise[place] = memory * noise[place - 1] + (1 - memory**2) ** 0.5 * noise[place]
    return np.asarray(np.exp(0.15 * noise[50:]))


def test_summary_of_a_series_has_numpys_figures() -> None:
    values = series(0, 300)

    found = summarize(values.tolist())

    assert found is not None
    assert found.count == 300
    assert found.deviation is not None
    assert [
        found.mean.value,
        found.deviation.value,
        found.p50.value,
        found.p90.value,
        found.p95.value,
        found.p99.value,
    ] == (pytest.approx([values.mean(), values.std(ddof=1), *np.quantile(values, [0.5, 0.9, 0.95, 0.99])]))
    assert (found.least, found.most) == (values.min(), values.max())


def test_summary_interval_holds_the_figure_and_is_the_same_each_time() -> None:
    values = series(1, 300).tolist()

    found = summarize(values)

    assert found is not None
    for each in (found.mean, found.p50, found.p90, found.p95, found.p99):
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.value <= each.high
    assert summarize(values) == found
    assert summarize(values, seed=1) != found


def test_summary_interval_of_the_median_covers_the_truth_about_as_often_as_it_says() -> None:
    found = [summarize(series(seed, 200, memory=0.5).tolist()) for seed in range(100)]

    covered = sum(each.p50.low <= 1.0 <= each.p50.high for each in found)  # type: ignore[operator, union-attr]

    assert 85 <= covered <= 99


def test_summary_interval_of_a_series_with_memory_is_wider() -> None:
    alone = [summarize(series(seed, 400).tolist()) for seed in range(5)]
    alike = [summarize(series(seed, 400, memory=0.8).tolist()) for seed in range(5)]

    def width(found: Any) -> float:
        return float(np.mean([each.mean.high - each.mean.low for each in found]))

    assert width(alike) > 2 * width(alone)


@pytest.mark.parametrize(
    ("count", "with_interval"),
    [
        pytest.param(4, [], id="too few for any"),
        pytest.param(5, ["mean", "deviation", "p50"], id="five"),
        pytest.param(20, ["mean", "deviation", "p50", "p90"], id="two above P90"),
        pytest.param(40, ["mean", "deviation", "p50", "p90", "p95"], id="two above P95"),
        pytest.param(199, ["mean", "deviation", "p50", "p90", "p95"], id="not quite two above P99"),
        pytest.param(200, ["mean", "deviation", "p50", "p90", "p95", "p99"], id="two above P99"),
    ],
)
def test_summary_interval_is_absent_where_too_few_samples_lie_beyond(count: int, with_interval: list[str]) -> None:
    found = summarize(series(2, count).tolist())

    names = ("mean", "deviation", "p50", "p90", "p95", "p99")
    assert [name for name in names if getattr(found, name).low is not None] == with_interval


def test_summary_of_nothing_known_is_absent() -> None:
    assert summarize([]) is None
    assert summarize([None, None]) is None


def test_summary_of_one_sample_has_no_deviation() -> None:
    found = summarize([0.25])

    assert found is not None
    assert (found.mean, found.deviation, found.p99) == (Estimate(0.25), None, Estimate(0.25))


def test_known_values_of_nested_rows_come_one_after_the_other() -> None:
    assert known([[1.0, 2.0], [], None, [3.0]]).tolist() == [1.0, 2.0, 3.0]
    assert known([1, None, 0]).tolist() == [1.0, 0.0]


def test_summary_of_a_very_long_series_stays_bounded() -> None:
    found = summarize(series(3, 20_000).tolist())

    assert found is not None
    assert found.p50.low is not None


def test_block_length_grows_with_memory_and_is_at_least_the_cube_root() -> None:
    lengths = [block_length(series(4, 1000, memory)) for memory in (0.0, 0.5, 0.9)]

    assert lengths[0] == pytest.approx(10.0)
    assert lengths[0] < lengths[1] < lengths[2] <= 3 * 1000**0.5


def test_block_length_of_a_constant_series_is_the_cube_root() -> None:
    assert block_length(np.ones(27)) == pytest.approx(3.0)


def test_intervals_are_between_ends_of_each_turn() -> None:
    samples = Samples(
        intended_s=[0.0, 0.1, 5.0, 5.0], start_s=[0.5, 0.6, 5.0, 5.0], latency_s=[2.0, 0.9, 3.0, 1.0], turn=[0, 0, 1, 1]
    )

    assert intervals_s(samples).tolist() == pytest.approx([0.5, 1.0, 1.0, 2.0])


def test_throughput_is_requests_over_the_whole_time_with_an_interval() -> None:
    latency = series(5, 100) * 0.01
    start = np.concatenate([[0.0], np.cumsum(latency)[:-1]]).tolist()
    configuration = Configuration(
        4, samples=Samples(start, start, latency.tolist(), [0] * 100), duration_s=float(latency.sum()) * 1.25
    )

    found = throughput(configuration)

    assert found is not None
    assert found.value == pytest.approx(80 / latency.mean() / 100)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_throughput_of_no_requests_is_absent() -> None:
    assert throughput(Configuration(1, duration_s=1.0)) is None


def test_fragmentation_is_the_largest_known() -> None:
    assert fragmentation(Samples(fragmentation=[0.1, None, 0.3])) == 0.3
    assert fragmentation(Samples()) is None


def points(overhead_s: float, item_s: float, sizes: tuple[int, ...]) -> list[tuple[int, float, float]]:
    return [(size, size / (overhead_s + item_s * size), overhead_s + item_s * size) for size in sizes]


def test_scaling_of_a_linear_latency_finds_the_line_and_the_knee() -> None:
    found = scaling(points(0.008, 0.002, (1, 2, 4, 8, 16)))

    assert found is not None
    assert found == Scaling(
        batch_sizes=[1, 2, 4, 8, 16],
        efficiency=pytest.approx([1.0, 10 / 12, 10 / 16, 10 / 24, 10 / 40]),
        knee=4,  # where the items take as long as what does not depend on them: 8 / 2
        saturated=None,
        overhead_s=pytest.approx(0.008),
        item_s=pytest.approx(0.002),
        uneven={},
    )


def test_scaling_that_ends_names_the_batch_from_which_it_is_saturated() -> None:
    found = scaling([(1, 100.0, 0.01), (2, 190.0, 0.0105), (4, 200.0, 0.02), (8, 198.0, 0.04)])

    assert found is not None
    assert (found.knee, found.saturated) == (2, 2)


def test_scaling_with_a_step_names_the_batch_that_is_off_the_line() -> None:
    sweep = points(0.008, 0.002, (1, 2, 4, 8, 16, 32))
    sweep[3] = (8, 8 / 0.036, 0.036)

    found = scaling(sweep)

    assert found is not None
    assert list(found.uneven) == [8]
    assert found.uneven[8] == pytest.approx(0.5)


def test_scaling_without_cost_per_item_has_no_slope_below_zero() -> None:
    found = scaling([(1, 100.0, 0.0101), (2, 200.0, 0.0100), (4, 400.0, 0.0099)])

    assert found is not None
    assert found.item_s == 0.0
    assert found.overhead_s == pytest.approx(0.01, rel=0.01)


def test_scaling_of_one_batch_size_is_absent() -> None:
    assert scaling([(4, 10.0, 0.4)]) is None
    assert scaling([]) is None
