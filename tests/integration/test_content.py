"""Prompts and completions: nowhere by default, and where the setting says in the forms of the conventions."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from transformers.generation.streamers import BaseStreamer

import inferspan
from inferspan import semconv
from support import tasks, tiny
from support.messages import schema_errors
from support.recorder import Recorder

PROMPT = "the queen of hearts"
CONTENT = {semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES, semconv.SYSTEM_INSTRUCTIONS}


def generator() -> Any:
    return transformers.pipeline("text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())


class Events:
    """A logger provider whose records are kept."""

    def __init__(self) -> None:
        self.exporter = InMemoryLogRecordExporter()
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))

    def records(self) -> list[Any]:
        return [data.log_record for data in self.exporter.get_finished_logs()]


def content_of(recorder: Recorder, name: str) -> dict[str, Any]:
    """The messages on a span, which have the form of the conventions."""
    found = {key: str(value) for key, value in (recorder.span(name).attributes or {}).items() if key in CONTENT}
    assert schema_errors(found) == []
    return {key: json.loads(value) for key, value in found.items()}


def message(role: str, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    reason = {} if finish_reason is None else {"finish_reason": finish_reason}
    return {"role": role, "parts": [{"type": "text", "content": text}], **reason}


def completed(*texts: str) -> list[dict[str, Any]]:
    """Completions that their limit has ended."""
    return [message("assistant", text, "length") for text in texts]


def test_content_by_default_is_nowhere(bare_recorder: Recorder) -> None:
    events = Events()
    bare_recorder.instrument(logger_provider=events.provider)
    pipe = generator()
    bare_recorder.clear()
    pipe(PROMPT, max_new_tokens=3)
    pipe([{"role": "system", "content": PROMPT}, {"role": "user", "content": PROMPT}], max_new_tokens=3)
    for span in bare_recorder.spans():
        assert PROMPT not in span.to_json()
    assert events.records() == []


def test_content_on_spans_of_a_completion_is_prompt_and_completion(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    bare_recorder.clear()
    result = pipe(PROMPT, max_new_tokens=3)
    assert content_of(bare_recorder, "text_completion") == {
        semconv.INPUT_MESSAGES: [message("user", PROMPT)],
        semconv.OUTPUT_MESSAGES: completed(result[0]["generated_text"].removeprefix(PROMPT)),
    }


def test_content_on_spans_of_a_chat_has_roles_and_system_instructions(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="span_only")
    pipe = generator()
    bare_recorder.clear()
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}]
    result = pipe(chat, max_new_tokens=3)
    assert content_of(bare_recorder, "chat") == {
        semconv.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "be brief"}],
        semconv.INPUT_MESSAGES: [message("user", PROMPT)],
        semconv.OUTPUT_MESSAGES: completed(result[0]["generated_text"][-1]["content"]),
    }


def test_content_longer_than_the_setting_is_cut_and_stays_json(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY", content_length=5)
    pipe = generator()
    bare_recorder.clear()
    pipe([PROMPT, 'a "quoted" word'], max_new_tokens=1)
    found = content_of(bare_recorder, "text_completion")
    assert found[semconv.INPUT_MESSAGES] == [message("user", "the q"), message("user", 'a "qu')]


TEXTS = [PROMPT, "the king of clubs", "a knave"]


class Items(torch.utils.data.Dataset[str]):
    """A data set of texts."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> str:
        return TEXTS[index]


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"num_workers": 1}], ids=["one", "batch", "worker"])
@pytest.mark.parametrize(
    "make", [lambda: (text for text in TEXTS), Items, lambda: list(TEXTS)], ids=["generator", "data set", "list"]
)
def test_content_of_many_inputs_is_read_as_they_are_computed(
    bare_recorder: Recorder, make: Callable[[], Any], options: dict[str, Any]
) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    bare_recorder.clear()
    results = [text for (text,) in pipe(make(), max_new_tokens=2, **options)]
    assert content_of(bare_recorder, "text_completion") == {
        semconv.INPUT_MESSAGES: [message("user", text) for text in TEXTS],
        semconv.OUTPUT_MESSAGES: completed(
            *(result["generated_text"].removeprefix(text) for text, result in zip(TEXTS, results, strict=True))
        ),
    }


def test_content_of_a_generator_is_that_of_the_items_that_were_taken(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    bare_recorder.clear()
    results = iter(pipe((text for text in TEXTS), max_new_tokens=2))
    next(results)
    del results
    found = content_of(bare_recorder, "text_completion")
    assert found[semconv.INPUT_MESSAGES][0] == message("user", PROMPT)
    assert len(found[semconv.OUTPUT_MESSAGES]) == 1


def test_content_of_several_sequences_is_a_message_each(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    bare_recorder.clear()
    results = pipe(PROMPT, max_new_tokens=2, min_new_tokens=2, num_beams=2, num_return_sequences=2)
    assert content_of(bare_recorder, "text_completion") == {
        semconv.INPUT_MESSAGES: [message("user", PROMPT)],
        semconv.OUTPUT_MESSAGES: completed(*(result["generated_text"].removeprefix(PROMPT) for result in results)),
    }


@pytest.mark.parametrize("where", ["call", "pipeline"])
def test_content_of_new_text_is_kept_whole(bare_recorder: Recorder, where: str) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    options: dict[str, Any] = {"return_full_text": False}
    if where == "pipeline":
        pipe = transformers.pipeline("text-generation", model=pipe.model, tokenizer=pipe.tokenizer, **options)
        options = {}
    bare_recorder.clear()
    (result,) = pipe(PROMPT, max_new_tokens=2, **options)
    assert content_of(bare_recorder, "text_completion")[semconv.OUTPUT_MESSAGES] == completed(result["generated_text"])


def test_content_of_a_chat_with_tools_has_calls_and_responses(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    pipe.tokenizer.chat_template = "{% for each in messages %}{{ each.role }} {{ each.content or '' }} {% endfor %}"
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    chat = [
        {"role": "user", "content": "weather in Paris?"},
        {"role": "assistant", "content": None, "reasoning_content": "I have a tool", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "22 C"},
    ]
    bare_recorder.clear()
    result = pipe(chat, max_new_tokens=2)
    assert content_of(bare_recorder, "chat") == {
        semconv.INPUT_MESSAGES: [
            message("user", "weather in Paris?"),
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "I have a tool"},
                    {"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}},
                ],
            },
            {
                "role": "tool",
                "name": "get_weather",
                "parts": [{"type": "tool_call_response", "id": "c1", "response": "22 C"}],
            },
        ],
        semconv.OUTPUT_MESSAGES: completed(result[0]["generated_text"][-1]["content"]),
    }


def test_content_of_a_chat_that_goes_on_is_what_is_new(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    chat = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "the king"}]
    bare_recorder.clear()
    result = pipe(chat, max_new_tokens=2)
    text = result[0]["generated_text"][-1]["content"]
    assert text.startswith("the king")
    assert content_of(bare_recorder, "chat")[semconv.OUTPUT_MESSAGES] == completed(text.removeprefix("the king"))


def task(name: str, variant: str = "") -> tasks.Task:
    return next(each for each in tasks.TASKS if (each.name, each.variant) == (name, variant))


def test_content_of_a_chat_with_an_image_says_that_there_is_one(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    llava = task("image-text-to-text")
    pipe, chat = llava.make(), llava.inputs()[0]
    bare_recorder.clear()
    (result,) = pipe(text=chat, max_new_tokens=2)
    (_, question) = chat[0]["content"]
    assert content_of(bare_recorder, "chat") == {
        semconv.INPUT_MESSAGES: [
            {
                "role": "user",
                "parts": [{"type": "blob", "modality": "image"}, {"type": "text", "content": question["text"]}],
            }
        ],
        semconv.OUTPUT_MESSAGES: completed(result["generated_text"][-1]["content"]),
    }


def test_content_of_a_question_about_an_image_is_one_message(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    llava = task("image-text-to-text")
    pipe, image = llava.make(), llava.inputs()[0][0]["content"][0]["image"]
    question = f"{tiny.IMAGE} {PROMPT}"
    bare_recorder.clear()
    (result,) = pipe(images=image, text=question, max_new_tokens=2)
    assert content_of(bare_recorder, "generate_content") == {
        semconv.INPUT_MESSAGES: [
            {"role": "user", "parts": [{"type": "blob", "modality": "image"}, {"type": "text", "content": question}]}
        ],
        semconv.OUTPUT_MESSAGES: completed(result["generated_text"].removeprefix(question)),
    }


def test_content_of_a_transcription_is_the_text_of_audio(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    whisper = task("automatic-speech-recognition", "whisper")
    pipe, audio = whisper.make(), whisper.inputs()[0]
    bare_recorder.clear()
    result = pipe(audio, **whisper.call)
    found = content_of(bare_recorder, "automatic-speech-recognition")
    assert found[semconv.INPUT_MESSAGES] == [{"role": "user", "parts": [{"type": "blob", "modality": "audio"}]}]
    (answer,) = found[semconv.OUTPUT_MESSAGES]
    assert answer["parts"] == [{"type": "text", "content": result["text"]}]


def test_content_in_a_block_is_the_blocks(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    bare_recorder.clear()
    with inferspan.inference("answer"):
        results = [pipe(text, max_new_tokens=2)[0]["generated_text"] for text in TEXTS]
    assert content_of(bare_recorder, "answer") == {
        semconv.INPUT_MESSAGES: [message("user", text) for text in TEXTS],
        semconv.OUTPUT_MESSAGES: completed(
            *(result.removeprefix(text) for text, result in zip(TEXTS, results, strict=True))
        ),
    }


# -- generate() --------------------------------------------------------------------------------------------------------


def decoded(tokenizer: Any, ids: Any) -> list[str]:
    return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@pytest.mark.parametrize("in_dict", [False, True], ids=["ids", "dict"])
def test_content_of_generate_with_a_tokenizer_is_decoded(bare_recorder: Recorder, in_dict: bool) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.text_tokenizer(padding_side="left"), tiny.causal_lm()
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    bare_recorder.clear()
    result = model.generate(
        **inputs, max_new_tokens=3, min_new_tokens=3, tokenizer=tokenizer, return_dict_in_generate=in_dict
    )
    ids = result.sequences if in_dict else result
    assert content_of(bare_recorder, "text_completion") == {
        semconv.INPUT_MESSAGES: [message("user", text) for text in decoded(tokenizer, inputs["input_ids"])],
        semconv.OUTPUT_MESSAGES: completed(*decoded(tokenizer, ids[:, inputs["input_ids"].shape[1] :])),
    }
    assert decoded(tokenizer, inputs["input_ids"]) == TEXTS


def test_content_of_generate_ends_with_the_end_of_sequence(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.text_tokenizer(padding_side="left"), tiny.causal_lm()
    inputs = tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    length = inputs["input_ids"].shape[1]
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, length:]
    end, pad = int(plain[0][1]), int(tokenizer("x")["input_ids"][-1])
    assert end not in plain[1]
    bare_recorder.clear()
    ids = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, tokenizer=tokenizer, eos_token_id=end, pad_token_id=pad
    )[:, length:]
    assert ids[0].tolist() == [*plain[0][:2].tolist(), pad, pad]
    first, second = decoded(tokenizer, [ids[0][:1], ids[1]])
    assert content_of(bare_recorder, "text_completion")[semconv.OUTPUT_MESSAGES] == [
        message("assistant", first, "stop"),
        message("assistant", second, "length"),
    ]


class Silent(BaseStreamer):
    """A streamer that says nothing, and has a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


def test_content_of_generate_of_an_encoder_and_decoder_is_decoded(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.seq2seq_tokenizer(), tiny.seq2seq_lm()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    bare_recorder.clear()
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=Silent(tokenizer))
    found = content_of(bare_recorder, "text_completion")
    assert found[semconv.INPUT_MESSAGES] == [message("user", text) for text in decoded(tokenizer, inputs["input_ids"])]
    (answer,) = found[semconv.OUTPUT_MESSAGES]
    assert answer["parts"] == [{"type": "text", "content": decoded(tokenizer, ids)[0]}]


def test_content_of_generate_of_whisper_is_all_of_its_text(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.whisper_tokenizer(), tiny.whisper()
    features = torch.zeros(1, tiny.MEL_BINS, 2 * model.config.max_source_positions)
    bare_recorder.clear()
    ids = model.generate(features, max_new_tokens=5, streamer=Silent(tokenizer))
    found = content_of(bare_recorder, "text_completion")
    assert [part["content"] for part in found[semconv.OUTPUT_MESSAGES][0]["parts"]] == decoded(tokenizer, ids)
    assert semconv.INPUT_MESSAGES not in found


def test_content_of_generate_without_a_tokenizer_is_absent(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    inputs = tiny.text_tokenizer()(PROMPT, return_tensors="pt")
    model = tiny.causal_lm()
    bare_recorder.clear()
    model.generate(**inputs, max_new_tokens=2)
    assert content_of(bare_recorder, "text_completion") == {}


@pytest.mark.parametrize("around", ["nothing", "span", "block"])
def test_content_of_a_stream_in_a_thread_is_what_it_says(bare_recorder: Recorder, around: str) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    bare_recorder.clear()
    spans = {
        "nothing": contextlib.nullcontext,
        "span": lambda: bare_recorder.tracer.start_as_current_span("POST /chat"),
        "block": lambda: inferspan.inference("answer"),
    }
    with spans[around]():
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = {**inputs, "max_new_tokens": 4, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=model.generate, kwargs=options)
        thread.start()
        text = "".join(streamer)
        thread.join()
    name = "answer" if around == "block" else "text_completion"
    assert content_of(bare_recorder, name) == {
        semconv.INPUT_MESSAGES: [message("user", PROMPT)],
        semconv.OUTPUT_MESSAGES: completed(text),
    }


def test_content_of_a_streaming_pipeline_is_once_there(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    streamer = transformers.TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    bare_recorder.clear()
    pipe(PROMPT, max_new_tokens=3, do_sample=False, streamer=streamer)
    assert content_of(bare_recorder, "text_completion") == {
        semconv.INPUT_MESSAGES: [message("user", PROMPT)],
        semconv.OUTPUT_MESSAGES: completed("".join(streamer)),
    }


def test_content_is_decoded_without_borrowing_the_tokenizer(bare_recorder: Recorder) -> None:
    # its decode() lets the program's threads run meanwhile, and what they do to the tokenizer would fail
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    calls: list[str] = []
    for name in ("decode", "batch_decode", "_decode"):
        setattr(tokenizer, name, lambda *_, name=name, **__: calls.append(name))
    bare_recorder.clear()
    model.generate(**inputs, max_new_tokens=2, tokenizer=tokenizer)
    assert content_of(bare_recorder, "text_completion")[semconv.INPUT_MESSAGES] == [message("user", PROMPT)]
    assert calls == []


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "on_span"),
    [pytest.param("EVENT_ONLY", False, id="event only"), pytest.param("SPAN_AND_EVENT", True, id="span and event")],
)
def test_content_in_events_is_one_log_record_of_the_trace(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch, mode: str, on_span: bool
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", mode)
    events = Events()
    bare_recorder.instrument(logger_provider=events.provider)
    pipe = generator()
    bare_recorder.clear()
    result = pipe(PROMPT, max_new_tokens=2)
    span = bare_recorder.span("text_completion")
    assert bool(content_of(bare_recorder, "text_completion")) is on_span
    (record,) = events.records()
    assert record.event_name == semconv.DETAILS_EVENT
    assert (record.trace_id, record.span_id) == (span.context.trace_id, span.context.span_id)
    assert dict(record.attributes) == {
        semconv.OPERATION_NAME: "text_completion",
        semconv.PROVIDER_NAME: "huggingface",
        semconv.REQUEST_MODEL: "LlamaForCausalLM",
        semconv.INPUT_MESSAGES: json.dumps([message("user", PROMPT)]),
        semconv.OUTPUT_MESSAGES: json.dumps(
            completed(result[0]["generated_text"].removeprefix(PROMPT)), ensure_ascii=False
        ),
    }


def test_stop_strings_are_content(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    bare_recorder.clear()
    model.generate(**inputs, max_new_tokens=2, stop_strings=["!!"], tokenizer=tokenizer)
    assert bare_recorder.attributes("text_completion")[semconv.STOP_SEQUENCES] == ("!!",)
