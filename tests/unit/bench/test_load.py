"""Closed and open loop: who asks when, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Any

import pytest

from inferspan.bench.load import FAILURES_MAX, Load, Turn
from inferspan.bench.recorder import REQUEST

TIMEOUT_S = 30


def turn(call: Callable[[list[Any]], Any], requests: int = 5, **changes: Any) -> Turn:
    values: dict[str, Any] = {
        "call": call,
        "batches": ([number] for number in count()),
        "number": 3,
        "requests_max": requests,
        "requests_min": 1,
        "duration_s": 60.0,
        "concurrency": 1,
        "arrivals": None,
        "began": perf_counter(),
        "advanced": lambda share: None,
    }
    return Turn(**{**values, **changes})


def never(error: BaseException) -> bool:
    return False


def test_closed_loop_asks_one_after_the_other_on_the_calling_thread() -> None:
    seen: list[tuple[Any, ...]] = []

    asked = Load().run(turn(lambda batch: seen.append((*batch, REQUEST.get(), threading.current_thread()))), never)

    assert seen == [(number, number, threading.main_thread()) for number in range(5)]
    assert list(asked.requests) == [0, 1, 2, 3, 4]
    assert all(request.intended_s == request.start_s for request in asked.requests.values())
    assert {request.turn for request in asked.requests.values()} == {3}
    assert REQUEST.get() is None


def test_numbers_of_requests_are_never_used_twice() -> None:
    load = Load()

    first, second = (load.run(turn(lambda batch: None), never) for _ in range(2))

    assert not first.requests.keys() & second.requests.keys()


def test_time_ends_a_turn_but_not_before_the_least_number() -> None:
    asked = Load().run(turn(lambda batch: None, 100, duration_s=1e-9, requests_min=4), never)

    assert len(asked.requests) == 4


def test_concurrent_workers_ask_at_once() -> None:
    together = threading.Barrier(3)

    asked = Load().run(turn(lambda batch: together.wait(TIMEOUT_S), 6, concurrency=3), never)

    assert len(asked.requests) == 6
    assert asked.failure is None


def test_open_loop_counts_from_when_a_request_was_due() -> None:
    """One thread serves three requests that are due at once: the later ones begin late, and are due as the first."""
    asked = Load().run(turn(lambda batch: threading.Event().wait(0.01), 3, arrivals=iter([0.0, 0.0, 0.0])), never)

    requests = list(asked.requests.values())
    assert len({request.intended_s for request in requests}) == 1
    assert requests[0].start_s < requests[1].start_s < requests[2].start_s
    assert requests[2].start_s - requests[2].intended_s >= 0.02 * 0.9  # it waited for two others


def test_open_loop_ends_with_the_last_arrival() -> None:
    asked = Load().run(turn(lambda batch: None, 100, arrivals=iter([0.0, 0.001, 99.0]), duration_s=1.0), never)

    assert len(asked.requests) == 2


@pytest.mark.parametrize("way", [{}, {"concurrency": 2}, {"arrivals": iter([0.0] * 50)}], ids=["alone", "two", "open"])
def test_failure_that_is_fatal_ends_the_turn(way: dict[str, Any]) -> None:
    def call(batch: list[int]) -> None:
        if batch[0] == 2:
            raise MemoryError("no more")

    asked = Load().run(turn(call, 50, **way), lambda error: isinstance(error, MemoryError))

    assert isinstance(asked.failure, MemoryError)
    assert len(asked.requests) <= 4


def test_single_failures_are_counted_and_a_row_of_them_ends_the_turn() -> None:
    def call(batch: list[int]) -> None:
        if batch[0] in (1, 4, 6, 7, 8, 9):
            raise ValueError(batch[0])

    asked = Load().run(turn(call, 50), never)

    assert [number for number, request in asked.requests.items() if request.error] == [1, 4, 6, 7, 8]
    assert FAILURES_MAX == 3
    assert str(asked.failure) == "8"


@pytest.mark.parametrize("way", [{}, {"arrivals": iter([0.0, 0.0, 0.0])}], ids=["closed", "open"])
def test_interrupt_keeps_what_was_asked(way: dict[str, Any]) -> None:
    def interrupt(share: float) -> None:
        if next(told) >= 2:
            raise KeyboardInterrupt

    told: Iterator[int] = count()

    asked = Load().run(turn(lambda batch: None, advanced=interrupt, **way), never)

    assert asked.interrupted
    assert len(asked.requests) <= 3
