"""Metric points of records made up by hand, whole; and where their exemplars point."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import inferspan
from inferspan import semconv
from inferspan.config import Settings
from inferspan.core import current
from inferspan.core.batch import Batch
from inferspan.core.errors import Failure
from inferspan.core.model import ModelInfo
from inferspan.core.probe import Point, Report
from inferspan.core.record import Inference, Phase, StandalonePhase
from inferspan.core.steps import Generation
from inferspan.emit.metrics import Points
from support import records
from support.recorder import Recorder
from support.records import MS, generation

SHORT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "me/model"}
COMMON = {**SHORT, "gen_ai.provider.name": "huggingface"}


OBSERVED = {
    semconv.ACTIVE_INFERENCES: 7,
    semconv.OVERHEAD_HOOKS: 0.5,
    semconv.OVERHEAD_WORKER: 0.25,
    semconv.OVERHEAD_QUEUE: 3,
}


def observe(name: str, options: CallbackOptions) -> Iterator[Observation]:
    yield Observation(OBSERVED[name])


class Meter:
    """Points of one meter, read as plain data."""

    def __init__(self, **settings: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.points = Points(self.provider.get_meter("test"), Settings(**settings), lambda name: partial(observe, name))

    def read(self) -> dict[str, list[tuple[dict[str, Any], int, float]]]:
        """Of each metric its points: attributes, number and sum (of a counter, 1 and its value)."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: [
                (
                    dict(point.attributes),
                    getattr(point, "count", 1),
                    round(point.sum if hasattr(point, "sum") else point.value, 9),
                )
                for point in metric.data.data_points
            ]
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name not in OBSERVED
        }


def inference(operation: str = "chat", model: str | None = "me/model") -> Inference:
    """100 ms long."""
    info = None if model is None else ModelInfo(model, "huggingface")
    return records.ended(records.inference(operation, info, name=operation))


def finish(of: Inference, name: str, busy_ms: int, generated: Generation | None = None) -> None:
    """End a phase that took so long."""
    phase = of.begin(name)
    phase.generation = generated
    of.end(phase)
    of.phases.totals_ns[name] = busy_ms * MS


def generating() -> Inference:
    """A generation of three tokens, with everything else that a record can have."""
    record = inference()
    record.cold = record.is_stream = True
    finish(record, "tokenize", 2)
    record.generation = generation(4, 10, 20, 50, end_ms=60)
    finish(record, "forward", 70, record.generation)
    record.add_batch(None, Batch(rows=2, length=4, tokens=6, positions=8))
    record.counts.add_output(3, True)
    return record


def test_points_of_a_generation_are_all_there() -> None:
    meter = Meter()
    meter.points.emit_inference(generating(), Report())

    assert meter.read() == {
        "gen_ai.client.operation.duration": [(COMMON, 1, 0.1)],
        "gen_ai.client.token.usage": [
            ({**COMMON, "gen_ai.token.type": "input"}, 1, 6),
            ({**COMMON, "gen_ai.token.type": "output"}, 1, 3),
        ],
        "gen_ai.server.time_to_first_token": [(COMMON, 1, 0.01)],
        "gen_ai.server.time_per_output_token": [(COMMON, 1, 0.02)],
        "inferspan.phase.duration": [
            ({**SHORT, "inferspan.phase": "tokenize"}, 1, 0.002),
            ({**SHORT, "inferspan.phase": "forward"}, 1, 0.07),
            ({**SHORT, "inferspan.phase": "prefill"}, 1, 0.006),
            ({**SHORT, "inferspan.phase": "decode"}, 1, 0.05),
        ],
        "inferspan.inter_token.duration": [(SHORT, 2, 0.04)],
        "inferspan.batch.rows": [(SHORT, 1, 2)],
        "inferspan.batch.padding": [(SHORT, 1, 0.25)],
        "inferspan.inference.cold_starts": [(COMMON, 1, 1)],
    }


def test_points_of_a_generation_with_the_latest_conventions_have_the_newer_names() -> None:
    meter = Meter(latest_conventions=True)
    meter.points.emit_inference(generating(), Report())
    found = {name: points for name, points in meter.read().items() if name.startswith("gen_ai.")}

    assert found == {
        "gen_ai.client.inference.duration": [(COMMON, 1, 0.1)],
        "gen_ai.client.inference.time_to_first_chunk": [(COMMON, 1, 0.01)],
        "gen_ai.client.inference.operation.input_tokens": [(COMMON, 1, 6)],
        "gen_ai.client.inference.operation.output_tokens": [(COMMON, 1, 3)],
        "gen_ai.client.inference.usage.input_tokens": [({**COMMON, "gen_ai.token.modality": "text"}, 1, 6)],
        "gen_ai.client.inference.usage.output_tokens": [({**COMMON, "gen_ai.token.modality": "text"}, 1, 3)],
        "gen_ai.server.time_to_first_token": [(COMMON, 1, 0.01)],
        "gen_ai.server.time_per_output_token": [(COMMON, 1, 0.02)],
    }


@pytest.mark.parametrize("latest", [pytest.param(False, id="default"), pytest.param(True, id="latest")])
def test_points_of_what_is_not_streamed_have_no_first_chunk(latest: bool) -> None:
    meter = Meter(latest_conventions=latest)
    record = generating()
    record.is_stream = False
    meter.points.emit_inference(record, Report())

    assert "gen_ai.client.inference.time_to_first_chunk" not in meter.read()


def test_points_of_a_failure_have_its_type_and_no_times_of_tokens() -> None:
    meter = Meter()
    record = inference()
    record.failure = Failure("ValueError", "frames", None)
    record.generation = generation(4, 10, 20, end_ms=30)
    finish(record, "forward", 70, record.generation)
    meter.points.emit_inference(record, Report())

    assert meter.read() == {
        "gen_ai.client.operation.duration": [({**COMMON, "error.type": "ValueError"}, 1, 0.1)],
        "inferspan.inference.errors": [({**COMMON, "error.type": "ValueError"}, 1, 1)],
        "inferspan.phase.duration": [
            ({**SHORT, "inferspan.phase": "forward"}, 1, 0.07),
            ({**SHORT, "inferspan.phase": "prefill"}, 1, 0.006),
            ({**SHORT, "inferspan.phase": "decode"}, 1, 0.02),
        ],
    }


def test_points_without_a_model_name_none_and_no_provider() -> None:
    meter = Meter()
    meter.points.emit_inference(inference("answer", model=None), Report())

    assert meter.read() == {"gen_ai.client.operation.duration": [({"gen_ai.operation.name": "answer"}, 1, 0.1)]}


def test_points_of_a_model_of_another_make_have_no_provider() -> None:
    meter = Meter()
    record = records.ended(records.inference("chat", "me/model"))
    meter.points.emit_inference(record, Report())

    assert meter.read() == {"gen_ai.client.operation.duration": [(SHORT, 1, 0.1)]}


@pytest.mark.parametrize("failed", [pytest.param(False, id="success"), pytest.param(True, id="failure")])
def test_points_of_a_load_are_its_duration_alone(failed: bool) -> None:
    meter = Meter()
    record = inference("load")
    record.failure = Failure("OSError", "", None) if failed else None
    meter.points.emit_inference(record, Report())

    attributes = {"gen_ai.provider.name": "huggingface", "gen_ai.request.model": "me/model"}
    assert meter.read() == {
        "inferspan.load.duration": [({**attributes, "error.type": "OSError"} if failed else attributes, 1, 0.1)]
    }


def test_points_of_a_forward_called_directly_have_it_as_their_phase() -> None:
    meter = Meter()
    record = inference("forward")
    record.self_phase = Phase("forward", record, 0)
    meter.points.emit_inference(record, Report())

    assert meter.read()["inferspan.phase.duration"] == [
        (
            {"gen_ai.operation.name": "forward", "gen_ai.request.model": "me/model", "inferspan.phase": "forward"},
            1,
            0.1,
        )
    ]


def test_points_without_children_are_the_same() -> None:
    """Neither a limit of no children nor a full queue takes anything from the metrics."""
    full, bare = Meter(), Meter()
    full.points.emit_inference(generating(), Report())
    record = generating()
    record.phases.kept = []
    bare.points.emit_inference(record, Report())

    assert bare.read() == full.read()


def test_points_of_a_standalone_phase_have_its_name_and_model() -> None:
    meter = Meter()
    for name, model in (("tokenize", "me/model"), ("detokenize", None)):
        phase = Phase(name, None, 0)
        phase.busy_ns = 3 * MS
        meter.points.emit_standalone(StandalonePhase(phase, Context(), model))

    assert meter.read() == {
        "inferspan.phase.duration": [
            (
                {
                    "gen_ai.operation.name": "tokenize",
                    "inferspan.phase": "tokenize",
                    "gen_ai.request.model": "me/model",
                },
                1,
                0.003,
            ),
            ({"gen_ai.operation.name": "detokenize", "inferspan.phase": "detokenize"}, 1, 0.003),
        ]
    }


def test_points_of_what_was_dropped_have_the_reason() -> None:
    meter = Meter()
    meter.points.count_dropped(3, "queue_full")
    meter.points.count_dropped(2, "queue_full")

    assert meter.read() == {"inferspan.overhead.dropped": [({"inferspan.drop.reason": "queue_full"}, 1, 5)]}


def test_points_of_an_inference_that_goes_on_are_none() -> None:
    meter = Meter()
    record = inference()
    record.end_ns = None
    meter.points.emit_inference(record, Report())

    assert meter.read() == {}


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        pytest.param(0, (0, 0), id="none"),
        pytest.param(2, (2, 0.06), id="few, spread"),
        pytest.param(16, (4, 0.1), id="all"),
    ],
)
def test_points_of_single_tokens_are_as_many_as_allowed(limit: int, kept: tuple[int, float]) -> None:
    meter = Meter(token_points_max=limit)
    record = inference()
    # intervals of 10, 20, 30 and 40 ms
    record.generation = generation(0, 0, 10, 30, 60, 100, end_ms=100)
    finish(record, "forward", 100, record.generation)
    meter.points.emit_inference(record, Report())

    points = meter.read().get("inferspan.inter_token.duration", [])
    assert [point[1:] for point in points] == ([(2, 0.04)] if limit == 2 else [kept] if kept[0] else [])


# What probes report


def test_points_of_probes_begin_with_the_model_and_where_they_say_so_the_operation() -> None:
    meter = Meter()
    report = Report(
        points=[
            Point(semconv.GPU_TIMES, 0.5, {"inferspan.phase": "forward"}),
            Point(semconv.MEMORY_AFTERWARDS, 7, {"inferspan.device": "cuda:0"}, of_operation=False),
        ]
    )
    meter.points.emit_inference(inference(), report)
    found = meter.read()

    assert found[semconv.GPU_TIMES] == [({**SHORT, "inferspan.phase": "forward"}, 1, 0.5)]
    assert found[semconv.MEMORY_AFTERWARDS] == [
        ({"gen_ai.request.model": "me/model", "inferspan.device": "cuda:0"}, 1, 7)
    ]


def test_points_of_probes_without_a_model_or_an_instrument_hurt_nobody() -> None:
    meter = Meter()
    report = Report(points=[Point(semconv.MEMORY_AFTERWARDS, 7, of_operation=False), Point("of another version", 1)])
    meter.points.emit_inference(inference(model=None), report)

    assert meter.read()[semconv.MEMORY_AFTERWARDS] == [({}, 1, 7)]
    assert "of another version" not in meter.read()


def test_points_of_layers_beyond_the_limit_are_other() -> None:
    meter = Meter(layers_max=2)
    report = Report(
        points=[
            Point(semconv.LAYER_CALLS, 1, {semconv.LAYER_NAME: name}, of_operation=False, has_exemplar=False)
            for name in ("0", "1", "2", "0", "3")
        ]
    )
    meter.points.emit_inference(inference(), report)

    assert {attributes[semconv.LAYER_NAME]: value for attributes, _, value in meter.read()[semconv.LAYER_CALLS]} == {
        "0": 2,
        "1": 1,
        "_OTHER": 2,
    }


# Attributes that are bounded


def values(meter: Meter, metric: str, attribute: str) -> dict[Any, int]:
    return {attributes.get(attribute): count for attributes, count, _ in meter.read()[metric]}


def test_models_beyond_the_limit_are_other() -> None:
    meter = Meter(models_max=2)
    for name in ("a", "b", "c", "a", "d"):
        meter.points.emit_inference(inference(model=name), Report())

    assert values(meter, "gen_ai.client.operation.duration", "gen_ai.request.model") == {"a": 2, "b": 1, "_OTHER": 2}


def test_models_of_loads_and_tokenizers_count_towards_the_same_limit() -> None:
    meter = Meter(models_max=1)
    meter.points.emit_inference(inference("load", model="a"), Report())
    meter.points.emit_standalone(StandalonePhase(Phase("tokenize", None, 0), Context(), "b"))

    assert values(meter, "inferspan.load.duration", "gen_ai.request.model") == {"a": 1}
    assert values(meter, "inferspan.phase.duration", "gen_ai.request.model") == {"_OTHER": 1}


def test_operations_beyond_the_limit_are_other() -> None:
    meter = Meter()
    for number in range(60):
        meter.points.emit_inference(inference(f"operation{number}"), Report())
    found = values(meter, "gen_ai.client.operation.duration", "gen_ai.operation.name")

    assert (len(found), found["_OTHER"]) == (51, 10)


def test_phases_beyond_the_limit_are_other() -> None:
    meter = Meter()
    record = inference()
    for number in range(60):
        finish(record, f"phase{number}", 1)
    meter.points.emit_inference(record, Report())
    found = values(meter, "inferspan.phase.duration", "inferspan.phase")

    assert (len(found), found["_OTHER"]) == (51, 10)


def test_attributes_of_many_names_take_bounded_memory() -> None:
    meter = Meter(models_max=2000)
    for number in range(3000):
        meter.points.emit_inference(inference(model=f"model{number}"), Report())

    assert len(meter.points._attributes) == 2048
    assert len(values(meter, "gen_ai.client.operation.duration", "gen_ai.request.model")) <= 2001


# The instruments


@pytest.mark.parametrize(
    ("latest", "absent"),
    [
        pytest.param(
            False,
            {
                "gen_ai.client.inference.duration",
                "gen_ai.client.inference.time_to_first_chunk",
                "gen_ai.client.inference.operation.input_tokens",
                "gen_ai.client.inference.operation.output_tokens",
                "gen_ai.client.inference.usage.input_tokens",
                "gen_ai.client.inference.usage.output_tokens",
            },
            id="default",
        ),
        pytest.param(True, {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}, id="latest"),
    ],
)
def test_instruments_are_those_of_the_table_but_the_other_conventions(latest: bool, absent: set[str]) -> None:
    of_records = {
        name
        for name, metric in semconv.METRICS.items()
        if not metric.source and not metric.instrument.startswith("observable")
    }
    assert of_records - set(Meter(latest_conventions=latest).points._instruments) == absent


def test_instruments_have_unit_description_and_buckets_of_the_table() -> None:
    meter = Meter()
    meter.points.emit_inference(generating(), Report())
    data = meter.reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        row = semconv.METRICS[metric.name]
        assert (metric.unit, metric.description) == (row.unit, row.brief)
        if row.buckets is not None:
            assert tuple(metric.data.data_points[0].explicit_bounds) == row.buckets


def test_what_runs_and_what_it_costs_is_observed_when_collected() -> None:
    data = Meter().reader.get_metrics_data()
    assert data is not None
    metrics = data.resource_metrics[0].scope_metrics[0].metrics

    assert {metric.name: metric.data.data_points[0].value for metric in metrics} == OBSERVED


def test_cost_of_ours_is_reported_and_grows(recorder: Recorder) -> None:
    def read() -> list[float]:
        return [recorder.points(name)[0].value for name in OBSERVED]

    def use() -> None:
        started = [current.open_inference(current.make_plan("chat")) for _ in range(3)]
        for opened in started:
            assert opened is not None
            current.close(opened)

    before = read()  # what was instrumented earlier in this process counts too
    use()
    first = read()
    assert first[0] == 0
    assert before[1] < first[1] < before[1] + 1
    assert before[2] < first[2] < before[2] + 1
    assert first[3] == 3
    use()
    second = read()

    assert second[0] == 0
    assert second[1] > first[1]
    assert second[2] > first[2]
    assert second[3] == 3


# As they are emitted in earnest


def exemplars(recorder: Recorder) -> dict[str, list[int]]:
    """The trace ids of each metric's exemplars, in one collection, since the next has none any more."""
    data = recorder.reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: [exemplar.trace_id for point in metric.data.data_points for exemplar in point.exemplars]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }


def use_while_another_span_flushes(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block, block.phase("think"):
        pass
    with Recorder().tracer.start_as_current_span("health check"):
        recorder.tracer_provider.force_flush()


def test_exemplars_of_a_sampled_trace_point_at_it(recorder: Recorder) -> None:
    use_while_another_span_flushes(recorder)
    trace_id = recorder.span("answer").context.trace_id

    assert exemplars(recorder) == {
        "gen_ai.client.operation.duration": [trace_id],
        "inferspan.phase.duration": [trace_id],
        **{name: [] for name in OBSERVED},
    }


def test_exemplars_of_a_trace_not_sampled_are_none() -> None:
    recorder = Recorder(sampler=ALWAYS_OFF)
    recorder.instrument()
    use_while_another_span_flushes(recorder)

    assert exemplars(recorder) == {
        "gen_ai.client.operation.duration": [],
        "inferspan.phase.duration": [],
        **{name: [] for name in OBSERVED},
    }


def test_metrics_switched_off_are_none(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(metrics=False)
    with inferspan.inference("answer"):
        pass

    assert bare_recorder.trees() == ["answer"]
    assert bare_recorder.metric_names() == set()


def test_metrics_are_complete_at_each_collection(recorder: Recorder) -> None:
    for number in range(1, 4):
        with inferspan.inference("answer"):
            pass
        assert recorder.counts("gen_ai.client.operation.duration") == {(): number}


def test_metrics_after_instrumenting_anew_go_on_without_doubling(
    bare_recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        bare_recorder.instrument()
        with inferspan.inference("answer"):
            pass
        inferspan.uninstrument()
    bare_recorder.instrument()

    assert bare_recorder.counts("gen_ai.client.operation.duration") == {(): 3}
    assert [point.value for point in bare_recorder.points("inferspan.inference.active")] == [0]
    assert caplog.records == []


def test_metrics_of_a_full_queue_count_what_was_dropped(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(queue_max=1, children_max=2)
    # one thread alone: ours would empty the queue meanwhile
    from inferspan.instrumentor import state

    pipeline = state.pipeline
    assert pipeline is not None
    pipeline._worker._no_thread_until = float("inf")
    for _ in range(3):
        with inferspan.inference("answer") as block:
            for name in ("a", "b", "c"):
                with block.phase(name):
                    pass

    assert bare_recorder.counts("inferspan.overhead.dropped", "inferspan.drop.reason") == {
        "queue_full": 4,
        "children_max": 3,
    }
    assert bare_recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"a": 3, "b": 3, "c": 3}


def test_metrics_count_faults_of_our_own(bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    from inferspan import faults

    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {"before": 5})
    bare_recorder.instrument()
    try:
        raise RuntimeError
    except RuntimeError:
        faults.note("somewhere")
    with inferspan.inference("answer"):
        pass

    assert bare_recorder.counts("inferspan.overhead.dropped", "inferspan.drop.reason") == {"fault": 1}
