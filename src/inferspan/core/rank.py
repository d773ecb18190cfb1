"""Which process of a distributed run this one is: its rank, and how many there are.

Read from ``torch.distributed`` where the program has set that up, else from what torchrun and its like put into the
environment; nothing is imported, initialised or sent for it. What was read stays: a program may leave its process
group before its last inference is emitted. A process that is the only one has no rank.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Mapping, Set
from typing import Any

from inferspan import semconv


class _Process:
    """What is known of this process by now."""

    attributes: Mapping[str, int] = {}
    world_size = 1
    group: Callable[[], Any] | None = None

    def take(self, rank: int, size: int) -> None:
        self.attributes, self.world_size = {semconv.RANK: rank} if size > 1 else {}, size


_process = _Process()


def attributes() -> Mapping[str, int]:
    """The rank as an attribute of root spans and points: it distinguishes processes, whatever their resource says."""
    # looked up each time, since the program may make its group of all processes at any time
    group = getattr(getattr(sys.modules.get("torch.distributed"), "group", None), "WORLD", None)
    if group is not None and (_process.group is None or _process.group() is not group):
        _process.take(group.rank(), group.size())
        _process.group = weakref.ref(group)
    return _process.attributes


def world_size() -> int | None:
    """How many processes there are; ``None`` where it is this one alone."""
    return _process.world_size if attributes() else None


def is_one_of(ranks: Set[int]) -> bool:
    """Whether this process has one of these ranks, or none."""
    rank = attributes().get(semconv.RANK)
    return rank is None or rank in ranks


def read_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Take what the launcher says, until the program makes its group."""
    _process.group = None
    rank, size = environ.get("RANK", ""), environ.get("WORLD_SIZE", "")
    _process.take(*((int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else (0, 1)))
