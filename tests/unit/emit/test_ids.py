"""Ids of our own random source: valid, unrepeated, and without any tie to the program's random numbers."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections.abc import Callable
from functools import reduce
from operator import and_, or_

import pytest
from opentelemetry.sdk.trace import TracerProvider

from inferspan.emit.ids import IndependentIdGenerator


def draw(ids: IndependentIdGenerator, count: int = 1) -> list[int]:
    return [draw_one() for _ in range(count) for draw_one in (ids.generate_trace_id, ids.generate_span_id)]


def in_child(action: Callable[[], str]) -> str:
    """What ``action`` returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, action().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_ids_after_the_same_seed_differ() -> None:
    random.seed(0)
    first = draw(IndependentIdGenerator())
    random.seed(0)
    second = draw(IndependentIdGenerator())

    assert set(first).isdisjoint(second)


def test_ids_of_one_generator_after_reseeding_do_not_repeat() -> None:
    ids = IndependentIdGenerator()
    random.seed(0)
    first = draw(ids)
    random.seed(0)

    assert set(first).isdisjoint(draw(ids))


def test_global_random_stream_while_spans_start_is_undisturbed() -> None:
    tracer = TracerProvider(id_generator=IndependentIdGenerator()).get_tracer("test")
    random.seed(0)
    expected = [random.random(), random.random()]
    random.seed(0)
    seen = [random.random()]
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
        seen.append(random.random())

    assert seen == expected


def test_ids_many_are_unique_valid_and_of_all_bits() -> None:
    ids = IndependentIdGenerator()
    traces = {ids.generate_trace_id() for _ in range(20_000)}
    spans = {ids.generate_span_id() for _ in range(20_000)}

    assert (len(traces), len(spans)) == (20_000, 20_000)
    assert 0 not in traces | spans
    assert (reduce(or_, traces), reduce(and_, traces)) == (2**128 - 1, 0)
    assert (reduce(or_, spans), reduce(and_, spans)) == (2**64 - 1, 0)


def test_ids_drawn_as_zero_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros(random.Random):
        """A source that begins with two zeros for each length."""

        def __init__(self, seed: bytes) -> None:
            self.answers = {64: iter([0, 0, 7]), 128: iter([0, 0, 8])}

        def getrandbits(self, k: int) -> int:
            return next(self.answers[k])

    monkeypatch.setattr(random, "Random", Zeros)
    ids = IndependentIdGenerator()

    assert (ids.generate_span_id(), ids.generate_trace_id()) == (7, 8)


def test_ids_from_many_threads_are_unique() -> None:
    ids = IndependentIdGenerator()
    start = threading.Barrier(8)
    drawn: list[list[int]] = []

    def work() -> None:
        start.wait()
        drawn.append(draw(ids, 2_000))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({number for numbers in drawn for number in numbers}) == 8 * 2 * 2_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_ids_in_a_forked_child_differ_from_the_parents() -> None:
    ids = IndependentIdGenerator()
    child = in_child(lambda: repr(draw(ids)))

    assert child != ""
    assert child != repr(draw(ids))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_generator_dropped_before_a_fork_is_not_kept() -> None:
    ids = IndependentIdGenerator()
    gone = weakref.ref(ids)
    del ids
    gc.collect()

    assert gone() is None
    assert in_child(lambda: "alive") == "alive"


def test_trace_ids_are_declared_random() -> None:
    assert IndependentIdGenerator().is_trace_id_random() is True
