"""Python's own allocations by phase: only on request, beside the program's own tracing, put back afterwards."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

import inferspan
from inferspan import semconv
from support.recorder import Recorder

ALLOCATED, PEAK = semconv.HOST_ALLOCATED, semconv.HOST_PEAK


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    if tracemalloc.is_tracing():
        tracemalloc.stop()


def think(recorder: Recorder) -> dict[str, object]:
    kept = []
    with inferspan.inference("answer") as block, block.phase("think"):
        kept.append(bytearray(2_000_000))
        del kept[:]
        kept.append(bytearray(500_000))
    return recorder.attributes("think")


def test_not_by_default(recorder: Recorder) -> None:
    found = think(recorder)
    assert ALLOCATED not in found
    assert not tracemalloc.is_tracing()


def test_by_phase(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(measure={"host_allocations"})
    found = think(bare_recorder)
    assert found[ALLOCATED] == pytest.approx(500_000, abs=50_000)
    assert found[PEAK] == pytest.approx(2_000_000, abs=50_000)
    assert PEAK not in bare_recorder.attributes("answer")
    bare_recorder.close()
    assert not tracemalloc.is_tracing()


def test_a_peak_below_an_earlier_one_is_not_known(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(measure={"host_allocations"})
    bytearray(10_000_000)
    found = think(bare_recorder)
    assert found[ALLOCATED] == pytest.approx(500_000, abs=50_000)
    assert PEAK not in found


def test_the_programs_own_tracing_goes_on(bare_recorder: Recorder) -> None:
    tracemalloc.start(5)
    bare_recorder.instrument(measure={"host_allocations"})
    think(bare_recorder)
    bare_recorder.close()
    assert tracemalloc.is_tracing()
    assert tracemalloc.get_traceback_limit() == 5


def test_tracing_that_the_program_stops_meanwhile_hurts_nobody(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(measure={"host_allocations"})
    tracemalloc.stop()
    assert think(bare_recorder)[ALLOCATED] == 0
    bare_recorder.close()
    assert not tracemalloc.is_tracing()
