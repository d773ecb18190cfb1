"""The record itself: where its times lie on the wall clock."""

from __future__ import annotations

import pytest

from inferspan.core import record


def test_offset_to_the_wall_clock_is_read_again_where_another_thread_ran_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = 10**9
    ticks = iter([0, second, 2 * second, 2 * second + 100])  # a second lies between the first pair
    walls = iter([1000 + second, 1000 + 2 * second])
    monkeypatch.setattr(record, "perf_counter_ns", lambda: next(ticks))
    monkeypatch.setattr(record, "time_ns", lambda: next(walls))

    assert record.unix_offset_ns() == 1000
