"""Prompts and completions in what pipelines take and give: what is read, what is never touched, how many there are."""

from __future__ import annotations

from collections import UserList
from collections.abc import Iterator
from typing import Any

import pytest

from inferspan.integrations.transformers.content import completions_of, is_chat, messages_of

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
