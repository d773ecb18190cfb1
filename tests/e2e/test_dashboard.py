"""Every panel of the Grafana dashboard shows something, in a Prometheus that our own telemetry filled.

An application infers with tiny models, on a machine whose GPU and driver are stand-ins, for as long as the
recording rules (sixty times as quick here) need to have an average. What others are to tell is told by hand, over the
same way (``BY_HAND``).
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from inferspan import semconv
from support import backends, promql, rules
from support.application import Application
from support.backends import CONFIG, Prometheus, Tempo
from support.fakenvml import FakeDriver

pytestmark = pytest.mark.skipif(
    version("transformers").startswith("4."), reason="continuous batching, of one panel, needs transformers 5 on a CPU"
)

SERVICE, LATEST = "dashboard", "dashboard-latest"
WORK_S = 105.0
"""An hour of history and the quarter of an hour before it, sixty times as quick; and some."""
WORK_MAX_S = 300.0
SLOWEST = 'inferspan:compute_slowdown:ratio{inferspan_against="average"}'
"""The last series to come. Where the machine is busy, its history has gaps, and it comes later."""

DASHBOARD = json.loads((CONFIG / "grafana" / "dashboards" / "inferspan.json").read_text("utf-8"))
PANELS = [one for panel in DASHBOARD["panels"] for one in (panel, *panel.get("panels", ()))]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}".replace(" ", "-"))
    for panel in PANELS
    for target in panel.get("targets", ())
    if "expr" in target
]
SEARCHES = [
    pytest.param(target["query"], id=panel["title"].replace(" ", "-"))
    for panel in PANELS
    for target in panel.get("targets", ())
    if target.get("queryType") == "traceql"
]

# What no application of ours tells. A test fails where one does: take that off here.
BY_HAND = {semconv.BASELINE}
# On no panel: only of what is streamed.
ABSENT = {semconv.INFERENCE_FIRST_CHUNK}


def tell_by_hand(prometheus: Prometheus) -> None:
    """Three points of each metric that the application cannot have, a second apart."""
    exporter = OTLPMetricExporter(f"{prometheus.otlp_http}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    resource = Resource.create({"service.name": SERVICE, "service.instance.id": "by-hand"})
    provider = MeterProvider([reader], resource=resource)
    meter = provider.get_meter("by hand")
    values = {"gen_ai.operation.name": "text-classification", "gen_ai.request.model": "tiny-bert"}
    values |= {"inferspan.phase": "forward", "inferspan.per": "call"}
    points = []
    for name in sorted(BY_HAND):
        metric = semconv.METRICS[name]
        attributes = {key: values.get(key, "by hand") for key in metric.attributes}
        instrument = getattr(meter, f"create_{metric.instrument}")(name, metric.unit)
        put = {"histogram": "record", "gauge": "set", "counter": "add"}[metric.instrument]
        points.append((getattr(instrument, put), attributes))
        if "inferspan.per" in attributes:  # a call alone is no measure of its work
            points.append((instrument.set, {**attributes, "inferspan.per": "token"}))
    try:
        for _ in range(3):
            for put_point, attributes in points:
                put_point(0.01, attributes)
            provider.force_flush()
            time.sleep(1)
    finally:
        provider.shutdown()


def worked(application: Application) -> None:
    """A round of all that there is."""
    application.do("classify", 15)  # a trend of its memory wants some two hundred
    application.do("generate", 2)
    application.do("batch")
    application.do("requests")
    application.do("fail", answer="ValueError")


@pytest.fixture(scope="module")
def filled(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The Prometheus, while the applications still run: the second one has the latest names."""
    backends.need("prometheus")
    folder = tmp_path_factory.mktemp("dashboard")
    driver, energy = FakeDriver(nvml_library, folder), 1_234_567_000
    settings = {
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_RESOURCE_ATTRIBUTES": "host.name=here",
        **driver.environment,
        "INFERSPAN_DEVICES_DETAIL": "slow,gpm,xid",
        "INFERSPAN_CHILDREN_MAX": "3",
        "INFERSPAN_LAYERS": "transformer",
    }
    latest = {**settings, "INFERSPAN_DEVICES": "never", "OTEL_SEMCONV_STABILITY_OPT_IN": semconv.LATEST}
    with ExitStack() as stack:
        quick = Prometheus(folder / "prometheus", rules.quick(folder / "rules"))
        prometheus = stack.enter_context(backends.running(quick))
        first = Application(folder, SERVICE, prometheus.otlp_http, "http/protobuf", **settings)
        stack.callback(first.kill)
        second = Application(folder, LATEST, prometheus.otlp_http, "http/protobuf", **latest)
        stack.callback(second.kill)
        for application in (first, second):
            application.do("accelerate")
            application.do("recompile")
        start = time.monotonic()
        for turn in itertools.count():
            worked_s = time.monotonic() - start
            if worked_s > WORK_MAX_S or (worked_s > WORK_S and numbers(prometheus, SLOWEST)):
                break
            worked(first)
            worked(second)
            if turn % 5 == 0:  # it takes seconds, and meanwhile nothing else happens
                first.do("think")
            energy += 600_000
            driver.says("xid=79", "xid.serial=1", f"field.83={energy}")
            time.sleep(0.3)
        tell_by_hand(prometheus)
        yield prometheus


def asked(expression: str, service: str = ".*") -> str:
    """The expression as Grafana sends it, with everything or one service selected, and a window of the quick rules."""
    for variable, value in {"$__rate_interval": "10s", "$job": service, "$model": ".*", "$host": ".*"}.items():
        expression = expression.replace(variable, value)
    return expression


def numbers(prometheus: Prometheus, expression: str) -> list[float]:
    """All that a panel would draw, of the last minute and a half."""
    now = time.time()
    found = prometheus.query_range(expression, now - 90, now, 1)
    return [float(value) for series in found for _, value in series["values"] if value != "NaN"]


def of_metrics(expression: str) -> set[str]:
    """Names of the metrics that an expression asks for."""
    every = semconv.METRICS
    series = {name: metric.name for metric in every.values() for name in promql.series_of(metric)}
    return {series[selector.name] for selector in promql.selectors(asked(expression)) if selector.name in series}


WITH_EXEMPLARS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}".replace(" ", "-"))
    for panel in PANELS
    for target in panel.get("targets", ())
    if target.get("exemplar") and not of_metrics(target["expr"]) & BY_HAND
]


@pytest.mark.parametrize("expression", QUERIES)
def test_panel_shows_something(filled: Prometheus, expression: str) -> None:
    assert numbers(filled, asked(expression)), f"nothing from {asked(expression)}"


@pytest.mark.parametrize("expression", [one for one in QUERIES if "gen_ai_client_inference_" in one.values[0]])
def test_panel_shows_the_latest_names(filled: Prometheus, expression: str) -> None:
    assert numbers(filled, asked(expression, LATEST)), f"nothing from {asked(expression, LATEST)}"


@pytest.mark.parametrize("expression", WITH_EXEMPLARS)
def test_points_of_panel_lead_to_traces(filled: Prometheus, expression: str) -> None:
    """Of what is told by hand there are no traces."""
    found = filled.exemplars(asked(expression))

    assert found
    assert {len(exemplar["labels"]["trace_id"]) for exemplar in found} == {32}


def test_names_and_labels_are_those_that_prometheus_gives(filled: Prometheus) -> None:
    """All metrics of our table arrive, under the names and with the labels that rules and dashboard are checked by."""
    every = semconv.METRICS
    series = filled.json("/api/v1/series", **{"match[]": f'{{job=~"{SERVICE}|{LATEST}"}}'})["data"]
    ours = [one for one in series if not re.search("^target_info$|^ALERTS|:", one["__name__"])]
    labels: dict[str, set[str]] = {}
    for one in ours:
        labels.setdefault(one["__name__"], set()).update(one)
    known = promql.known()

    assert labels.keys() == {
        name for metric in every.values() if metric.name not in ABSENT for name in promql.series_of(metric)
    }
    assert {name: found - known[name] for name, found in labels.items() if found - known[name]} == {}


def test_what_is_told_by_hand_is_told_by_nobody_else(filled: Prometheus) -> None:
    every = semconv.METRICS
    names = [name for metric in BY_HAND for name in promql.series_of(every[metric])]
    found = filled.query(f'count by (__name__) ({{__name__=~"{"|".join(names)}", instance!="by-hand"}})')

    assert {one["metric"]["__name__"] for one in found} == set()


@pytest.mark.parametrize("search", SEARCHES)
def test_search_finds_traces(complete: str, tempo: Tempo, search: str) -> None:
    """``complete`` inferred and failed, but was never slow: there the search only has to be understood."""
    query = search.replace("$job", complete).replace("$model", ".*")
    if "duration > 1s" in query:
        query = query.replace("duration > 1s", "duration > 1ms")

    assert tempo.until(lambda: tempo.search(query), query)
