"""How far a run is, on standard error: bars with the time left in a terminal, a line for each stage elsewhere.

Nothing is drawn while a request runs: there is no thread that refreshes, and between two requests at most twice a
second something is.
"""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_INTERVAL_S = 0.5
_NAMES = {"cold": "first call", "warmup": "warm-up", "cooldown": "cool-down"}


class Silent:
    """Shows nothing."""

    def begin(self, stage: str, about: str, steps: float = 0.0) -> None: ...

    def advanced(self, share: float) -> None: ...

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lines(Silent):
    """A line for each stage, for logs; one for all the turns of a configuration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[str] = set()

    def begin(self, stage: str, about: str, steps: float = 0.0) -> None:
        line = f"{_NAMES.get(stage, stage)}: {about}"
        if line not in self._told:
            self._told.add(line)
            self._console.print(line, style="dim")


class Bars(Silent):
    """A bar for the run, with the time left, and one for the stage that it is in."""

    def __init__(self, console: Console, steps: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            auto_refresh=False,
            transient=True,
            speed_estimate_period=600.0,
        )
        self._run = self._progress.add_task("the whole run", total=steps)
        self._stage = self._progress.add_task("", total=1.0)
        self._shown_at = self._before = self._steps = 0.0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str, about: str, steps: float = 0.0) -> None:
        self._before += self._steps
        self._steps = steps
        self._progress.reset(self._stage, total=1.0, description=f"{_NAMES.get(stage, stage)}: {escape(about)}")
        self._show(0.0)

    def advanced(self, share: float) -> None:
        if monotonic() - self._shown_at >= _INTERVAL_S:
            self._show(share)

    def _show(self, share: float) -> None:
        self._shown_at = monotonic()
        self._progress.update(self._stage, completed=share)
        self._progress.update(self._run, completed=self._before + share * self._steps)
        self._progress.refresh()
