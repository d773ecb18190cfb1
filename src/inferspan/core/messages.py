"""Prompts and completions as the conventions' messages. Used only where the user has opted in.

Only plain Python containers are looked into (strings, lists, tuples, dicts, transformers' ``Chat``): a generator, a
``Dataset`` or a type of the user's own is never touched, since reading could consume or change it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_MESSAGES_MAX = 64

Message = tuple[str, str]
"""Role and text."""


class Content:
    """Messages that went into an inference and came out of it, as role and text."""

    __slots__ = ("input", "output")

    def __init__(self, input: list[Message], output: list[Message] | None = None) -> None:  # noqa: A002
        self.input = input
        self.output = output or []


def is_chat(inputs: Any) -> bool:
    """Whether the input is a chat, or a list of chats."""
    if type(inputs).__name__ == "Chat":
        return True
    if type(inputs) not in (list, tuple) or not inputs:
        return False
    first = inputs[0]
    return _is_message(first) or type(first).__name__ == "Chat" or (type(first) is list and is_chat(first))


def messages_of(inputs: Any) -> list[Message]:
    """The messages in a pipeline's input."""
    return list(_bounded(_messages(inputs, "user")))


def completions_of(result: Any) -> list[Message]:
    """The completions in a pipeline's result."""
    return list(_bounded(_completions(result)))


def as_json(messages: list[Message], length: int) -> str:
    """The conventions' JSON form, each text cut at ``length`` characters so that the JSON stays whole."""
    return json.dumps([{"role": role, "parts": [_part(text, length)]} for role, text in messages], ensure_ascii=False)


def system_as_json(messages: list[Message], length: int) -> str | None:
    """System instructions as JSON parts; ``None`` without any."""
    parts = [_part(text, length) for role, text in messages if role == "system"]
    return json.dumps(parts, ensure_ascii=False) if parts else None


def _part(text: str, length: int) -> dict[str, str]:
    # half a surrogate pair is no text to OTLP, which would drop the whole attribute
    return {"type": "text", "content": text[:length].encode("utf-8", "replace").decode()}


def _bounded(messages: Iterator[Message]) -> Iterator[Message]:
    for _, message in zip(range(_MESSAGES_MAX), messages, strict=False):
        yield message


def _is_message(value: Any) -> bool:
    return type(value) is dict and "role" in value and "content" in value


def _messages(value: Any, role: str) -> Iterator[Message]:
    if type(value) is str:
        yield role, value
    elif _is_message(value):
        for text in _texts(value["content"]):
            yield str(value["role"]), text
    elif type(value) in (list, tuple):
        for item in value:
            yield from _messages(item, role)
    elif type(value).__name__ == "Chat":
        yield from _messages(getattr(value, "messages", None), role)
    elif type(value) is dict:
        for key in ("text", "text_pair", "question", "context", "query"):
            yield from _messages(value.get(key), role)


def _texts(content: Any) -> Iterator[str]:
    if type(content) is str:
        yield content
    elif type(content) is list:
        for part in content:
            if type(part) is dict and type(part.get("text")) is str:
                yield part["text"]


def _completions(value: Any) -> Iterator[Message]:
    if type(value) is list:
        for item in value:
            yield from _completions(item)
    elif type(value) is dict:
        for key in ("generated_text", "summary_text", "translation_text", "answer", "text", "label"):
            found = value.get(key)
            if type(found) is str:
                yield "assistant", found
                return
            if type(found) is list and found and _is_message(found[-1]):
                yield from _messages(found[-1], "assistant")
                return
