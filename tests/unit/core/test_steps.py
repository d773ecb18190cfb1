"""The clock of a generation, driven by a clock of ours."""

from __future__ import annotations

import pytest

from inferspan.core import steps
from inferspan.core.steps import Generation


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(steps, "perf_counter_ns", clock)
    return clock


def tick(clock: Clock, generation: Generation, *times_ns: int) -> None:
    """One tick at each of the times."""
    for time_ns in times_ns:
        clock.now_ns = time_ns
        generation.tick()


def facts(generation: Generation) -> tuple[int | None, int | None, int, list[int], float | None]:
    return (
        generation.first_token_ns,
        generation.last_token_ns,
        generation.steps,
        generation.intervals_ns,
        generation.time_per_step_ns(),
    )


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param([], (None, None, 0, [], None), id="no loop"),
        pytest.param([1_010], (None, None, 0, [], None), id="loop without a token"),
        pytest.param([1_010, 1_200], (1_200, 1_200, 1, [], None), id="one token"),
        pytest.param([1_010, 1_200, 1_230], (1_200, 1_230, 2, [30], 30.0), id="two tokens"),
        pytest.param([1_010, 1_200, 1_230, 1_300], (1_200, 1_300, 3, [30, 70], 50.0), id="three tokens"),
    ],
)
def test_generation_counts_each_tick_after_the_loop_began(
    clock: Clock, times: list[int], expected: tuple[int | None, int | None, int, list[int], float | None]
) -> None:
    generation = Generation()
    tick(clock, generation, *times)

    assert generation.start_ns == 1_000
    assert facts(generation) == expected


def test_generation_of_several_loops_has_no_interval_between_them(clock: Clock) -> None:
    generation = Generation()
    tick(clock, generation, 1_010, 1_100, 1_110)
    clock.now_ns = 1_120
    generation.tick(False)  # the loop is told to end
    assert generation.in_loop is False
    tick(clock, generation, 5_000)  # the next one begins
    assert generation.in_loop is True
    tick(clock, generation, 5_100, 5_130)

    assert (generation.steps, generation.intervals_ns) == (5, [10, 10, 30])
    assert (generation.first_token_ns, generation.last_token_ns) == (1_100, 5_130)


@pytest.mark.parametrize(
    ("count", "kept", "stride"),
    [
        pytest.param(1_023, 1_023, 1, id="below the bound"),
        pytest.param(1_024, 512, 2, id="at the bound"),
        pytest.param(100_000, 781, 128, id="far beyond"),
    ],
)
def test_generation_of_many_steps_keeps_few_and_spread_over_all(
    clock: Clock, count: int, kept: int, stride: int
) -> None:
    generation = Generation()
    time_ns = 0
    tick(clock, generation, 0, 0)
    for step in range(count):
        time_ns += step
        tick(clock, generation, time_ns)

    assert generation.steps == count + 1
    assert generation.time_per_step_ns() == sum(range(count)) / count
    # the interval of step n is n, so that the numbers say which were kept
    assert (len(generation.intervals_ns), generation.intervals_ns) == (kept, sorted(set(generation.intervals_ns)))
    gaps = [
        later - earlier for earlier, later in zip(generation.intervals_ns, generation.intervals_ns[1:], strict=False)
    ]
    assert all(stride <= gap < 2 * stride for gap in gaps)
    assert generation.intervals_ns[0] < stride
    assert generation.intervals_ns[-1] >= count - stride


@pytest.mark.parametrize(
    ("first", "ended", "until", "told"),
    [
        pytest.param(3, 9, 10, (3, 9), id="whole"),
        pytest.param(None, None, 10, (None, 10), id="before its first token"),
        pytest.param(3, 20, 10, (3, 10), id="that decodes on after its phase was cut off"),
        pytest.param(15, 20, 10, (None, 10), id="whose first token comes after its phase was cut off"),
    ],
)
def test_generation_until_the_end_of_its_phase(
    first: int | None, ended: int | None, until: int, told: tuple[int | None, int]
) -> None:
    generation = Generation()
    generation.first_token_ns, generation.end_ns = first, ended

    assert generation.until(until) == told
