"""From a record to its metric points.

Instruments are made from the table in :mod:`inferspan.semconv`. Attributes are bounded: beyond a limit of different
values for a model, an operation or a phase, the value is ``_OTHER``. Points of a sampled trace carry its context, so
that a reader can keep exemplars, but for counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core import rank
from inferspan.emit.fastpath import FastInstrument
from inferspan.emit.spans import time_per_output_token_s, time_to_first_token_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter

    from inferspan.config import Settings
    from inferspan.core.probe import Report
    from inferspan.core.record import Inference, StandalonePhase

_NS = 1e-9
_NAMES_MAX = 50
_COMMON_MAX = 2048

Attributes = dict[str, str | int]


class _Bounded:
    """At most so many different values; the rest is ``_OTHER``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return semconv.OTHER
        self._seen.add(value)
        return value


class Points:
    """The instruments of one meter, and how records become points of them."""

    def __init__(self, meter: Meter, settings: Settings, observe: Callable[[str], Callable[..., Any]]) -> None:
        self._latest = settings.latest_conventions
        self._token_points_max = settings.token_points_max
        self._model = _Bounded(settings.models_max)
        self._operation = _Bounded(_NAMES_MAX)
        self._adapter = _Bounded(_NAMES_MAX)
        self._bounds = {semconv.PHASE_NAME: _Bounded(_NAMES_MAX), semconv.LAYER_NAME: _Bounded(settings.layers_max)}
        self._attributes: dict[tuple[object, ...], tuple[Attributes, Attributes]] = {}
        replaced = {m.replaces for m in semconv.METRICS.values() if m.replaces} if self._latest else set()
        self._instruments: dict[str, FastInstrument] = {}
        for metric in semconv.METRICS.values():
            if metric.source or (metric.opt_in and not self._latest) or metric.name in replaced:
                continue
            instrument = _create(meter, metric, observe)
            if not metric.instrument.startswith("observable"):
                self._instruments[metric.name] = FastInstrument(
                    instrument, metric.instrument, is_allowed=settings.fast_path
                )

    def emit_inference(self, inference: Inference, report: Report) -> None:
        """All points of one finished inference."""
        if inference.end_ns is None:
            return
        context = inference.context if _is_sampled(inference) else None
        common, short = self._common(inference)
        duration = (inference.end_ns - inference.start_ns) * _NS
        failure = inference.failure
        with_error = common if failure is None else {**common, semconv.ERROR_TYPE: failure.type}
        if inference.operation == semconv.LOAD_OPERATION:
            not_of_load = (semconv.OPERATION_NAME, semconv.MODEL_ADAPTER)
            of_load = {name: value for name, value in with_error.items() if name not in not_of_load}
            self._add(semconv.LOAD_DURATION, duration, of_load, context)
            return
        self._add(semconv.OPERATION_DURATION, duration, with_error, context)
        self._add(semconv.INFERENCE_DURATION, duration, with_error, context)
        if failure is not None:
            self._add(semconv.ERRORS, 1, with_error, context)
        if inference.cold:
            self._add(semconv.COLD_STARTS, 1, common, context)
        self._phases(inference, short, duration, context)
        for rows in inference.counts.rows:
            self._add(semconv.BATCH_SIZES, rows, short, context)
        for ratio in inference.counts.padding:
            self._add(semconv.PADDING_RATIOS, ratio, short, context)
        self._tokens(inference, common, with_error, context)
        self._probes(inference, report, short, context)
        if failure is None:
            self._generation(inference, common, short, context)

    def emit_standalone(self, standalone: StandalonePhase) -> None:
        """The point of a phase that belongs to no inference."""
        phase = standalone.phase
        attributes: Attributes = {
            semconv.OPERATION_NAME: phase.name,
            semconv.PHASE_NAME: phase.name,
            **rank.attributes(),
        }
        if standalone.model is not None:
            attributes[semconv.REQUEST_MODEL] = self._model(standalone.model)
        self._add(semconv.PHASE_DURATION, phase.busy_ns * _NS, attributes, standalone.context)

    def count_dropped(self, count: int, reason: str) -> None:
        """Children or records that were left out."""
        self._add(semconv.DROPPED, count, {semconv.DROP_REASON: reason, **rank.attributes()}, None)

    def forget(self) -> None:
        """The sums that there were are gone: a fork."""
        for instrument in self._instruments.values():
            instrument.forget()

    def _probes(self, inference: Inference, report: Report, short: Attributes, context: Context | None) -> None:
        of_model = {name: value for name, value in short.items() if name != semconv.OPERATION_NAME}
        for point in report.points:
            attributes = {**(short if point.of_operation else of_model), **point.attributes}
            for name in self._bounds.keys() & point.attributes.keys():
                attributes[name] = self._bounds[name](point.attributes[name])
            self._add(point.metric, point.value, attributes, context if point.has_exemplar else None)

    def _phases(self, inference: Inference, short: Attributes, duration: float, context: Context | None) -> None:
        bound = self._bounds[semconv.PHASE_NAME]
        if inference.self_phase is not None:
            attributes = {**short, semconv.PHASE_NAME: bound(inference.operation)}
            self._add(semconv.PHASE_DURATION, duration, attributes, context)
        for name, spent in inference.phases.totals_ns.items():
            self._add(semconv.PHASE_DURATION, spent * _NS, {**short, semconv.PHASE_NAME: bound(name)}, context)

    def _tokens(
        self,
        inference: Inference,
        common: Attributes,
        with_error: Attributes,
        context: Context | None,
    ) -> None:
        counts = inference.counts
        for count, kind, histogram, counter in (
            (counts.input_tokens, "input", semconv.INFERENCE_INPUT_TOKENS, semconv.USAGE_INPUT_TOKENS),
            (counts.output_tokens, "output", semconv.INFERENCE_OUTPUT_TOKENS, semconv.USAGE_OUTPUT_TOKENS),
        ):
            if count is None:
                continue
            if self._latest:
                self._add(histogram, count, with_error, context)
                self._add(counter, count, {**common, semconv.TOKEN_MODALITY: "text"}, context)
            else:
                self._add(semconv.TOKEN_USAGE, count, {**common, semconv.TOKEN_TYPE: kind}, context)

    def _generation(self, inference: Inference, common: Attributes, short: Attributes, context: Context | None) -> None:
        first_ns = time_to_first_token_ns(inference)
        if first_ns is None:
            return
        self._add(semconv.SERVER_TIME_TO_FIRST_TOKEN, first_ns * _NS, common, context)
        if inference.is_stream:
            self._add(semconv.INFERENCE_FIRST_CHUNK, first_ns * _NS, common, context)
        per_token = time_per_output_token_s(inference)
        if per_token is not None:
            self._add(semconv.SERVER_TIME_PER_OUTPUT_TOKEN, per_token, common, context)
        # without children (INFERSPAN_CHILDREN_MAX=0, a full queue) the first generation is still there
        phases = inference.phases.kept
        for generation in dict.fromkeys([*(phase.generation for phase in phases), inference.generation]):
            if generation is not None:
                for interval in _spread(generation.intervals_ns, self._token_points_max):
                    self._add(semconv.INTER_TOKEN_DURATION, interval * _NS, short, context)

    def _common(self, inference: Inference) -> tuple[Attributes, Attributes]:
        """Attributes of the GenAI metrics and of our own, made once for each operation, model and rank. Nobody writes
        to them."""
        info, place = inference.info, rank.attributes()
        model, provider, adapter = (None,) * 3 if info is None else (info.name, info.provider, info.adapter)
        key = (inference.operation, model, provider, adapter, *place.values())
        found = self._attributes.get(key)
        if found is None:
            short: Attributes = {semconv.OPERATION_NAME: self._operation(inference.operation), **place}
            common = dict(short)
            if model is not None:
                common[semconv.REQUEST_MODEL] = short[semconv.REQUEST_MODEL] = self._model(model)
                if provider is not None:
                    common[semconv.PROVIDER_NAME] = provider
                if adapter is not None:
                    common[semconv.MODEL_ADAPTER] = self._adapter(adapter)
            found = common, short
            if len(self._attributes) < _COMMON_MAX:
                self._attributes[key] = found
        return found

    def _add(self, name: str, value: float, attributes: Mapping[str, str | int], context: Context | None) -> None:
        instrument = self._instruments.get(name)
        if instrument is not None:
            instrument.put(value, attributes, context)


def _create(meter: Meter, metric: semconv.Metric, observe: Callable[[str], Callable[..., Any]]) -> Any:
    if metric.instrument == "histogram":
        return meter.create_histogram(
            metric.name,
            metric.unit,
            metric.brief,
            explicit_bucket_boundaries_advisory=list(metric.buckets) if metric.buckets else None,
        )
    if metric.instrument == "counter":
        return meter.create_counter(metric.name, metric.unit, metric.brief)
    if metric.instrument == "gauge":
        return meter.create_gauge(metric.name, metric.unit, metric.brief)
    make = getattr(meter, f"create_{metric.instrument}".replace("updowncounter", "up_down_counter"))
    return make(metric.name, [observe(metric.name)], metric.unit, metric.brief)


def _is_sampled(inference: Inference) -> bool:
    return inference.root is not None and inference.root.get_span_context().trace_flags.sampled


def _spread(values: list[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spaced."""
    if len(values) <= count:
        return values
    return [values[i * len(values) // count] for i in range(count)]
