"""The table of emitted names: sound in itself, true to OpenTelemetry's own, and the only place of such names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import (
    cpu_attributes,
    gen_ai_attributes,
    hw_attributes,
    network_attributes,
    process_attributes,
    system_attributes,
)
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics, hw_metrics, process_metrics, system_metrics
from opentelemetry.semconv.attributes import error_attributes, exception_attributes

import inferspan
from inferspan import semconv
from inferspan.semconv import ATTRIBUTES, EVENTS, METRICS, SPANS
from support.sources import sources

SOURCE = Path(inferspan.__file__).parent

STANDARD = {
    name: value
    for module in (
        *(gen_ai_attributes, hw_attributes, network_attributes, cpu_attributes, system_attributes, process_attributes),
        *(gen_ai_metrics, hw_metrics, process_metrics, system_metrics, error_attributes, exception_attributes),
    )
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}

# Newer than the released package; spelled out in the conventions' own repository.
NOT_RELEASED = {
    "gen_ai.client.inference.duration",
    "gen_ai.client.inference.operation.details",
    "gen_ai.client.inference.operation.input_tokens",
    "gen_ai.client.inference.operation.output_tokens",
    "gen_ai.client.inference.time_to_first_chunk",
    "gen_ai.client.inference.usage.input_tokens",
    "gen_ai.client.inference.usage.output_tokens",
    "gen_ai.request.stream",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.token.modality",
    "gen_ai.usage.cache_read.input_tokens",  # newer than the oldest
}

EMITTED = sorted({*ATTRIBUTES, *METRICS, *EVENTS} - {"exception"})


def constants() -> dict[str, str]:
    """The names in capitals that semconv.py gives to emitted names."""
    return {
        name: value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and value in {*ATTRIBUTES, *METRICS, *SPANS, *EVENTS}
    }


def quoted_names(source: Path) -> list[tuple[str, str]]:
    """Every string of the source that is a dotted name of ours or of the conventions, but for the table itself. The
    name of a module of ours, to import it when it is needed, is none as long as nothing emitted is called so."""
    modules = {each.module for each in sources().values()} - {*ATTRIBUTES, *METRICS, *SPANS, *EVENTS}
    pattern = re.compile(r"(inferspan|gen_ai|error|exception)(\.[a-z_]+)+")
    return [
        (str(path.relative_to(source)), node.value)
        for path in sorted(source.rglob("*.py"))
        if path.name != "semconv.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and pattern.fullmatch(node.value)
        if node.value not in modules
    ]


def test_constants_name_each_row_once() -> None:
    values = list(constants().values())

    assert sorted(values) == sorted([*ATTRIBUTES, *METRICS, *SPANS, *EVENTS])


def test_rows_stand_under_their_own_name() -> None:
    rows = [(name, row.name) for table in (ATTRIBUTES, SPANS, METRICS, EVENTS) for name, row in table.items()]

    assert [pair for pair in rows if pair[0] != pair[1]] == []


def test_a_metric_that_has_the_name_of_an_attribute_is_the_same_fact_in_the_same_unit() -> None:
    both = set(ATTRIBUTES) & set(METRICS)

    assert {name: METRICS[name].unit for name in both} == {name: ATTRIBUTES[name].unit for name in both}
    assert not set(ATTRIBUTES) & {*EVENTS, *SPANS}


def test_names_of_the_conventions_are_those_of_the_installed_package() -> None:
    ours = {name for name in EMITTED if not name.startswith("inferspan.")}

    assert ours - set(STANDARD.values()) <= NOT_RELEASED


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in EMITTED])
def test_name_is_lower_case_and_dotted(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", name)


def test_names_of_our_own_are_under_our_own_namespace() -> None:
    standard = set(STANDARD.values()) | NOT_RELEASED

    assert [name for name in EMITTED if name not in standard and not name.startswith("inferspan.")] == []
    assert [name for name in STANDARD.values() if name.startswith("inferspan.")] == []


@pytest.mark.parametrize("metric", [pytest.param(metric, id=metric.name) for metric in METRICS.values()])
def test_metric_is_made_of_known_attributes_units_and_ascending_buckets(metric: semconv.Metric) -> None:
    assert set(metric.attributes) <= set(ATTRIBUTES)
    assert re.fullmatch(r"s|By|By/s|1|Cel|Hz|J|W|\{[a-z]+\}", metric.unit)
    assert metric.instrument.removeprefix("observable_") in {"histogram", "counter", "updowncounter", "gauge"}
    assert (metric.buckets is not None) is (metric.instrument == "histogram")
    assert list(metric.buckets or ()) == sorted(set(metric.buckets or ()))
    assert metric.opt_in in {"", "gen_ai_latest_experimental"}
    assert metric.replaces == "" or (metric.replaces in METRICS and metric.opt_in)


@pytest.mark.parametrize("attribute", [pytest.param(row, id=row.name) for row in ATTRIBUTES.values()])
def test_attribute_has_a_type_a_meaning_and_a_unit_that_fit(attribute: semconv.Attribute) -> None:
    assert attribute.type in {"string", "int", "double", "boolean", "string[]"}
    assert re.fullmatch(r"|s|By|1|J|\{[a-z]+\}", attribute.unit)
    assert attribute.unit == "" or attribute.type in {"int", "double"}
    assert attribute.brief
    assert not attribute.brief.endswith(".")
    assert attribute.stability in {"development", "stable"}


def test_events_are_made_of_known_attributes() -> None:
    assert {name for event in EVENTS.values() for name in event.attributes} <= set(ATTRIBUTES)


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        pytest.param(semconv.OPERATION_DURATION, "s", id="operation duration"),
        pytest.param(semconv.TOKEN_USAGE, "{token}", id="token usage"),
        pytest.param(semconv.SERVER_TIME_TO_FIRST_TOKEN, "s", id="time to first token"),
        pytest.param(semconv.SERVER_TIME_PER_OUTPUT_TOKEN, "s", id="time per output token"),
    ],
)
def test_metric_of_the_conventions_has_their_unit(metric: str, unit: str) -> None:
    assert METRICS[metric].unit == unit


def test_operation_names_are_the_conventions_own() -> None:
    assert (semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT, semconv.EMBEDDINGS) == (
        "chat",
        "text_completion",
        "generate_content",
        "embeddings",
    )


def test_names_are_quoted_nowhere_but_in_the_table() -> None:
    assert quoted_names(SOURCE) == []


def test_source_is_searched_where_there_is_something_to_find(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text('span.set_attribute("inferspan.new_thing", 1)\nset("gen_ai.request.model", "x")\n')
    (tmp_path / "other.py").write_text('load("inferspan.devices.choice")\nset("inferspan.devices.count", 1)\n')

    assert quoted_names(tmp_path) == [
        ("new.py", "inferspan.new_thing"),
        ("new.py", "gen_ai.request.model"),
        ("other.py", "inferspan.devices.count"),
    ]
