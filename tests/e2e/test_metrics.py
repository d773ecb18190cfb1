"""Metrics in Prometheus, under the names that a user types, after they went through the Collector."""

from __future__ import annotations

import math

import pytest

from inferspan import semconv
from support.backends import Jaeger, Prometheus
from support.told import (
    CLASSIFICATION,
    CLASSIFICATIONS,
    FAILURE,
    GENERATION,
    GENERATIONS,
    all_traces,
    span,
    tags,
    tree,
)

UNITS = {
    "s": "_seconds",
    "By": "_bytes",
    "J": "_joules",
    "W": "_watts",
    "Hz": "_hertz",
    "Cel": "_celsius",
    "By/s": "_bytes_per_second",
}
BERT, LLAMA = 'gen_ai_request_model="tiny-bert"', 'gen_ai_request_model="tiny-llama"'
FAILED = 'error_type="ValueError"'

COUNTED = [
    ("gen_ai_client_operation_duration_seconds_count", LLAMA, GENERATIONS),
    ("gen_ai_client_operation_duration_seconds_count", f'{BERT},error_type=""', CLASSIFICATIONS),
    ("gen_ai_client_operation_duration_seconds_count", FAILED, 1),
    ("inferspan_inference_errors_total", f"{BERT},{FAILED}", 1),
    ("inferspan_inference_cold_starts_total", LLAMA, 1),
    ("inferspan_load_duration_seconds_count", BERT, 1),
    ("gen_ai_client_token_usage_sum", f'{LLAMA},gen_ai_token_type="input"', 7 * GENERATIONS),
    ("gen_ai_client_token_usage_sum", f'{LLAMA},gen_ai_token_type="output"', 8 * GENERATIONS),
    ("gen_ai_server_time_to_first_token_seconds_count", LLAMA, GENERATIONS),
    ("gen_ai_server_time_per_output_token_seconds_count", LLAMA, GENERATIONS),
    ("inferspan_inter_token_duration_seconds_count", LLAMA, 7 * GENERATIONS),
    ("inferspan_phase_duration_seconds_count", f'{LLAMA},inferspan_phase="prefill"', GENERATIONS),
    ("inferspan_phase_duration_seconds_count", f'{BERT},inferspan_phase="tokenize"', CLASSIFICATIONS + 1),
    ("inferspan_batch_rows_sum", BERT, CLASSIFICATIONS),
    ("inferspan_inference_active", "", 0),
]


def promql_name(metric: semconv.Metric) -> str:
    """The name of a metric in Prometheus, without what a histogram's series have behind it."""
    name = metric.name.replace(".", "_")
    if metric.instrument == "observable_gauge" and metric.unit == "1":
        return f"{name}_ratio"
    name += UNITS.get(metric.unit, "")
    return f"{name}_total" if metric.instrument in ("counter", "observable_counter") else name


@pytest.mark.parametrize(("name", "matchers", "value"), COUNTED)
def test_prometheus_has_counted(complete: str, prometheus: Prometheus, name: str, matchers: str, value: float) -> None:
    assert prometheus.value(f'{name}{{job="{complete}",{matchers}}}') == value


def test_prometheus_has_no_name_that_the_table_does_not_give(complete: str, prometheus: Prometheus) -> None:
    ours = {promql_name(metric) for metric in semconv.METRICS.values()}
    names = {series["metric"]["__name__"] for series in prometheus.query(f'{{job="{complete}"}}')} - {"target_info"}
    bare = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in names}

    assert bare - ours == set()
    assert {"gen_ai_client_operation_duration_seconds", "inferspan_phase_duration_seconds"} <= bare


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_quantiles_lie_in_the_bucket_of_the_traces_own(
    complete: str, prometheus: Prometheus, jaeger: Jaeger, quantile: float
) -> None:
    generations = [trace for trace in all_traces(jaeger, complete) if tree(trace) == GENERATION]
    roots = [span(trace, GENERATION[0]) for trace in generations]
    measured = {
        "gen_ai_client_operation_duration_seconds": [root["duration"] / 1e6 for root in roots],
        "gen_ai_server_time_to_first_token_seconds": [tags(root)["inferspan.time_to_first_token"] for root in roots],
    }
    for name, values in measured.items():
        (metric,) = (each for each in semconv.METRICS.values() if promql_name(each) == name)
        value = sorted(values)[math.ceil(quantile * len(values)) - 1]
        upper = next(bound for bound in metric.buckets if bound >= value)
        lower = max((bound for bound in metric.buckets if bound < value), default=0.0)
        series = f'{name}_bucket{{job="{complete}",{LLAMA}}}'
        found = prometheus.value(f"histogram_quantile({quantile}, sum by (le) ({series}))")

        assert found is not None
        assert lower <= found <= upper, (name, value)


def test_exemplars_lead_to_the_trace_that_they_are_of(complete: str, prometheus: Prometheus, jaeger: Jaeger) -> None:
    traces = {trace["traceID"]: trace for trace in all_traces(jaeger, complete)}
    selector = f'gen_ai_client_operation_duration_seconds_bucket{{job="{complete}"}}'
    found = prometheus.until(lambda: prometheus.exemplars(selector), f"exemplars of {selector}")

    for exemplar in found:
        trace = traces[exemplar["labels"]["trace_id"]]
        root = span(trace, tree(trace)[0])
        assert tree(trace) in (GENERATION, CLASSIFICATION, FAILURE)
        assert root["spanID"] == exemplar["labels"]["span_id"]
        assert float(exemplar["value"]) == pytest.approx(root["duration"] / 1e6, abs=2e-6)


def test_resource_stands_in_target_info(complete: str, prometheus: Prometheus) -> None:
    (info,) = prometheus.query(f'target_info{{job="{complete}"}}')

    assert info["metric"]["telemetry_sdk_language"] == "python"
    assert info["metric"]["host_name"]


def test_collector_adds_the_host(complete: str, prometheus: Prometheus) -> None:
    """The share of the host's CPU time and memory, beside what the application tells."""
    busy = '1 - avg(system_cpu_utilization_ratio{job="host",state="idle"})'
    prometheus.until(lambda: prometheus.value(busy) is not None, busy, patience_s=90)

    assert 0 <= (prometheus.value(busy) or 0) <= 1
    used = prometheus.value('system_memory_usage_bytes{job="host",state="used"}')
    assert used is not None
    assert 0 < used < (prometheus.value('system_memory_limit_bytes{job="host"}') or 0)
