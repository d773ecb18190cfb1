"""``generate()`` that raises: the caller's own exception, untouched, and a trace that says what and where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opentelemetry import trace
from transformers import LogitsProcessor, LogitsProcessorList

from inferspan import faults, inference
from support import tiny
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30, 40]])


class QuotaExceeded(Exception):
    """An exception of the program's own."""


class Raise(LogitsProcessor):
    """Raises at a step of the decoding loop, counted from 0."""

    def __init__(self, error: BaseException, step: int) -> None:
        self.error, self.step = error, step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] - IDS.shape[1] == self.step:
            raise self.error
        return scores


def generate_until(error: BaseException, step: int, model: Any = None) -> None:
    """Generates up to the error, which must come out as it is."""
    model = tiny.causal_lm() if model is None else model
    with pytest.raises(type(error)) as raised:
        model.generate(IDS, max_new_tokens=6, logits_processor=LogitsProcessorList([Raise(error, step)]))
    assert raised.value is error
    assert error.__cause__ is None
    assert error.__context__ is None


QUOTA = f"{__name__}.QuotaExceeded"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(ValueError("secret words"), "ValueError", id="built-in"),
        pytest.param(QuotaExceeded("secret words"), QUOTA, id="own"),
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="interrupt"),
        pytest.param(torch.OutOfMemoryError("secret words"), "torch.OutOfMemoryError", id="out-of-memory"),
    ],
)
@pytest.mark.parametrize(
    ("step", "tree"),
    [
        pytest.param(0, ("forward", "prefill"), id="prefill"),
        pytest.param(1, ("forward", "prefill", "decode"), id="second-token"),
        pytest.param(3, ("forward", "prefill", "decode"), id="fourth-token"),
    ],
)
def test_generate_raises_records_what_and_where(
    error: BaseException, kind: str, step: int, tree: tuple[str, ...], recorder: Recorder
) -> None:
    generate_until(error, step)
    assert recorder.trees() == [("text_completion LlamaForCausalLM", tree)]
    failed = {"text_completion", "forward", tree[-1]}
    for span in recorder.spans():
        name = span.name.split()[0]
        assert span.attributes.get("error.type") == (kind if name in failed else None)
        assert span.status.status_code is (trace.StatusCode.ERROR if name in failed else trace.StatusCode.UNSET)
        assert span.status.description is None
    *before, event = recorder.span("text_completion").events
    assert [e.name for e in before] == (["inferspan.out_of_memory"] if "OutOfMemory" in kind else [])
    assert event.name == "exception"
    assert set(event.attributes) == {"exception.type", "exception.stacktrace"}
    assert event.attributes["exception.type"] == kind
    assert "in __call__" in event.attributes["exception.stacktrace"]
    assert "secret words" not in event.attributes["exception.stacktrace"]
    assert recorder.counts("inferspan.inference.errors", "error.type") == {kind: 1}
    assert recorder.points("gen_ai.server.time_to_first_token") == []


def test_generate_raises_in_decode_keeps_the_first_token(recorder: Recorder) -> None:
    generate_until(ValueError(), 3)
    root, decode = recorder.attributes("text_completion"), recorder.attributes("decode")
    assert root["inferspan.time_to_first_token"] is ...
    assert root["gen_ai.usage.input_tokens"] == 4
    assert "gen_ai.usage.output_tokens" not in root
    assert decode == {"error.type": "ValueError", "inferspan.decode.steps": 2}


def test_generate_raises_with_content_captured_records_the_message(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    generate_until(ValueError("secret words"), 1)
    root = bare_recorder.span("text_completion")
    assert root.status.description == "secret words"
    assert root.events[0].attributes["exception.message"] == "secret words"


def test_generate_after_an_error_is_traced_as_before(recorder: Recorder) -> None:
    model = tiny.causal_lm()
    generate_until(ValueError(), 2, model)
    recorder.clear()
    model.generate(IDS, max_new_tokens=6)
    assert recorder.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill", "decode"))]
    assert "error.type" not in recorder.attributes("text_completion")
    assert not trace.get_current_span().get_span_context().is_valid


def test_generate_raises_inside_a_block_marks_the_phase_only_if_it_is_caught(recorder: Recorder) -> None:
    with inference("answer"):
        generate_until(ValueError(), 1)
    assert recorder.trees() == [("answer", ("forward", "prefill", "decode"))]
    assert "error.type" not in recorder.attributes("answer")
    assert recorder.attributes("forward")["error.type"] == "ValueError"


@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({"input_ids": "words"}, id="text-for-ids"),
        pytest.param({"inputs": IDS, "input_ids": IDS}, id="ids-twice"),
        pytest.param({"input_ids": IDS, "max_new_tokens": "six"}, id="text-for-a-number"),
        pytest.param({"input_ids": IDS, "no_such_argument": 1}, id="unknown-argument"),
    ],
)
def test_generate_wrong_call_raises_what_it_raises_without_us(kwargs: dict[str, Any], bare_recorder: Recorder) -> None:
    model = tiny.causal_lm()
    with pytest.raises((AttributeError, TypeError, ValueError)) as plain:
        model.generate(**kwargs)
    bare_recorder.instrument()
    with pytest.raises(plain.type) as raised:
        model.generate(**kwargs)
    assert str(raised.value) == str(plain.value)
    assert bare_recorder.attributes("text_completion")["error.type"] == plain.type.__name__
    assert faults.counts() == {}
