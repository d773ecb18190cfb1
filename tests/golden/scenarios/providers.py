"""Samplers, limits, processors, views: the program's own SDK, and when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, AlwaysOnExemplarFilter
from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, sampling
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, SpanContext, TraceFlags, TraceState

import inferspan
from golden import internals
from golden.outcome import raised
from golden.scenarios.parts import IDS, THREE, called, classifier, each, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("providers")


def _work(stage: Stage) -> Any:
    """A generation under a span of the program's, and without; a lazy result."""
    model = lm()
    with stage.tracer.start_as_current_span("request"):
        first = model.generate(IDS, max_new_tokens=3)
    return [first, called(model, IDS), list(classifier()(each(THREE[:1])))]


# -- samplers ----------------------------------------------------------------------------------------------------------


class Own(sampling.Sampler):
    """A sampler of the program's own: decides by name, sets an attribute and a trace state."""

    def __init__(self, decisions: dict[str, sampling.Decision], default: sampling.Decision) -> None:
        self.decisions, self.default = decisions, default

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any) -> Any:
        decision = self.decisions.get(name.split()[0], self.default)
        return sampling.SamplingResult(decision, {"sampler.name": name}, TraceState([("vendor", "1")]))

    def get_description(self) -> str:
        return "own"


_RECORD_ONLY, _KEEP, _DROP = (
    sampling.Decision.RECORD_ONLY,
    sampling.Decision.RECORD_AND_SAMPLE,
    sampling.Decision.DROP,
)
_SAMPLERS: dict[str, Callable[[], sampling.Sampler]] = {
    "always on": lambda: sampling.ALWAYS_ON,
    "always off": lambda: sampling.ALWAYS_OFF,
    "by parent, off": lambda: sampling.DEFAULT_OFF,
    "ratio 0": lambda: sampling.TraceIdRatioBased(0.0),
    "ratio 1": lambda: sampling.TraceIdRatioBased(1.0),
    "by parent, ratio 0": lambda: sampling.ParentBasedTraceIdRatio(0.0),
    "recording only": lambda: Own({}, _RECORD_ONLY),
    "own": lambda: Own({}, _KEEP),
    "own, without some children": lambda: Own({"prefill": _DROP, "tokenize": _DROP}, _KEEP),
    "own, without roots": lambda: Own({"text_completion": _DROP, "text-classification": _DROP}, _KEEP),
}


def _sampled(sampler: Callable[[], sampling.Sampler], stage: Stage) -> Any:
    # what is recorded and not sampled comes to processors, and not to exporters
    stage.provide(sampler=sampler(), processors=[Ends(stage.say)])
    stage.instrument()
    return _work(stage)


GROUP.update({f"sampler, {name}": partial(_sampled, sampler) for name, sampler in _SAMPLERS.items()})


def _below(flags: int, is_remote: bool, stage: Stage) -> Any:
    stage.instrument()
    state = TraceState([("vendor", "2")])
    above = NonRecordingSpan(SpanContext(0x1234, 0x5678, is_remote, TraceFlags(flags), state))
    with trace.use_span(above):
        return _work(stage)


GROUP["parent, remote and sampled"] = partial(_below, 1, True)
GROUP["parent, remote and not sampled"] = partial(_below, 0, True)
GROUP["parent, local and sampled"] = partial(_below, 1, False)
GROUP["parent, local and not sampled"] = partial(_below, 0, False)


# -- limits and processors ---------------------------------------------------------------------------------------------

_LIMITS = {
    "attributes": {"max_span_attributes": 5, "max_event_attributes": 1},
    "length": {"max_span_attribute_length": 6},
    "events": {"max_events": 0},
}


def _limited(limits: dict[str, int], stage: Stage) -> Any:
    stage.provide(span_limits=SpanLimits(**limits))
    stage.instrument()
    model = lm()
    return [model.generate(IDS, max_new_tokens=3), raised(lambda: model(None)).split()[:2]]


GROUP.update({f"limits, {name}": partial(_limited, limits) for name, limits in _LIMITS.items()})


class Starts(SpanProcessor):
    """Looks at spans that start."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        span.set_attribute("seen.attributes", sorted(span.attributes or {}))


class Ends(SpanProcessor):
    """Takes spans of ours that are over, and tells of them; the program's own come from another thread."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_end(self, span: ReadableSpan) -> None:
        if span.instrumentation_scope.name == "test":
            return
        sampled = "" if span.context.trace_flags.sampled else ", not sampled"
        self.say(f"processor got {span.name} with {len(span.attributes or {})} attributes{sampled}")


class Ending(SpanProcessor):
    """Looks at spans that are of ours that are about to end, and tells their names."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def _on_ending(self, span: Span) -> None:
        if span.instrumentation_scope.name != "test":
            self.say(f"processor saw {span.name} ending")


class Raises(SpanProcessor):
    """Fails at each end."""

    def on_end(self, span: ReadableSpan) -> None:
        raise ConnectionError("secret words")


_PROCESSORS: dict[str, Callable[[Stage], SpanProcessor]] = {
    "at the start": lambda stage: Starts(),
    "at the end": lambda stage: Ends(stage.say),
    "about to end": lambda stage: Ending(stage.say),
}


def _processed(make: Callable[[Stage], SpanProcessor], stage: Stage) -> Any:
    stage.provide(processors=[make(stage)])
    stage.instrument()
    return _work(stage)


GROUP.update({f"processor, {name}": partial(_processed, make) for name, make in _PROCESSORS.items()})


@GROUP
def processor_that_raises(stage: Stage) -> Any:
    """Told as a fault of ours; the program notices nothing."""
    internals.faults_are_counted(stage.patch)
    stage.provide(processors=[Raises()])
    stage.instrument()
    return called(tiny.classifier(), IDS)


@GROUP
def processor_added_meanwhile(stage: Stage) -> Any:
    """Between two inferences, and it looks at starts."""
    stage.instrument()
    model = tiny.classifier()
    first = called(model, IDS)
    stage.tracer_provider.force_flush()
    stage.tracer_provider.add_span_processor(Starts())
    return [first, called(model, IDS)]


@GROUP
def program_sets_on_our_root(stage: Stage) -> Any:
    """Attributes, an event, a status and a name of the program's, on the span that is current in a forward."""
    stage.instrument()
    model = lm()

    def touch(*_: Any) -> None:
        span = trace.get_current_span()
        span.set_attribute("my.attribute", 1)
        span.set_attribute("gen_ai.usage.input_tokens", 1000)
        span.add_event("my.event", {"a": 1})
        span.add_link(SpanContext(0x1234, 0x5678, True), {"b": 2})
        span.set_status(trace.Status(trace.StatusCode.ERROR, "mine"))

    model.register_forward_hook(touch)
    return model.generate(IDS, max_new_tokens=1)


@GROUP
def program_renames_our_root(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer"):
        trace.get_current_span().update_name("mine")
        with inferspan.inference("inner").phase("look"):
            trace.get_current_span().set_attribute("my.attribute", trace.get_current_span().is_recording())


# -- views, exemplars, other providers ---------------------------------------------------------------------------------

_VIEWS = {
    "renamed": [View(instrument_name="gen_ai.client.operation.duration", name="renamed")],
    "dropped": [View(instrument_name="inferspan.*", aggregation=DropAggregation())],
    "fewer attributes": [View(instrument_name="*", attribute_keys={"gen_ai.operation.name"})],
    "no attributes": [View(instrument_name="inferspan.phase.duration", attribute_keys=set())],
    "exponential": [
        View(instrument_name="gen_ai.client.token.usage", aggregation=ExponentialBucketHistogramAggregation())
    ],
    "two of one": [
        View(instrument_name="gen_ai.client.token.usage", name="one", attribute_keys={"gen_ai.token.type"}),
        View(instrument_name="gen_ai.client.token.usage", name="two"),
    ],
}


def _viewed(views: list[View], stage: Stage) -> Any:
    stage.provide(meter={"views": views})
    stage.instrument()
    model = lm()
    return [model.generate(IDS, max_new_tokens=3), model.generate(IDS[:1], max_new_tokens=2)]


GROUP.update({f"views, {name}": partial(_viewed, views) for name, views in _VIEWS.items()})


def _exemplars(meter: dict[str, Any], sampler: Any, stage: Stage) -> Any:
    stage.exemplars = True
    stage.provide(meter=meter, sampler=sampler)
    stage.instrument()
    model = lm()
    with stage.tracer.start_as_current_span("request"):
        first = model.generate(IDS, max_new_tokens=3)
    stage.collect()
    return [first, model.generate(IDS, max_new_tokens=3)]


_ALWAYS, _NEVER = {"exemplar_filter": AlwaysOnExemplarFilter()}, {"exemplar_filter": AlwaysOffExemplarFilter()}
GROUP["exemplars, by trace"] = partial(_exemplars, {}, sampling.ALWAYS_ON)
GROUP["exemplars, by trace, not sampled"] = partial(_exemplars, {}, sampling.ALWAYS_OFF)
GROUP["exemplars, always"] = partial(_exemplars, _ALWAYS, sampling.ALWAYS_OFF)
GROUP["exemplars, never"] = partial(_exemplars, _NEVER, sampling.ALWAYS_ON)


@GROUP
def no_provider(stage: Stage) -> Any:
    inferspan.instrument()
    return _work(stage)


@GROUP
def providers_that_do_nothing(stage: Stage) -> Any:
    inferspan.instrument(tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
    return _work(stage)


@GROUP
def tracer_provider_alone(stage: Stage) -> Any:
    inferspan.instrument(tracer_provider=stage.tracer_provider)
    return _work(stage)


@GROUP
def meter_provider_alone(stage: Stage) -> Any:
    inferspan.instrument(meter_provider=stage.meter_provider)
    return _work(stage)
