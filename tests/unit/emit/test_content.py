"""Messages in the conventions' JSON form, and how long they get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferspan import config, faults, semconv
from inferspan.core.messages import Content
from inferspan.emit.content import as_json, content_attributes
from support.messages import Message, schema_errors, text_message

TOOL_CALL = {"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}


class Inference:
    """What of an inference its messages are made of."""

    class counts:
        finish_reasons: tuple[str, ...] = ()

    def __init__(self, content: Content | None, *finish_reasons: str) -> None:
        self.content = content
        self.counts = type("Counts", (), {"finish_reasons": finish_reasons})  # type: ignore[assignment]


def attributes(content: Content | None, *finish_reasons: str, length: int = 100) -> dict[str, Any]:
    found = content_attributes(Inference(content, *finish_reasons), config.load({"content_length": length}, {}))  # type: ignore[arg-type]
    assert schema_errors(found) == []
    return {name: json.loads(text) for name, text in found.items()}


def test_json_of_messages_is_the_conventions_form() -> None:
    assert as_json([text_message("user", 'Grüß "Gott"'), text_message("assistant", "Hi")], 100) == (
        '[{"role": "user", "parts": [{"type": "text", "content": "Grüß \\"Gott\\""}]}, '
        '{"role": "assistant", "parts": [{"type": "text", "content": "Hi"}]}]'
    )


def test_json_of_long_texts_is_cut_in_each_text_and_stays_whole() -> None:
    text = as_json([text_message("user", "a" * 50), text_message("user", "b" * 50)], 3)

    assert [part["content"] for message in json.loads(text) for part in message["parts"]] == ["aaa", "bbb"]


@pytest.mark.parametrize(
    ("part", "cut"),
    [
        pytest.param(
            {"type": "reasoning", "content": "abcdef"}, {"type": "reasoning", "content": "abcd"}, id="type stays"
        ),
        pytest.param(
            {"type": "tool_call", "id": "call-1", "name": "lookup", "arguments": {"a": 1}},
            {"type": "tool_call", "id": "call-1", "name": "lookup", "arguments": '{"a"'},
            id="arguments as the beginning of their JSON",
        ),
        pytest.param(
            {"type": "tool_call", "name": "lookup", "arguments": {}},
            {"type": "tool_call", "name": "lookup", "arguments": {}},
            id="short arguments stay",
        ),
        pytest.param(
            {"type": "tool_call_response", "response": None},
            {"type": "tool_call_response", "response": None},
            id="null",
        ),
        pytest.param(
            {"type": "tool_call_response", "response": [1, 2, 3]},
            {"type": "tool_call_response", "response": "[1, "},
            id="response",
        ),
        pytest.param(
            {"type": "uri", "modality": "image", "uri": "https://x/y.png"},
            {"type": "uri", "modality": "image", "uri": "http"},
            id="URI",
        ),
    ],
)
def test_json_of_parts_is_cut_and_stays_whole(part: dict[str, Any], cut: dict[str, Any]) -> None:
    content = Content([Message("assistant", [part])])

    assert attributes(content, length=4) == {semconv.INPUT_MESSAGES: [{"role": "assistant", "parts": [cut]}]}


def test_json_of_half_a_surrogate_pair_is_text() -> None:
    half = "\ud83d"
    call = {"type": "tool_call", "id": half, "name": half, "arguments": {half: [half]}}
    found = attributes(Content([Message(half, [{"type": "text", "content": half}, call], half)]))

    assert json.dumps(found, ensure_ascii=False).encode()
    assert found[semconv.INPUT_MESSAGES][0]["parts"][1]["arguments"] == {"?": ["?"]}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([text_message("user", "a")], None, id="none"),
        pytest.param(
            [text_message("system", "abc"), text_message("user", "a")],
            [{"type": "text", "content": "ab"}],
            id="one, cut",
        ),
        pytest.param([], None, id="nothing"),
    ],
)
def test_json_of_system_messages(messages: list[dict[str, Any]], expected: Any) -> None:
    assert attributes(Content(messages), length=2).get(semconv.SYSTEM_INSTRUCTIONS) == expected


def test_no_content_gives_no_attributes() -> None:
    assert (attributes(None), attributes(Content())) == ({}, {})


@pytest.mark.parametrize(
    ("reasons", "on_messages"),
    [
        pytest.param(("stop", "length"), ["stop", "length"], id="one for each"),
        pytest.param(("stop",), [None, None], id="nobody knows whose"),
        pytest.param((), [None, None], id="none"),
    ],
)
def test_output_messages_have_the_finish_reasons_of_the_span(
    reasons: tuple[str, ...], on_messages: list[str | None]
) -> None:
    content = Content([], [text_message("assistant", "a"), Message("assistant", [TOOL_CALL])])
    found = attributes(content, *reasons)[semconv.OUTPUT_MESSAGES]

    assert [message.get("finish_reason") for message in found] == on_messages


def test_output_messages_that_are_not_all_there_have_no_finish_reasons() -> None:
    content = Content([], [text_message("assistant", "a")])
    content.is_cut = True

    assert attributes(content, "stop") == {semconv.OUTPUT_MESSAGES: [text_message("assistant", "a")]}


def test_content_that_remains_is_read_once() -> None:
    content = Content()
    content.later.append(lambda: content.output.append(text_message("assistant", "x")))

    assert [attributes(content)[semconv.OUTPUT_MESSAGES] for _ in range(2)] == [[text_message("assistant", "x")]] * 2


def test_content_that_cannot_be_read_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    content = Content([text_message("user", "a")])
    content.later.append(lambda: content.output[0].clear())

    assert attributes(content) == {semconv.INPUT_MESSAGES: [text_message("user", "a")]}
    assert (content.later, faults.counts()) == ([], {"content.later": 1})
