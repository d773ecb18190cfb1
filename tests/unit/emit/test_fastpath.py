"""Points that go straight to the SDK's sums, against the same points through an instrument."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    Counter,
    Histogram,
    MeterProvider,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from inferspan.emit import fastpath
from inferspan.emit.fastpath import FastInstrument

CREATED_AS = {"histogram": "create_histogram", "counter": "create_counter", "gauge": "create_gauge"}
RECORDED_BY = {"histogram": "record", "counter": "add", "gauge": "set"}


def in_trace(span_id: int, sampled: bool = True) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return set_span_in_context(NonRecordingSpan(SpanContext(7, span_id, False, flags)), Context())


POINTS: list[tuple[float, dict[str, str | int], Context | None]] = [
    (0.5, {"model": "a", "phase": "forward"}, in_trace(1)),
    (3, {"phase": "forward", "model": "a"}, in_trace(2)),
    (7.25, {"model": "a", "phase": "forward"}, None),
    (7.5, {"model": "b", "phase": "forward", "rank": 1}, in_trace(3, sampled=False)),
    (0, {"model": "a", "phase": "tokenize"}, in_trace(4)),
    (2000.0, {"model": "a", "phase": "forward"}, in_trace(5)),
    (1.0, {}, in_trace(6)),
    (1.5, {}, None),
    (0.25, {"model": "b", "phase": "forward", "rank": 1}, in_trace(8)),
]

VIEWS: dict[str, list[View]] = {
    "none": [],
    "fewer attributes": [View(instrument_name="it", attribute_keys={"model"})],
    "no attributes": [View(instrument_name="it", attribute_keys=set())],
    "dropped": [View(instrument_name="it", aggregation=DropAggregation())],
    "buckets": [View(instrument_name="it", aggregation=ExplicitBucketHistogramAggregation([1, 5]))],
    "exponential": [View(instrument_name="it", aggregation=ExponentialBucketHistogramAggregation())],
    "two": [View(instrument_name="it", name="one"), View(instrument_name="it", name="other", attribute_keys={"rank"})],
}


def provider(**settings: Any) -> tuple[MeterProvider, list[InMemoryMetricReader]]:
    """With two readers, one of differences."""
    delta = {Counter: AggregationTemporality.DELTA, Histogram: AggregationTemporality.DELTA}
    readers = [InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=delta)]
    return MeterProvider(readers, shutdown_on_exit=False, **settings), readers


def read(readers: list[InMemoryMetricReader]) -> Any:
    """All that is exported, without its times."""

    def without_times(given: Any) -> Any:
        if isinstance(given, dict):
            return {key: without_times(value) for key, value in given.items() if "time_unix_nano" not in key}
        return [without_times(part) for part in given] if isinstance(given, list) else given

    return [None if data is None else without_times(json.loads(data.to_json())) for data in map(_data, readers)]


def _data(reader: InMemoryMetricReader) -> Any:
    return reader.get_metrics_data()


class Made:
    """An instrument, the short way past it, and how many points went through itself."""

    def __init__(self, kind: str = "histogram", **settings: Any) -> None:
        self.provider, self.readers = provider(**settings)
        self.instrument = getattr(self.provider.get_meter("test"), CREATED_AS[kind])("it")
        self.fast = FastInstrument(self.instrument, kind)
        self.through = 0
        record = self.fast._record

        def counted(*arguments: Any) -> None:
            self.through += 1
            record(*arguments)

        self.fast._record = counted


@pytest.mark.parametrize("filtered", [TraceBasedExemplarFilter, AlwaysOnExemplarFilter, AlwaysOffExemplarFilter])
@pytest.mark.parametrize("views", VIEWS)
def test_points_are_those_of_the_instrument(views: str, filtered: type) -> None:
    made = Made(views=VIEWS[views], exemplar_filter=filtered())
    other, readers = provider(views=VIEWS[views], exemplar_filter=filtered())
    instrument = other.get_meter("test").create_histogram("it")
    for _ in range(3):
        for value, attributes, context in POINTS:
            made.fast.put(value, attributes, context)
            instrument.record(value, attributes, context or Context())
        exported = read(readers)
        if views != "exponential":  # whose exemplars are drawn by lot
            assert read(made.readers) == exported
        else:
            assert _without_exemplars(read(made.readers)) == _without_exemplars(exported)
    assert any(exported) or views == "dropped"
    assert made.through == 5, "one for each order of attributes"


@pytest.mark.parametrize("kind", ["counter", "gauge"])
def test_points_of_other_instruments_are_theirs_without_exemplars(kind: str) -> None:
    made = Made(kind, exemplar_filter=TraceBasedExemplarFilter())
    other, readers = provider(exemplar_filter=TraceBasedExemplarFilter())
    instrument = getattr(other.get_meter("test"), CREATED_AS[kind])("it")
    for _ in range(3):
        for value, attributes, context in POINTS:
            made.fast.put(value, attributes, context)
            getattr(instrument, RECORDED_BY[kind])(value, attributes)
        exported = read(made.readers)
        assert exported == read(readers)
        assert '"span_id"' not in json.dumps(exported)
    assert made.through == 5


def test_exemplars_point_at_the_trace_of_their_value() -> None:
    made = Made()
    for value, attributes, context in POINTS:
        made.fast.put(value, attributes, context)
    (metric,) = read(made.readers)[0]["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    spans = {exemplar["span_id"] for point in metric["data"]["data_points"] for exemplar in point["exemplars"]}
    assert spans == {2, 4, 5, 6, 8}, "the last of each bucket"


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_values_that_the_sdk_may_ignore_are_left_to_it(value: float) -> None:
    made = Made()
    other, readers = provider()
    instrument = other.get_meter("test").create_histogram("it")
    for given in (1.0, value, 2.0):
        made.fast.put(given, {"model": "a"}, None)
        instrument.record(given, {"model": "a"}, Context())
    assert str(read(made.readers)) == str(read(readers))
    assert made.through == 2


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_value_that_the_sdk_may_ignore_at_first_is_no_fault(value: float) -> None:
    made = Made()
    other, readers = provider()
    instrument = other.get_meter("test").create_histogram("it")
    for given in (value, 1.0, 2.0):
        made.fast.put(given, {"model": "a"}, None)
        instrument.record(given, {"model": "a"}, Context())
    assert str(read(made.readers)) == str(read(readers))


def test_instrument_that_is_switched_off_from_the_beginning_gets_nothing() -> None:
    made = Made()
    if not hasattr(made.instrument, "_is_enabled"):
        pytest.skip("this SDK cannot switch a meter off")
    made.fast._is_enabled = made.instrument._is_enabled = lambda: False
    for value in (1.0, 2.0):
        made.fast.put(value, {"model": "a"}, None)
    assert read(made.readers) == [None, None]


def test_sums_that_are_begun_anew_get_what_follows() -> None:
    made = Made()
    made.fast.put(1.0, {"model": "a"}, None)
    for storage in made.provider._measurement_consumer._reader_storages.values():
        storage._instrument_view_instrument_matches.clear()
    made.fast.forget()
    made.fast.put(2.0, {"model": "a"}, None)
    made.fast.put(4.0, {"model": "a"}, None)
    (metric,) = read(made.readers)[0]["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    assert metric["data"]["data_points"][0]["sum"] == 6.0


def test_reader_that_comes_later_gets_what_follows() -> None:
    made = Made()
    if not hasattr(made.provider, "add_metric_reader"):
        pytest.skip("this SDK takes no reader later")
    made.fast.put(1.0, {"model": "a"}, None)
    later = InMemoryMetricReader()
    made.provider.add_metric_reader(later)
    for value in (2.0, 4.0):
        made.fast.put(value, {"model": "a"}, None)
    (metric,) = read([later])[0]["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    assert metric["data"]["data_points"][0]["sum"] == 6.0


def test_instrument_that_is_switched_off_gets_nothing() -> None:
    made = Made()
    made.fast.put(1.0, {"model": "a"}, None)
    if not hasattr(made.instrument, "_is_enabled"):
        pytest.skip("this SDK cannot switch a meter off")
    made.fast._is_enabled = made.instrument._is_enabled = lambda: False
    made.fast.put(2.0, {"model": "a"}, None)
    (metric,) = read(made.readers)[0]["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    assert metric["data"]["data_points"][0]["sum"] == 1.0


def test_series_beyond_the_limit_go_through_the_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "_SERIES_MAX", 2)
    made = Made()
    for _ in range(3):
        for model in "abc":
            made.fast.put(1.0, {"model": model}, None)
    assert made.through == 2 + 3
    (metric,) = read(made.readers)[0]["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    assert [point["count"] for point in metric["data"]["data_points"]] == [3, 3, 3]


def test_instruments_of_another_sdk_get_every_point() -> None:
    class Other:
        def __init__(self) -> None:
            self.given: list[float] = []

        def record(self, value: float, attributes: object, context: object) -> None:
            self.given.append(value)

    other = Other()
    for made in (
        FastInstrument(other, "histogram"),
        FastInstrument(NoOpMeterProvider().get_meter("t").create_histogram("h"), "histogram"),
    ):
        for value in (1.0, 2.0, 3.0):
            made.put(value, {"model": "a"}, None)
    assert other.given == [1.0, 2.0, 3.0]


def test_instrument_that_somebody_listens_in_to_gets_every_point() -> None:
    instrument: Any = provider()[0].get_meter("test").create_histogram("it")
    record, heard = instrument.record, []

    def listening(value: float, *arguments: Any) -> None:
        heard.append(value)
        record(value, *arguments)

    instrument.record = listening
    made = FastInstrument(instrument, "histogram")
    for value in (1.0, 2.0, 3.0):
        made.put(value, {"model": "a"}, None)
    assert heard == [1.0, 2.0, 3.0]


def _without_exemplars(given: Any) -> Any:
    if isinstance(given, dict):
        return {key: _without_exemplars(value) for key, value in given.items() if key != "exemplars"}
    return [_without_exemplars(part) for part in given] if isinstance(given, list) else given
