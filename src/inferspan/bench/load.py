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
    """Told which share of the turn is done."""


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
                self._together(turn, asked, began, is_fatal)
        except KeyboardInterrupt:
            asked.interrupted = True
        asked.duration_s = perf_counter() - began
        return asked

    def _alone(self, turn: Turn, asked: Asked, began: float, is_fatal: Callable[[BaseException], bool]) -> None:
        failures = 0
        while not self._is_over(turn, asked, perf_counter() - began):
            now = perf_counter()
            error = self._ask(turn, asked, next(turn.batches), now)
            failures = failures + 1 if error is not None else 0
            if error is not None and (is_fatal(error) or failures >= FAILURES_MAX):
                asked.failure = error
                return

    def _together(self, turn: Turn, asked: Asked, began: float, is_fatal: Callable[[BaseException], bool]) -> None:
        due: queue.SimpleQueue[tuple[list[Any], float] | None] = queue.SimpleQueue()
        stop = threading.Event()
        lock = threading.Lock()
        failures = running = 0

        def closed() -> tuple[list[Any], float] | None:
            with lock:
                if stop.is_set() or self._is_over(turn, asked, perf_counter() - began, under_way=running):
                    return None
                return next(turn.batches), perf_counter()

        def work() -> None:
            nonlocal failures, running
            while True:
                job = due.get() if turn.arrivals is not None else closed()
                if job is None or stop.is_set():
                    return
                with lock:
                    running += 1
                error = self._ask(turn, asked, *job)
                with lock:
                    running -= 1
                    failures = failures + 1 if error is not None else 0
                    if error is not None and (is_fatal(error) or failures >= FAILURES_MAX):
                        asked.failure = asked.failure or error
                        stop.set()

        workers = [
            threading.Thread(target=work, name=f"inferspan-bench-{number}", daemon=True)
            for number in range(turn.concurrency)
        ]
        for worker in workers:
            worker.start()
        try:
            if turn.arrivals is not None:
                self._arrive(turn, due, began, stop)
            while any(worker.is_alive() for worker in workers):
                for worker in workers:
                    worker.join(timeout=_POLL_S)  # short, so that Ctrl-C is heard
        except BaseException:
            stop.set()
            raise
        finally:
            for _ in workers:
                due.put(None)
            for worker in workers:
                worker.join()

    def _arrive(
        self,
        turn: Turn,
        due: queue.SimpleQueue[tuple[list[Any], float] | None],
        began: float,
        stop: threading.Event,
    ) -> None:
        assert turn.arrivals is not None
        for count, at_s in enumerate(turn.arrivals):
            if count >= turn.requests_max or (at_s > turn.duration_s and count >= turn.requests_min):
                break
            while (wait_s := began + at_s - perf_counter()) > 0 and not stop.is_set():
                sleep(min(wait_s, _POLL_S))
            if stop.is_set():
                break
            due.put((next(turn.batches), began + at_s))
            turn.advanced(min(1.0, max((count + 1) / turn.requests_max, at_s / turn.duration_s)))
        for _ in range(turn.concurrency):
            due.put(None)

    def _is_over(self, turn: Turn, asked: Asked, elapsed_s: float, under_way: int = 0) -> bool:
        count = len(asked.requests)
        turn.advanced(min(1.0, max(count / turn.requests_max, elapsed_s / turn.duration_s)))
        return count + under_way >= turn.requests_max or (elapsed_s >= turn.duration_s and count >= turn.requests_min)

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
