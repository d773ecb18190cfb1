"""Messages in the conventions' JSON form, and how long they get."""

from __future__ import annotations

import json

import pytest

from inferspan.emit.content import as_json, system_as_json


def test_json_of_messages_is_the_conventions_form() -> None:
    assert as_json([("user", 'Grüß "Gott"'), ("assistant", "Hi")], 100) == (
        '[{"role": "user", "parts": [{"type": "text", "content": "Grüß \\"Gott\\""}]}, '
        '{"role": "assistant", "parts": [{"type": "text", "content": "Hi"}]}]'
    )


def test_json_of_long_texts_is_cut_in_each_text_and_stays_whole() -> None:
    text = as_json([("user", "a" * 50), ("user", "b" * 50)], 3)

    assert [part["content"] for message in json.loads(text) for part in message["parts"]] == ["aaa", "bbb"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([("user", "a")], None, id="none"),
        pytest.param([("system", "abc"), ("user", "a")], '[{"type": "text", "content": "ab"}]', id="one, cut"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_json_of_system_messages(messages: list[tuple[str, str]], expected: str | None) -> None:
    assert system_as_json(messages, 2) == expected
