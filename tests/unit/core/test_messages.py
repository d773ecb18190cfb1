"""Prompts and completions as messages: what is read, what is never touched, and how long it gets."""

from __future__ import annotations

import json
from collections import UserList
from collections.abc import Iterator
from typing import Any

import pytest

from inferspan.core.messages import (
    Content,
    as_json,
    completions_of,
    is_chat,
    messages_of,
    system_as_json,
)

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief"}
ASSISTANT = {"role": "assistant", "content": "Hi"}


class Chat:
    """Like transformers' own, told by its name."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)


class Untouchable:
    """A Dataset, a generator, or anything of the user's: reading it would change it."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Untouchable
        raise AssertionError(name)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("iterated")

    def __len__(self) -> int:
        raise AssertionError("measured")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("indexed")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        pytest.param([USER], True, id="chat"),
        pytest.param((SYSTEM, USER), True, id="tuple"),
        pytest.param([[USER], [USER]], True, id="list of chats"),
        pytest.param(Chat(USER), True, id="Chat"),
        pytest.param([Chat(USER)], True, id="list of Chat"),
        pytest.param("Hello", False, id="text"),
        pytest.param(["Hello"], False, id="list of texts"),
        pytest.param([], False, id="empty"),
        pytest.param(None, False, id="nothing"),
        pytest.param(USER, False, id="one message"),
        pytest.param([{"role": "user"}], False, id="message without content"),
        pytest.param(UserList([USER]), False, id="type of another"),
        pytest.param(Untouchable(), False, id="untouchable"),
    ],
)
def test_is_chat_of_inputs(inputs: Any, expected: bool) -> None:
    assert is_chat(inputs) is expected


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        pytest.param("Hello", [("user", "Hello")], id="text"),
        pytest.param(["a", "b"], [("user", "a"), ("user", "b")], id="texts"),
        pytest.param([SYSTEM, USER], [("system", "Be brief"), ("user", "Hello")], id="chat"),
        pytest.param([[USER], [USER]], [("user", "Hello"), ("user", "Hello")], id="chats"),
        pytest.param(Chat(USER, ASSISTANT), [("user", "Hello"), ("assistant", "Hi")], id="Chat"),
        pytest.param(
            [{"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "What?"}]}],
            [("user", "What?")],
            id="parts",
        ),
        pytest.param({"text": "a", "text_pair": "b"}, [("user", "a"), ("user", "b")], id="pair"),
        pytest.param(
            {"question": "q", "context": "c", "other": "o"}, [("user", "q"), ("user", "c")], id="question and context"
        ),
        pytest.param({"query": "q", "table": {"a": ["b"]}}, [("user", "q")], id="table"),
        pytest.param(None, [], id="nothing"),
        pytest.param(b"bytes", [], id="bytes"),
        pytest.param(UserList(["a"]), [], id="type of another"),
        pytest.param(Untouchable(), [], id="untouchable"),
        pytest.param([Untouchable(), "a"], [("user", "a")], id="untouchable in a list"),
    ],
)
def test_messages_of_inputs(inputs: Any, expected: list[tuple[str, str]]) -> None:
    assert messages_of(inputs) == expected


def test_messages_of_a_generator_consume_nothing() -> None:
    texts = iter(["a", "b"])

    assert messages_of(texts) == []
    assert list(texts) == ["a", "b"]


def test_messages_of_many_inputs_are_bounded() -> None:
    assert messages_of([str(number) for number in range(100_000)]) == [("user", str(number)) for number in range(64)]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param([{"generated_text": "text"}], ["text"], id="generation"),
        pytest.param([[{"generated_text": "a"}], [{"generated_text": "b"}]], ["a", "b"], id="generations"),
        pytest.param([{"generated_text": [USER, ASSISTANT]}], ["Hi"], id="chat: the new message only"),
        pytest.param([{"summary_text": "short"}], ["short"], id="summary"),
        pytest.param([{"translation_text": "kurz"}], ["kurz"], id="translation"),
        pytest.param({"answer": "Berlin", "score": 0.9}, ["Berlin"], id="answer"),
        pytest.param({"text": "spoken", "chunks": []}, ["spoken"], id="transcription"),
        pytest.param([{"label": "POSITIVE", "score": 0.9}], ["POSITIVE"], id="label"),
        pytest.param([{"score": 0.9}], [], id="no text"),
        pytest.param(None, [], id="nothing"),
        pytest.param(Untouchable(), [], id="untouchable"),
    ],
)
def test_completions_of_results(result: Any, expected: list[str]) -> None:
    assert completions_of(result) == [("assistant", text) for text in expected]


def test_completions_of_many_results_are_bounded() -> None:
    assert len(completions_of([{"label": "a"}] * 1000)) == 64


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


def test_content_without_output_is_empty() -> None:
    content = Content([("user", "a")])

    assert (content.input, content.output) == ([("user", "a")], [])
