"""Verdicts on made-up runs, and the tests behind them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from inferspan.bench import comparison, differences, wording
from inferspan.bench.comparison import IncomparableError, Verdict
from inferspan.bench.results import (
    FORMAT,
    VERSION,
    Configuration,
    Environment,
    Failure,
    Result,
    Samples,
    Target,
    Workload,
)
from inferspan.bench.significance import change, fisher, holm

Floats = np.ndarray[Any, np.dtype[np.float64]]


def latencies(seed: int, count: int = 100, by: float = 1.0) -> Floats:
    """Skewed, autocorrelated, about 10 ms."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=count + 50)
    for place in range(1, len(noise)):
        noise[place] = 0.5 * noise[place - 1] + 0.75**0.5 * noise[place]
    return np.asarray(0.01 * by * np.exp(0.1 * noise[50:]) * (1 + (rng.random(count) < 0.03)))


def configuration(latency: Floats, batch_size: int = 1, turns: int = 1, **more: Any) -> Configuration:
    start = np.concatenate([[0.0], np.cumsum(latency)[:-1]]).tolist()
    turn = [place * turns // len(start) for place in range(len(start))]
    samples = Samples(start, start, latency.tolist(), turn)
    return Configuration(batch_size, samples=samples, duration_s=float(latency.sum()), **more)


def target(*configurations: Configuration, label: str = "model") -> Target:
    return Target(label, "pipeline", label, "feature-extraction", configurations=list(configurations))


def result(*targets: Target, **environment: Any) -> Result:
    return Result(FORMAT, VERSION, "2026-01-01T00:00:00+00:00", "1.0", [], Workload("closed"),
                  Environment(**environment), list(targets))  # fmt: skip


def verdicts(found: comparison.Comparison) -> dict[tuple[str, str], str]:
    return {(row.configuration, row.figure): row.verdict.value for row in found.rows}


def test_compare_equal_runs_is_unchanged() -> None:
    found = comparison.compare(
        result(target(configuration(latencies(0, 200)))), result(target(configuration(latencies(1, 200))))
    )

    assert verdicts(found) == {
        ("batch 1", "latency P50"): "unchanged",
        ("batch 1", "latency P95"): "unchanged",
        ("batch 1", "items/s"): "unchanged",
    }
    assert found.regressions == []


def test_compare_with_a_run_20_percent_slower_is_a_regression_of_what_is_slower() -> None:
    sizes = (1, 4)
    before = result(target(*(configuration(latencies(size, 200), size) for size in sizes)))
    after = result(
        target(configuration(latencies(8, 200, by=1.2), 1), configuration(latencies(9, 200), 4)),
    )

    found = comparison.compare(before, after)

    assert [(row.configuration, row.figure) for row in found.regressions] == [
        ("batch 1", "latency P50"),
        ("batch 1", "latency P95"),
        ("batch 1", "items/s"),
    ]
    first = found.rows[0]
    assert (first.baseline, first.candidate) == pytest.approx(
        (np.median(latencies(1, 200)), np.median(latencies(8, 200, by=1.2)))
    )
    assert first.change is not None
    assert first.candidate is not None
    assert first.baseline is not None
    assert first.change.value == pytest.approx(first.candidate / first.baseline - 1)
    assert first.change.low is not None
    assert 0.1 < first.change.low < first.change.value < first.change.high  # type: ignore[operator]
    assert first.p_value is not None
    assert first.p_value < 0.01


def test_compare_with_a_faster_run_is_an_improvement() -> None:
    found = comparison.compare(
        result(target(configuration(latencies(0, 200)))), result(target(configuration(latencies(1, 200, by=0.7))))
    )

    assert set(verdicts(found).values()) == {"improvement"}
    rate = found.rows[2]
    assert (rate.unit, rate.more_is_better) == ("1/s", True)
    assert rate.change is not None
    assert rate.change.value > 0.3


def test_compare_with_a_small_significant_slowdown_is_unchanged() -> None:
    before, after = (result(target(configuration(latencies(0, 400, by)))) for by in (1.0, 1.05))

    first = comparison.compare(before, after).rows[0]

    assert (first.figure, first.verdict) == ("latency P50", Verdict.UNCHANGED)
    assert first.p_value is not None
    assert first.p_value < 0.05
    assert comparison.compare(before, after, threshold=0.04).rows[0].verdict is Verdict.REGRESSION


def test_compare_with_few_scattered_requests_is_unclear() -> None:
    rng = np.random.default_rng(0)
    before, after = (result(target(configuration(0.01 * np.exp(0.6 * rng.normal(size=12)) * by))) for by in (1.0, 1.2))

    found = comparison.compare(before, after)

    assert {row.verdict for row in found.rows} == {Verdict.UNCLEAR}
    assert wording.conclusion(found) == (
        Verdict.UNCLEAR,
        "No regression of 15% or more found, but 3 of 3 figures are unclear, more requests would show",
    )


def test_compare_with_fewer_than_five_requests_says_so() -> None:
    found = comparison.compare(
        result(target(configuration(latencies(0)))), result(target(configuration(latencies(1, 4, by=3.0))))
    )

    assert {(row.verdict.value, row.reason) for row in found.rows} == {("unclear", "fewer than 5 requests")}


def test_compare_of_generation_has_its_times() -> None:
    one, other = configuration(latencies(0)), configuration(latencies(1, by=1.5))
    for each in (one, other):
        each.samples.time_to_first_token_s = [0.4 * value for value in each.samples.latency_s]
        each.samples.time_per_output_token_s = [None, *(0.1 * value for value in each.samples.latency_s[1:])]

    found = comparison.compare(result(target(one)), result(target(other)))

    assert [row.figure for row in found.regressions] == [
        "latency P50",
        "latency P95",
        "first token P50",
        "per token P50",
        "items/s",
    ]


def test_compare_memory_counts_by_the_threshold_alone() -> None:
    one = configuration(latencies(0), resident_peak_bytes=1000, device_peak_bytes=2000)
    other = configuration(latencies(0), resident_peak_bytes=1100, device_peak_bytes=2400)

    found = comparison.compare(result(target(one)), result(target(other)))

    rows = {row.figure: (row.verdict.value, row.unit, row.p_value) for row in found.rows}
    assert rows["resident peak"] == ("unchanged", "By", None)
    assert rows["device peak"] == ("regression", "By", None)


def test_compare_configurations_of_one_side_are_named() -> None:
    before = result(target(configuration(latencies(0), 1), configuration(latencies(1), 8)))
    after = result(target(configuration(latencies(2), 1), configuration(latencies(3), 16, output_tokens=4)))

    found = comparison.compare(before, after)

    assert found.notes == ["model, batch 8: only in the baseline", "model, batch 16, 4 out: only here"]
    assert {row.configuration for row in found.rows} == {"batch 1"}


def test_compare_with_a_configuration_that_now_fails_is_a_regression() -> None:
    failure = Failure("OutOfMemoryError", "no", out_of_memory=True)
    works, fails = configuration(latencies(0)), Configuration(1, failure=failure)

    found = comparison.compare(result(target(works)), result(target(fails)))
    back = comparison.compare(result(target(fails)), result(target(works)))

    assert [(row.figure, row.verdict.value, row.reason) for row in found.rows] == [
        ("runs", "regression", "here: out of memory")
    ]
    assert [(row.figure, row.verdict.value, row.reason) for row in back.rows] == [
        ("runs", "improvement", "baseline: out of memory")
    ]


def test_compare_with_a_target_that_cannot_be_loaded_is_a_regression() -> None:
    broken = target()
    broken.failure = Failure("TargetError", "no such folder")

    found = comparison.compare(result(target(configuration(latencies(0)))), result(broken))

    assert [(row.configuration, row.verdict.value, row.reason) for row in found.rows] == [
        ("all", "regression", "here: TargetError")
    ]


def test_compare_with_more_failing_requests_is_a_regression() -> None:
    works = result(target(configuration(latencies(0))))
    some = result(target(configuration(latencies(1), errors={"ValueError": 12})))
    one = result(target(configuration(latencies(2), errors={"ValueError": 1})))

    def row(found: comparison.Comparison) -> tuple[str, str]:
        failed = next(row for row in found.rows if row.figure == "failed")
        return failed.verdict.value, failed.reason

    assert row(comparison.compare(works, some)) == ("regression", "12 ValueError")
    assert row(comparison.compare(works, one)) == ("unchanged", "1 ValueError")
    assert row(comparison.compare(some, works)) == ("unchanged", "")


def test_compare_targets_by_label_and_single_ones_whatever_it_is() -> None:
    a, b, c = (target(configuration(latencies(seed)), label=label) for seed, label in enumerate("abc"))

    both = comparison.compare(result(a, b), result(b, c))
    single = comparison.compare(result(a), result(b))

    assert {row.target for row in both.rows} == {"b"}
    assert both.notes == ["a: only in the baseline", "c: only here"]
    assert single.notes == ["the baseline is of a, the new run of b"]
    with pytest.raises(IncomparableError, match="no target in common: a, b in the baseline, c here"):
        comparison.compare(result(a, b), result(c))


def test_compare_other_hardware_is_refused_and_names_the_field() -> None:
    one, other = (result(target(configuration(latencies(0))), machine={"cpu_model": name}) for name in ("A", "B"))

    with pytest.raises(IncomparableError, match=r"machine\.cpu_model is A in the baseline, B here"):
        comparison.compare(one, other)

    assert [str(each) for each in comparison.compare(one, other, force=True).differences] == [
        "machine.cpu_model is A in the baseline, B here"
    ]


def test_compare_other_versions_warns() -> None:
    one, other = (result(target(configuration(latencies(0))), versions={"torch": version}) for version in "12")

    found = comparison.compare(one, other)

    assert [(each.field, each.refuses) for each in found.differences] == [("versions.torch", False)]


@pytest.mark.parametrize("name", [name for name in differences.MATTERS if name.startswith("workload.")])
def test_differences_of_the_workload_are_fields_that_it_has(name: str) -> None:
    assert name.partition(".")[2] in {each.name for each in dataclasses.fields(Workload)}


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        pytest.param({"devices": [{"name": "H200"}]}, {"devices": [{"name": "A100"}]}, True, id="another GPU"),
        pytest.param({"devices": [{"name": "H200"}]}, {"devices": []}, True, id="none"),
        pytest.param({"devices": [{"driver": "1"}]}, {"devices": [{"driver": "2"}]}, False, id="another driver"),
        pytest.param({"machine": {"cpus_usable": 2}}, {"machine": {"cpus_usable": 4}}, True, id="more CPUs"),
        pytest.param({"machine": {"cpu_model": "A"}}, {"machine": {}}, False, id="one side does not know"),
        pytest.param({"machine": {"load_average": 1}}, {"machine": {"load_average": 2}}, None, id="does not matter"),
        pytest.param({"settings": {"threads": 1}}, {"settings": {"threads": 2}}, False, id="a setting"),
    ],
)
def test_differences_of_runs_refuse_or_warn(before: Any, after: Any, refused: bool | None) -> None:
    found = differences.of_runs(result(**before), result(**after))

    assert [each.refuses for each in found] == ([] if refused is None else [refused])


def test_differences_of_targets_name_model_and_way_of_calling() -> None:
    one, other = target(), target()
    one.model, other.model = {"dtype": "float32", "device": "cpu"}, {"dtype": "float16", "device": "cuda:0"}
    other.kind = "generate"

    assert [(each.field, each.refuses) for each in differences.of_targets(one, other)] == [
        ("target.kind", True),
        ("model.dtype", False),
        ("model.device", True),
    ]


def drifting(seed: int, by: float = 1.0) -> Floats:
    """Twenty turns of five, each on a machine that is up to four times as slow as in the turn before."""
    drift = np.repeat(np.random.default_rng(99).uniform(1, 4, 20), 5)
    return latencies(seed, 100, by) * drift


def test_against_finds_in_turns_what_drift_would_hide() -> None:
    run = result(
        target(configuration(drifting(0, by=1.2), turns=20), label="slower"),
        target(configuration(drifting(1), turns=20), label="first"),
    )

    [found] = comparison.against(run)

    assert (found.baseline, found.candidate, found.took_turns) == ("first", "slower", True)
    p_values = {row.figure: row.p_value for row in found.rows}
    assert p_values["latency P50"] is not None
    assert p_values["latency P50"] < 0.01
    assert found.rows[0].verdict is Verdict.REGRESSION
    told = wording.conclusion(found)[1]
    assert told.startswith("Of 3 figures 0 better, ")
    apart = comparison.compare(result(run.targets[1]), result(run.targets[0])).rows[0]
    assert apart.p_value is not None
    assert apart.p_value > 0.05


def test_against_leaves_memory_out_which_targets_share() -> None:
    run = result(*(target(configuration(latencies(n), resident_peak_bytes=10**n), label=str(n)) for n in (1, 2)))

    assert {row.figure for row in comparison.against(run)[0].rows} == {"latency P50", "latency P95", "items/s"}


def test_against_a_single_target_is_nothing() -> None:
    assert comparison.against(result(target(configuration(latencies(0))))) == []


def test_change_of_a_thing_with_itself_is_significant_as_rarely_as_it_says() -> None:
    found = [change([(latencies(2 * seed, 60), latencies(2 * seed + 1, 60))], 0.5).p_value for seed in range(40)]

    assert sum(p_value < 0.05 for p_value in found) <= 6
    assert sum(p_value < 0.5 for p_value in found) >= 12  # nor is it never


def test_change_is_the_same_each_time_and_turns_round() -> None:
    one, other = latencies(0), latencies(1, by=1.2)

    forth, back = change([(one, other)], 0.95), change([(other, one)], 0.95)

    assert change([(one, other)], 0.95) == forth
    assert forth.ratio == pytest.approx(1 / back.ratio)
    assert forth.low < forth.ratio < forth.high


@pytest.mark.parametrize("share", [None, 0.5, 0.95])
def test_change_of_a_long_series_stays_bounded(share: float | None) -> None:
    found = change([(latencies(0, 12_000), latencies(1, 9_000, by=1.1))], share)

    assert found.ratio == pytest.approx(1.1, rel=0.05)
    assert found.p_value == pytest.approx(1 / 1000)


def test_holm_corrects_each_by_the_number_of_those_not_yet_rejected() -> None:
    found = holm([0.01, 0.04, 0.03, 0.005])

    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert all(one <= other for one, other in pairwise(sorted(holm([0.2, 0.9, 0.5]))))


def test_fisher_is_the_hypergeometric_tail() -> None:
    assert fisher((0, 10), (0, 10)) == 1.0
    assert fisher((1, 10), (8, 10)) == pytest.approx(0.00273, abs=1e-5)  # 1 - hypergeom.cdf(7, 20, 9, 10) of SciPy
    assert fisher((8, 10), (1, 10)) == pytest.approx(1.0, abs=1e-3)
