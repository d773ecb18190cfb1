"""Every way to call a pipeline: what the whole trace says, and that the program notices nothing."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest
import torch
import transformers
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN, get_current_span
from transformers.pipelines.pt_utils import KeyDataset, PipelineIterator

import inferspan
from inferspan import semconv
from inferspan.core import current, process
from inferspan.integrations.patching import is_ours
from support import tiny
from support.recorder import FIGURES, MEASURED, MODEL_FACTS, Recorder
from support.tiny import SENTENCES

V4 = transformers.__version__.startswith("4.")
THREE = [SENTENCES[0], SENTENCES[9], SENTENCES[3]]
GREEDY = {"max_new_tokens": 5, "do_sample": False}
LABELS = {"candidate_labels": ["politics", "science", "sports"]}

CLASSIFIER = "text-classification BertForSequenceClassification"
GENERATOR = "text_completion LlamaForCausalLM"
CHAT = "chat LlamaForCausalLM"
CHUNKED = "zero-shot-classification BertForSequenceClassification"

ONE = ("tokenize", "forward", "detokenize")

COMMON = {
    "gen_ai.provider.name": "huggingface",
    "inferspan.cold": False,
    "inferspan.device": "cpu",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
}
CLASSIFIER_FACTS = {
    **COMMON,
    "gen_ai.operation.name": "text-classification",
    "gen_ai.request.model": "BertForSequenceClassification",
    "inferspan.task": "text-classification",
}
GENERATOR_FACTS = {
    **COMMON,
    "gen_ai.request.model": "LlamaForCausalLM",
    "gen_ai.request.max_tokens": 5,
    "inferspan.request.do_sample": False,
    "inferspan.task": "text-generation",
    "inferspan.time_to_first_token": ...,
    "inferspan.time_per_output_token": ...,
}
CHUNKED_FACTS = {
    **COMMON,
    "gen_ai.operation.name": "zero-shot-classification",
    "gen_ai.request.model": "BertForSequenceClassification",
    "inferspan.task": "zero-shot-classification",
}
LAZY = {"inferspan.lazy": True, "inferspan.busy_time": ...}
TWICE = {"inferspan.phase.calls": 2, "inferspan.phase.time": ...}


def classifier(**options: Any) -> Any:
    return transformers.pipeline(
        "text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer(), device="cpu", **options
    )


def generator(**options: Any) -> Any:
    return transformers.pipeline(
        "text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer(), device="cpu", **options
    )


def chunked(**options: Any) -> Any:
    """A ChunkPipeline: three chunks an item, one for each label."""
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model = tiny.classifier(id2label=names, label2id={name: index for index, name in names.items()})
    return transformers.pipeline(
        "zero-shot-classification", model=model, tokenizer=tiny.word_tokenizer(), device="cpu", **options
    )


def warm(recorder: Recorder, pipe: Any, **call: Any) -> Any:
    """The pipeline after its first inference, nothing of which is kept."""
    pipe(SENTENCES[1], **call)
    recorder.clear()
    return pipe


def count(tokenizer: Any, *texts: str) -> int:
    """What the tokenizer itself counts, without a span for it."""
    with suppress_instrumentation():
        return len(tokenizer(*texts)["input_ids"])


def word_counts(texts: list[str]) -> list[int]:
    return [count(tiny.word_tokenizer(), text) for text in texts]


def text_counts(texts: list[str]) -> list[int]:
    return [count(tiny.text_tokenizer(), text) for text in texts]


def label_counts(texts: list[str]) -> list[int]:
    """Of the chunks: each text with each label."""
    labels = [f"This example is {label}." for label in LABELS["candidate_labels"]]
    return [count(tiny.word_tokenizer(), text, label) for text in texts for label in labels]


def forward(rows: int, length: int) -> tuple[str, dict[str, Any]]:
    return "forward", {"inferspan.batch.size": rows, "inferspan.sequence.length": length}


def told(recorder: Recorder) -> list[tuple[str, dict[str, Any]]]:
    """Every span in the order of its start: name and attributes, measured values as ``...``."""
    return [
        (
            span.name,
            {
                key: ... if key in MEASURED else value
                for key, value in (span.attributes or {}).items()
                if key not in FIGURES
                if key not in MODEL_FACTS
            },
        )
        for span in recorder.spans()
    ]


class Items(torch.utils.data.Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


# -- what one trace says -----------------------------------------------------------------------------------------


def test_classifier_single_text_tells_everything(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    (length,) = word_counts(THREE[:1])
    pipe(THREE[0])
    assert recorder.trees() == [(CLASSIFIER, *ONE)]
    assert told(recorder) == [
        (
            CLASSIFIER,
            {
                **CLASSIFIER_FACTS,
                "inferspan.batch.size": 1,
                "inferspan.sequence.length": length,
                "gen_ai.usage.input_tokens": length,
            },
        ),
        ("tokenize", {}),
        forward(1, length),
        ("detokenize", {}),
    ]


def test_classifier_first_call_is_cold(recorder: Recorder) -> None:
    pipe = classifier()
    pipe(THREE[0])
    pipe(THREE[0])
    assert [span.attributes["inferspan.cold"] for span in recorder.spans() if span.name == CLASSIFIER] == [True, False]
    assert recorder.counts(semconv.COLD_STARTS, semconv.REQUEST_MODEL) == {"BertForSequenceClassification": 1}


def test_classifier_list_interleaves_phases(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    counts = word_counts(THREE)
    pipe(THREE)
    assert recorder.trees() == [(CLASSIFIER, *ONE, *ONE, *ONE)]
    assert told(recorder) == [
        (
            CLASSIFIER,
            {
                **CLASSIFIER_FACTS,
                "inferspan.batch.size": 1,
                "inferspan.sequence.length": max(counts),
                "inferspan.items": 3,
                "gen_ai.usage.input_tokens": sum(counts),
            },
        ),
        ("tokenize", {}),
        forward(1, counts[0]),
        ("detokenize", {}),
        ("tokenize", {}),
        forward(1, counts[1]),
        ("detokenize", {}),
        ("tokenize", {}),
        forward(1, counts[2]),
        ("detokenize", {}),
    ]


def test_classifier_batches_of_two_tell_calls_and_true_tokens(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    counts = word_counts(THREE)
    pipe(THREE, batch_size=2)
    root = told(recorder)[0][1]
    root.pop("inferspan.padding.ratio")  # of one batch, below
    assert recorder.trees() == [(CLASSIFIER, *ONE, *ONE)]
    assert [(CLASSIFIER, root), *told(recorder)[1:]] == [
        (
            CLASSIFIER,
            {
                **CLASSIFIER_FACTS,
                "inferspan.batch.size": 2,
                "inferspan.sequence.length": max(counts),
                "inferspan.items": 3,
                "gen_ai.usage.input_tokens": sum(counts),
            },
        ),
        ("tokenize", TWICE),
        forward(2, max(counts[:2])),
        ("detokenize", TWICE),
        ("tokenize", {}),
        forward(1, counts[2]),
        ("detokenize", {}),
    ]


def test_classifier_one_padded_batch_tells_share_of_padding(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    counts = word_counts(THREE)
    positions = 3 * max(counts)
    pipe(THREE, batch_size=8)
    assert recorder.trees() == [(CLASSIFIER, *ONE)]
    assert recorder.attributes(CLASSIFIER) == {
        **CLASSIFIER_FACTS,
        "inferspan.batch.size": 3,
        "inferspan.sequence.length": max(counts),
        "inferspan.items": 3,
        "gen_ai.usage.input_tokens": sum(counts),
        "inferspan.padding.ratio": pytest.approx((positions - sum(counts)) / positions),
    }


def test_classifier_batch_size_of_the_pipeline_is_seen(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier(batch_size=2))
    pipe(THREE)
    assert recorder.trees() == [(CLASSIFIER, *ONE, *ONE)]


def test_classifier_pair_of_texts_counts_both(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    pipe({"text": THREE[0], "text_pair": THREE[1]})
    both = count(tiny.word_tokenizer(), THREE[0], THREE[1])
    assert recorder.trees() == [(CLASSIFIER, *ONE)]
    assert recorder.span(CLASSIFIER).attributes["gen_ai.usage.input_tokens"] == both


def test_generator_single_text_tells_everything(recorder: Recorder) -> None:
    pipe = warm(recorder, generator(), **GREEDY)
    (length,) = text_counts(THREE[:1])
    pipe(THREE[0], **GREEDY)
    assert recorder.trees() == [(GENERATOR, "tokenize", ("forward", "prefill", "decode"), "detokenize")]
    assert told(recorder) == [
        (
            GENERATOR,
            {
                **GENERATOR_FACTS,
                "gen_ai.operation.name": "text_completion",
                "inferspan.batch.size": 1,
                "inferspan.sequence.length": length,
                "gen_ai.usage.input_tokens": length,
                "gen_ai.usage.output_tokens": 5,
                "gen_ai.response.finish_reasons": ("length",),
            },
        ),
        ("tokenize", {}),
        forward(1, length),
        ("prefill", {}),
        ("decode", {"inferspan.decode.steps": 4}),
        ("detokenize", {}),
    ]


def test_generator_batches_of_two_tell_each_batch(recorder: Recorder) -> None:
    pipe = warm(recorder, generator(), **GREEDY)
    counts = text_counts(THREE)
    pipe(THREE, batch_size=2, **GREEDY)
    root = told(recorder)[0][1]
    root.pop("inferspan.padding.ratio")
    phases = ("tokenize", ("forward", "prefill", "decode"), "detokenize")
    assert recorder.trees() == [(GENERATOR, *phases, *phases)]
    assert [(GENERATOR, root), *told(recorder)[1:]] == [
        (
            GENERATOR,
            {
                **GENERATOR_FACTS,
                "gen_ai.operation.name": "text_completion",
                "inferspan.batch.size": 2,
                "inferspan.sequence.length": max(counts),
                "inferspan.items": 3,
                "gen_ai.usage.input_tokens": sum(counts),
                "gen_ai.usage.output_tokens": 15,
                "gen_ai.response.finish_reasons": ("length", "length", "length"),
            },
        ),
        ("tokenize", TWICE),
        forward(2, max(counts[:2])),
        ("prefill", {}),
        ("decode", {"inferspan.decode.steps": 4}),
        ("detokenize", TWICE),
        ("tokenize", {}),
        forward(1, counts[2]),
        ("prefill", {}),
        ("decode", {"inferspan.decode.steps": 4}),
        ("detokenize", {}),
    ]


def test_generator_chat_is_a_chat(recorder: Recorder) -> None:
    pipe = warm(recorder, generator(), **GREEDY)
    chat = [{"role": "user", "content": THREE[0]}]
    with suppress_instrumentation():
        prompt = tiny.text_tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    (length,) = text_counts([prompt])
    pipe(chat, **GREEDY)
    assert recorder.trees() == [(CHAT, "tokenize", ("forward", "prefill", "decode"), "detokenize")]
    assert told(recorder) == [
        (
            CHAT,
            {
                **GENERATOR_FACTS,
                "gen_ai.operation.name": "chat",
                "inferspan.batch.size": 1,
                "inferspan.sequence.length": length,
                "gen_ai.usage.input_tokens": length,
                "gen_ai.usage.output_tokens": 5,
                "gen_ai.response.finish_reasons": ("length",),
            },
        ),
        ("tokenize", {}),
        forward(1, length),
        ("prefill", {}),
        ("decode", {"inferspan.decode.steps": 4}),
        ("detokenize", {}),
    ]


def test_generator_of_one_token_has_no_decode(recorder: Recorder) -> None:
    pipe = warm(recorder, generator(), **GREEDY)
    pipe(THREE[0], max_new_tokens=1, do_sample=False)
    assert recorder.trees() == [(GENERATOR, "tokenize", ("forward", "prefill"), "detokenize")]


def test_generator_several_sequences_counts_all(recorder: Recorder) -> None:
    pipe = warm(recorder, generator(), **GREEDY)
    pipe(THREE[0], max_new_tokens=5, do_sample=False, num_beams=2, num_return_sequences=2)
    root = recorder.span(GENERATOR).attributes
    assert root["gen_ai.request.choice.count"] == 2
    assert root["gen_ai.usage.output_tokens"] == 10
    assert root["gen_ai.usage.input_tokens"] == text_counts(THREE[:1])[0]


SAMPLING = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.6, "num_return_sequences": 2}
SAMPLED = {
    "gen_ai.request.choice.count": 2,
    "gen_ai.request.max_tokens": 3,
    "gen_ai.request.temperature": 0.6,
    "inferspan.request.do_sample": True,
}


@pytest.mark.parametrize(
    ("made", "called"),
    [
        pytest.param(
            {}, {"generation_config": transformers.GenerationConfig(**SAMPLING)}, id="configuration-of-the-call"
        ),
        pytest.param({}, SAMPLING, id="call"),
        pytest.param(SAMPLING, {}, id="pipeline"),
        pytest.param(
            {"generation_config": transformers.GenerationConfig(**SAMPLING)},
            {},
            id="configuration-it-was-made-with",
            marks=pytest.mark.skipif(V4, reason="4.57 takes none there"),
        ),
    ],
)
def test_generator_request_shows_what_was_set_for_it(
    made: dict[str, Any], called: dict[str, Any], recorder: Recorder
) -> None:
    model = tiny.causal_lm()
    model.generation_config.repetition_penalty = 1.5  # the model's own is not of the request
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tiny.text_tokenizer(), **made)
    pipe(THREE[0], **called)
    found = recorder.attributes("text_completion")
    requested = {name: value for name, value in found.items() if ".request." in name}
    if V4 and not called:  # the pipeline's own default, too
        requested["inferspan.request.do_sample"] = True
    assert requested == {"gen_ai.request.model": "LlamaForCausalLM", **SAMPLED}


def test_chunked_single_text_has_a_forward_for_each_chunk(recorder: Recorder) -> None:
    pipe = warm(recorder, chunked(), **LABELS)
    counts = label_counts(THREE[:1])
    pipe(THREE[0], **LABELS)
    assert recorder.trees() == [
        (CHUNKED, "tokenize", "forward", "tokenize", "forward", "tokenize", "forward", "detokenize")
    ]
    assert told(recorder) == [
        (
            CHUNKED,
            {
                **CHUNKED_FACTS,
                "inferspan.batch.size": 1,
                "inferspan.sequence.length": max(counts),
                "gen_ai.usage.input_tokens": sum(counts),
            },
        ),
        ("tokenize", {}),
        forward(1, counts[0]),
        ("tokenize", {}),
        forward(1, counts[1]),
        ("tokenize", {}),
        forward(1, counts[2]),
        ("detokenize", {}),
    ]


def test_chunked_batches_cross_items_and_end_with_the_last_chunk(recorder: Recorder) -> None:
    pipe = warm(recorder, chunked(), **LABELS)
    counts = label_counts(THREE[:2])
    pipe(THREE[:2], batch_size=4, **LABELS)
    root = told(recorder)[0][1]
    root.pop("inferspan.padding.ratio")
    assert recorder.trees() == [(CHUNKED, *ONE, *ONE)]
    assert [(CHUNKED, root), *told(recorder)[1:]] == [
        (
            CHUNKED,
            {
                **CHUNKED_FACTS,
                "inferspan.batch.size": 4,
                "inferspan.sequence.length": max(counts),
                "inferspan.items": 2,
                "gen_ai.usage.input_tokens": sum(counts),
            },
        ),
        ("tokenize", {"inferspan.phase.calls": 4, "inferspan.phase.time": ...}),
        forward(4, max(counts[:4])),
        ("detokenize", {}),
        ("tokenize", TWICE),
        forward(2, max(counts[4:])),
        ("detokenize", {}),
    ]


def test_chunked_list_has_no_phase_for_the_end_of_the_chunks(recorder: Recorder) -> None:
    pipe = warm(recorder, chunked(), **LABELS)
    pipe(THREE[:2], **LABELS)
    item = ("tokenize", "forward", "tokenize", "forward", "tokenize", "forward", "detokenize")
    assert recorder.trees() == [(CHUNKED, *item, *item)]
    assert [facts for name, facts in told(recorder) if name == "tokenize"] == [{}] * 6


@pytest.mark.parametrize(
    ("make", "call", "root"),
    [
        pytest.param(classifier, {}, CLASSIFIER, id="classifier"),
        pytest.param(chunked, LABELS, CHUNKED, id="chunked"),
    ],
)
@pytest.mark.parametrize("kind", [Items, Stream], ids=["dataset", "iterable-dataset"])
def test_dataset_consumed_is_one_lazy_inference(
    make: Callable[[], Any], call: dict[str, Any], root: str, kind: type, recorder: Recorder
) -> None:
    pipe = warm(recorder, make(), **call)
    assert len(list(pipe(kind(THREE), batch_size=3, **call))) == 3
    (tree,) = recorder.trees()
    assert tree[0] == root
    assert recorder.span(root).attributes["inferspan.lazy"] is True
    assert recorder.span(root).attributes["inferspan.items"] == 3


def test_generator_consumed_tells_everything(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    counts = word_counts(THREE)
    for _ in pipe(text for text in THREE):
        assert recorder.trees() == []
    assert recorder.trees() == [(CLASSIFIER, *ONE, *ONE, *ONE)]
    assert told(recorder)[0] == (
        CLASSIFIER,
        {
            **CLASSIFIER_FACTS,
            **LAZY,
            "inferspan.batch.size": 1,
            "inferspan.sequence.length": max(counts),
            "inferspan.items": 3,
            "gen_ai.usage.input_tokens": sum(counts),
        },
    )


def test_key_dataset_consumed_is_one_lazy_inference(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    rows = Items([{"text": text, "id": index} for index, text in enumerate(THREE)])
    result = pipe(KeyDataset(rows, "text"), batch_size=2)
    assert recorder.trees() == []
    assert list(result) == classifier()(THREE)
    assert recorder.trees()[0] == (CLASSIFIER, *ONE, *ONE)
    assert recorder.spans()[0].attributes["inferspan.lazy"] is True


def test_children_lie_in_their_parents_and_belong_to_one_trace(recorder: Recorder) -> None:
    warm(recorder, generator(), **GREEDY)(THREE, **GREEDY)
    root, *others = recorder.spans()
    assert root.parent is None
    assert {span.context.trace_id for span in others} == {root.context.trace_id}
    names = {span.context.span_id: span.name for span in recorder.spans()}
    assert {(span.name, names[span.parent.span_id]) for span in others} == {
        ("tokenize", GENERATOR),
        ("forward", GENERATOR),
        ("prefill", "forward"),
        ("decode", "forward"),
        ("detokenize", GENERATOR),
    }


# -- what is consumed when ---------------------------------------------------------------------------------------


def pulls(pipe: Any, call: dict[str, Any]) -> list[int]:
    """How many items have been pulled from the generator: at the call, at iter(), and at each step."""
    pulled = 0

    def texts() -> Iterator[str]:
        nonlocal pulled
        for text in SENTENCES[:7]:
            pulled += 1
            yield text

    result = pipe(texts(), **call)
    counts = [pulled]
    iterator = iter(result)
    counts.append(pulled)
    counts.extend(pulled for _ in iterator)
    return [*counts, pulled]


@pytest.mark.parametrize(
    ("make", "call"),
    [
        pytest.param(classifier, {}, id="classifier"),
        pytest.param(classifier, {"batch_size": 3}, id="classifier-batches"),
        pytest.param(generator, GREEDY, id="generator"),
        pytest.param(chunked, LABELS, id="chunked"),
        pytest.param(chunked, {**LABELS, "batch_size": 2}, id="chunked-batches"),
    ],
)
def test_generator_instrumented_pulls_nothing_early(
    make: Callable[[], Any], call: dict[str, Any], bare_recorder: Recorder
) -> None:
    plain = pulls(make(), call)
    bare_recorder.instrument()
    assert pulls(make(), call) == plain


@pytest.mark.parametrize(
    "items", [lambda: Items(THREE), lambda: (text for text in THREE)], ids=["dataset", "generator"]
)
def test_lazy_result_instrumented_keeps_type_and_length(items: Callable[[], Any], recorder: Recorder) -> None:
    result = classifier()(items())
    assert type(result) is PipelineIterator
    if isinstance(items(), Items):
        assert len(result) == 3
    else:
        with pytest.raises(TypeError):
            len(result)


@pytest.mark.parametrize(
    "duplicate", [lambda result: pickle.loads(pickle.dumps(result)), copy.deepcopy, copy.copy], ids=lambda f: f.__name__
)
def test_lazy_result_copied_gives_the_same(duplicate: Callable[[Any], Any], recorder: Recorder) -> None:
    result = classifier()(Items(THREE))
    assert list(duplicate(result)) == list(result) == classifier()(THREE)


@pytest.mark.parametrize("make", [classifier, generator, chunked])
def test_pipeline_pickled_after_a_call_works(make: Callable[[], Any], recorder: Recorder) -> None:
    call = {classifier: {}, generator: GREEDY, chunked: LABELS}[make]
    pipe = make()
    expected = pipe(THREE[0], **call)
    assert pickle.loads(pickle.dumps(pipe))(THREE[0], **call) == expected
    assert copy.deepcopy(pipe)(THREE[0], **call) == expected


def test_generator_sampling_instrumented_draws_the_same(bare_recorder: Recorder) -> None:
    def sample() -> Any:
        torch.manual_seed(3)
        return generator()(THREE, max_new_tokens=8, do_sample=True, batch_size=2), torch.get_rng_state().tolist()

    plain = sample()
    bare_recorder.instrument()
    assert sample() == plain


def test_lazy_result_iterated_again_is_another_inference(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    result = pipe(Items(THREE[:2]))
    assert list(result) == list(result)
    del result
    gc.collect()
    assert recorder.trees() == [(CLASSIFIER, *ONE, *ONE)] * 2
    counts = word_counts(THREE[:2])
    assert [told(recorder)[0], told(recorder)[7]] == [
        (
            CLASSIFIER,
            {
                **CLASSIFIER_FACTS,
                **LAZY,
                "inferspan.batch.size": 1,
                "inferspan.sequence.length": max(counts),
                "inferspan.items": 2,
                "gen_ai.usage.input_tokens": sum(counts),
            },
        )
    ] * 2


def test_lazy_result_asked_beyond_its_end_makes_nothing_new(recorder: Recorder) -> None:
    result = iter(warm(recorder, classifier())(Items(THREE[:1])))
    assert len([*result]) == 1
    for _ in range(2):
        assert next(result, None) is None
    assert recorder.trees() == [(CLASSIFIER, *ONE)]


# -- whose spans are whose ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items", [lambda: Items(THREE), lambda: (text for text in THREE)], ids=["dataset", "generator"]
)
def test_consumer_spans_during_iteration_stay_outside(items: Callable[[], Any], recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    result = iter(pipe(items()))
    for _ in range(3):
        next(result)
        assert get_current_span() is INVALID_SPAN
        assert current.here() is None
        with recorder.tracer.start_as_current_span("mine"):
            pass
    assert next(result, None) is None
    assert sorted(recorder.trees()[1:]) == ["mine", "mine", "mine"]
    assert recorder.trees()[0] == (CLASSIFIER, *ONE, *ONE, *ONE)


def test_lazy_result_consumed_elsewhere_belongs_to_the_span_of_the_call(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    with recorder.tracer.start_as_current_span("caller"):
        result = pipe(text for text in THREE[:2])
        with recorder.tracer.start_as_current_span("consumer") as consumer:
            for _ in result:
                assert get_current_span() is consumer
    assert recorder.trees() == [("caller", (CLASSIFIER, *ONE, *ONE), "consumer")]


def test_lazy_result_consumed_in_another_thread_is_one_trace(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    seen: list[Any] = []

    def consume() -> None:
        seen.extend(result)
        seen.append((get_current_span(), current.here()))

    with recorder.tracer.start_as_current_span("caller"):
        result = pipe(text for text in THREE)
        thread = threading.Thread(target=consume)
        thread.start()
        thread.join()
    assert seen == [*classifier()(THREE), (INVALID_SPAN, None)]
    assert recorder.trees()[0] == ("caller", (CLASSIFIER, *ONE, *ONE, *ONE))


def test_call_leaves_the_context_as_it_was(recorder: Recorder) -> None:
    pipe = classifier()
    with recorder.tracer.start_as_current_span("mine") as mine:
        pipe(THREE)
        assert get_current_span() is mine
        assert current.here() is None
    assert get_current_span() is INVALID_SPAN


def test_spans_of_the_users_generator_are_inside_the_inference(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())

    def texts() -> Iterator[str]:
        for text in THREE[:2]:
            with recorder.tracer.start_as_current_span("read"):
                pass
            yield text

    list(pipe(texts()))
    assert recorder.trees() == [(CLASSIFIER, "read", *ONE, "read", *ONE)]


def test_pipeline_feeding_a_pipeline_is_an_inference_of_its_own(recorder: Recorder) -> None:
    write, read = warm(recorder, generator(), **GREEDY), warm(recorder, classifier())
    list(read(write(text, **GREEDY)[0]["generated_text"] for text in THREE[:2]))
    inner = (GENERATOR, "tokenize", ("forward", "prefill", "decode"), "detokenize")
    assert recorder.trees() == [(CLASSIFIER, inner, *ONE, inner, *ONE)]
    assert recorder.span(CLASSIFIER).attributes.get("gen_ai.usage.output_tokens") is None


def test_lazy_pipeline_feeding_a_lazy_pipeline_keeps_two_traces(recorder: Recorder) -> None:
    write, read = warm(recorder, generator(), **GREEDY), warm(recorder, classifier())
    written = write((text for text in THREE[:2]), **GREEDY)
    list(read(item[0]["generated_text"] for item in written))
    phases = ("tokenize", ("forward", "prefill", "decode"), "detokenize")
    assert sorted(recorder.trees()) == [(CLASSIFIER, *ONE, *ONE), (GENERATOR, *phases, *phases)]


def test_call_inside_a_block_gives_its_phases_to_the_block(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    with inferspan.inference("mine"):
        pipe(THREE[0])
        pipe(THREE[:2], batch_size=2)
        list(pipe(text for text in THREE[:1]))
    assert recorder.trees() == [("mine", *ONE, *ONE, *ONE)]


def test_two_threads_at_once_give_two_traces(recorder: Recorder) -> None:
    pipes = [warm(recorder, classifier()), warm(recorder, generator(), **GREEDY)]
    barrier = threading.Barrier(2)

    def call(pipe: Any, options: dict[str, Any]) -> None:
        barrier.wait()
        for _ in range(5):
            pipe(THREE[0], **options)

    threads = [threading.Thread(target=call, args=case) for case in zip(pipes, ({}, GREEDY), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(recorder.trees()) == [
        *[(CLASSIFIER, *ONE)] * 5,
        *[(GENERATOR, "tokenize", ("forward", "prefill", "decode"), "detokenize")] * 5,
    ]


def test_one_pipeline_in_two_threads_gives_two_traces(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    barrier = threading.Barrier(2)

    def call() -> None:
        barrier.wait()
        list(pipe(text for text in THREE))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.trees() == [(CLASSIFIER, *ONE, *ONE, *ONE)] * 2


# -- results that are dropped ------------------------------------------------------------------------------------


def test_lazy_result_abandoned_ends_with_its_last_item(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    counts = word_counts(THREE[:1])
    before = perf_counter_ns()
    result = iter(pipe(text for text in THREE))
    next(result)
    after = perf_counter_ns()
    classifier()(THREE)
    recorder.clear()
    del result
    gc.collect()
    assert recorder.trees() == [(CLASSIFIER, *ONE)]
    assert recorder.attributes(CLASSIFIER) == {
        **CLASSIFIER_FACTS,
        **LAZY,
        "inferspan.abandoned": True,
        "inferspan.batch.size": 1,
        "inferspan.sequence.length": counts[0],
        "gen_ai.usage.input_tokens": counts[0],
    }
    root = recorder.span(CLASSIFIER)
    assert root.end_time - root.start_time <= after - before
    assert root.status.is_unset


def test_lazy_result_never_iterated_is_abandoned_at_once(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    before = perf_counter_ns()
    result = pipe(text for text in THREE)
    after = perf_counter_ns()
    classifier()(THREE)
    recorder.clear()
    del result
    gc.collect()
    assert recorder.trees() == [CLASSIFIER]
    facts = {key: value for key, value in CLASSIFIER_FACTS.items() if key != "inferspan.device"}
    assert recorder.attributes(CLASSIFIER) == {**facts, **LAZY, "inferspan.abandoned": True}
    root = recorder.span(CLASSIFIER)
    assert root.end_time - root.start_time <= after - before


def test_lazy_result_left_by_break_is_one_trace(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    for _ in pipe(Items(THREE), batch_size=2):
        break
    gc.collect()
    assert recorder.trees() == [(CLASSIFIER, *ONE)]
    assert recorder.span(CLASSIFIER).attributes["inferspan.abandoned"] is True


# -- errors ------------------------------------------------------------------------------------------------------

SECRET = "the prompt is in this message"


class Failure(Exception):
    pass


class FailingClassifier(transformers.TextClassificationPipeline):
    """Raises in one phase, at the second item."""

    failing: str | None = None
    error: BaseException = Failure(SECRET)
    calls = 0

    def _maybe(self, phase: str) -> None:
        if self.failing == phase:
            self.calls += 1
            if self.calls == 2:
                raise self.error

    def preprocess(self, inputs: Any, **options: Any) -> Any:
        self._maybe("preprocess")
        return super().preprocess(inputs, **options)

    def _forward(self, model_inputs: Any, **options: Any) -> Any:
        self._maybe("forward")
        return super()._forward(model_inputs, **options)

    def postprocess(self, model_outputs: Any, **options: Any) -> Any:
        self._maybe("postprocess")
        return super().postprocess(model_outputs, **options)

    def texts(self) -> Iterator[str]:
        """The user's own generator, which may raise as well."""
        for text in THREE:
            self._maybe("generator")
            yield text


def failing(phase: str, error: BaseException) -> Any:
    pipe = transformers.pipeline(
        "text-classification",
        model=tiny.classifier(),
        tokenizer=tiny.word_tokenizer(),
        device="cpu",
        pipeline_class=FailingClassifier,
    )
    pipe.failing, pipe.error = phase, error
    return pipe


FAILING = {
    "preprocess": (*ONE, "tokenize"),
    "forward": (*ONE, "tokenize", "forward"),
    "postprocess": (*ONE, *ONE),
    "generator": ONE,
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "list": lambda pipe: pipe(THREE),
    "dataset": lambda pipe: list(pipe(Items(THREE))),
    "generator": lambda pipe: list(pipe(pipe.texts())),
}


def failing_cases() -> list[Any]:
    return [
        pytest.param(phase, how, id=f"{phase}-{how}")
        for phase in FAILING
        for how in CALLS
        if phase != "generator" or how == "generator"
    ]


def errors_of(span: ReadableSpan) -> Any:
    return (
        span.status.status_code.name,
        span.status.description,
        span.attributes.get("error.type"),
        [(event.name, sorted(event.attributes)) for event in span.events],
    )


@pytest.mark.parametrize(("phase", "how"), failing_cases())
def test_error_half_way_reaches_the_caller_and_ends_the_trace(phase: str, how: str, recorder: Recorder) -> None:
    error = Failure(SECRET)
    pipe = failing(phase, error)
    with pytest.raises(Failure) as caught:
        CALLS[how](pipe)
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert current.here() is None
    assert get_current_span() is INVALID_SPAN
    gc.collect()
    assert recorder.trees() == [(CLASSIFIER, *FAILING[phase])]
    root, *children = recorder.spans()
    name = f"{__name__}.Failure"
    assert errors_of(root) == (
        "ERROR",
        None,
        name,
        [("exception", ["exception.stacktrace", "exception.type"])],
    )
    assert SECRET not in root.events[0].attributes["exception.stacktrace"]
    if phase != "generator":
        assert errors_of(children.pop()) == ("ERROR", None, name, [])
    assert [errors_of(child) for child in children] == [("UNSET", None, None, [])] * len(children)
    assert recorder.counts(semconv.ERRORS, semconv.ERROR_TYPE) == {name: 1}


def test_error_of_a_single_call_marks_phase_and_root(recorder: Recorder) -> None:
    error = Failure(SECRET)
    pipe = failing("forward", error)
    pipe(THREE[0])
    recorder.clear()
    with pytest.raises(Failure) as caught:
        pipe(THREE[0])
    assert caught.value is error
    assert recorder.trees() == [(CLASSIFIER, "tokenize", "forward")]
    assert errors_of(recorder.span("forward")) == ("ERROR", None, f"{__name__}.Failure", [])


def test_error_in_a_chunk_marks_its_phase(recorder: Recorder) -> None:
    pipe = warm(recorder, chunked(), **LABELS)
    error = Failure(SECRET)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    pipe.tokenizer._batch_encode_plus = pipe.tokenizer._encode_plus = fail
    with pytest.raises(Failure) as caught:
        pipe(THREE[:2], **LABELS)
    assert caught.value is error
    assert recorder.trees() == [(CHUNKED, "tokenize")]
    assert errors_of(recorder.span("tokenize"))[:3] == ("ERROR", None, f"{__name__}.Failure")


def test_error_of_generate_marks_prefill(recorder: Recorder) -> None:
    pipe = warm(recorder, generator(), **GREEDY)
    error = Failure(SECRET)

    def fail(*_: Any) -> None:
        raise error

    pipe.model.model.register_forward_pre_hook(fail)
    with pytest.raises(Failure) as caught:
        pipe(THREE[0], **GREEDY)
    assert caught.value is error
    assert recorder.trees() == [(GENERATOR, "tokenize", ("forward", "prefill"))]
    assert errors_of(recorder.span("prefill"))[0] == "ERROR"


def test_keyboard_interrupt_in_forward_is_an_error(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    error = KeyboardInterrupt()

    def interrupt(*_: Any) -> None:
        raise error

    pipe.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        pipe(THREE)
    assert caught.value is error
    assert recorder.trees() == [(CLASSIFIER, "tokenize", "forward")]
    root, _, last = recorder.spans()
    assert errors_of(root)[:3] == ("ERROR", None, "KeyboardInterrupt")
    assert errors_of(last) == ("ERROR", None, "KeyboardInterrupt", [])


def test_cancellation_in_forward_is_no_error(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())

    def cancel(*_: Any) -> None:
        raise asyncio.CancelledError

    pipe.model.register_forward_pre_hook(cancel)
    with pytest.raises(asyncio.CancelledError):
        pipe(THREE)
    assert recorder.trees() == [(CLASSIFIER, "tokenize", "forward")]
    assert [errors_of(span) for span in recorder.spans()] == [("UNSET", None, None, [])] * 3
    assert recorder.span(CLASSIFIER).attributes["inferspan.cancelled"] is True


def test_dataset_consumed_beyond_an_error_is_one_more_inference(recorder: Recorder) -> None:
    pipe = failing("forward", Failure(SECRET))
    result = iter(pipe(Items(THREE)))
    next(result)
    with pytest.raises(Failure):
        next(result)
    assert [next(result)] == classifier()(THREE[2:])
    assert next(result, None) is None
    assert recorder.trees()[:2] == [(CLASSIFIER, *ONE, "tokenize", "forward"), (CLASSIFIER, *ONE)]
    roots = [span for span in recorder.spans() if span.name == CLASSIFIER][:2]
    assert [errors_of(root)[0] for root in roots] == ["ERROR", "UNSET"]


def test_next_without_iter_raises_what_it_raises_without_us(recorder: Recorder) -> None:
    result = warm(recorder, classifier())(Items(THREE[:1]))
    with pytest.raises(AttributeError, match="no attribute 'iterator'"):
        next(result)
    assert len(list(result)) == 1
    assert recorder.trees() == [CLASSIFIER, (CLASSIFIER, *ONE)]


# -- workers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def forking() -> Iterator[None]:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


INPUTS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(THREE),
    "dataset": lambda: Items(THREE),
    "generator": lambda: (text for text in THREE),
}


@pytest.mark.parametrize("batch_size", [1, 2], ids=["one", "batches"])
@pytest.mark.parametrize("workers", [1, 2], ids=["1-worker", "2-workers"])
@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.usefixtures("forking")
def test_forked_workers_tokenize_outside_the_trace(
    how: str, workers: int, batch_size: int, bare_recorder: Recorder
) -> None:
    call = {"num_workers": workers, "batch_size": batch_size}
    plain = list(classifier()(INPUTS[how](), **call))
    bare_recorder.instrument()
    pipe = warm(bare_recorder, classifier())
    assert list(pipe(INPUTS[how](), **call)) == plain
    steps = 3 if batch_size == 1 else 2
    assert bare_recorder.trees() == [(CLASSIFIER, *("forward", "detokenize") * steps)]
    root = bare_recorder.attributes(CLASSIFIER)
    root.pop("inferspan.padding.ratio", None)
    counts = word_counts(THREE)
    assert root == {
        **CLASSIFIER_FACTS,
        **({} if how == "list" else LAZY),
        "inferspan.preprocess.workers": 1 if how == "generator" else workers,
        "inferspan.batch.size": batch_size,
        "inferspan.sequence.length": max(counts),
        "inferspan.items": 3,
        "gen_ai.usage.input_tokens": sum(counts),
    }


@pytest.mark.usefixtures("forking")
def test_forked_worker_of_chunks_tokenizes_outside_the_trace(recorder: Recorder) -> None:
    pipe = warm(recorder, chunked(), **LABELS)
    expected = chunked()(THREE[:2], **LABELS)
    recorder.clear()
    assert pipe(THREE[:2], num_workers=2, **LABELS) == expected
    item = ("forward", "detokenize")
    # three chunks follow each other without a tokenize between them, each with facts of its own
    assert recorder.trees() == [(CHUNKED, *("forward", "forward", *item) * 2)]
    assert recorder.span(CHUNKED).attributes["inferspan.preprocess.workers"] == 1


def test_workers_of_a_single_text_are_not_told(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier(num_workers=2))
    pipe(THREE[0])
    pipe(THREE[:1], num_workers=0)
    assert recorder.trees() == [(CLASSIFIER, *ONE)] * 2
    assert [span.attributes.get("inferspan.preprocess.workers") for span in recorder.spans()] == [None] * 8


SPAWNING = """
import json, os, sys
import torch, transformers
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from support import tiny
from support.tiny import SENTENCES
import inferspan

class ToFile(SpanExporter):
    def export(self, spans):
        with open(sys.argv[1], "a") as out:
            for span in spans:
                facts = [span.name, span.parent is None, span.attributes.get("inferspan.preprocess.workers")]
                print(json.dumps([os.getpid(), *facts]), file=out)
        return SpanExportResult.SUCCESS

def instrument():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    inferspan.instrument(tracer_provider=provider)

class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return SENTENCES[index]

if sys.argv[2] == "everywhere":
    instrument()

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    make = lambda: transformers.pipeline(
        "text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer(), device="cpu"
    )
    if sys.argv[2] == "parent":
        instrument()
    result = list(make()(Items(), num_workers=int(sys.argv[3])))
    inferspan.uninstrument()
    assert result == make()([SENTENCES[index] for index in range(3)]), result
    print(os.getpid())
"""


@pytest.mark.parametrize(
    ("where", "workers"),
    [pytest.param("parent", 1, id="parent-instrumented"), pytest.param("everywhere", 2, id="workers-instrumented-too")],
)
def test_spawned_workers_tokenize_outside_the_trace(where: str, workers: int, tmp_path: Path) -> None:
    script, spans = tmp_path / "spawning.py", tmp_path / "spans"
    script.write_text(SPAWNING)
    source = Path(inferspan.__file__).parent.parent
    path = os.pathsep.join([str(Path(__file__).parent.parent), str(source)])
    done = subprocess.run(
        [sys.executable, str(script), str(spans), where, str(workers)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    found = [json.loads(line) for line in spans.read_text().splitlines()]
    children = [[pid, name, False, None] for name in ("forward", "detokenize") * 3]
    assert found == [*children, [pid, CLASSIFIER, True, workers]]


# -- bounds, sampling, switching off -----------------------------------------------------------------------------


def test_children_beyond_the_bound_are_counted_and_still_summed(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=2)
    texts = list(SENTENCES[:10])
    counts = word_counts(texts)
    classifier()(texts)
    assert bare_recorder.trees() == [(CLASSIFIER, "tokenize", "forward")]
    root = bare_recorder.span(CLASSIFIER).attributes
    assert root["inferspan.children.dropped"] == 28
    assert root["inferspan.items"] == 10
    assert root["gen_ai.usage.input_tokens"] == sum(counts)
    assert root["inferspan.sequence.length"] == max(counts)
    assert bare_recorder.counts(semconv.PHASE_DURATION, semconv.PHASE_NAME) == {
        "tokenize": 1,
        "forward": 1,
        "detokenize": 1,
    }
    (usage,) = bare_recorder.points(semconv.TOKEN_USAGE)
    assert (usage.count, usage.sum) == (1, sum(counts))
    sums = {point.attributes[semconv.PHASE_NAME]: point.sum for point in bare_recorder.points(semconv.PHASE_DURATION)}
    kept = bare_recorder.span("tokenize")
    assert sums["tokenize"] > (kept.end_time - kept.start_time) * 1e-9


@pytest.mark.parametrize(
    ("bound", "last"), [pytest.param(3, "detokenize", id="detokenize"), pytest.param(4, "tokenize", id="tokenize")]
)
def test_last_child_below_the_bound_stands_for_itself(bound: int, last: str, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=bound)
    classifier()(list(SENTENCES[:10]))
    assert told(bare_recorder)[-1] == (last, {})
    assert bare_recorder.span(CLASSIFIER).attributes["inferspan.children.dropped"] == 30 - bound


def test_children_none_leaves_the_root_alone(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=0)
    classifier()(THREE[0])
    assert bare_recorder.trees() == [CLASSIFIER]
    assert bare_recorder.span(CLASSIFIER).attributes["inferspan.children.dropped"] == 3


class Gate(SpanProcessor):
    """Holds the thread that tells spans until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        self.reached.set()
        self.open.wait(60)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True  # the base class of SDK 1.39 says nothing, which counts as not flushed


def test_full_queue_drops_children_and_never_roots(bare_recorder: Recorder) -> None:
    gate = Gate()
    bare_recorder.tracer_provider.add_span_processor(gate)
    bare_recorder.instrument(queue_max=1)
    pipe = classifier()
    pipe(THREE[0])
    assert gate.reached.wait(60)
    for _ in range(3):
        pipe(THREE[0])
    gate.open.set()
    assert inferspan.force_flush()
    assert bare_recorder.trees() == [(CLASSIFIER, *ONE), (CLASSIFIER, *ONE), CLASSIFIER, CLASSIFIER]
    dropped = [
        span.attributes.get("inferspan.children.dropped") for span in bare_recorder.spans() if span.name == CLASSIFIER
    ]
    assert dropped == [None, None, 3, 3]
    assert bare_recorder.counts(semconv.DROPPED, semconv.DROP_REASON) == {"queue_full": 6}
    assert bare_recorder.counts(semconv.PHASE_DURATION, semconv.PHASE_NAME) == {
        "tokenize": 4,
        "forward": 4,
        "detokenize": 4,
    }


def test_root_sampled_out_gives_metrics_and_no_spans() -> None:
    recorder = Recorder(sampler=ALWAYS_OFF)
    recorder.instrument()
    pipe = classifier()
    pipe(THREE)
    list(pipe(text for text in THREE))
    assert recorder.spans() == []
    assert recorder.counts(semconv.OPERATION_DURATION, semconv.OPERATION_NAME) == {"text-classification": 2}
    assert recorder.counts(semconv.PHASE_DURATION, semconv.PHASE_NAME) == {
        "tokenize": 2,
        "forward": 2,
        "detokenize": 2,
    }
    (usage,) = recorder.points(semconv.TOKEN_USAGE)
    assert usage.sum == 2 * sum(word_counts(THREE))
    recorder.close()


def test_suppressed_calls_make_nothing(recorder: Recorder) -> None:
    pipe, write = classifier(), generator()
    with suppress_instrumentation():
        expected = pipe(THREE)
        assert list(pipe(text for text in THREE)) == expected
        write(THREE[0], **GREEDY)
    assert recorder.spans() == []
    assert recorder.points(semconv.OPERATION_DURATION) == []
    assert recorder.points(semconv.PHASE_DURATION) == []


METHODS = ("__call__", "get_iterator", "preprocess", "forward", "postprocess", "__iter__", "__next__")


def methods_of_pipelines() -> dict[tuple[type, str], Any]:
    bases = (transformers.Pipeline, PipelineIterator)
    classes = {cls for pipe in (classifier(), generator(), chunked()) for cls in type(pipe).__mro__}
    return {
        (cls, name): vars(cls)[name]
        for cls in {*bases, *classes}
        if cls.__module__.startswith("transformers.pipelines")
        for name in METHODS
        if name in vars(cls)
    }


def test_uninstrument_puts_back_every_method_by_identity(bare_recorder: Recorder) -> None:
    before = methods_of_pipelines()
    bare_recorder.instrument()
    classifier()(THREE[0])
    generator()(THREE[0], **GREEDY)
    chunked()(THREE[0], **LABELS)
    during = methods_of_pipelines()
    assert {(cls.__name__, name) for (cls, name), function in during.items() if is_ours(function)} == {
        ("Pipeline", "__call__"),
        ("Pipeline", "forward"),
        ("Pipeline", "get_iterator"),
        ("ChunkPipeline", "get_iterator"),
        ("PipelineIterator", "__iter__"),
        ("PipelineIterator", "__next__"),
        *(
            (name, method)
            for name in (
                "TextClassificationPipeline",
                "TextGenerationPipeline",
                "ZeroShotClassificationPipeline",
            )
            for method in ("preprocess", "postprocess")
        ),
    }
    inferspan.uninstrument()
    after = methods_of_pipelines()
    assert after.keys() == before.keys()
    assert [key for key, function in after.items() if function is not before[key]] == []


def test_uninstrumented_calls_make_nothing(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    inferspan.uninstrument()
    pipe(THREE)
    list(pipe(text for text in THREE))
    assert recorder.spans() == []


def test_bound_methods_kept_from_before_pass_through(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    call, preprocess, forward, postprocess = pipe.__call__, pipe.preprocess, pipe.forward, pipe.postprocess
    kept = Items(THREE)
    result = pipe(kept)
    following = result.__next__
    iterator = iter(result)
    first = next(iterator)
    inferspan.uninstrument()
    recorder.clear()
    expected = pipe(THREE)
    assert call(THREE) == expected
    assert [postprocess(forward(preprocess(text))) for text in THREE] == expected
    assert [first, following(), next(iterator)] == expected
    assert recorder.spans() == []


def test_instrumented_again_records_again(recorder: Recorder) -> None:
    pipe = warm(recorder, classifier())
    inferspan.uninstrument()
    again = Recorder()
    again.instrument()
    pipe(THREE[0])
    assert again.trees() == [(CLASSIFIER, *ONE)]
    assert recorder.spans() == []
    again.close()


def test_inference_that_is_cut_off_while_the_program_gives_the_next_item_has_the_phases_of_those_before(
    bare_recorder: Recorder,
) -> None:
    """Not one more for the look at whether the item before had another chunk."""
    bare_recorder.instrument()
    pipe = warm(bare_recorder, chunked(), **LABELS)

    def stream() -> Iterator[str]:
        yield SENTENCES[0]
        process.abandon_open()

    for _ in pipe(stream(), **LABELS):
        pass
    inferspan.force_flush()

    (root,) = (span for span in bare_recorder.spans() if span.parent is None)
    ended = [span for span in bare_recorder.spans() if span.parent is not None]
    assert root.attributes[semconv.ABANDONED]
    assert [span.name for span in ended].count("tokenize") == len(LABELS["candidate_labels"])
