"""The background worker: the queue between the calling threads and their telemetry, and the thread that empties it.

Finished records are appended to a deque: no lock, no wait, so that it is safe in a garbage-collector callback and in
a signal handler. The thread takes what has come every few milliseconds: one by one it would be in the way of each
inference, and show in the median; a large burst holds the interpreter while the program wants it back many times, and
shows in the P99. So a portion is bounded, and grows with a queue that grows all the same.

Flushing, ``uninstrument()`` and interpreter exit empty the queue on their own thread (:meth:`Worker.drain`), so
nothing depends on the thread being alive: after a fork, or where no thread can be started, records wait for them.

A record whose device is still at work waits for it, and those behind it too: nothing here waits *for* the device, it
only comes back later. After some seconds it is emitted without what the device would have said.

When nothing has come for 200 ms it says so (``at_rest``), again and again until that is taken notice of.

A full queue drops children and counts them; four times as long, where nobody empties it, it drops and counts roots.

A fork waits for the record that is being emitted: the SDK's locks that are held meanwhile would stay held in the child.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter_ns, sleep, thread_time_ns

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation

from inferspan import faults, forks
from inferspan.core.record import Inference, Overflow, StandalonePhase

Record = Inference | StandalonePhase | Overflow

_PAUSE_S = 0.005
_IDLE_MIN_S = 0.02
_IDLE_MAX_S = 0.32
_REST_S = 0.2
_BATCH_SIZE = 8
_DEVICE_TIMEOUT_NS = 5 * 10**9
_ROOTS_MAX = 4  # times the queue's length
_FORK_WAIT_S = 0.5


class Worker:
    """Hands every record to ``emit`` once, in order, one at a time, when ``is_ready`` says so. After that ``at_rest``
    is called when nothing has come for 200 ms, until it returns true; on the background thread alone."""

    def __init__(
        self,
        emit: Callable[[Record], None],
        queue_max: int,
        is_ready: Callable[[Record], bool] = lambda record: True,
        emit_dropped: Callable[[], None] = lambda: None,
        at_rest: Callable[[], bool] = lambda: True,
    ) -> None:
        self._emit = emit
        self._is_ready = is_ready
        self._emit_dropped = emit_dropped
        self._at_rest = at_rest
        self._queue_max = queue_max
        self._records: deque[Record] = deque()
        self._emitting = threading.RLock()
        self._emitter: int | None = None
        self._forker: int | None = None
        self._fork_waits = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._no_thread_until = 0.0
        self.children_dropped = 0
        self.busy_ns = 0
        """CPU time spent in emitting."""
        self.most_waiting = 0
        """Most records that were in the queue at once."""
        forks.register(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def submit(self, record: Record) -> None:
        """Take a finished record."""
        waiting = len(self._records)
        if waiting >= self._queue_max:
            dropped = record.phases.drop() if isinstance(record, Inference) else 0
            if not isinstance(record, Inference) or waiting >= _ROOTS_MAX * self._queue_max:
                if isinstance(record, Overflow):
                    record.inference.phases.is_incomplete = True  # its sums are not known
                else:
                    self.children_dropped += dropped + 1
                return
            self.children_dropped += dropped
        self._records.append(record)
        self.most_waiting = max(self.most_waiting, len(self._records))

    def ensure_running(self) -> None:
        """Start the thread if it does not run. Not to be called where :meth:`submit` alone is safe."""
        if self._thread is not None or self._stop.is_set() or monotonic() < self._no_thread_until:
            return
        thread = threading.Thread(target=self._run, name="inferspan-worker", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending: the next drain emits it all
            self._thread = None
            self._no_thread_until = monotonic() + 10.0

    def drain(self, timeout_s: float) -> bool:
        """Emit everything that has been submitted, on this thread. False if the time did not suffice."""
        if self.emits_here():
            return True  # a span processor that flushes from inside on_end: what it waits for is this very call
        deadline = monotonic() + timeout_s
        waiting = len(self._records)
        while self._emitting.acquire(timeout=max(0.0, deadline - monotonic())):
            try:
                while waiting > 0 and self._records:
                    if monotonic() > deadline:
                        return False
                    emitted = self._emit_next(1)
                    if not emitted:
                        break
                    waiting -= emitted
                else:
                    self._emit_next(0)
                    return True
            finally:
                self._emitting.release()
            sleep(_PAUSE_S)  # without the lock: a fork need not wait for a device
        return False

    def is_used(self) -> bool:
        """Whether anything has been recorded in this process."""
        return self._thread is not None or bool(self._records) or self._no_thread_until > 0

    def emits_here(self) -> bool:
        """Whether this thread is emitting a record just now."""
        return self._emitter == threading.get_ident()

    def stop(self, timeout_s: float) -> None:
        """Emit what is left and end the thread."""
        self._stop.set()
        self.drain(timeout_s)
        thread, self._thread = self._thread, None
        # one that another thread is about to start finds the stop by itself
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(timeout=timeout_s)

    def _run(self) -> None:
        idle, rests_at = _IDLE_MIN_S, math.inf
        while not self._stop.is_set():
            waiting = len(self._records)
            if not waiting:
                if monotonic() >= rests_at and self._at_rest():
                    rests_at = math.inf
                self._stop.wait(min(idle, max(rests_at - monotonic(), _IDLE_MIN_S)))
                idle = min(idle * 2, _IDLE_MAX_S)
                continue
            idle = _IDLE_MIN_S
            with self._emitting:
                self._emit_next(min(waiting, _BATCH_SIZE + waiting // 16))
            rests_at = monotonic() + _REST_S
            sleep(_PAUSE_S)

    def _emit_next(self, most: int) -> int:
        """Emit the first records, up to the first that has to wait, and what was dropped; how many records there were.
        The lock is held, so nobody else takes them."""
        emitted = 0
        with self._apart():
            while emitted < most and not self._fork_waits and self._records and self._may_emit(self._records[0]):
                self._guarded(self._emit, self._records.popleft())
                emitted += 1
            self._guarded(self._emit_dropped)
        return emitted

    @contextmanager
    def _apart(self) -> Iterator[None]:
        self._emitter = threading.get_ident()
        began_ns = thread_time_ns()
        # Out of the context of whoever drains: its span is not what an exemplar of ours should point at.
        token = otel_context.attach(Context())
        try:
            # a processor or exporter that itself runs a model must not make records of that without end
            with suppress_instrumentation():
                yield
        finally:
            otel_context.detach(token)
            self._emitter = None
            self.busy_ns += thread_time_ns() - began_ns

    def _guarded(self, emit: Callable[..., None], *records: Record) -> None:
        try:
            emit(*records)
        except BaseException as error:  # the user's span processors, views and exporters run in there
            # what is no mere exception is for whoever drains; on our thread it is for nobody, and would end it
            if not isinstance(error, Exception) and threading.current_thread() is not self._thread:
                raise
            faults.note("telemetry")

    def _may_emit(self, record: Record) -> bool:
        try:
            return self._is_ready(record) or perf_counter_ns() - (record.end_ns or 0) > _DEVICE_TIMEOUT_NS
        except Exception:  # noqa: BLE001
            faults.note("telemetry.ready")
            return True

    def _before_fork(self) -> None:
        self._fork_waits = True
        if self._emitting.acquire(timeout=_FORK_WAIT_S):  # a processor that blocks does not block the fork
            self._forker = threading.get_ident()
        self._fork_waits = False

    def _after_fork_in_parent(self) -> None:
        if self._forker == threading.get_ident():
            self._forker = None
            self._emitting.release()

    def _after_fork_in_child(self) -> None:
        # The parent emits what the parent saw. Locks may have been held by threads that are not here.
        self._records = deque()
        self._emitting = threading.RLock()
        self._emitter = self._forker = None
        self._fork_waits = False  # for another thread, which is not here
        self.busy_ns = self.most_waiting = 0
        self._no_thread_until = 0.0
        self._stop = threading.Event() if not self._stop.is_set() else self._stop
        self._thread = None
