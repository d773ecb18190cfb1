"""Prompts and completions as messages, in the form of the GenAI conventions. Kept only where the user has opted in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
"""``role``, ``parts`` and perhaps ``name``, as the conventions' JSON schemas have them; plain data."""


class Content:
    """The first messages that went into an inference, and came out of it, one for each choice.

    ``is_cut``: there were more. ``is_read``: the input was read where it came in. ``later`` is what remains to be read,
    on the background worker.
    """

    is_cut: bool = False
    is_read: bool = False

    def __init__(self, input: list[Message] | None = None, output: list[Message] | None = None) -> None:  # noqa: A002
        self.input, self.output = input or [], output or []
        self.later: list[Callable[[], None]] = []
