"""Prompts and completions as role and text. Kept only where the user has opted in."""

from __future__ import annotations

Message = tuple[str, str]
"""Role and text."""


class Content:
    """Messages that went into an inference and came out of it."""

    __slots__ = ("input", "output")

    def __init__(self, input: list[Message], output: list[Message] | None = None) -> None:  # noqa: A002
        self.input = input
        self.output = output or []
