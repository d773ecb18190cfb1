"""The gauge ``inferspan.baseline``: defined as the recording rules define time per work."""

from __future__ import annotations

import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from inferspan import semconv
from inferspan.bench.baseline import Point, as_rules, points, record
from inferspan.bench.results import Configuration, Environment, Result, Samples, Target, Workload
from support import promql


def result(*configurations: Configuration) -> Result:
    for configuration in configurations:
        configuration.operation, configuration.model = "chat", "tiny"
    target = Target("./tiny", "pipeline", "tiny", configurations=list(configurations))
    return Result("inferspan-bench", 1, "now", "0", [], Workload("closed"), Environment(), [target])


def generation(batch_size: int = 2, scale: float = 1.0) -> Configuration:
    return Configuration(
        batch_size,
        64,
        samples=Samples(
            latency_s=[9.0, 9.0],
            input_tokens=[100, 300],
            inter_token_s=[[0.1 * scale, 0.3 * scale], []],
            phases_s={
                "forward": [5.0, 5.0],
                "prefill": [1.0 * scale, 3.0 * scale],
                "decode": [2.0 * scale, 4.0 * scale],
            },
            phases_flops={"prefill": [40, 40], "decode": [10, 20]},
            kv_cache_bytes=[60, 60],
        ),
    )


def as_dict(found: list[Point]) -> dict[tuple[str, str], float]:
    assert {(point.operation, point.model) for point in found} == {("chat", "tiny")}
    return {(point.phase, point.per): point.seconds for point in found}


def test_points_of_a_generation() -> None:
    assert as_dict(points(result(generation()))) == pytest.approx(
        {
            ("prefill", "call"): 2.0,
            ("prefill", "token"): 0.01,
            ("prefill", "row"): 1.0,
            ("prefill", "flop"): 0.05,
            ("decode", "step"): 0.2,
            ("decode", "flop"): 0.2,
            ("decode", "byte"): 0.05,
        }
    )


def test_points_of_what_does_not_generate_are_of_forward() -> None:
    configuration = Configuration(4, samples=Samples(latency_s=[9.0] * 2, phases_s={"forward": [1.0, 2.0]}))

    assert as_dict(points(result(configuration))) == {("forward", "call"): 1.5, ("forward", "row"): 0.375}


def test_gpu_time_is_taken_where_there_is_one() -> None:
    samples = Samples(latency_s=[9.0], phases_s={"forward": [2.0]}, phases_gpu_s={"forward": [0.5]})

    assert as_dict(points(result(Configuration(1, samples=samples))))["forward", "call"] == 0.5


def test_points_of_one_batch_size() -> None:
    both = result(generation(1), generation(8, scale=3.0))

    assert as_dict(points(both, batch_size=8))["prefill", "call"] == 6.0
    assert as_dict(points(both))["prefill", "call"] == 4.0
    assert points(both, batch_size=5) == []
    assert points(both, input_tokens=65) == []


def test_points_of_an_empty_run() -> None:
    assert points(result()) == []


def test_rules_give_each_point_under_the_labels_that_the_alert_joins_by() -> None:
    found = points(result(generation()))

    document = yaml.safe_load(as_rules(found, "tiny\nof today"))

    rules = document["groups"][0]["rules"]
    metric = semconv.METRICS[semconv.BASELINE]
    assert {rule["record"] for rule in rules} == set(promql.series_of(metric))
    assert all(set(rule["labels"]) == {name.replace(".", "_") for name in metric.attributes} for rule in rules)
    assert [float(rule["expr"].removeprefix("vector(").removesuffix(")")) for rule in rules] == [
        point.seconds for point in found
    ]


def test_model_name_cannot_break_the_rules() -> None:
    name = 'a"b: {c}\n- é'

    document = yaml.safe_load(as_rules([Point("chat", name, "forward", "call", 1e-11)], "x"))

    assert document["groups"][0]["rules"][0]["labels"]["gen_ai_request_model"] == name


def test_gauge_has_unit_and_attributes_of_the_alert() -> None:
    reader = InMemoryMetricReader()
    record(MeterProvider([reader]).get_meter("test"), [Point("chat", "tiny", "forward", "call", 0.25)])

    data = reader.get_metrics_data()
    assert data is not None
    metric = data.resource_metrics[0].scope_metrics[0].metrics[0]
    point = metric.data.data_points[0]
    assert (metric.name, metric.unit, point.value) == (semconv.BASELINE, semconv.METRICS[semconv.BASELINE].unit, 0.25)
    assert set(point.attributes) == set(semconv.METRICS[semconv.BASELINE].attributes)
