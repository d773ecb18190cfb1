"""Traces as Jaeger gives them back, after they went through the Collector over gRPC and over HTTP."""

from __future__ import annotations

import json
from collections import Counter

from inferspan import semconv
from support.backends import Jaeger
from support.told import CLASSIFICATION, FAILURE, GENERATION, GENERATIONS, TOLD, all_traces, span, tags, tree


def test_jaeger_has_each_trace_with_its_phases(service: str, jaeger: Jaeger) -> None:
    assert Counter(map(tree, all_traces(jaeger, service))) == TOLD


def test_jaeger_shows_what_a_generation_was(service: str, jaeger: Jaeger) -> None:
    trace = next(trace for trace in reversed(all_traces(jaeger, service)) if tree(trace) == GENERATION)
    root, decode = tags(span(trace, GENERATION[0])), tags(span(trace, "decode"))
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.model": "tiny-llama",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": '["length"]',
        "inferspan.task": "text-generation",
        "otel.scope.name": "inferspan",
        "span.kind": "internal",
    }

    assert {name: root.get(name) for name in expected} == expected
    # the unit tests know exactly which there are; here it is that nothing was added or lost its name on the way
    names = {name for name in root if not name.startswith("otel.") and name != "span.kind"}
    assert names <= set(semconv.ATTRIBUTES)
    assert 0 < root["inferspan.time_to_first_token"] < span(trace, GENERATION[0])["duration"] / 1e6
    assert decode["inferspan.decode.steps"] == 7


def test_jaeger_shows_where_an_error_was(service: str, jaeger: Jaeger) -> None:
    all_traces(jaeger, service)
    (trace,) = jaeger.traces(service, tags=json.dumps({"error.type": "ValueError"}))
    root = span(trace, FAILURE[0])
    (event,) = root["logs"]
    fields = {field["key"]: field["value"] for field in event["fields"]}

    assert tree(trace) == FAILURE
    assert (tags(root)["error"], tags(root)["otel.status_code"]) == (True, "ERROR")
    assert tags(span(trace, "tokenize"))["error"] is True
    assert set(fields) == {"event", "exception.type", "exception.stacktrace"}
    assert (fields["event"], fields["exception.type"]) == ("exception", "ValueError")


def test_jaeger_finds_traces_by_operation_duration_and_attribute(service: str, jaeger: Jaeger) -> None:
    all_traces(jaeger, service)
    generations = jaeger.traces(service, operation=GENERATION[0])
    durations = sorted(span(trace, GENERATION[0])["duration"] for trace in generations)
    half = durations[len(durations) // 2]
    cold = jaeger.traces(service, tags=json.dumps({"inferspan.cold": "true"}))

    assert Counter(map(tree, generations)) == {GENERATION: GENERATIONS}
    slow = jaeger.traces(service, operation=GENERATION[0], minDuration=f"{half}us")
    assert sorted(span(trace, GENERATION[0])["duration"] for trace in slow) == [
        each for each in durations if each >= half
    ]
    assert Counter(map(tree, cold)) == {CLASSIFICATION: 1, GENERATION: 1}
    assert service in jaeger.services()
