"""The queue and its thread: everything is emitted once and in order, whatever becomes of the thread."""

from __future__ import annotations

import asyncio
import threading
from time import perf_counter_ns
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.sdk.trace import TracerProvider

from inferspan import faults
from inferspan.core.record import Inference, Phase, StandalonePhase
from inferspan.emit import worker as worker_module
from inferspan.emit.worker import Record, Worker
from support import records
from support.children import in_child, needs_fork
from support.fakenvml import until


def inference(name: str, phases: int = 0) -> Inference:
    made = records.inference(name=name)
    for number in range(phases):
        records.phase(made, f"phase{number}")
    return made


def standalone(name: str) -> StandalonePhase:
    return StandalonePhase(Phase(name, None, 0), Context(), None)


class Emitted:
    """What was emitted, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.enough = threading.Event()
        self.expected = -1

    def __call__(self, record: Record) -> None:
        self.names.append(record.phase.name if isinstance(record, StandalonePhase) else record.plan.name)
        if len(self.names) == self.expected:
            self.enough.set()


# Draining


def test_drain_emits_everything_in_order_and_once() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 100)
    for number in range(50):
        worker.submit(inference(str(number)) if number % 2 else standalone(str(number)))

    assert worker.drain(10) is True
    assert worker.drain(10) is True
    assert emitted.names == [str(number) for number in range(50)]


def test_drain_of_nothing_succeeds_without_time() -> None:
    assert Worker(Emitted(), 100).drain(0) is True


def test_drain_leaves_what_is_submitted_meanwhile() -> None:
    emitted = Emitted()

    def emit(record: Record) -> None:
        emitted(record)
        worker.submit(standalone("another"))

    worker = Worker(emit, 1000)
    worker.submit(inference("first"))
    worker.submit(inference("second"))

    assert worker.drain(10) is True
    assert emitted.names == ["first", "second"]


def test_drain_out_of_time_says_so_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = Emitted()
    clock = iter(range(1000))
    monkeypatch.setattr(worker_module, "monotonic", lambda: next(clock))
    worker = Worker(emitted, 100)
    for name in ("a", "b", "c", "d", "e"):
        worker.submit(inference(name))

    assert worker.drain(3) is False
    assert emitted.names == ["a", "b"]
    assert worker.drain(100) is True
    assert emitted.names == ["a", "b", "c", "d", "e"]


def test_drain_while_another_thread_emits_waits_its_time_only() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def emit(record: Record) -> None:
        begun.set()
        go_on.wait()

    worker = Worker(emit, 100)
    worker.submit(inference("slow"))
    thread = threading.Thread(target=worker.drain, args=(10,))
    thread.start()
    begun.wait()
    assert worker.drain(0) is False
    go_on.set()
    thread.join()

    assert worker.drain(0) is True


def test_drain_from_many_threads_emits_once() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 10_000)
    for number in range(1000):
        worker.submit(inference(str(number)))
    threads = [threading.Thread(target=worker.drain, args=(30,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert emitted.names == [str(number) for number in range(1000)]


def test_drain_from_inside_of_emitting_returns_at_once() -> None:
    emitted = Emitted()

    def emit(record: Record) -> None:
        emitted(record)
        assert worker.drain(0) is True

    worker = Worker(emit, 100)
    worker.submit(inference("a"))
    worker.submit(inference("b"))

    assert worker.drain(10) is True
    assert emitted.names == ["a", "b"]


def test_emitting_happens_outside_of_any_span_and_uninstrumented() -> None:
    seen = []

    def emit(record: Record) -> None:
        seen.append((trace.get_current_span().get_span_context().is_valid, is_instrumentation_enabled()))

    worker = Worker(emit, 100)
    worker.submit(inference("a"))
    with TracerProvider().get_tracer("test").start_as_current_span("drains") as span:
        before = otel_context.get_current()
        worker.drain(10)
        assert (trace.get_current_span(), otel_context.get_current()) == (span, before)

    assert seen == [(False, False)]


def test_emitting_that_raises_is_counted_and_the_rest_is_emitted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    monkeypatch.setattr(faults, "_reported", {})
    emitted = Emitted()

    def emit(record: Record) -> None:
        emitted(record)
        if emitted.names[-1] != "c":
            raise RuntimeError("a span processor")

    worker = Worker(emit, 100)
    for name in ("a", "b", "c"):
        worker.submit(inference(name))

    assert worker.drain(10) is True
    assert emitted.names == ["a", "b", "c"]
    assert faults.counts() == {"telemetry": 2}
    assert len(caplog.records) == 1


# A full queue


def test_queue_that_is_full_keeps_roots_without_their_children_and_counts() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 2)
    records = [inference(name, phases=3) for name in ("a", "b", "c", "d")]
    for record in records:
        worker.submit(record)
    worker.submit(standalone("lost"))

    assert [(len(record.phases.kept), record.phases.dropped) for record in records] == [(3, 0), (3, 0), (0, 3), (0, 3)]
    assert worker.children_dropped == 7
    worker.drain(10)
    assert emitted.names == ["a", "b", "c", "d"]


def test_queue_that_nobody_empties_drops_roots_too_and_counts() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 2)
    for number in range(12):
        worker.submit(inference(str(number), phases=3))

    # two with their children, six without, four not at all
    assert worker.children_dropped == 6 * 3 + 4 * (1 + 3)
    worker.drain(10)
    assert emitted.names == [str(number) for number in range(8)]


def test_drain_emits_what_was_dropped_also_where_nothing_is_queued() -> None:
    asked = []
    worker = Worker(Emitted(), 2, emit_dropped=lambda: asked.append(is_instrumentation_enabled()))

    assert worker.drain(10) is True
    assert asked == [False]


def test_queue_that_was_full_takes_all_again_when_it_is_empty() -> None:
    worker = Worker(Emitted(), 1)
    for name in ("a", "b"):
        worker.submit(inference(name, phases=1))
    worker.drain(10)
    record = inference("c", phases=1)
    worker.submit(record)

    assert (len(record.phases.kept), worker.children_dropped) == (1, 1)


# The thread


def test_thread_emits_by_itself_and_ends_with_stop() -> None:
    emitted = Emitted()
    emitted.expected = 100
    worker = Worker(emitted, 1000)
    worker.ensure_running()
    thread = worker._thread
    assert thread is not None
    assert (thread.daemon, thread.name) == (True, "inferspan-worker")
    worker.ensure_running()
    assert worker._thread is thread
    for number in range(100):
        worker.submit(inference(str(number)))
    assert emitted.enough.wait(30)
    worker.stop(30)

    assert thread.is_alive() is False
    assert emitted.names == [str(number) for number in range(100)]


def test_thread_is_not_started_by_submitting_alone() -> None:
    before = threading.active_count()
    Worker(Emitted(), 100).submit(inference("a"))

    assert threading.active_count() == before


def test_thread_takes_bounded_portions_with_pauses_between(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = Emitted()
    worker = Worker(emitted, 1000)
    pauses: list[float] = []
    portions: list[int] = []

    class Stop:
        """In place of the event: stops as soon as there is nothing left."""

        def is_set(self) -> bool:
            return not worker._records

    def pause(seconds: float) -> None:
        portions.append(len(emitted.names) - sum(portions))
        pauses.append(seconds)
        if len(pauses) == 6:
            worker.submit(inference("late"))

    monkeypatch.setattr(worker, "_stop", Stop())
    monkeypatch.setattr(worker_module, "sleep", pause)
    for number in range(64):
        worker.submit(inference(str(number)))
    worker._run()

    assert portions == [12, 11, 10, 9, 9, 8, 6]  # an eighth of what waits, and eight more
    assert set(pauses) == {0.005}
    assert worker.most_waiting == 64


def test_thread_that_has_nothing_to_do_waits_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(Emitted(), 1000)
    waits: list[float] = []

    class Stop:
        def is_set(self) -> bool:
            return len(waits) == 7

        def wait(self, timeout: float) -> None:
            waits.append(timeout)

    monkeypatch.setattr(worker, "_stop", Stop())
    worker._run()

    assert waits == [0.02, 0.04, 0.08, 0.16, 0.32, 0.32, 0.32]


class Clock:
    """In place of time, and of the event that ends the thread: time passes as the thread waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worker: Worker, end: float) -> None:
        self.now, self._end = 0.0, end
        monkeypatch.setattr(worker_module, "monotonic", lambda: self.now)
        monkeypatch.setattr(worker_module, "sleep", self.wait)
        monkeypatch.setattr(worker, "_stop", self)

    def is_set(self) -> bool:
        return self.now >= self._end

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_thread_says_once_that_nothing_has_come_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[float] = []

    def at_rest() -> bool:
        rested.append(clock.now)
        return True

    worker = Worker(Emitted(), 1000, at_rest=at_rest)
    clock = Clock(monkeypatch, worker, end=10.0)
    worker._run()
    assert rested == []  # nothing has ever come

    for _ in range(2):
        clock = Clock(monkeypatch, worker, end=10.0)
        worker.submit(inference("a"))
        worker._run()

    assert len(rested) == 2
    assert all(0.2 <= at <= 0.23 for at in rested)


def test_thread_asks_again_while_it_is_not_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def at_rest() -> bool:
        asked.append(clock.now)
        return len(asked) == 3

    worker = Worker(Emitted(), 1000, at_rest=at_rest)
    clock = Clock(monkeypatch, worker, end=10.0)
    worker.submit(inference("a"))
    worker._run()

    assert len(asked) == 3
    assert 0.2 <= asked[0] < asked[1] < asked[2] <= 0.3


def test_thread_that_cannot_start_leaves_all_to_the_next_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    now = [100.0]

    def start(self: threading.Thread) -> None:
        tries.append(now[0])
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(worker_module, "monotonic", lambda: now[0])
    emitted = Emitted()
    worker = Worker(emitted, 100)
    for name, now[0] in (("a", 100.0), ("b", 109.0), ("c", 110.5)):
        worker.ensure_running()
        worker.submit(inference(name))

    assert tries == [100.0, 110.5]
    assert worker.drain(10) is True
    assert emitted.names == ["a", "b", "c"]


def test_stop_emits_what_is_left_and_starts_no_thread_again() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 100)
    worker.submit(inference("a"))
    worker.stop(10)
    worker.ensure_running()
    worker.submit(inference("b"))

    assert (emitted.names, worker._thread) == (["a"], None)
    assert worker.drain(10) is True
    assert emitted.names == ["a", "b"]


def test_stop_while_another_thread_starts_ours_lets_it_end(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(Emitted(), 100)
    start = threading.Thread.start
    started = []

    def start_late(self: threading.Thread) -> None:
        worker.stop(30)
        start(self)
        started.append(self)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    worker.ensure_running()
    started[0].join()

    assert len(started) == 1


# Forks


@needs_fork
def test_fork_child_emits_its_own_and_not_the_parents() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 100)
    worker.submit(inference("parents"))

    def child() -> Any:
        worker.drain(10)
        worker.submit(inference("childs"))
        worker.drain(10)
        return emitted.names

    assert in_child(child) == "['childs']"
    worker.drain(10)
    assert emitted.names == ["parents"]


@needs_fork
def test_fork_finds_no_lock_held_by_emitting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FORK_WAIT_S", 60.0)
    begun, lock = threading.Event(), threading.Lock()

    def emit(record: Record) -> None:
        with lock:
            begun.set()
            until(lambda: worker._fork_waits)

    worker = Worker(emit, 100)
    worker.submit(inference("slow"))
    thread = threading.Thread(target=worker.drain, args=(30,))
    thread.start()
    begun.wait()

    assert in_child(lambda: lock.acquire(timeout=5)) == "True"
    thread.join()


@needs_fork
def test_fork_while_emitting_hangs_waits_its_time_and_leaves_no_lock_held_in_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "_FORK_WAIT_S", 0.05)
    begun, go_on = threading.Event(), threading.Event()
    emitted = Emitted()

    def emit(record: Record) -> None:
        emitted(record)
        if emitted.names == ["slow"]:
            begun.set()
            go_on.wait()

    worker = Worker(emit, 100)
    worker.submit(inference("slow"))
    thread = threading.Thread(target=worker.drain, args=(30,))
    thread.start()
    begun.wait()

    def child() -> Any:
        worker.submit(inference("childs"))
        return worker.drain(0.5), emitted.names

    assert in_child(child) == "(True, ['slow', 'childs'])"
    go_on.set()
    thread.join()


@needs_fork
def test_fork_waits_for_the_record_that_another_thread_emits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FORK_WAIT_S", 60.0)
    lock = threading.Lock()  # as the SDK has many
    begun = threading.Event()

    def emit(record: Record) -> None:
        with lock:
            begun.set()
            until(lambda: worker._fork_waits)

    worker = Worker(emit, 100)
    worker.submit(inference("slow"))
    thread = threading.Thread(target=worker.drain, args=(30,))
    thread.start()
    begun.wait()

    assert in_child(lock.locked) == "False"
    thread.join()


@needs_fork
def test_fork_from_inside_of_emitting_leaves_the_lock_as_it_was() -> None:
    found = []

    def emit(record: Record) -> None:
        found.append(in_child(lambda: worker.drain(1)))

    worker = Worker(emit, 100)
    worker.submit(inference("forks"))
    worker.submit(inference("forks again"))
    thread = threading.Thread(target=worker.drain, args=(30,))
    thread.start()
    thread.join()

    assert found == ["True", "True"]
    assert worker.drain(0) is True


@needs_fork
def test_fork_child_of_a_running_thread_starts_another() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 100)
    worker.ensure_running()

    def child() -> Any:
        emitted.expected = 1
        emitted.enough = threading.Event()
        worker.ensure_running()
        worker.submit(inference("childs"))
        return emitted.enough.wait(30), emitted.names

    assert in_child(child) == "(True, ['childs'])"
    worker.stop(10)


@needs_fork
def test_fork_after_the_worker_is_gone_does_nothing() -> None:
    Worker(Emitted(), 100)

    assert in_child(lambda: "alive") == "'alive'"


# A record whose device is still at work


def test_record_that_is_not_ready_is_waited_for_in_order() -> None:
    emitted, ready = Emitted(), threading.Event()
    worker = Worker(emitted, 10, lambda record: record.plan.name != "slow" or ready.is_set())  # type: ignore[union-attr]
    for name in ("first", "slow", "last"):
        made = inference(name)
        made.end_ns = perf_counter_ns()
        worker.submit(made)
    assert worker.drain(0.05) is False
    assert emitted.names == ["first"]
    ready.set()
    assert worker.drain(5) is True
    assert emitted.names == ["first", "slow", "last"]


def test_record_that_never_is_ready_is_emitted_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_DEVICE_TIMEOUT_NS", 20_000_000)
    emitted = Emitted()
    worker = Worker(emitted, 10, lambda record: False)
    made = inference("stuck")
    made.end_ns = perf_counter_ns()
    worker.submit(made)
    assert worker.drain(5) is True
    assert emitted.names == ["stuck"]


def test_record_of_which_readiness_cannot_be_known_is_emitted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    emitted = Emitted()

    def fail(record: Record) -> bool:
        raise RuntimeError

    worker = Worker(emitted, 10, fail)
    worker.submit(inference("any"))
    assert worker.drain(5) is True
    assert emitted.names == ["any"]
    assert faults.counts() == {"telemetry.ready": 1}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_thread_outlives_what_is_no_mere_exception(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    emitted = Emitted()
    emitted.expected = 2

    def emit(record: Record) -> None:
        emitted(record)
        if emitted.names == ["raises"]:
            raise error

    worker = Worker(emit, 100)
    for name in ("raises", "another"):
        worker.submit(inference(name))
    worker.ensure_running()
    try:
        assert emitted.enough.wait(30)
    finally:
        worker.stop(10)
    assert faults.counts() == {"telemetry": 1}


def test_drain_hands_what_is_no_mere_exception_to_the_program() -> None:
    def emit(record: Record) -> None:
        raise KeyboardInterrupt

    worker = Worker(emit, 100)
    worker.submit(inference("interrupted"))

    with pytest.raises(KeyboardInterrupt):
        worker.drain(10)
    assert not worker.emits_here()


@needs_fork
def test_fork_waits_for_one_record_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FORK_WAIT_S", 60.0)
    lock = threading.Lock()
    emitted = Emitted()
    begun = threading.Event()

    def emit(record: Record) -> None:
        with lock:
            if not begun.is_set():
                begun.set()
                until(lambda: worker._fork_waits)
            emitted(record)

    worker = Worker(emit, 1000)
    for number in range(200):
        worker.submit(inference(str(number)))
    thread = threading.Thread(target=worker.drain, args=(60,))
    thread.start()
    begun.wait()

    assert in_child(lambda: (lock.locked(), len(emitted.names) < 100)) == "(False, True)"
    thread.join()
    assert len(emitted.names) == 200


@needs_fork
def test_fork_while_another_thread_waits_to_fork_leaves_a_child_that_emits() -> None:
    emitted = Emitted()
    worker = Worker(emitted, 100)
    worker._fork_waits = True  # as that other thread has left it
    worker._after_fork_in_child()
    worker.submit(inference("own"))

    assert worker.drain(10) is True
    assert emitted.names == ["own"]
