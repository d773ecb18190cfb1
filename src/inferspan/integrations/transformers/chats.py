"""What a chat is, and the way to :mod:`inferspan.integrations.transformers.content`, which reads it: that is loaded
only where content is captured.

Only plain Python containers are looked into (strings, lists, tuples, dicts, transformers' ``Chat``): a generator, a
``Dataset`` or a type of the user's own is never touched, since reading could consume or change it.
"""

from __future__ import annotations

from typing import Any

from inferspan import faults
from inferspan.core.messages import Content
from inferspan.core.record import Inference
from inferspan.forks import import_module


def is_chat(inputs: Any) -> bool:
    """Whether the input is a chat, or a list of chats."""
    if type(inputs).__name__ == "Chat":
        return True
    if type(inputs) not in (list, tuple) or not inputs:
        return False
    first = inputs[0]
    return is_message(first) or type(first).__name__ == "Chat" or (type(first) is list and is_chat(first))


def is_message(value: Any) -> bool:
    """Whether it is one message of a chat."""
    return type(value) is dict and "role" in value and ("content" in value or "tool_calls" in value)


@faults.guarded("content.read")
def capture(inference: Inference, what: str, *args: Any) -> None:
    """Have the function of this name of ``content`` read something of the inference."""
    if inference.content is None:
        inference.content = Content()
    getattr(import_module("inferspan.integrations.transformers.content"), what)(inference.content, *args)
