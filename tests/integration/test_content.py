"""Prompts and completions: nowhere by default, and where the setting says in the forms of the conventions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from inferspan import semconv
from support import tiny
from support.recorder import Recorder

PROMPT = "the queen of hearts"
CONTENT = {semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES, semconv.SYSTEM_INSTRUCTIONS}


def generator() -> Any:
    import transformers

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
    attributes = recorder.span(name).attributes or {}
    return {key: json.loads(str(value)) for key, value in attributes.items() if key in CONTENT}


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


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
        semconv.OUTPUT_MESSAGES: [message("assistant", result[0]["generated_text"])],
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
        semconv.OUTPUT_MESSAGES: [message("assistant", result[0]["generated_text"][-1]["content"])],
    }


def test_content_longer_than_the_setting_is_cut_and_stays_json(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY", content_length=5)
    pipe = generator()
    bare_recorder.clear()
    pipe([PROMPT, 'a "quoted" word'], max_new_tokens=1)
    found = content_of(bare_recorder, "text_completion")
    assert found[semconv.INPUT_MESSAGES] == [message("user", "the q"), message("user", 'a "qu')]


def test_content_of_a_generator_input_is_not_touched(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    pipe = generator()
    bare_recorder.clear()
    list(pipe((text for text in [PROMPT, PROMPT]), max_new_tokens=1))
    assert content_of(bare_recorder, "text_completion") == {}


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
        semconv.OUTPUT_MESSAGES: json.dumps([message("assistant", result[0]["generated_text"])], ensure_ascii=False),
    }


def test_stop_strings_are_content(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    bare_recorder.clear()
    model.generate(**inputs, max_new_tokens=2, stop_strings=["!!"], tokenizer=tokenizer)
    assert bare_recorder.attributes("text_completion")[semconv.STOP_SEQUENCES] == ("!!",)
