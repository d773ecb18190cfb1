"""How a point gets to its sums: through its instrument, or straight to the SDK's aggregations.

For each point the SDK checks and copies the attributes, hashes them and looks the views up again: more than half of
what a point costs. Ours come with few different attributes. So the first point of each goes through the instrument;
then the aggregations that the SDK has made for it, one for each reader and view, are looked up once, and given the
rest. Where they are not found (another SDK), every point goes through the instrument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from time import time_ns
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer

Attributes = Mapping[str, str | int]

_STREAMS_MAX = 2048
_RECORDED_BY = {"histogram": "record", "gauge": "set"}
_NOWHERE = Context()


class _Measurement(NamedTuple):
    """What aggregations and reservoirs read of the SDK's class of that name."""

    value: float
    time_unix_nano: int
    instrument: Any
    context: Context
    attributes: Attributes


class MetricFastPath:
    """One synchronous instrument, and the aggregations behind it by attributes."""

    def __init__(self, instrument: Any, kind: str) -> None:
        self._instrument = instrument
        method = _RECORDED_BY.get(kind, "add")
        self._record: Callable[..., None] = getattr(instrument, method)
        # for the others the SDK would choose exemplars by the program's own global random stream
        self._has_exemplars = kind == "histogram"
        self._is_enabled: Callable[[], bool] = getattr(instrument, "_is_enabled", lambda: True)
        self._consumer = _consumer(instrument, method)
        self._storages: object = None
        self._found: dict[tuple[tuple[str, str | int], ...], list[Any]] = {}

    def put(self, value: float, attributes: Attributes, context: Context | None) -> None:
        """One value, whose exemplar points at the span in ``context``."""
        if self._consumer is not None and self._consumer._reader_storages is not self._storages:
            self._storages = self._consumer._reader_storages
            self.forget()  # a reader was added or taken away
        key = tuple(attributes.items())
        aggregations = self._found.get(key)
        if not aggregations or not self._is_enabled() or not 0 <= value < math.inf:
            self._record(value, attributes, *([context] if self._has_exemplars else []))
            if aggregations is None and len(self._found) < _STREAMS_MAX:
                self._found[key] = _aggregations(self._consumer, self._instrument, attributes)
            return
        measurement = _Measurement(value, time_ns(), self._instrument, context or _NOWHERE, attributes)
        chosen = self._has_exemplars and self._consumer._sdk_config.exemplar_filter.should_sample(
            value, measurement.time_unix_nano, attributes, measurement.context
        )
        for aggregation in aggregations:
            aggregation.aggregate(measurement, chosen)

    def forget(self) -> None:
        """Look all up again: the sums begin anew."""
        self._found.clear()


def _consumer(instrument: Any, method: str) -> Any:
    """What the SDK's own instruments give their points to; ``None`` for others, and where somebody listens in."""
    consumer = getattr(instrument, "_measurement_consumer", None)
    is_own = type(consumer) is SynchronousMeasurementConsumer and type(instrument).__module__ == Histogram.__module__
    return consumer if is_own and method not in vars(instrument) else None


def _aggregations(consumer: Any, instrument: Any, attributes: Attributes) -> list[Any]:
    """What a point of these attributes has gone to; empty where that cannot be told."""
    try:
        return [
            _last_with(match._attributes_aggregation.values(), match._view._attribute_keys, attributes)
            for storage in consumer._reader_storages.values()
            for match in storage._get_or_init_view_instrument_match(instrument)
        ]
    except (AttributeError, LookupError):  # an SDK that is built otherwise
        return []


def _last_with(aggregations: Iterable[Any], kept: set[str] | None, attributes: Attributes) -> Any:
    wanted = {name: value for name, value in attributes.items() if kept is None or name in kept}
    for aggregation in reversed(list(aggregations)):
        if aggregation._attributes == wanted:
            return aggregation
    raise LookupError  # the SDK has ignored the point
