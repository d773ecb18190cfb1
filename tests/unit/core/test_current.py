"""The way into and out of an inference: forks, exits, and a sink that comes and goes."""

from __future__ import annotations

import threading
from itertools import count
from time import sleep
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

import inferspan
from inferspan import semconv
from inferspan.core import current, process
from inferspan.core.errors import is_cancellation
from inferspan.core.record import Inference
from support import cheap
from support.children import in_child, needs_fork
from support.recorder import Recorder


def opened(operation: str = "work") -> Inference:
    inference = current.open_inference(current.make_plan(operation))
    assert inference is not None
    return inference


# Forks


@needs_fork
def test_fork_within_an_inference_leaves_it_to_the_parent(recorder: Recorder) -> None:
    block = inferspan.inference("parents")
    block.__enter__()

    def child() -> Any:
        with block.phase("lost"):
            block.set_attribute("lost", 1)
        with inferspan.inference("inside the parents"):
            pass
        active = current.here()
        inside = (active is not None and active.is_suppressed, len(current.state.open))
        block.__exit__(None, None, None)
        outside = current.here()
        with inferspan.inference("childs") as own, own.phase("think"):
            pass
        return inside, outside, recorder.trees()

    # a block of its own is an inference wherever it is, and after the parents' is left hooks record again
    assert in_child(child) == repr(((True, 0), None, ["inside the parents", ("childs", "think")]))
    with block.phase("kept"):
        pass
    block.__exit__(None, None, None)
    assert recorder.trees() == [("parents", "kept")]


@needs_fork
def test_fork_within_a_phase_leaves_it_to_the_parent(recorder: Recorder) -> None:
    with inferspan.inference("parents") as block:
        phase = block.phase("think")
        phase.__enter__()

        def child() -> Any:
            phase.__exit__(None, None, None)
            block.__exit__(None, None, None)
            with inferspan.inference("childs"):
                pass
            return recorder.trees()

        assert in_child(child) == "['childs']"
        phase.__exit__(None, None, None)

    assert recorder.trees() == [("parents", "think")]


@needs_fork
def test_fork_with_records_queued_leaves_them_to_the_parent(recorder: Recorder) -> None:
    for _ in range(3):
        with inferspan.inference("parents"):
            pass

        def child() -> Any:
            recorder.exporter.clear()
            with inferspan.inference("childs"):
                pass
            inferspan.force_flush()
            return [span.name for span in recorder.exporter.get_finished_spans()]

        assert in_child(child) == "['childs']"

    assert recorder.trees() == ["parents"] * 3


@needs_fork
def test_fork_child_reads_its_own_memory(recorder: Recorder) -> None:
    def child() -> Any:
        with inferspan.inference("childs"):
            pass
        return "inferspan.process.memory_usage" in recorder.attributes("childs")

    assert in_child(child) == "True"


@needs_fork
def test_fork_child_starts_a_worker_of_its_own(recorder: Recorder) -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "inferspan-worker"]

    with inferspan.inference("parents"):
        pass
    assert names() == ["inferspan-worker"]

    def child() -> Any:
        before = names()
        with inferspan.inference("childs"):
            pass
        return before, names()

    assert in_child(child) == "([], ['inferspan-worker'])"


# Open and close


def test_enter_and_leave_restore_the_context(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("outer") as outer:
        before = otel_context.get_current()
        inference = opened()
        assert trace.get_current_span() is outer
        active = current.enter(inference)
        assert trace.get_current_span() is inference.root
        assert current.here() is active
        assert (active.inference, active.phase) == (inference, None)
        current.leave(active)
        assert (otel_context.get_current(), current.here()) == (before, None)
        current.close(inference)

    assert recorder.trees() == [("outer", "work")]


def test_close_twice_hands_on_once(recorder: Recorder) -> None:
    inference = opened()
    for _ in range(2):
        current.close(inference)

    assert recorder.trees() == ["work"]


def test_close_from_many_threads_hands_on_once(recorder: Recorder) -> None:
    for _ in range(20):
        inference = opened()
        start = threading.Barrier(4)

        def work(inference: Any = inference, start: threading.Barrier = start) -> None:
            start.wait()
            current.close(inference)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert recorder.trees() == ["work"] * 20


def test_close_with_the_type_of_an_error_alone_has_it(recorder: Recorder) -> None:
    inference = opened()
    current.close(inference, failed="some.Error")

    assert recorder.attributes("work")["error.type"] == "some.Error"
    (event,) = recorder.span("work").events
    assert event.attributes == {"exception.type": "some.Error"}


def test_what_runs_is_counted(recorder: Recorder) -> None:
    assert len(current.state.open) == 0
    with inferspan.inference("outer"):
        assert len(current.state.open) == 1
        assert recorder.points("inferspan.inference.active")[0].value == 1
    assert len(current.state.open) == 0
    assert recorder.points("inferspan.inference.active")[0].value == 0


def test_abandon_open_ends_what_still_runs_as_abandoned(recorder: Recorder) -> None:
    block = inferspan.inference("answer")
    block.__enter__()
    with block.phase("think"):
        pass
    process.abandon_open()
    block.__exit__(None, None, None)

    assert recorder.trees() == [("answer", "think")]
    assert recorder.attributes("answer")["inferspan.abandoned"] is True
    assert len(current.state.open) == 0


def test_abandon_open_cuts_off_the_phase_that_runs_and_leaves_out_what_comes_later(recorder: Recorder) -> None:
    block = inferspan.inference("job")
    with block, block.phase("first"):
        pass
    with inferspan.inference("in flight") as block:
        with block.phase("first"):
            pass
        with block.phase("second"):
            process.abandon_open()
        with block.phase("third"):
            pass

    assert recorder.trees() == [("job", "first"), ("in flight", "first", "second")]


def test_abandon_open_inside_of_an_item_of_a_stream_ends_behind_what_is_known_of_it(recorder: Recorder) -> None:
    pipe = cheap.pipeline()
    forwards = count()

    def hook(*_: Any) -> None:
        if next(forwards) == 1:
            process.abandon_open()

    pipe.model.register_forward_hook(hook)
    stream = iter(pipe(item for item in (1, 2)))
    assert [next(stream), next(stream)] == [1, 2]

    (found,) = recorder.trees()  # which looks whether all are inside of the root
    assert found[1:] == ("preprocess", "forward", "postprocess", "preprocess", "forward")
    root = recorder.span("cheap")
    assert root.attributes[semconv.BUSY_TIME] <= (root.end_time - root.start_time) * 1e-9


def test_abandon_open_waits_for_what_another_thread_hands_on(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, awaited = threading.Event(), threading.Event()
    sink = current.state.sink
    assert sink is not None
    submit = sink.submit
    was_awaited = []

    def submit_late(record: Any) -> None:
        begun.set()
        was_awaited.append(awaited.wait(30))
        submit(record)

    def pause(seconds: float) -> None:
        awaited.set()
        sleep(seconds)

    monkeypatch.setattr(sink, "submit", submit_late)
    monkeypatch.setattr(process, "sleep", pause)

    def work() -> None:
        with inferspan.inference("job"):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    inferspan.uninstrument()
    thread.join()

    assert was_awaited == [True]
    assert recorder.trees() == ["job"]
    assert semconv.ABANDONED not in recorder.span("job").attributes


def test_settings_are_there_while_instrumented_only(bare_recorder: Recorder) -> None:
    assert current.settings() is None
    bare_recorder.instrument(children_max=3)
    settings = current.settings()
    assert settings is not None
    assert settings.children_max == 3
    inferspan.uninstrument()
    assert current.settings() is None


def test_phase_outside_of_any_inference_is_a_span_of_its_own(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("request"):
        phase = current.begin_phase("tokenize")
        assert phase is not None
        current.end_phase(phase, "me/model")

    assert recorder.trees() == [("request", "tokenize")]
    assert recorder.attributes("tokenize") == {"gen_ai.request.model": "me/model"}
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase", "gen_ai.request.model") == {
        ("tokenize", "me/model"): 1
    }


def test_phase_while_suppressed_is_none(recorder: Recorder) -> None:
    assert current.run_suppressed(current.begin_phase, ("tokenize",), {}) is None


def test_phase_while_not_instrumented_is_none() -> None:
    assert current.begin_phase("tokenize") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("CancelledError", True, id="cancelled"),
        pytest.param("OperationCanceled", True, id="spelled otherwise"),
        pytest.param("TimeoutError", False, id="timeout"),
    ],
)
def test_is_cancellation_by_name(name: str, expected: bool) -> None:
    assert is_cancellation(type(name, (Exception,), {})()) is expected
