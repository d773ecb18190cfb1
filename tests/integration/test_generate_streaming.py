"""``generate()`` in a thread with a streamer: the trace of whoever reads the stream, and no span per token."""

from __future__ import annotations

import asyncio
import copy
import pickle
from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from opentelemetry import trace

from support import tiny
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30, 40]])

STREAMED = {
    "gen_ai.operation.name": "text_completion",
    "gen_ai.provider.name": "huggingface",
    "gen_ai.request.max_tokens": 6,
    "gen_ai.request.model": "LlamaForCausalLM",
    "gen_ai.request.stream": True,
    "gen_ai.response.finish_reasons": ("length",),
    "gen_ai.response.time_to_first_chunk": ...,
    "gen_ai.usage.input_tokens": 4,
    "gen_ai.usage.output_tokens": 6,
    "inferspan.batch.size": 1,
    "inferspan.cold": False,
    "inferspan.device": "cpu",
    "inferspan.process.cpu_time": ...,
    "inferspan.process.memory_before": ...,
    "inferspan.process.memory_usage": ...,
    "inferspan.sequence.length": 4,
    "inferspan.time_per_output_token": ...,
    "inferspan.time_to_first_token": ...,
}


class GenerationCancelled(Exception):
    """The reader went away."""


class FailingStreamer(transformers.generation.BaseStreamer):
    """Takes some tokens, then raises."""

    def __init__(self, error: Exception, after: int) -> None:
        self.error, self.left = error, after

    def put(self, value: torch.Tensor) -> None:
        if not self.left:
            raise self.error
        self.left -= 1

    def end(self) -> None:
        pass


def warm(model: Any, recorder: Recorder) -> Any:
    """The model after its first inference, which is cold."""
    model.generate(IDS, max_new_tokens=1)
    recorder.clear()
    return model


def stream(model: Any, tokenizer: Any, **kwargs: Any) -> list[str]:
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = Thread(
        target=model.generate, kwargs={"input_ids": IDS, "streamer": streamer, "max_new_tokens": 6, **kwargs}
    )
    thread.start()
    chunks = list(streamer)
    thread.join()
    return chunks


def test_generate_streamed_in_a_thread_joins_the_trace_of_the_streamers_maker(bare_recorder: Recorder) -> None:
    model, tokenizer = tiny.causal_lm(), tiny.text_tokenizer()
    plain = stream(model, tokenizer)
    bare_recorder.instrument()
    warm(model, bare_recorder)
    with bare_recorder.tracer.start_as_current_span("request"):
        assert stream(model, tokenizer) == plain
    assert bare_recorder.trees() == [
        ("request", ("text_completion LlamaForCausalLM", ("forward", "prefill", "decode")))
    ]
    assert bare_recorder.attributes("text_completion") == STREAMED
    root = bare_recorder.span("text_completion").attributes
    assert root["gen_ai.response.time_to_first_chunk"] == root["inferspan.time_to_first_token"]


def test_generate_streamed_without_a_span_is_its_own_root(recorder: Recorder) -> None:
    model = warm(tiny.causal_lm(), recorder)
    stream(model, tiny.text_tokenizer())
    assert recorder.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill", "decode"))]


def test_generate_streamed_with_a_current_span_belongs_to_that(recorder: Recorder) -> None:
    model, tokenizer = warm(tiny.causal_lm(), recorder), tiny.text_tokenizer()
    with recorder.tracer.start_as_current_span("maker"):
        streamer = transformers.TextIteratorStreamer(tokenizer)
    with recorder.tracer.start_as_current_span("caller"):
        model.generate(IDS, max_new_tokens=6, streamer=streamer)
    assert recorder.trees() == [
        "maker",
        ("caller", ("text_completion LlamaForCausalLM", ("forward", "prefill", "decode"))),
    ]


def test_generate_streamed_by_several_threads_keeps_them_apart(recorder: Recorder) -> None:
    model, tokenizer = warm(tiny.causal_lm(), recorder), tiny.text_tokenizer()
    threads = []
    for index in range(3):
        with recorder.tracer.start_as_current_span(f"request {index}"):
            streamer = transformers.TextIteratorStreamer(tokenizer)
            kwargs = {"input_ids": IDS, "streamer": streamer, "max_new_tokens": 3}
            threads.append(Thread(target=model.generate, kwargs=kwargs))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = {span.name: span for span in recorder.spans() if span.name.startswith("request")}
    roots = [span for span in recorder.spans() if span.name.startswith("text_completion")]
    assert sorted(span.parent.span_id for span in roots) == sorted(span.context.span_id for span in spans.values())


def test_generate_streamed_to_an_event_loop_belongs_to_its_task(recorder: Recorder) -> None:
    model, tokenizer = warm(tiny.causal_lm(), recorder), tiny.text_tokenizer()

    async def read() -> int:
        streamer = transformers.AsyncTextIteratorStreamer(tokenizer)
        thread = Thread(target=model.generate, kwargs={"input_ids": IDS, "streamer": streamer, "max_new_tokens": 6})
        thread.start()
        chunks = [chunk async for chunk in streamer]
        await asyncio.to_thread(thread.join)
        return len(chunks)

    async def serve() -> list[int]:
        return await asyncio.gather(*(in_span(index) for index in range(2)))

    async def in_span(index: int) -> int:
        with recorder.tracer.start_as_current_span(f"request {index}"):
            return await read()

    assert len(asyncio.run(serve())) == 2
    generation = ("text_completion LlamaForCausalLM", ("forward", "prefill", "decode"))
    assert sorted(recorder.trees()) == [("request 0", generation), ("request 1", generation)]


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.copy, id="copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda streamer: pickle.loads(pickle.dumps(streamer)), id="pickle"),
    ],
)
def test_streamer_copied_under_a_span_works_as_without_us(copied: Any, recorder: Recorder) -> None:
    model = warm(tiny.causal_lm(), recorder)
    with recorder.tracer.start_as_current_span("maker"):
        streamer = copied(transformers.TextStreamer(tiny.text_tokenizer()))
    model.generate(IDS, max_new_tokens=2, streamer=streamer)
    assert len([span for span in recorder.spans() if span.name.startswith("text_completion")]) == 1


# -- a streamer that raises ----------------------------------------------------------------------------------------


def run_to_the_error(model: Any, streamer: Any) -> BaseException:
    with pytest.raises(type(streamer.error)) as raised:
        model.generate(IDS, max_new_tokens=6, streamer=streamer)
    return raised.value


@pytest.mark.parametrize(
    ("after", "tree"),
    [
        pytest.param(0, ("forward", "prefill"), id="prompt"),
        pytest.param(1, ("forward", "prefill"), id="first-token"),
        pytest.param(3, ("forward", "prefill", "decode"), id="third-token"),
    ],
)
def test_generate_streamer_raises_records_the_error(after: int, tree: tuple[str, ...], recorder: Recorder) -> None:
    model = warm(tiny.causal_lm(), recorder)
    error = ConnectionError("secret words")
    assert run_to_the_error(model, FailingStreamer(error, after)) is error
    assert recorder.trees() == [("text_completion LlamaForCausalLM", tree)]
    for name in ("text_completion", "forward", tree[-1]):
        assert recorder.attributes(name)["error.type"] == "ConnectionError"
        assert recorder.span(name).status.status_code is trace.StatusCode.ERROR
    assert "inferspan.cancelled" not in recorder.attributes("text_completion")
    assert recorder.counts("inferspan.inference.errors", "error.type") == {"ConnectionError": 1}


def test_generate_cancelled_by_its_streamer_is_no_error(recorder: Recorder) -> None:
    model = warm(tiny.causal_lm(), recorder)
    error = GenerationCancelled()
    assert run_to_the_error(model, FailingStreamer(error, 3)) is error
    assert recorder.trees() == [("text_completion LlamaForCausalLM", ("forward", "prefill", "decode"))]
    assert recorder.attributes("text_completion")["inferspan.cancelled"] is True
    for span in recorder.spans():
        assert "error.type" not in span.attributes
        assert span.status.status_code is trace.StatusCode.UNSET
        assert span.events == ()
    assert recorder.points("inferspan.inference.errors") == []
