"""The recorded text read with the names of today, and where a run differs from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from golden.renames import RENAMES

_SHOWN = 400
_ATTRIBUTE = re.compile(r"[\w.]+ = ")
_BETWEEN = re.compile(r", (?=[\w.]+=)")
_METRIC = re.compile(r"[\w.]+ (counter|updowncounter|gauge|histogram|ExponentialHistogram)( |$)")


def renamed(text: str, renames: Mapping[str, str] = RENAMES) -> str:
    """The text as it would be, had each name been the new one from the start."""
    if not renames:
        return text
    names = "|".join(map(re.escape, sorted(renames, key=len, reverse=True)))
    whole = re.compile(rf"(?<![\w.])({names})(?![\w]|\.\w)")
    lines = map(_point, whole.sub(lambda found: renames[found[1]], text).splitlines())
    return "\n".join(_written(_sorted(_parsed(lines)))) + "\n"


def difference(recorded: str, found: str) -> str:
    """A unified diff, empty where there is none."""
    before, after = renamed(recorded).splitlines(), found.splitlines()
    lines = list(difflib.unified_diff(before, after, "recorded", "now", n=8, lineterm=""))
    more = [f"… and {len(lines) - _SHOWN} lines more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])


def _point(line: str) -> str:
    """The line, of a metric's point with its attributes by their new names."""
    before, brace, rest = line.partition("{")
    own, end, value = rest.rpartition("} ")
    if before.strip() or not end:
        return line
    return f"{before}{brace}{', '.join(sorted(_BETWEEN.split(own)))}{end}{value}"


def _parsed(lines: Iterable[str]) -> list[Any]:
    """The lines as a tree, by their indentation: pairs of a line and what is below it."""
    top: list[Any] = []
    open_: list[tuple[int, list[Any]]] = [(-1, top)]
    for line in lines:
        depth = len(line) - len(line.lstrip())
        while open_[-1][0] >= depth:
            open_.pop()
        node = (line, [])
        open_[-1][1].append(node)
        if line.strip():
            open_.append((depth, node[1]))
    return top


def _sorted(nodes: list[Any]) -> list[Any]:
    """In the order of the new names: attributes, metrics and points; all else as it is."""
    found: list[Any] = []
    run: list[Any] = []
    kind = None
    for line, below in nodes:
        text = line.strip()
        own = next((each for each in (_ATTRIBUTE, _METRIC) if each.match(text)), "{" if text[:1] == "{" else None)
        if own != kind or own is None:
            found += sorted(run)
            run, kind = [], own
        run.append((line, _sorted(below)))
    return found + sorted(run)


def _written(nodes: list[Any]) -> list[str]:
    return [each for line, below in nodes for each in (line, *_written(below))]
