"""Streamers that are made in one place and used in a thread that knows nothing of it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import pickle
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

import inferspan
from inferspan.integrations.transformers import pipelines
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


class Plain(BaseStreamer):
    """Without an ``__init__``."""

    def put(self, value: Any) -> None:
        pass

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Frozen(Plain):
    """Its ``__init__`` is made after the class, and it lets nothing be set."""

    name: str = ""


class Refusing(Plain):
    """Of its attributes it knows only its own."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError(name)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_inferspan"):
            raise RuntimeError(name)
        return super().__getattribute__(name)


class Duck:
    """Of no class that transformers knows."""

    put, end = Plain.put, Plain.end


class Slotted(Duck):
    __slots__ = ()


class Other:
    def __init__(self) -> None:
        pass


class Mixed(Other, Plain):
    """Whose ``__init__`` is that of a class that is no streamer."""


def text_streamer() -> Any:
    return transformers.TextIteratorStreamer(tiny.text_tokenizer(), skip_prompt=True)


KWARGS = {"max_new_tokens": 3, "do_sample": False}


def generate(streamer: Any) -> Callable[[], Any]:
    function, kwargs = the_usual()
    return lambda: function(**kwargs, streamer=streamer)


def pipeline(streamer: Any) -> Callable[[], Any]:
    pipe = transformers.pipeline("text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())
    return lambda: pipe("the cat", max_new_tokens=3, do_sample=False, streamer=streamer)


def in_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


NAME = "text_completion LlamaForCausalLM"
GENERATED = ("forward", "prefill", "decode")
ALONE = (NAME, GENERATED)
CALLED = {
    "generate": (generate, (GENERATED,)),
    "pipeline": (pipeline, ("tokenize", GENERATED, "detokenize")),
}
STREAMERS = pytest.mark.parametrize(
    "make", [Queue, text_streamer, Plain, Frozen, Refusing, Duck, Slotted, Mixed], ids=lambda make: make.__name__
)
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
    class Unseen(threading.Thread):
        def run(self) -> None:
            call()

    with recorder.tracer.start_as_current_span("POST /chat"):
        with inferspan.inference("chat", model="m"):
            call = generate(Queue())
        thread = Unseen()
        thread.start()
        thread.join()

    assert recorder.trees() == [("POST /chat", "chat", ALONE)]


# How it gets into the thread


streamer_of_the_module: Any = None


def the_usual() -> tuple[Callable[..., Any], dict[str, Any]]:
    ids = torch.tensor([[10, 20, 30]])
    return tiny.causal_lm().generate, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **KWARGS}


def by_keyword(streamer: Any) -> None:
    function, kwargs = the_usual()
    thread = threading.Thread(target=function, kwargs={**kwargs, "streamer": streamer})
    thread.start()
    thread.join()


def by_argument(streamer: Any) -> None:
    def work(given: Any) -> None:
        generate(given)()

    thread = threading.Thread(target=work, args=(streamer,))
    thread.start()
    thread.join()


def by_partial(streamer: Any) -> None:
    function, kwargs = the_usual()
    in_thread(functools.partial(functools.partial(function, **kwargs), streamer=streamer))


def by_default(streamer: Any) -> None:
    in_thread(lambda given=streamer: generate(given)())  # type: ignore[misc]


def by_arguments_of_a_function(streamer: Any) -> None:
    function, kwargs = the_usual()
    kwargs["streamer"] = streamer
    in_thread(lambda: function(**kwargs))


def by_name(streamer: Any) -> None:
    global streamer_of_the_module
    streamer_of_the_module = streamer
    in_thread(lambda: generate(streamer_of_the_module)())


def by_a_function_not_yet_whole(streamer: Any) -> None:
    def work() -> None:
        generate(streamer)()
        if False:
            later()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    def later() -> None:
        pass


def by_pool(streamer: Any) -> None:
    function, kwargs = the_usual()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread was begun elsewhere
        pool.submit(function, **kwargs, streamer=streamer).result()


def by_loop(streamer: Any) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, generate(streamer))

    asyncio.run(main())


WAYS = pytest.mark.parametrize(
    "hand",
    [
        by_keyword,
        by_argument,
        by_partial,
        by_default,
        by_arguments_of_a_function,
        by_name,
        by_a_function_not_yet_whole,
        by_pool,
        by_loop,
    ],
)


@WAYS
@pytest.mark.parametrize("make", [Duck, Queue])
def test_thread_that_is_given_a_streamer_belongs_to_whoever_begins_it(
    recorder: Recorder, make: Callable[[], Any], hand: Callable[[Any], None]
) -> None:
    streamer = make()  # before there is a request
    for request in ("POST /one", "POST /two"):
        with recorder.tracer.start_as_current_span(request):
            hand(streamer)

    assert recorder.trees() == [("POST /one", ALONE), ("POST /two", ALONE)]


@WAYS
def test_thread_that_is_given_a_streamer_in_a_block_is_a_part_of_it(
    recorder: Recorder, hand: Callable[[Any], None]
) -> None:
    streamer = Duck()
    with inferspan.inference("chat", model="m"):
        hand(streamer)

    assert recorder.trees() == [("chat", GENERATED)]


def test_two_threads_that_share_a_streamer_are_each_of_whoever_began_them(recorder: Recorder) -> None:
    streamer, both = Queue(), threading.Barrier(2)

    def work() -> None:
        both.wait()
        function(**kwargs, streamer=streamer)

    function, kwargs = the_usual()
    recorder.clear()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread, request in zip(threads, ("POST /one", "POST /two"), strict=True):
        with recorder.tracer.start_as_current_span(request):
            thread.start()
    for thread in threads:
        thread.join()

    spans = {span.context.span_id: span for span in recorder.spans()}
    parents = [spans[span.parent.span_id].name for span in spans.values() if span.name == NAME]
    assert sorted(parents) == ["POST /one", "POST /two"]


def test_streamer_that_is_kept_says_nothing_of_a_later_request(recorder: Recorder) -> None:
    """What thread it goes to is not seen: there is one for all, which is told by a queue."""
    jobs: queue.Queue[Any] = queue.Queue()
    done = threading.Semaphore(0)

    def worker() -> None:
        for job in iter(jobs.get, None):
            job()
            done.release()

    thread = threading.Thread(target=worker)
    thread.start()
    with recorder.tracer.start_as_current_span("POST /one"):
        streamer = Queue()
        call = generate(streamer)
        recorder.clear()
        for _ in range(2):
            jobs.put(call)
            done.acquire()
    with recorder.tracer.start_as_current_span("POST /two"):
        jobs.put(call)
        done.acquire()
    jobs.put(None)
    thread.join()

    assert recorder.trees() == [("POST /one", ALONE, ALONE), "POST /two", ALONE]


def test_thread_without_a_streamer_is_begun_as_ever(recorder: Recorder) -> None:
    def work() -> None:
        found.append(vars(threading.current_thread())["_target"])

    found: list[Any] = []
    with recorder.tracer.start_as_current_span("POST /chat"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with pytest.raises(RuntimeError, match="once"):
        thread.start()

    assert found == [work]


def test_pool_gives_result_and_error_of_what_is_given_a_streamer(recorder: Recorder) -> None:
    def fail(streamer: Any) -> None:
        raise KeyError(streamer)

    with ThreadPoolExecutor(1) as pool, recorder.tracer.start_as_current_span("POST /chat"):
        assert pool.submit(lambda streamer: streamer.put(1), Plain()).result() is None
        with pytest.raises(KeyError):
            pool.submit(fail, Plain()).result()


def test_streamer_that_a_pipeline_was_made_with_belongs_where_it_was_made(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("POST /chat"):
        pipe = transformers.pipeline(
            "text-generation",
            model=tiny.causal_lm(),
            tokenizer=tiny.text_tokenizer(),
            streamer=Queue(),
            **KWARGS,
        )
        in_thread(lambda: pipe("the cat"))

    assert recorder.trees() == [("POST /chat", (NAME, "tokenize", GENERATED, "detokenize"))]


@pytest.mark.parametrize("given", [{"streamer": 1}, {"generate_kwargs": {"streamer": 1}}])
def test_streamer_of_a_pipelines_call_is_found_where_tasks_take_it(given: dict[str, Any]) -> None:
    for made_with, called_with in (({}, given), (given, {}), (given, {"streamer": None, "generate_kwargs": None})):
        assert pipelines._streamer_of(made_with, called_with) == 1
    assert pipelines._streamer_of(None, {}) is None


# Asynchronous


def async_streamer() -> Any:
    return transformers.AsyncTextIteratorStreamer(tiny.text_tokenizer(), skip_prompt=True)


@pytest.mark.parametrize("how", ["thread", "executor", "to_thread"])
@pytest.mark.parametrize("in_block", [False, True], ids=["in a request", "in a block"])
def test_streamer_that_is_read_by_a_task_is_of_that_task(recorder: Recorder, how: str, in_block: bool) -> None:
    async def answer() -> str:
        streamer = async_streamer()
        call = generate(streamer)
        recorder.clear()
        if how == "thread":
            thread = threading.Thread(target=call)
            thread.start()
            text = "".join([piece async for piece in streamer])
            thread.join()
            return text
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(None, call) if how == "executor" else asyncio.create_task(asyncio.to_thread(call))
        text = "".join([piece async for piece in streamer])
        await done
        return text

    async def main() -> None:
        with recorder.tracer.start_as_current_span("POST /chat"):
            if in_block:
                async with inferspan.inference("chat", model="m"):
                    await answer()
            else:
                await answer()

    asyncio.run(main())

    ((request, below),) = recorder.trees()
    assert (request, below[0]) == ("POST /chat", "chat" if in_block else NAME)
    assert GENERATED in below
    attributes = recorder.span("chat" if in_block else NAME).attributes or {}
    assert (attributes["gen_ai.request.stream"], attributes["gen_ai.usage.output_tokens"]) == (True, 3)
    assert "gen_ai.response.time_to_first_chunk" in attributes


# What a streamer does with the pieces


class Passing(Plain):
    """Hands the first piece on."""

    def __init__(self, use: Callable[[], Any]) -> None:
        self.waiting = [use]

    def put(self, value: Any) -> None:
        while self.waiting:
            self.waiting.pop()()


def classifying() -> Callable[[], Any]:
    pipe = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
    return lambda: pipe("the cat")


CLASSIFIED = ("text-classification BertForSequenceClassification", "tokenize", "forward", "detokenize")


def test_pieces_that_a_pool_classifies_are_inferences_below_the_one_that_streams(recorder: Recorder) -> None:
    classify = classifying()
    with ThreadPoolExecutor(1) as pool:
        run = contextvars.copy_context

        def hand_on() -> None:
            pool.submit(run().run, classify).result()

        generate(Passing(hand_on))()

    assert recorder.trees()[-1] == (NAME, GENERATED, CLASSIFIED)


def test_pieces_that_a_coroutine_classifies_are_inferences_below_the_one_that_streams(recorder: Recorder) -> None:
    classify = classifying()

    async def coroutine() -> None:
        classify()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call = generate(Passing(lambda: asyncio.run_coroutine_threadsafe(coroutine(), loop).result()))
        recorder.clear()
        await loop.run_in_executor(None, call)

    asyncio.run(main())

    assert recorder.trees() == [(NAME, GENERATED, CLASSIFIED)]


def test_pieces_that_are_classified_when_all_is_over_are_inferences_beside_it(recorder: Recorder) -> None:
    classify, contexts = classifying(), []
    call = generate(Passing(lambda: contexts.append(contextvars.copy_context())))
    recorder.clear()
    with recorder.tracer.start_as_current_span("POST /chat"):
        call()
        contexts[0].run(classify)

    assert recorder.trees() == [("POST /chat", ALONE, CLASSIFIED)]


# It leaves nothing behind


def test_streamer_is_pickled_without_its_origin_and_classes_are_as_before_afterwards(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("POST /chat"):
        streamer = transformers.TextStreamer(None)
    assert pickle.loads(pickle.dumps(streamer))._inferspan_origin is None
    recorder.close()

    assert "__init_subclass__" not in vars(BaseStreamer)
    assert "__init__" not in vars(BaseStreamer)
    for changed in (transformers.TextStreamer.__init__, threading.Thread.start, ThreadPoolExecutor.submit):
        assert "_inferspan_wrapper" not in vars(changed)
