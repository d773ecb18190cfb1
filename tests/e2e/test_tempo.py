"""Traces as Tempo gives them back: by TraceQL on our attributes, by their id, and from Prometheus' exemplars."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from support.backends import Jaeger, Prometheus, Tempo
from support.told import CLASSIFICATIONS, GENERATION, GENERATIONS, TOLD, all_traces, tree


def search(tempo: Tempo, service: str, spans: str, number: int) -> list[Any]:
    """Traces of the service with such spans, by TraceQL, once there are as many."""
    query = spans.replace("{", f'{{ resource.service.name = "{service}" &&', 1)
    return tempo.until(lambda: len(found := tempo.search(query)) >= number and found, f"{number} traces for {query}")


def matched(traces: list[Any]) -> list[Any]:
    """The spans that the query matched, of all traces."""
    return [each for trace in traces for spans in trace["spanSets"] for each in spans["spans"]]


QUERIES = [
    pytest.param('{ name = "tokenize" }', CLASSIFICATIONS + GENERATIONS + 1, id="a phase"),
    pytest.param('{ name = "text_completion tiny-llama" } >> { name = "decode" }', GENERATIONS, id="below"),
    pytest.param('{ name = "forward" } > { name = "prefill" }', GENERATIONS, id="right below"),
    pytest.param('{ name = "tokenize" && status = error }', 1, id="failed phase"),
    pytest.param('{ span.error.type = "ValueError" }', 1, id="type of error"),
    pytest.param("{ status = error } | count() = 2", 1, id="number of failed spans"),
    pytest.param("{ span.inferspan.cold = true }", 2, id="cold"),
    pytest.param("{ span.gen_ai.usage.output_tokens >= 8 }", GENERATIONS, id="tokens out"),
    pytest.param("{ span.gen_ai.usage.input_tokens = 7 }", GENERATIONS, id="tokens in"),
    pytest.param("{ span.inferspan.decode.steps = 7 }", GENERATIONS, id="steps"),
    pytest.param('{ span.gen_ai.request.model =~ "tiny-.*" && duration < 1h }', sum(TOLD.values()), id="model"),
    pytest.param('{ kind = internal && instrumentation:name = "inferspan" }', sum(TOLD.values()), id="scope"),
]


@pytest.mark.parametrize(("query", "number"), QUERIES)
def test_tempo_finds_traces_by_traceql(service: str, tempo: Tempo, query: str, number: int) -> None:
    search(tempo, service, '{ name != "" }', sum(TOLD.values()))

    assert len(search(tempo, service, query, number)) == number


def test_tempo_finds_what_took_at_least_as_long(service: str, tempo: Tempo) -> None:
    name = 'name = "text_completion tiny-llama"'
    durations = sorted(int(each["durationNanos"]) for each in matched(search(tempo, service, f"{{ {name} }}", 5)))
    half = durations[len(durations) // 2]
    expected = [each for each in durations if each >= half]
    found = matched(search(tempo, service, f"{{ {name} && duration >= {half}ns }}", len(expected)))

    assert sorted(int(each["durationNanos"]) for each in found) == expected


def test_tempo_returns_attributes_that_are_asked_for(service: str, tempo: Tempo) -> None:
    query = '{ name = "text_completion tiny-llama" } | select(span.gen_ai.usage.output_tokens)'
    found = matched(search(tempo, service, query, GENERATIONS))
    values = [
        attribute["value"]
        for each in found
        for attribute in each["attributes"]
        if attribute["key"] == "gen_ai.usage.output_tokens"
    ]

    assert [int(value["intValue"]) for value in values] == [8] * GENERATIONS


def test_tempo_has_the_trace_that_jaeger_has(service: str, tempo: Tempo, jaeger: Jaeger) -> None:
    trace = next(trace for trace in all_traces(jaeger, service) if tree(trace) == GENERATION)
    number = len(trace["spans"])

    def spans() -> list[Any]:
        found = tempo.trace(trace["traceID"])
        return [
            each
            for resource in (found or {}).get("resourceSpans", ())
            for scope in resource["scopeSpans"]
            for each in scope["spans"]
        ]

    found = tempo.until(lambda: len(spans()) >= number and spans(), f"{number} spans of {trace['traceID']} in Tempo")
    assert Counter(each["name"] for each in found) == Counter(each["operationName"] for each in trace["spans"])
    nanoseconds = {each["name"]: int(each["endTimeUnixNano"]) - int(each["startTimeUnixNano"]) for each in found}
    for each in trace["spans"]:
        assert nanoseconds[each["operationName"]] == pytest.approx(each["duration"] * 1000, abs=2000)


def test_exemplars_lead_to_a_trace_that_tempo_has(complete: str, prometheus: Prometheus, tempo: Tempo) -> None:
    selector = f'gen_ai_client_operation_duration_seconds_bucket{{job="{complete}"}}'
    found = prometheus.until(lambda: prometheus.exemplars(selector), f"exemplars of {selector}")

    for trace_id in {exemplar["labels"]["trace_id"] for exemplar in found}:
        tempo.until(lambda trace_id=trace_id: tempo.trace(trace_id), f"trace {trace_id} in Tempo")
