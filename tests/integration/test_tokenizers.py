"""Tokenizers called directly: one span for each outermost call, under whatever is current."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry import trace

import inferspan
from support import tiny
from support.recorder import Recorder

CHAT = [{"role": "user", "content": "A cat sat on the mat."}]

TEXTS = ["A cat sat.", "Birds fly south when the winter is near."]


def encoded(tokenizer: Any) -> Any:
    return tokenizer(TEXTS, padding=True, return_tensors="pt")


def plain(result: Any) -> Any:
    """Comparable, types included."""
    if isinstance(result, (torch.Tensor, np.ndarray)):
        return type(result), result.tolist()
    if hasattr(result, "keys"):
        return type(result), {key: plain(result[key]) for key in result}
    return type(result), result


CALLS = [
    pytest.param(lambda t: t(TEXTS[0]), "tokenize", 1, id="call"),
    pytest.param(lambda t: t(TEXTS), "tokenize", 2, id="call-list"),
    pytest.param(lambda t: t(text=TEXTS, padding=True, return_tensors="pt"), "tokenize", 2, id="call-tensors"),
    pytest.param(lambda t: t(TEXTS[0], return_tensors="np"), "tokenize", 1, id="call-arrays"),
    pytest.param(lambda t: t.encode(TEXTS[0]), "tokenize", 1, id="encode"),
    pytest.param(lambda t: t.encode(TEXTS[0], return_tensors="pt"), "tokenize", 1, id="encode-tensors"),
    pytest.param(lambda t: t.apply_chat_template(CHAT), "tokenize", 1, id="chat"),
    pytest.param(lambda t: t.apply_chat_template([CHAT, CHAT]), "tokenize", 2, id="chat-list"),
    pytest.param(
        lambda t: t.apply_chat_template(CHAT, return_dict=True, return_tensors="pt"), "tokenize", 1, id="chat-tensors"
    ),
    pytest.param(lambda t: t.apply_chat_template(CHAT, tokenize=False), "tokenize", None, id="chat-text"),
    pytest.param(lambda t: t.decode([10, 20, 30]), "detokenize", None, id="decode"),
    pytest.param(lambda t: t.decode(torch.tensor([10, 20, 30])), "detokenize", None, id="decode-tensor"),
    pytest.param(lambda t: t.decode(token_ids=[10, 20, 30]), "detokenize", None, id="decode-by-name"),
    pytest.param(lambda t: t.batch_decode([[10, 20], [30]]), "detokenize", None, id="batch-decode"),
    pytest.param(lambda t: t.batch_decode(torch.tensor([[10, 20]])), "detokenize", None, id="batch-decode-tensor"),
]


@pytest.mark.parametrize(("call", "name", "rows"), CALLS)
def test_tokenizer_called_gives_one_span_and_the_same_result(
    call: Callable[[Any], Any], name: str, rows: int | None, bare_recorder: Recorder
) -> None:
    tokenizer = tiny.text_tokenizer()
    expected = plain(call(tokenizer))
    bare_recorder.instrument()
    assert plain(call(tokenizer)) == expected
    assert bare_recorder.trees() == [name]
    found = bare_recorder.attributes(name)
    assert found.get("inferspan.batch.size") == rows
    assert ("inferspan.sequence.length" in found) == (rows is not None)
    assert set(found) - {"gen_ai.request.model", "inferspan.batch.size", "inferspan.sequence.length"} == set()


def test_tokenizer_called_tells_the_shape_it_made(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer(name_or_path="org/reader")
    ids = encoded(tokenizer)["input_ids"]
    assert recorder.attributes("tokenize") == {
        "gen_ai.request.model": "org/reader",
        "inferspan.batch.size": 2,
        "inferspan.sequence.length": ids.shape[1],
    }
    recorder.clear()
    tokenizer(TEXTS)
    assert recorder.attributes("tokenize") == {
        "gen_ai.request.model": "org/reader",
        "inferspan.batch.size": 2,
        "inferspan.sequence.length": ids.shape[1],
    }


def test_tokenizer_in_a_folder_tells_its_last_part_only(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer(name_or_path="/home/someone/secret project/reader")
    tokenizer("A cat sat.")
    assert recorder.attributes("tokenize")["gen_ai.request.model"] == "reader"


def test_tokenizer_called_gives_the_points_of_its_duration(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer()
    tokenizer.decode(tokenizer.encode("A cat sat."))
    recorder.spans()
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"tokenize": 1, "detokenize": 1}


def test_tokenizer_model_decode_give_three_spans_under_the_callers(bare_recorder: Recorder) -> None:
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()

    def answer() -> list[str]:
        inputs = encoded(tokenizer)
        with torch.no_grad():
            ids = model(**inputs).logits.argmax(-1)
        return tokenizer.batch_decode(ids)

    expected = answer()
    bare_recorder.instrument()
    with bare_recorder.tracer.start_as_current_span("request"):
        assert answer() == expected
    assert bare_recorder.trees() == [("request", "tokenize", "forward", "detokenize")]


def test_tokenizer_model_decode_without_a_span_are_roots_each(recorder: Recorder) -> None:
    tokenizer, model = tiny.text_tokenizer(), tiny.causal_lm()
    inputs = encoded(tokenizer)
    tokenizer.batch_decode(model(**inputs).logits.argmax(-1))
    assert recorder.trees() == ["tokenize", "forward", "detokenize"]
    assert len({span.context.trace_id for span in recorder.spans()}) == 3


def test_tokenizer_inside_a_block_is_its_phase(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer()
    with inferspan.inference("answer"):
        tokenizer.decode(tokenizer.encode("A cat sat."))
    assert recorder.trees() == [("answer", "tokenize", "detokenize")]


def test_tokenizer_called_often_inside_a_block_is_one_phase(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer()
    with inferspan.inference("answer"):
        for text in TEXTS:
            tokenizer(text)
    assert recorder.trees() == [("answer", "tokenize")]
    assert recorder.attributes("tokenize") == {"inferspan.phase.calls": 2, "inferspan.phase.time": ...}


def test_tokenizer_that_raises_records_the_error(recorder: Recorder) -> None:
    tokenizer = tiny.text_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        tokenizer.apply_chat_template(CHAT)
    assert recorder.trees() == ["tokenize"]
    assert recorder.attributes("tokenize")["error.type"] == "ValueError"
    span = recorder.span("tokenize")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.status.description, span.events) == (None, ())


def test_tokenizer_overriding_call_gives_one_span(recorder: Recorder) -> None:
    from transformers import PreTrainedTokenizerFast

    class Lowercasing(PreTrainedTokenizerFast):
        def __call__(self, text: str, **kwargs: Any) -> Any:
            return super().__call__(text.lower(), **kwargs)

    options = {"tokenizer_object": tiny.text_tokenizer()._tokenizer, "eos_token": "</s>", "pad_token": "<pad>"}
    Lowercasing(**options)("A CAT SAT.")
    assert recorder.trees() == ["tokenize"]


def test_tokenizer_pickled_while_instrumented_works(recorder: Recorder) -> None:
    tokenizer = pickle.loads(pickle.dumps(tiny.text_tokenizer()))
    assert tokenizer.decode(tokenizer.encode("A cat sat.")) == "A cat sat."
    assert recorder.trees() == ["tokenize", "detokenize"]


class Sentences(torch.utils.data.Dataset):
    """Tokenizes when it is asked for an item."""

    def __init__(self) -> None:
        self.tokenizer = tiny.text_tokenizer()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[int]:
        return self.tokenizer.encode(tiny.SENTENCES[index])


@pytest.mark.parametrize(
    ("workers", "spans"),
    [pytest.param(0, ["tokenize"] * 4, id="here"), pytest.param(1, [], id="worker")],
)
def test_tokenizer_in_a_data_loader_gives_spans_only_here(
    workers: int, spans: list[str], bare_recorder: Recorder
) -> None:
    sentences = Sentences()
    expected = [sentences[index] for index in range(4)]
    bare_recorder.instrument()
    loader = torch.utils.data.DataLoader(sentences, batch_size=None, num_workers=workers)
    assert list(loader) == expected
    assert bare_recorder.trees() == spans
