"""The clock of a generation, driven by a clock of ours."""

from __future__ import annotations

import pytest

from inferspan.measure import generation
from inferspan.measure.generation import Generation


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(generation, "perf_counter_ns", clock)
    return clock


def tick(clock: Clock, steps: Generation, *times_ns: int) -> None:
    """One tick at each of the times."""
    for time_ns in times_ns:
        clock.now_ns = time_ns
        steps.tick()


def facts(steps: Generation) -> tuple[int | None, int | None, int, list[int], float | None]:
    return steps.first_token_ns, steps.last_token_ns, steps.steps, steps.intervals_ns, steps.time_per_step_ns()


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
    steps = Generation()
    tick(clock, steps, *times)

    assert steps.start_ns == 1_000
    assert facts(steps) == expected


def test_generation_of_several_loops_has_no_interval_between_them(clock: Clock) -> None:
    steps = Generation()
    tick(clock, steps, 1_010, 1_100, 1_110)
    clock.now_ns = 1_120
    steps.tick(False)  # the loop is told to end
    assert steps.in_loop is False
    tick(clock, steps, 5_000)  # the next one begins
    assert steps.in_loop is True
    tick(clock, steps, 5_100, 5_130)

    assert (steps.steps, steps.intervals_ns) == (5, [10, 10, 30])
    assert (steps.first_token_ns, steps.last_token_ns) == (1_100, 5_130)


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
    steps = Generation()
    time_ns = 0
    tick(clock, steps, 0, 0)
    for step in range(count):
        time_ns += step
        tick(clock, steps, time_ns)

    assert steps.steps == count + 1
    assert steps.time_per_step_ns() == sum(range(count)) / count
    # the interval of step n is n, so that the numbers say which were kept
    assert (len(steps.intervals_ns), steps.intervals_ns) == (kept, sorted(set(steps.intervals_ns)))
    gaps = [later - earlier for earlier, later in zip(steps.intervals_ns, steps.intervals_ns[1:], strict=False)]
    assert all(stride <= gap < 2 * stride for gap in gaps)
    assert steps.intervals_ns[0] < stride
    assert steps.intervals_ns[-1] >= count - stride


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
