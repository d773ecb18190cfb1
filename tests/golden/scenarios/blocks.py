"""``inferspan.inference()``: an inference of the program's own making."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import GREEDY, IDS, ONE, ROWS, THREE, Net, called, classifier, each, generator, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("blocks")


@GROUP
def empty(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer"):
        pass


@GROUP
def not_instrumented(stage: Stage) -> Any:
    with inferspan.inference("answer") as block, block.phase("mine") as phase:
        phase.set_attribute("a", 1)
        block.set_tokens(input=1)
        block.set_attribute("a", 1)


@GROUP
def phases_and_facts(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer", model="org/reader", operation="chat") as block:
        with block.phase("tokenize") as phase:
            phase.set_attribute("my.words", 3)
        with block.phase("think"):
            pass
        with block.phase("think"):
            pass
        with block.phase("forward"):
            pass
        block.set_tokens(input=7, output=3)
        block.set_batch_size(2)
        block.set_attribute("my.answer", "yes")
        block.set_attribute("my.list", ["a", "b"])


@GROUP
def model_instance(stage: Stage) -> Any:
    """Facts, and cold only the first time."""
    stage.instrument()
    model = lm()
    for _ in range(2):
        with inferspan.inference("answer", model=model):
            found = called(model, IDS)
    return found


@GROUP
def model_in_a_folder(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer", model="/home/someone/secret project/reader"):
        pass


@GROUP
def all_that_hooks_see(stage: Stage) -> Any:
    stage.instrument()
    tokenizer, model, net, pipe = tiny.text_tokenizer(), lm(), Net().eval(), classifier()
    with inferspan.inference("answer"):
        inputs = tokenizer(THREE[0], return_tensors="pt")
        found = [model.generate(**inputs, max_new_tokens=3), called(model, IDS), called(net, ROWS), pipe(THREE[0])]
        return [*found, tokenizer.decode([10, 20])]


@GROUP
def tokens_in_place_of_what_hooks_count(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer") as block:
        lm().generate(IDS, max_new_tokens=3)
        block.set_tokens(output=100)


@GROUP
def phase_hides_what_is_in_it(stage: Stage) -> Any:
    stage.instrument()
    model = lm()
    with inferspan.inference("answer") as block, block.phase("forward"):
        return model.generate(IDS, max_new_tokens=3)


@GROUP
def nested(stage: Stage) -> Any:
    """The inner one is part of the outer one."""
    stage.instrument()
    with inferspan.inference("outer"):
        called(tiny.classifier(), IDS)
        with inferspan.inference("inner") as inner, inner.phase("mine"):
            pass


@GROUP
def under_and_over_spans_of_the_program(stage: Stage) -> Any:
    stage.instrument()
    with stage.tracer.start_as_current_span("request"), inferspan.inference("answer") as block:
        with stage.tracer.start_as_current_span("mine"):
            called(tiny.classifier(), IDS)
        with block.phase("look"), stage.tracer.start_as_current_span("inside"):
            pass


@GROUP
def lazy_pipelines(stage: Stage) -> Any:
    stage.instrument()
    read, write = classifier(), generator()
    with inferspan.inference("answer"):
        return [list(read(each(THREE[:2]))), list(write(each(THREE[:1]), **GREEDY))]


@GROUP
def error_inside(stage: Stage) -> Any:
    stage.instrument()

    def fail() -> None:
        with inferspan.inference("answer") as block, block.phase("look"):
            raise ValueError("secret words")

    return raised(fail)


@GROUP
def cancelled_inside(stage: Stage) -> Any:
    stage.instrument()

    def fail() -> None:
        with inferspan.inference("answer") as block, block.phase("look"):
            raise asyncio.CancelledError

    return raised(fail)


@GROUP
def asynchronous(stage: Stage) -> Any:
    stage.instrument()
    model = lm()

    async def answer(name: str) -> Any:
        async with inferspan.inference(name) as block:
            async with block.phase("wait"):
                await asyncio.sleep(0)
            found = model.generate(ONE, max_new_tokens=2)
            await asyncio.sleep(0)
            return found

    async def answers() -> Any:
        with stage.tracer.start_as_current_span("request"):
            return await asyncio.gather(answer("first"), answer("second"))

    return asyncio.run(answers())


@GROUP
def cancelled_while_it_waits(stage: Stage) -> Any:
    stage.instrument()

    async def wait() -> None:
        async with inferspan.inference("answer") as block, block.phase("wait"):
            await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(cancel())


@GROUP
def two_at_once(stage: Stage) -> Any:
    """Two threads, each in a block of its own; the second begins and ends within the first."""
    stage.instrument()
    ready, done = threading.Event(), threading.Event()

    def outer() -> None:
        with inferspan.inference("outer"):
            ready.set()
            done.wait(60)

    thread = threading.Thread(target=outer)
    thread.start()
    ready.wait(60)
    with inferspan.inference("inner"):
        called(tiny.classifier(), IDS)
    done.set()
    thread.join()


@GROUP
def in_a_thread_without_context(stage: Stage) -> Any:
    """A thread knows nothing of the block that started it."""
    stage.instrument()
    model = tiny.classifier()
    with inferspan.inference("answer"):
        thread = threading.Thread(target=called, args=(model, IDS))
        thread.start()
        thread.join()


@GROUP
def wrong_values(stage: Stage) -> Any:
    stage.instrument()
    with inferspan.inference("answer") as block:
        return [raised(lambda: block.set_tokens(input="many")), raised(lambda: block.set_attribute("a", None))]


@GROUP
def used_twice(stage: Stage) -> Any:
    stage.instrument()
    block = inferspan.inference("answer")
    for _ in range(2):
        with block:
            pass
