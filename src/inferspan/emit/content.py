"""Prompts and completions in the conventions' JSON form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from inferspan import semconv

if TYPE_CHECKING:
    from inferspan.config import Settings
    from inferspan.core.messages import Message
    from inferspan.core.record import Inference


def content_attributes(inference: Inference, settings: Settings) -> dict[str, str]:
    """The messages of an inference as attributes, each text cut at the setting's length."""
    content = inference.content
    if content is None:
        return {}
    length = settings.content_length
    found: dict[str, str] = {}
    messages = [message for message in content.input if message[0] != "system"]
    if messages:
        found[semconv.INPUT_MESSAGES] = as_json(messages, length)
    if content.output:
        found[semconv.OUTPUT_MESSAGES] = as_json(content.output, length)
    system = system_as_json(content.input, length)
    if system is not None:
        found[semconv.SYSTEM_INSTRUCTIONS] = system
    return found


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
