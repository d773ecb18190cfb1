"""The prompts and completions in what pipelines take and give. Used only where the user has opted in.

Only plain Python containers are looked into (strings, lists, tuples, dicts, transformers' ``Chat``): a generator, a
``Dataset`` or a type of the user's own is never touched, since reading could consume or change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inferspan.core.messages import Message

_MESSAGES_MAX = 64


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
