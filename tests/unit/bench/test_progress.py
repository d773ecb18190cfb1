"""Progress on standard error."""

from __future__ import annotations

from io import StringIO
from itertools import count

import pytest
from rich.console import Console

from inferspan.bench import progress
from inferspan.bench.progress import Bars, Lines


def console(terminal: bool) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, force_terminal=terminal, width=100, color_system=None), out


def test_bars_show_run_and_stage_with_the_time_left() -> None:
    shown, out = console(terminal=True)

    with Bars(shown, steps=2) as bars:
        bars.begin("warmup", "org/[bold]model, batch 1", 0.5)
        bars.begin("measure", "org/[bold]model, batch 1", 0.5)
        bars.begin("measure", "org/[bold]model, batch 2", 1.0)

    text = out.getvalue()
    assert "warm-up: org/[bold]model, batch 1" in text  # a name is no markup
    assert "the whole run" in text
    assert "left" in text
    assert "  50%" in text


def test_nothing_is_drawn_between_requests_more_than_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = console(terminal=True)
    clock = count(1000)
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock) / 100)

    with Bars(shown, steps=1) as bars:
        bars.begin("measure", "model", 1.0)
        before = len(out.getvalue())
        for share in range(100):
            bars.advanced(share / 100)
        drawn = out.getvalue()[before:].count("the whole run")

    assert drawn in (2, 3)  # of 100 in a second by this clock


def test_log_has_a_line_for_each_stage_and_one_for_all_turns() -> None:
    shown, out = console(terminal=False)

    with Lines(shown) as lines:
        lines.begin("load", "model")
        for name in ("A", "B", "B", "A"):
            lines.begin("measure", name, 0.5)
            lines.advanced(0.5)
        lines.begin("cooldown", "model")

    assert out.getvalue().splitlines() == ["load: model", "measure: A", "measure: B", "cool-down: model"]
