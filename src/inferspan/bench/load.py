"""The load: who asks when. It makes requests and notes when each was due and when it began, and measures nothing.

Closed loop: each of ``concurrency`` workers asks again as soon as it has its answer. One worker is the calling thread
itself, as in a plain program. Open loop: requests are due at times of their own, and wait where all threads are busy;
since their latency counts from the time at which they were due, a stall shows in every request that it delays.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

from inferspan.bench.recorder import REQUEST, Request

FAILURES_MAX = 3
"""Failures one after the other that end a turn."""
_POLL_S = 0.2


@dataclass(slots=True)
class Turn:
    """What one turn asks for. ``requests_max`` and ``duration_s``: it ends with whatever comes first, but not before
    ``requests_min``. ``arrivals``: of the open loop, in seconds after its begin; ``None`` for the closed one."""

    call: Callable[[list[Any]], Any]
    batches: Iterator[list[Any]]
    number: int
    requests_max: int
    requests_min: int
    duration_s: float
    concurrency: int
    arrivals: Iterator[float] | None
    began: float
    """Reading of ``perf_counter`` from which offsets count."""
    advanced: Callable[[float], None]
    """Hears which share of the turn is done."""


@dataclass(slots=True)
class Asked:
    """The requests of a turn, those that failed too, by number; ``failure`` is the exception that ended it."""

    requests: dict[int, Request] = field(default_factory=dict)
    duration_s: float = 0.0
    failure: BaseException | None = None
    interrupted: bool = False


class Load:
    """Runs turns. Numbers of requests are never used twice."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def run(self, turn: Turn, is_fatal: Callable[[BaseException], bool]) -> Asked:
        """One turn. Ctrl-C ends it, and what was asked until then counts."""
        asked = Asked()
        began = perf_counter()
        try:
            if turn.arrivals is None and turn.concurrency == 1:
                self._alone(turn, asked, began, is_fatal)
            else:
                _Workers(self._ask, turn, asked, began, is_fatal).run()
        except KeyboardInterrupt:
            asked.interrupted = True
        asked.duration_s = perf_counter() - began
        return asked

    def _alone(self, turn: Turn, asked: Asked, began: float, is_fatal: Callable[[BaseException], bool]) -> None:
        failures = 0
        while not _is_over(turn, asked, perf_counter() - began):
            now = perf_counter()
            error = self._ask(turn, asked, next(turn.batches), now)
            failures = failures + 1 if error is not None else 0
            if error is not None and (is_fatal(error) or failures >= FAILURES_MAX):
                asked.failure = error
                return

    def _ask(self, turn: Turn, asked: Asked, batch: list[Any], intended: float) -> BaseException | None:
        """One request. The clock is read before it, and nothing of ours comes between that and the call."""
        number = next(self._numbers)
        token = REQUEST.set(number)
        start = perf_counter()
        try:
            turn.call(batch)
            error = None
        except Exception as caught:  # noqa: BLE001 - the target's own
            error = caught
        finally:
            REQUEST.reset(token)
        intended_s = (start if turn.arrivals is None else intended) - turn.began
        asked.requests[number] = Request(intended_s, start - turn.began, turn.number, error)
        return error


_Job = tuple[list[Any], float]
"""A batch, and the reading of ``perf_counter`` at which it is due."""


class _Workers:
    """Threads that make the requests of one turn side by side."""

    def __init__(
        self,
        ask: Callable[[Turn, Asked, list[Any], float], BaseException | None],
        turn: Turn,
        asked: Asked,
        began: float,
        is_fatal: Callable[[BaseException], bool],
    ) -> None:
        self._ask = ask
        self._turn = turn
        self._asked = asked
        self._began = began
        self._is_fatal = is_fatal
        self._due: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures = self._running = 0

    def run(self) -> None:
        workers = [
            threading.Thread(target=self._work, name=f"inferspan-bench-{number}", daemon=True)
            for number in range(self._turn.concurrency)
        ]
        for worker in workers:
            worker.start()
        try:
            if self._turn.arrivals is not None:
                self._arrive(self._turn.arrivals)
            while any(worker.is_alive() for worker in workers):
                for worker in workers:
                    worker.join(timeout=_POLL_S)  # short, so that Ctrl-C is heard
        except BaseException:
            self._stop.set()
            raise
        finally:
            for _ in workers:
                self._due.put(None)
            for worker in workers:
                worker.join()

    def _work(self) -> None:
        while True:
            job = self._due.get() if self._turn.arrivals is not None else self._next_of_closed_loop()
            if job is None or self._stop.is_set():
                return
            with self._lock:
                self._running += 1
            error = self._ask(self._turn, self._asked, *job)
            with self._lock:
                self._running -= 1
                self._failures = self._failures + 1 if error is not None else 0
                if error is not None and (self._is_fatal(error) or self._failures >= FAILURES_MAX):
                    self._asked.failure = self._asked.failure or error
                    self._stop.set()

    def _next_of_closed_loop(self) -> _Job | None:
        with self._lock:
            elapsed_s = perf_counter() - self._began
            if self._stop.is_set() or _is_over(self._turn, self._asked, elapsed_s, under_way=self._running):
                return None
            return next(self._turn.batches), perf_counter()

    def _arrive(self, arrivals: Iterator[float]) -> None:
        """Put requests in the queue when they are due, and at the end one ``None`` for each worker."""
        turn = self._turn
        for count, at_s in enumerate(arrivals):
            if count >= turn.requests_max or (at_s > turn.duration_s and count >= turn.requests_min):
                break
            while (wait_s := self._began + at_s - perf_counter()) > 0 and not self._stop.is_set():
                sleep(min(wait_s, _POLL_S))
            if self._stop.is_set():
                break
            self._due.put((next(turn.batches), self._began + at_s))
            turn.advanced(min(1.0, max((count + 1) / turn.requests_max, at_s / turn.duration_s)))
        for _ in range(turn.concurrency):
            self._due.put(None)


def _is_over(turn: Turn, asked: Asked, elapsed_s: float, under_way: int = 0) -> bool:
    count = len(asked.requests)
    turn.advanced(min(1.0, max(count / turn.requests_max, elapsed_s / turn.duration_s)))
    return count + under_way >= turn.requests_max or (elapsed_s >= turn.duration_s and count >= turn.requests_min)
