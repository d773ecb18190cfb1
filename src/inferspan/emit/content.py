"""Prompts and completions in the conventions' JSON form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from inferspan import faults, semconv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferspan.config import Settings
    from inferspan.core.messages import Content, Message
    from inferspan.core.record import Inference

_CONTENT = frozenset({"content", "arguments", "response", "uri"})
_NAME_MAX = 256


def content_attributes(inference: Inference, settings: Settings) -> dict[str, str]:
    """The messages of an inference as attributes, each text cut at the setting's length."""
    content = inference.content
    if content is None:
        return {}
    _read(content)
    length, reasons = settings.content_length, inference.counts.finish_reasons
    # which reason belongs to which message is only known where each has one
    known = reasons if len(reasons) == len(content.output) and not content.is_cut else ()
    messages = [message for message in content.input if message["role"] != "system"]
    system = [
        _part(part, length) for message in content.input if message["role"] == "system" for part in message["parts"]
    ]
    found: dict[str, str] = {}
    if messages:
        found[semconv.INPUT_MESSAGES] = as_json(messages, length)
    if content.output:
        found[semconv.OUTPUT_MESSAGES] = as_json(content.output, length, known)
    if system:
        found[semconv.SYSTEM_INSTRUCTIONS] = json.dumps(system, ensure_ascii=False)
    return found


def as_json(messages: Sequence[Message], length: int, finish_reasons: Sequence[str] = ()) -> str:
    """The conventions' JSON form, each text cut at ``length`` characters so that the JSON stays whole."""
    made = [_message(message, length) for message in messages]
    for message, reason in zip(made, finish_reasons, strict=False):
        message["finish_reason"] = reason
    return json.dumps(made, ensure_ascii=False)


@faults.guarded("content.later")
def _read(content: Content) -> None:
    while content.later:
        content.later.pop(0)()


def _message(message: Message, length: int) -> Message:
    return {**_part(message, _NAME_MAX), "parts": [_part(part, length) for part in message["parts"]]}


def _part(part: dict[str, Any], length: int) -> dict[str, Any]:
    return {key: _cut(value, length if key in _CONTENT else _NAME_MAX) for key, value in part.items() if key != "parts"}


def _cut(value: Any, length: int) -> Any:
    """A text is cut. Of anything else that is longer the beginning of its JSON is left, as a text."""
    if isinstance(value, str):
        return _text(value, length)
    written = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return json.loads(written) if len(written) <= length else written[:length]


def _text(text: str, length: int) -> str:
    # half a surrogate pair is no text to OTLP, which would drop the whole attribute
    return text[:length].encode("utf-8", "replace").decode()
