"""Prompts and completions in what pipelines take and give: what is read, what is never touched."""

from __future__ import annotations

import json
from collections import UserList
from collections.abc import Iterator
from typing import Any

import pytest

from inferspan.core.messages import Content
from inferspan.integrations.transformers.chats import is_chat
from inferspan.integrations.transformers.content import completions_of, messages_of, note_input, note_output
from support.messages import Message, text_message

Part = dict[str, Any]

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


def texts(*pairs: tuple[str, str]) -> list[Part]:
    return [text_message(role, text) for role, text in pairs]


def text(content: str) -> Part:
    return {"type": "text", "content": content}


IMAGE = {"type": "blob", "modality": "image"}
AUDIO = {"type": "blob", "modality": "audio"}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        pytest.param("Hello", texts(("user", "Hello")), id="text"),
        pytest.param("", texts(("user", "")), id="empty text"),
        pytest.param(["a", "b"], texts(("user", "a"), ("user", "b")), id="texts"),
        pytest.param([SYSTEM, USER], texts(("system", "Be brief"), ("user", "Hello")), id="chat"),
        pytest.param([[USER], [USER]], texts(("user", "Hello"), ("user", "Hello")), id="chats"),
        pytest.param(Chat(USER, ASSISTANT), texts(("user", "Hello"), ("assistant", "Hi")), id="Chat"),
        pytest.param({"text": "a", "text_pair": "b"}, texts(("user", "a"), ("user", "b")), id="pair"),
        pytest.param(
            {"question": "q", "context": "c", "other": "o"},
            texts(("user", "q"), ("user", "c")),
            id="question and context",
        ),
        pytest.param({"query": "q", "table": {"a": ["b"]}}, texts(("user", "q")), id="table"),
        pytest.param(
            {"images": Untouchable(), "text": "What?"}, [Message("user", [IMAGE, text("What?")])], id="image and text"
        ),
        pytest.param(
            {"images": ["https://x/1.png", Untouchable()], "text": "What?"},
            [Message("user", [{"type": "uri", "modality": "image", "uri": "https://x/1.png"}, IMAGE, text("What?")])],
            id="images and text",
        ),
        pytest.param(None, [], id="nothing"),
        pytest.param(b"bytes", [], id="bytes"),
        pytest.param(UserList(["a"]), [], id="type of another"),
        pytest.param(Untouchable(), [], id="untouchable"),
        pytest.param([Untouchable(), "a"], texts(("user", "a")), id="untouchable in a list"),
    ],
)
def test_messages_of_inputs(inputs: Any, expected: list[Part]) -> None:
    assert list(messages_of(inputs)) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}},
                    {"function": {"name": "time", "arguments": '{"zone": "CET"}'}},
                    {"name": "date"},
                ],
            },
            Message(
                "assistant",
                [
                    {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}},
                    {"type": "tool_call", "name": "time", "arguments": '{"zone": "CET"}'},
                    {"type": "tool_call", "name": "date"},
                ],
            ),
            id="tool calls",
        ),
        pytest.param(
            {"role": "assistant", "content": "Let me see", "function_call": {"name": "weather", "arguments": "{}"}},
            Message("assistant", [text("Let me see"), {"type": "tool_call", "name": "weather", "arguments": "{}"}]),
            id="function call",
        ),
        pytest.param(
            {"role": "assistant", "content": "", "tool_calls": [{"name": "date", "arguments": {}}]},
            Message("assistant", [{"type": "tool_call", "name": "date", "arguments": {}}]),
            id="tool call and an empty text",
        ),
        pytest.param(
            {"role": "assistant", "tool_calls": [{"name": "date", "arguments": {}}]},
            Message("assistant", [{"type": "tool_call", "name": "date", "arguments": {}}]),
            id="tool call and no content",
        ),
        pytest.param(
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "22 C"},
            Message("tool", [{"type": "tool_call_response", "id": "c1", "response": "22 C"}], "weather"),
            id="tool's answer",
        ),
        pytest.param(
            {"role": "function", "name": "weather", "content": {"celsius": 22}},
            Message("tool", [{"type": "tool_call_response", "response": {"celsius": 22}}], "weather"),
            id="function's answer",
        ),
        pytest.param(
            {
                "role": "tool",
                "content": [{"type": "text", "text": "map"}, {"type": "image", "image": "data:image/png;base64,A"}],
            },
            Message(
                "tool",
                [{"type": "tool_call_response", "response": [text("map"), {**IMAGE, "mime_type": "image/png"}]}],
            ),
            id="tool's answer in parts",
        ),
        pytest.param(
            {"role": "tool", "content": None},
            Message("tool", [{"type": "tool_call_response", "response": None}]),
            id="tool's answer is null",
        ),
        pytest.param(
            {"role": "assistant", "reasoning_content": "Hm.", "content": "Hi"},
            Message("assistant", [{"type": "reasoning", "content": "Hm."}, text("Hi")]),
            id="reasoning",
        ),
        pytest.param(
            {"role": "assistant", "thinking": "Hm.", "content": "Hi"},
            Message("assistant", [{"type": "reasoning", "content": "Hm."}, text("Hi")]),
            id="thinking",
        ),
        pytest.param(
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hi"}]},
            Message("assistant", [{"type": "reasoning", "content": "Hm."}, text("Hi")]),
            id="reasoning as a part",
        ),
        pytest.param({"role": "user", "content": "Hi", "name": "Ada"}, Message("user", [text("Hi")], "Ada"), id="name"),
        pytest.param({"role": "user", "content": ""}, Message("user", [text("")]), id="empty"),
        pytest.param({"role": "user", "content": None}, Message("user", []), id="null"),
        pytest.param({"role": 3, "content": "Hi"}, Message("user", [text("Hi")]), id="role that is no text"),
        pytest.param({"role": "user", "content": Untouchable()}, Message("user", []), id="untouchable"),
        pytest.param(
            {"role": "user", "content": ["a", {"type": "widget"}, Untouchable()]},
            Message("user", [text("a"), {"type": "widget"}]),
            id="part of another type",
        ),
    ],
)
def test_message_of_a_chat(message: dict[str, Any], expected: Part) -> None:
    assert list(messages_of([message])) == [expected]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        pytest.param({"type": "image"}, IMAGE, id="placeholder"),
        pytest.param({"type": "image", "image": Untouchable()}, IMAGE, id="object"),
        pytest.param({"type": "image", "path": "/home/alice/cat.png"}, IMAGE, id="path"),
        pytest.param({"type": "image", "url": "file:///home/alice/cat.png"}, IMAGE, id="file URL"),
        pytest.param({"type": "image", "image": "C:\\Users\\alice\\cat.png"}, IMAGE, id="Windows"),
        pytest.param({"type": "image", "base64": "iVBORw0KGgo="}, IMAGE, id="bytes as text"),
        pytest.param(
            {"type": "image", "url": "data:image/png;base64,iVBORw0KGgo="},
            {**IMAGE, "mime_type": "image/png"},
            id="data URL",
        ),
        pytest.param({"type": "image", "url": "data:,x"}, IMAGE, id="data URL without a type"),
        pytest.param(
            {"type": "image", "url": "https://example.com/cat.png"},
            {"type": "uri", "modality": "image", "uri": "https://example.com/cat.png"},
            id="URL",
        ),
        pytest.param(
            {"type": "image_url", "image_url": {"url": "https://me:pw@example.com:8/cat.png?sig=secret#x"}},
            {"type": "uri", "modality": "image", "uri": "https://example.com:8/cat.png"},
            id="URL with credentials",
        ),
        pytest.param(
            {"type": "image", "url": "gs://bucket/cat.png", "mime_type": "image/png"},
            {"type": "uri", "modality": "image", "uri": "gs://bucket/cat.png", "mime_type": "image/png"},
            id="URI of a store, with its type",
        ),
        pytest.param(
            {"type": "input_audio", "input_audio": {"data": "UklGR", "format": "wav"}}, AUDIO, id="audio as text"
        ),
        pytest.param({"type": "audio", "audio": Untouchable()}, AUDIO, id="audio"),
        pytest.param(
            {"type": "video", "video": "https://example.com/a.mp4"},
            {"type": "uri", "modality": "video", "uri": "https://example.com/a.mp4"},
            id="video",
        ),
    ],
)
def test_media_in_a_chat_are_parts_without_bytes_and_paths(part: dict[str, Any], expected: Part) -> None:
    message = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}

    assert list(messages_of([message])) == [Message("user", [expected, text("What?")])]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param({"a": [1, 2.5, True, None, "x", (1,)]}, {"a": [1, 2.5, True, None, "x", [1]]}, id="plain"),
        pytest.param(
            {"a": float("nan"), "b": float("-inf")}, {"a": "nan", "b": "-inf"}, id="what JSON has no number for"
        ),
        pytest.param({1: 1, None: 2, (1, 2): 3}, {"1": 1, "None": 2, "<tuple>": 3}, id="keys"),
        pytest.param({"a": Untouchable(), "b": {1}}, {"a": "<Untouchable>", "b": "<set>"}, id="other types"),
        pytest.param({"a": 1 << 5000}, {"a": "<int>"}, id="number too long to write"),
    ],
)
def test_arguments_are_copied_as_plain_data(given: Any, kept: Any) -> None:
    (message,) = messages_of(
        [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": given}]}]
    )

    assert message["parts"] == [{"type": "tool_call", "name": "f", "arguments": kept}]
    assert json.loads(json.dumps(message["parts"], allow_nan=False)) == message["parts"]


def test_arguments_are_those_of_the_call() -> None:
    arguments = {"cities": ["Paris"]}
    chat = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": arguments}]}]
    (message,) = messages_of(chat)
    arguments["cities"].append("Rome")

    assert message["parts"][0]["arguments"] == {"cities": ["Paris"]}


def test_arguments_without_end_are_bounded() -> None:
    endless: list[Any] = []
    endless += [endless] * 10
    (message,) = messages_of([{"role": "tool", "content": {"a": endless, "b": list(range(10**6))}}])

    assert len(json.dumps(message["parts"])) < 100_000


def test_messages_beyond_the_first_are_not_kept() -> None:
    content = Content()
    note_input(content, [str(number) for number in range(60)], None)
    note_output(content, None, {}, [{"label": "a"}] * 64)
    assert not content.is_cut
    note_input(content, [str(number) for number in range(60, 100_000)], None)

    assert content.input == texts(*(("user", str(number)) for number in range(64)))
    assert (len(content.output), content.is_cut) == (64, True)


def test_messages_of_a_generator_consume_nothing() -> None:
    given = iter(["a", "b"])

    assert list(messages_of(given)) == []
    assert list(given) == ["a", "b"]


@pytest.mark.parametrize(
    ("task", "item", "expected"),
    [
        pytest.param("image-classification", "/home/alice/cat.png", [IMAGE], id="path of an image"),
        pytest.param(
            "image-to-text",
            "https://example.com/cat.png",
            [{"type": "uri", "modality": "image", "uri": "https://example.com/cat.png"}],
            id="URL of an image",
        ),
        pytest.param("object-detection", Untouchable(), [IMAGE], id="image"),
        pytest.param(
            "automatic-speech-recognition", {"raw": Untouchable(), "sampling_rate": 16000}, [AUDIO], id="samples"
        ),
        pytest.param("automatic-speech-recognition", b"RIFF", [AUDIO], id="bytes"),
        pytest.param("audio-classification", "/home/alice/a.wav", [AUDIO], id="path of audio"),
        pytest.param("video-classification", "/a.mp4", [{"type": "blob", "modality": "video"}], id="path of a video"),
        pytest.param(
            "visual-question-answering",
            {"image": "/cat.png", "question": "What?"},
            [IMAGE, text("What?")],
            id="question",
        ),
        pytest.param("image-text-to-text", {"images": None, "text": "What?"}, [text("What?")], id="text alone"),
        pytest.param("image-text-to-text", Chat(USER), [text("Hello")], id="chat"),
        pytest.param("tabular-regression", "row", [text("row")], id="task of another"),
        pytest.param(None, "a text about image-classification", [text("a text about image-classification")], id="text"),
    ],
)
def test_input_of_a_pipeline_that_reads_no_text_is_media(task: str | None, item: Any, expected: list[Part]) -> None:
    content = Content()
    note_input(content, item, task)

    assert content.input == [Message("user", expected)]


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
        pytest.param([{"generated_token_ids": [1, 2]}], [], id="ids alone"),
        pytest.param([{"score": 0.9}], [], id="no text"),
        pytest.param(None, [], id="nothing"),
        pytest.param(Untouchable(), [], id="untouchable"),
    ],
)
def test_completions_of_results(result: Any, expected: list[str]) -> None:
    assert list(completions_of(result)) == [text_message("assistant", text) for text in expected]


def test_completions_of_generated_media_say_that_they_are_there() -> None:
    assert list(completions_of({"audio": Untouchable(), "sampling_rate": 16000})) == [Message("assistant", [AUDIO])]
    assert list(completions_of([{"generated_image": Untouchable()}])) == [Message("assistant", [IMAGE])]


class ReturnType:
    """Like the enumeration of transformers."""

    def __init__(self, name: str) -> None:
        self.name = name


BEGUN = {"role": "assistant", "content": "He"}
BEGUN_IN_PARTS = {"role": "assistant", "content": [{"type": "text", "text": "He"}]}


@pytest.mark.parametrize(
    ("prompt", "settings", "result", "expected"),
    [
        pytest.param("a b", {}, [{"generated_text": "a b c"}], [" c"], id="full text by default"),
        pytest.param(
            "a b", {"return_type": ReturnType("FULL_TEXT")}, [{"generated_text": "a b c"}], [" c"], id="full text"
        ),
        pytest.param(
            "a", {"return_type": ReturnType("NEW_TEXT")}, [{"generated_text": "a b"}], ["a b"], id="answer that repeats"
        ),
        pytest.param("a", {}, [{"generated_text": "a"}, {"generated_text": "ab"}], ["", "b"], id="several sequences"),
        pytest.param(Chat(USER), {}, [{"generated_text": [USER, ASSISTANT]}], ["Hi"], id="chat"),
        pytest.param(
            Chat(USER, BEGUN), {}, [{"generated_text": [USER, {**BEGUN, "content": "Hello"}]}], ["llo"], id="continued"
        ),
        pytest.param(
            Chat(USER, BEGUN_IN_PARTS),
            {},
            [{"generated_text": [USER, {**BEGUN_IN_PARTS, "content": [{"type": "text", "text": "Hello"}]}]}],
            ["llo"],
            id="continued, in parts",
        ),
        pytest.param(Chat(USER, BEGUN), {}, [{"generated_text": [USER, BEGUN, ASSISTANT]}], ["Hi"], id="not continued"),
        pytest.param(
            ["a", "b"],
            {},
            [{"input_text": "a", "generated_text": "ax"}, {"input_text": "b", "generated_text": "by"}],
            ["x", "y"],
            id="several prompts",
        ),
    ],
)
def test_output_of_a_pipeline_is_without_its_prompt(
    prompt: Any, settings: dict[str, Any], result: Any, expected: list[str]
) -> None:
    content = Content()
    note_input(content, prompt, None)
    note_output(content, {"prompt_text": prompt}, settings, result)

    assert content.output == [text_message("assistant", text) for text in expected]


def test_output_of_what_another_process_has_preprocessed_brings_its_prompts() -> None:
    content = Content()
    for prompt in ("a", "b"):
        note_output(content, {"prompt_text": prompt}, {}, [{"generated_text": prompt + "!"}])

    assert content.input == texts(("user", "a"), ("user", "b"))
    assert content.output == texts(("assistant", "!"), ("assistant", "!"))


def test_output_of_another_pipeline_is_as_it_is() -> None:
    content = Content()
    note_output(content, Untouchable(), {}, [{"label": "POSITIVE"}])

    assert content.output == texts(("assistant", "POSITIVE"))


def test_answer_with_reasoning_and_calls_is_taken_apart_as_transformers_has() -> None:
    answer = {"role": "assistant", "thinking": "Hm.", "tool_calls": [{"function": {"name": "date", "arguments": {}}}]}
    content = Content()
    note_output(content, {"prompt_text": Chat(USER)}, {}, [{"generated_text": [USER, answer]}])

    assert content.output == [
        Message(
            "assistant",
            [{"type": "reasoning", "content": "Hm."}, {"type": "tool_call", "name": "date", "arguments": {}}],
        )
    ]
