"""Which target is measured, and how it is loaded: ``NAME[,KEY=VALUE]…`` as the command line has it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inferspan.bench.results import Scalar

__all__ = ["Specification", "Target", "TargetError", "parse"]


class TargetError(Exception):
    """A target that cannot be loaded, or not be called as asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Specification:
    """Which target, and how it is loaded. ``None``: as the library chooses."""

    name: str
    task: str | None = None
    direct: bool = False
    """``tokenizer``, ``generate()`` and ``decode`` by hand in place of a pipeline."""
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    compile: str | None = None
    attention: str | None = None
    revision: str | None = None

    @property
    def is_callable(self) -> bool:
        module, _, function = self.name.partition(":")
        return bool(function) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))

    @property
    def label(self) -> str:
        """Short: the last part of the name, and what is not the default."""
        last = self.name if self.is_callable else os.path.basename(os.path.normpath(self.name))
        ways = [self.dtype, self.quantize, self.attention, self.compile and f"compile {self.compile}", self.revision]
        return " ".join([last, *(way for way in ways if way)])


class Target(Protocol):
    """Something that can be asked."""

    kind: str
    task: str | None
    model: dict[str, Scalar]
    generates: bool

    def requests(self, input_tokens: int | None, output_tokens: int | None, count: int, seed: int) -> Sequence[Any]:
        """As many requests, made here, of this length."""
        ...

    def caller(self, input_tokens: int | None, output_tokens: int | None, stream: bool) -> Callable[[list[Any]], Any]:
        """What takes one batch of requests."""
        ...


def parse(text: str, first: Specification) -> Specification:
    """The specification of another target, beside the first: ``NAME[,KEY=VALUE]…``.

    Without a name it is the first one with these changes; with one, only task, device and way of calling are the
    first one's. A value of ``none`` sets a key back.

    Raises:
        TargetError: a key that is not known.
    """
    parts = text.split(",")
    name = "" if "=" in parts[0] else parts.pop(0)
    start = first if not name else Specification(name, first.task, first.direct, first.device)
    allowed = [field.name for field in dataclasses.fields(Specification) if field.name not in ("name", "direct")]
    changes: dict[str, str | None] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or key not in allowed:
            raise TargetError(f"{text!r}: {part!r} is not KEY=VALUE (keys: {', '.join(allowed)})")
        changes[key] = None if value.lower() == "none" else value
    return dataclasses.replace(start, **changes)  # type: ignore[arg-type]  # the keys are those of strings
