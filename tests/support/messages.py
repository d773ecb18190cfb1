"""What the GenAI conventions' JSON schemas of messages ask for, stricter where theirs leave a door open.

Written after ``model/gen-ai/gen-ai-input-messages.json``, ``gen-ai-output-messages.json`` and
``gen-ai-system-instructions.json`` of open-telemetry/semantic-conventions-genai, as they are in November 2026. Theirs
take any part that has a type; here a part of a type that they define has to be as they define it, but that media
without content (which is never kept) have no ``content``.
"""

from __future__ import annotations

import json
from typing import Any

from inferspan import semconv

_TEXT = {"type": "string"}
_TYPES: dict[str, dict[str, Any]] = {
    "text": {"required": ["content"], "properties": {"content": _TEXT}},
    "reasoning": {"required": ["content"], "properties": {"content": _TEXT}},
    "tool_call": {"required": ["name"], "properties": {"name": _TEXT, "id": _TEXT, "arguments": {}}},
    "tool_call_response": {"required": ["response"], "properties": {"id": _TEXT, "response": {}}},
    "uri": {"required": ["modality", "uri"], "properties": {"modality": _TEXT, "uri": _TEXT, "mime_type": _TEXT}},
    "blob": {"required": ["modality"], "properties": {"modality": _TEXT, "mime_type": _TEXT}},
}
_PART = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": _TEXT},
    "allOf": [
        {
            "if": {"properties": {"type": {"const": kind}}},
            "then": {
                "required": part["required"],
                "properties": {"type": _TEXT, **part["properties"]},
                "additionalProperties": False,
            },
        }
        for kind, part in _TYPES.items()
    ],
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "parts"],
    "properties": {"role": _TEXT, "name": _TEXT, "parts": {"type": "array", "items": _PART}},
    "additionalProperties": False,
}
_FINISH_REASONS = ["stop", "length", "content_filter", "tool_call", "compaction", "error"]
_OUTPUT = {**_MESSAGE, "properties": {**_MESSAGE["properties"], "finish_reason": {"enum": _FINISH_REASONS}}}  # type: ignore[dict-item]

SCHEMAS: dict[str, dict[str, Any]] = {
    semconv.INPUT_MESSAGES: {"type": "array", "items": _MESSAGE},
    semconv.OUTPUT_MESSAGES: {"type": "array", "items": _OUTPUT},
    semconv.SYSTEM_INSTRUCTIONS: {"type": "array", "items": _PART},
}


def Message(role: str, parts: list[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    """A message in the conventions' form."""
    return {"role": role, "parts": parts} if name is None else {"role": role, "parts": parts, "name": name}


def text_message(role: str, text: str) -> dict[str, Any]:
    """A message that is only a text."""
    return Message(role, [{"type": "text", "content": text}])


def schema_errors(attributes: dict[str, Any]) -> list[str]:
    """What of the messages among these attributes, which are JSON, is not as the conventions have it."""
    import jsonschema

    found = []
    for name, schema in SCHEMAS.items():
        if name in attributes:
            value = json.loads(attributes[name], parse_constant=_refuse)
            found += [
                f"{name}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(value)
            ]
    return found


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")
