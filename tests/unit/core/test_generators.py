"""Generators with a block inside: what their code calls belongs to it, whoever takes the next step, and where."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import trace

import inferspan
from inferspan.core import current, frames
from inferspan.core.record import Inference
from support.recorder import Recorder


def seen() -> str:
    """What a hook finds here: nothing, an inference by its name, or one of its phases."""
    active = current.here()
    if active is None or active.inference is None:
        return "nothing"
    name = active.inference.plan.name
    return name if active.phase is None else f"{name}/{active.phase.name}"


def opened(operation: str) -> Inference:
    inference = current.open_inference(current.make_plan(operation))
    assert inference is not None
    return inference


def answer(name: str) -> Iterator[str]:
    """What hooks find in each of its steps."""
    yield seen()
    with inferspan.inference(name) as block:
        yield seen()
        with block.phase("think"):
            yield seen()
            yield seen()
        yield seen()
    yield seen()


def expected(name: str) -> list[str]:
    return ["nothing", name, f"{name}/think", f"{name}/think", name, "nothing"]


def step(generator: Iterator[str], context: contextvars.Context | None = None) -> str | None:
    """The next step, on a thread of its own."""
    found: list[str | None] = []
    run = (context or contextvars.copy_context()).run
    thread = threading.Thread(target=lambda: found.append(run(next, generator, None)))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert frames.innermost == {}


def test_steps_on_other_threads_belong_to_the_block(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("GET /chat"):
        generator = answer("chat")
        assert [step(generator) for _ in range(7)] == [*expected("chat"), None]
        assert seen() == "nothing"

    by_name = {span.name: span for span in recorder.spans()}
    assert set(by_name) == {"GET /chat", "chat", "think"}
    assert by_name["chat"].parent.span_id == by_name["GET /chat"].context.span_id
    assert by_name["think"].parent.span_id == by_name["chat"].context.span_id


def test_steps_half_here_and_half_on_another_thread(recorder: Recorder) -> None:
    generator = answer("chat")
    found = [next(generator) if number % 2 else step(generator) for number in range(6)]

    assert found == expected("chat")
    assert next(generator, None) is None
    assert seen() == "nothing"


def test_steps_in_contexts_that_know_nothing(recorder: Recorder) -> None:
    generator = answer("chat")

    assert [step(generator, contextvars.Context()) for _ in range(6)] == expected("chat")
    generator.close()  # type: ignore[attr-defined]


def test_generators_that_take_turns(recorder: Recorder) -> None:
    first, second = answer("first"), answer("second")
    found = [(next(first), next(second)) for _ in range(6)]

    assert [one for one, _ in found] == expected("first")
    assert [other for _, other in found] == expected("second")
    del first, second
    assert seen() == "nothing"


def test_generators_that_take_turns_out_of_step(recorder: Recorder) -> None:
    first, second = answer("first"), answer("second")
    assert [next(first) for _ in range(3)] == expected("first")[:3]
    assert [next(second) for _ in range(2)] == expected("second")[:2]
    assert [next(first) for _ in range(2)] == expected("first")[3:5]
    assert [next(second) for _ in range(4)] == expected("second")[2:]
    assert next(first) == "nothing"
    del first, second


def test_generator_inside_of_a_generator(recorder: Recorder) -> None:
    def outer() -> Iterator[str]:
        with inferspan.inference("outer"):
            for inner in answer("inner"):
                yield inner
                yield seen()
            yield seen()

    found = list(outer())
    assert found[1::2] == ["outer"] * 6
    assert found[0::2] == ["outer", *expected("inner")[1:5], "outer", "outer"]


def test_generator_that_delegates(recorder: Recorder) -> None:
    def outer() -> Iterator[str]:
        with inferspan.inference("outer"):
            yield from answer("inner")

    assert [step(generator) for generator in [outer()] for _ in range(6)] == ["outer", *expected("inner")[1:5], "outer"]


def test_functions_that_a_step_calls_are_inside(recorder: Recorder) -> None:
    def nested() -> list[str]:
        return [seen() for _ in range(2)]

    def generator() -> Iterator[list[str]]:
        with inferspan.inference("chat") as block:
            yield nested()
            with block.phase("think"):
                yield nested()

    steps = generator()
    assert step(steps) == ["chat", "chat"]  # type: ignore[arg-type, comparison-overlap]
    assert step(steps) == ["chat/think", "chat/think"]  # type: ignore[arg-type, comparison-overlap]
    assert step(steps) is None  # type: ignore[arg-type]


def test_thread_that_a_step_starts_is_not_its_phase(recorder: Recorder) -> None:
    def generator() -> Iterator[str]:
        with inferspan.inference("chat") as block, block.phase("think"):
            found: list[str] = []
            thread = threading.Thread(target=contextvars.copy_context().run, args=(lambda: found.append(seen()),))
            thread.start()
            thread.join()
            yield found[0]

    assert list(generator()) == ["nothing"]


def test_generator_that_is_dropped_in_a_phase_leaves_nothing(recorder: Recorder) -> None:
    generator = answer("chat")
    for _ in range(3):
        step(generator)
    assert frames.innermost
    del generator
    gc.collect()

    assert frames.innermost == {}
    assert seen() == "nothing"
    assert [span.name for span in recorder.spans() if span.name == "chat"] == ["chat"]


def test_generator_in_a_cycle_with_its_own_variables_is_collected(recorder: Recorder) -> None:
    class Holder:
        steps: Iterator[str]

    def generator(holder: Holder) -> Iterator[str]:
        with inferspan.inference("chat"):
            yield seen()
            yield repr(holder)

    holder = Holder()
    holder.steps = generator(holder)
    next(holder.steps)
    del holder
    gc.collect()

    assert [span.name for span in recorder.spans()] == ["chat"]


def test_many_generators_at_once_keep_each_apart(recorder: Recorder) -> None:
    names = [f"chat{number}" for number in range(30)]
    generators = [answer(name) for name in names]
    found = [[step(generator) for generator in generators] for _ in range(6)]

    assert [list(steps) for steps in zip(*found, strict=True)] == [expected(name) for name in names]
    del generators
    roots = [span for span in recorder.spans() if span.name.startswith("chat")]
    assert sorted(span.name for span in roots) == sorted(names)
    assert all(span.parent is None for span in roots)
    assert not trace.get_current_span().get_span_context().is_valid


# what is not inside


def test_what_a_consumer_does_between_two_steps_is_not_inside(recorder: Recorder) -> None:
    found = []
    for _ in answer("chat"):
        found.append(seen())
        current.run(opened("classify"), lambda: None, (), {})

    assert found == ["nothing"] * 6
    spans = recorder.spans()
    (chat,) = [span for span in spans if span.name == "chat"]
    parents = [span.parent.span_id if span.parent else None for span in spans if span.name == "classify"]
    assert len(parents) == 6
    assert set(parents) == {None, chat.context.span_id}


def test_body_of_a_context_manager_is_inside(recorder: Recorder) -> None:
    @contextlib.contextmanager
    def traced() -> Iterator[None]:
        with inferspan.inference("chat") as block, block.phase("think"):
            yield

    with traced():
        assert seen() == "chat/think"
    assert seen() == "nothing"


def test_context_manager_in_a_generator_is_inside(recorder: Recorder) -> None:
    @contextlib.contextmanager
    def traced() -> Iterator[None]:
        with inferspan.inference("inner"):
            yield

    def generator() -> Iterator[str]:
        with inferspan.inference("outer"):
            with traced():
                yield seen()
            yield seen()

    assert list(generator()) == ["inner", "outer"]


# the same with async generators


async def async_answer(name: str) -> AsyncIterator[str]:
    yield seen()
    async with inferspan.inference(name) as block:
        yield seen()
        async with block.phase("think"):
            yield seen()
            await asyncio.sleep(0)
            yield seen()
        yield seen()
    yield seen()


def test_async_generators_that_take_turns(recorder: Recorder) -> None:
    async def main() -> None:
        first, second = async_answer("first"), async_answer("second")
        found = [(await anext(first), seen(), await anext(second)) for _ in range(6)]
        assert [one for one, _, _ in found] == expected("first")
        assert [between for _, between, _ in found] == ["nothing"] * 6
        assert [other for _, _, other in found] == expected("second")

    asyncio.run(main())


def test_async_generator_whose_steps_are_taken_by_other_tasks(recorder: Recorder) -> None:
    async def main() -> None:
        generator = async_answer("chat")

        async def take() -> str:
            return await anext(generator)

        assert [await asyncio.create_task(take()) for _ in range(6)] == expected("chat")

    asyncio.run(main())


def test_body_of_an_async_context_manager_is_inside(recorder: Recorder) -> None:
    @contextlib.asynccontextmanager
    async def traced() -> AsyncIterator[None]:
        async with inferspan.inference("chat"):
            yield

    async def main() -> None:
        async with traced():
            assert seen() == "chat"
        assert seen() == "nothing"

    asyncio.run(main())
