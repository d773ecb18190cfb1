"""What Prometheus makes of our metrics over OTLP, and what a PromQL expression asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser as promql

from inferspan import semconv

UNITS = {
    "s": "seconds",
    "By": "bytes",
    "J": "joules",
    "W": "watts",
    "Cel": "celsius",
    "Hz": "hertz",
    "By/s": "bytes_per_second",
    "1": "",
}
"""Of those that we use; what stands in braces is a remark, and no unit."""

EVERYWHERE = frozenset({"job", "instance", "host_name", "le", "__name__"})
"""Labels that any series may have: of its process, what prometheus.yaml promotes, and the bound of a bucket."""


class Selector(NamedTuple):
    """One selector of an expression: the series, and the labels that it looks at."""

    name: str
    labels: frozenset[str]


def translated(name: str, unit: str, instrument: str) -> str:
    """The name of a metric under ``UnderscoreEscapingWithSuffixes``, without what a histogram adds for its series.

    What is no letter, digit or colon separates words; the unit is added unless it is one of them, ``total`` to
    counters, ``ratio`` to gauges of unit 1.
    """
    words = re.findall(r"[a-zA-Z0-9:]+", name)
    suffix = "" if "{" in unit else UNITS[unit]
    if suffix and suffix not in words:
        words.append(suffix)
    if instrument in ("counter", "observable_counter"):
        words = [word for word in words if word != "total"] + ["total"]
    if unit == "1" and instrument in ("gauge", "observable_gauge"):
        words = [word for word in words if word != "ratio"] + ["ratio"]
    return "_".join(words)


def series_of(metric: semconv.Metric) -> list[str]:
    """Names of the series that a metric becomes."""
    name = translated(metric.name, metric.unit, metric.instrument)
    if metric.instrument == "histogram":
        return [f"{name}_bucket", f"{name}_sum", f"{name}_count"]
    return [name]


def label(attribute: str) -> str:
    """The label that an attribute becomes."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)


def known() -> dict[str, frozenset[str]]:
    """The labels of each series that our table gives."""
    return {
        series: EVERYWHERE | {label(attribute) for attribute in metric.attributes}
        for metric in semconv.METRICS.values()
        for series in series_of(metric)
    }


def selectors(expression: str) -> Iterator[Selector]:
    """All selectors in an expression.

    Raises:
        ValueError: it is no PromQL.
    """
    for node in _nodes(promql.parse(expression)):
        if isinstance(node, promql.VectorSelector):
            matchers = list(node.matchers.matchers)
            by_name = [m.value for m in matchers if m.name == "__name__"]
            names = [node.name] if node.name else by_name[0].split("|")
            for name in names:
                yield Selector(name, frozenset(m.name for m in matchers))


def grouped_by(expression: str) -> set[str]:
    """Labels that aggregations and matchings of an expression name."""
    found: set[str] = set()
    for node in _nodes(promql.parse(expression)):
        modifier = getattr(node, "modifier", None)
        if modifier is None:
            continue
        if isinstance(node, promql.AggregateExpr):
            found.update(modifier.labels)
        elif modifier.matching is not None:
            found.update(modifier.matching.labels)
    return found


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
        below = getattr(node, child, None)
        for one in below if isinstance(below, list) else [below]:
            if isinstance(one, promql.Expr):
                yield from _nodes(one)
