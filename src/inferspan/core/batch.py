"""What one forward was given and one generation returned, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Batch:
    """What one forward was given. ``tokens`` is an upper bound unless ``exact``; ``positions`` includes padding."""

    rows: int
    length: int | None = None
    tokens: int | None = None
    exact: bool = True
    positions: int | None = None
    device: str | None = None


@dataclass(slots=True)
class Output:
    """What one generation returned: ``tokens`` over all sequences returned, an upper bound unless ``exact``."""

    tokens: int
    exact: bool
    finish_reasons: tuple[str, ...] = ()
    longest: int = 0
