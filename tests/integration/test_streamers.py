"""Streamers that are made in one place and used in a thread that knows nothing of it."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from transformers.generation.streamers import BaseStreamer

import inferspan
from support import tiny
from support.recorder import Recorder


class Queue(BaseStreamer):
    """One of the program's own, which calls no other ``__init__``."""

    def __init__(self) -> None:
        self.ids: queue.Queue[Any] = queue.Queue()

    def put(self, value: Any) -> None:
        self.ids.put(value)

    def end(self) -> None:
        self.ids.put(None)


def text_streamer() -> Any:
    return transformers.TextIteratorStreamer(tiny.text_tokenizer(), skip_prompt=True)


def generate(streamer: Any) -> Callable[[], Any]:
    model, inputs = tiny.causal_lm(), tiny.text_tokenizer()("the cat", return_tensors="pt")
    return lambda: model.generate(**inputs, max_new_tokens=3, do_sample=False, streamer=streamer)


def pipeline(streamer: Any) -> Callable[[], Any]:
    pipe = transformers.pipeline("text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())
    return lambda: pipe("the cat", max_new_tokens=3, do_sample=False, streamer=streamer)


def in_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


GENERATED = ("forward", "prefill", "decode")
CALLED = {
    "generate": (generate, (GENERATED,)),
    "pipeline": (pipeline, ("tokenize", GENERATED, "detokenize")),
}
STREAMERS = pytest.mark.parametrize("make", [Queue, text_streamer])
CALLS = pytest.mark.parametrize(("calling", "phases"), CALLED.values(), ids=CALLED)


@STREAMERS
@CALLS
def test_call_in_a_thread_belongs_to_the_span_in_which_its_streamer_was_made(
    recorder: Recorder, make: Callable[[], Any], calling: Callable[[Any], Callable[[], Any]], phases: tuple[Any, ...]
) -> None:
    with recorder.tracer.start_as_current_span("POST /chat"):
        streamer = make()
        call = calling(streamer)
        recorder.clear()
        in_thread(call)

    name = "text_completion LlamaForCausalLM"
    assert recorder.trees()[-1] == ("POST /chat", (name, *phases))
    attributes = recorder.span(name).attributes or {}
    assert (attributes["gen_ai.request.stream"], attributes["gen_ai.usage.output_tokens"]) == (True, 3)
    assert "inferspan.time_to_first_token" in attributes


@STREAMERS
@CALLS
def test_call_in_a_thread_is_a_part_of_the_block_in_which_its_streamer_was_made(
    recorder: Recorder, make: Callable[[], Any], calling: Callable[[Any], Callable[[], Any]], phases: tuple[Any, ...]
) -> None:
    with inferspan.inference("chat", model="m"):
        streamer = make()
        call = calling(streamer)
        in_thread(call)

    (root, *children) = recorder.trees()[-1]
    assert (root, tuple(children)[-len(phases) :]) == ("chat", phases)
    attributes = recorder.span("chat").attributes or {}
    assert (attributes["gen_ai.request.stream"], attributes["gen_ai.usage.output_tokens"]) == (True, 3)
    assert "inferspan.time_to_first_token" in attributes


def test_call_after_the_block_of_its_streamer_is_an_inference_below_what_was_around_it(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("POST /chat"), inferspan.inference("chat", model="m"):
        streamer = Queue()
    call = generate(streamer)
    recorder.clear()
    in_thread(call)

    assert recorder.trees() == [("text_completion LlamaForCausalLM", GENERATED)]


def test_streamer_is_pickled_without_its_origin_and_classes_are_as_before_afterwards(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("POST /chat"):
        streamer = transformers.TextStreamer(None)
    assert pickle.loads(pickle.dumps(streamer))._inferspan_origin is None
    recorder.close()

    assert "__init_subclass__" not in vars(BaseStreamer)
    assert "_inferspan_wrapper" not in vars(vars(transformers.TextStreamer)["__init__"])
