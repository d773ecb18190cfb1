"""The way of every record: submitting waits for nothing, and a probe that fails loses what is its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import perf_counter_ns
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

import inferspan
from inferspan import faults, instrumentor, semconv
from inferspan.config import Settings
from inferspan.core import current
from inferspan.core.probe import Brackets, Point, Probe, Report, Values, begin
from inferspan.core.record import Inference, Overflow, Phase, StandalonePhase
from inferspan.emit.pipeline import Pipeline
from support import records
from support.recorder import Recorder


class Forbidden:
    """A lock that nobody may take."""

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        raise AssertionError("it took a lock")

    __enter__ = __exit__ = release = acquire


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    """Without a thread, and with a queue of two."""
    made = Pipeline(Settings(devices="never", queue_max=2), records.table(), NoOpTracerProvider(), NoOpMeterProvider())
    yield made
    made.close()


def ended() -> Inference:
    made = records.inference()
    records.phase(made, "think")
    made.end_ns = made.start_ns + 1
    return made


def forward(of: Inference, *probes: Probe) -> Phase:
    made = of.begin("forward")
    made.is_forward = True
    made.marks = []
    made.has_ends = begin(made, made.marks, probes, None)
    of.end(made)
    return made


# What may be called anywhere


def test_submitting_takes_no_lock_and_starts_no_thread(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise AssertionError("it started a thread")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline._worker, "_emitting", Forbidden())
        patched.setattr(threading.Thread, "start", start)
        patched.setattr(faults, "note", start)
        for _ in range(3):
            record = ended()
            pipeline.submit(Overflow(record, [forward(record)]))
        for _ in range(20):  # until the queue is full, and beyond
            pipeline.submit(ended())
    assert pipeline._worker._thread is None


def test_submitting_while_another_thread_emits_does_not_wait(pipeline: Pipeline) -> None:
    with pipeline._worker._emitting:
        thread = threading.Thread(target=pipeline.submit, args=(ended(),))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_submitting_from_inside_of_emitting_is_emitted_later(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may run, and close a lazy result, while the worker holds its lock."""
    seen: list[Any] = []

    def report(record: Inference) -> Report:
        if not seen:
            pipeline.submit(ended())
        seen.append(record)
        return Report()

    monkeypatch.setattr(pipeline, "_report", report)
    pipeline.submit(ended())
    assert pipeline.drain(10)
    assert pipeline.drain(10)
    assert len(seen) == 2


def test_thread_starts_with_a_root_and_with_a_standalone_phase(recorder: Recorder) -> None:
    def count() -> int:
        return sum(thread.name == "inferspan-worker" for thread in threading.enumerate())

    sink = current.state.sink
    assert sink is not None
    assert count() == 0
    phase = current.begin_phase("tokenize")
    assert phase is not None
    assert count() == 0
    current.end_phase(phase)
    assert count() == 1


# Ready


class Waiting(Probe):
    name = "waiting"

    def is_ready(self, record: Any, mark: Any) -> bool:
        return bool(mark)


@pytest.mark.parametrize("place", ["the inference", "a kept phase", "itself", "beyond the bound"])
def test_inference_waits_for_each_of_its_marks(pipeline: Pipeline, place: str) -> None:
    record, mark = ended(), []
    noted = [(Waiting(), mark)]
    if place == "the inference":
        record.marks = noted
    elif place == "a kept phase":
        record.phases.kept[0].marks = noted
    else:
        phase = Phase("forward", record, 0)
        phase.marks = noted
        if place == "itself":
            record.self_phase = phase
        else:
            record.phases.overflow.append(phase)
    assert pipeline._is_ready(record) is False
    mark.append(1)
    assert pipeline._is_ready(record) is True


def test_portion_of_forwards_waits_for_each_of_them(pipeline: Pipeline) -> None:
    record, mark = ended(), []
    phases = [Phase("forward", record, 0) for _ in range(3)]
    assert pipeline._is_ready(Overflow(record, phases)) is True
    phases[1].marks = [(Waiting(), mark)]
    assert pipeline._is_ready(Overflow(record, phases)) is False
    mark.append(1)
    assert pipeline._is_ready(Overflow(record, phases)) is True


def test_standalone_phase_waits_for_nothing(pipeline: Pipeline) -> None:
    phase = Phase("tokenize", None, 0)
    phase.marks = [(Waiting(), 0)]
    assert pipeline._is_ready(StandalonePhase(phase, records.inference().parent, None)) is True


# Reported


class Ones(Probe):
    """One for each forward. A sum with what is not known is not known."""

    brackets = Brackets.FORWARD

    def __init__(self, name: str = "ones") -> None:
        self.name = name

    def begin(self, record: Any, model: Any) -> int:
        return 1

    def value(self, phase: Phase, part: str, mark: int) -> int | None:
        return mark

    def add(self, one: int | None, other: int | None) -> int | None:
        return None if one is None or other is None else one + other

    def describe(self, inference: Inference, part: str, values: Values) -> dict[str, Any]:
        return {self.name: values.get(self.name)}

    def report(self, inference: Inference, mark: Any, report: Report) -> None:
        report.results[self.name] = report.totals.get("forward", {}).get(self.name)
        report.attributes[self.name] = report.results[self.name]
        report.points.append(Point(semconv.FLOPS_DONE, 1, {"inferspan.phase": self.name}))


class Whole(Ones):
    """The same of the inference itself."""

    brackets = Brackets.INFERENCE

    def failed(self, inference: Inference, error: BaseException) -> Any:
        return None


def failing(method: str, brackets: Brackets) -> Whole:
    """A probe whose class raises in one method."""

    def fail(self: Probe, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("of the probe")

    cls: type[Whole] = type("Failing", (Whole,), {"brackets": brackets, method: fail})
    return cls("failing")


def test_probes_report_in_the_order_of_the_table_and_see_what_those_before_them_found() -> None:
    class After(Probe):
        name = "after"

        def report(self, inference: Inference, mark: Any, report: Report) -> None:
            report.attributes["seen"] = dict(report.results)

    ones = Ones()
    pipeline = records.pipeline(records.table(ones, After()))
    record = records.inference()
    for _ in range(3):
        forward(record, ones)
    record.self_phase = forward(records.inference(), ones)
    found = pipeline._report(record)

    assert found.attributes == {"ones": 4, "seen": {"ones": 4}}
    assert found.parts == [{"forward": {"ones": 1}}] * 3


def infer(recorder: Recorder, error: Exception | None = None) -> None:
    with inferspan.inference("answer") as block:
        inference = current.open_here()
        assert inference is not None
        for _ in range(2):
            phase = inference.begin("forward")
            current.begin_forward(phase, object(), "cpu", perf_counter_ns())
            inference.end(phase)
        with block.phase("think"):
            pass
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("method", "brackets"),
    [
        pytest.param("begin", Brackets.INFERENCE, id="begin of an inference"),
        pytest.param("begin", Brackets.FORWARD, id="begin of a forward"),
        pytest.param("begin", Brackets.PHASE, id="begin of a phase"),
        pytest.param("end", Brackets.INFERENCE, id="end of an inference"),
        pytest.param("end", Brackets.FORWARD, id="end of a forward"),
        pytest.param("end", Brackets.PHASE, id="end of a phase"),
        pytest.param("failed", Brackets.INFERENCE, id="failed"),
        pytest.param("is_ready", Brackets.INFERENCE, id="is_ready"),
        pytest.param("value", Brackets.FORWARD, id="value"),
        pytest.param("add", Brackets.FORWARD, id="add"),
        pytest.param("describe", Brackets.FORWARD, id="describe"),
        pytest.param("report", Brackets.INFERENCE, id="report"),
    ],
)
def test_probe_that_fails_loses_only_itself_and_is_counted(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch, method: str, brackets: Brackets
) -> None:
    rows = tuple(records.row(probe) for probe in (Ones("before"), failing(method, brackets), Ones("after")))
    monkeypatch.setattr(instrumentor, "TABLE", (*instrumentor.TABLE, *rows))
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    bare_recorder.instrument()
    with pytest.raises(KeyError, match="of the program"):
        infer(bare_recorder, KeyError("of the program"))

    assert bare_recorder.trees() == [("answer", "forward", "forward", "think")]
    found = bare_recorder.attributes("answer")
    assert (found["before"], found["after"], found["error.type"]) == (2, 2, "KeyError")
    assert found["inferspan.process.cpu_time"] is ...
    for span in bare_recorder.spans():
        if span.name == "forward":
            attributes = span.attributes or {}
            assert (attributes["before"], attributes["after"]) == (1, 1)
    by_phase = bare_recorder.counts(semconv.FLOPS_DONE, "inferspan.phase")
    assert (by_phase["before"], by_phase["after"]) == (1, 1)
    assert sum(faults.counts().values()) > 0
    assert bare_recorder.counts("inferspan.overhead.dropped", "inferspan.drop.reason") == {
        "fault": sum(faults.counts().values())
    }


def test_probe_that_fails_to_report_leaves_none_of_its_own(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instrumentor, "TABLE", (records.row(failing("report", Brackets.INFERENCE)),))
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    bare_recorder.instrument()
    with inferspan.inference("answer"):
        pass

    assert bare_recorder.attributes("answer") == {"gen_ai.operation.name": "answer"}
    assert faults.counts() == {"telemetry.probe": 1}


@pytest.mark.parametrize("waiting", [0, 1], ids=["after the first portion", "from the first portion on"])
def test_sum_of_which_a_full_queue_has_dropped_a_part_is_not_known(waiting: int) -> None:
    """A number that is too small would pass for the whole."""
    ones = Ones()
    made = Pipeline(Settings(devices="never", queue_max=1), records.table(ones), NoOpTracerProvider())
    try:
        record = records.inference(hand_over=lambda phases: made.submit(Overflow(record, phases)), children_max=1)
        for _ in range(waiting):
            made.submit(ended())
        for _ in range(1 + 3 * 64):
            forward(record, ones)
        assert made.drain(10)
        report = made._report(record)
    finally:
        made.close()

    assert report.totals["forward"]["ones"] in (1 + 3 * 64, None)
