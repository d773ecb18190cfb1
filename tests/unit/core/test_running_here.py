"""What is running here, by the rules of :mod:`inferspan.core.current`: in threads, tasks, generators, in any order."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import sys
import threading
from collections.abc import AsyncIterator, Callable
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

import inferspan
from inferspan.core import current
from inferspan.core.record import Inference
from inferspan.emit.fastpath import _Live
from support.recorder import Recorder

T = TypeVar("T")


def opened(operation: str = "work") -> Inference:
    inference = current.open_inference(current.make_plan(operation))
    assert inference is not None
    return inference


def in_thread(function: Callable[[], T], context: contextvars.Context | None = None) -> T:
    """What it gives in another thread, in a context that is empty or given."""
    found: list[T] = []
    run = (context or contextvars.Context()).run
    thread = threading.Thread(target=lambda: found.append(run(function)))
    thread.start()
    thread.join()
    return found[0]


def hook() -> str:
    """What a hook finds here: nothing, an inference that it may add a phase to, or a reason to stay silent."""
    active = current.here()
    if active is None:
        return "nothing"
    return "inference" if active.phase is None else "phase"


def infer(name: str) -> None:
    """What a hook does here that meets nothing."""
    assert current.here() is None
    current.run(opened(name), lambda: None, (), {})


def chain() -> int:
    """How many there are from the innermost outwards."""
    length, active = 0, current.innermost()
    while active is not None:
        length, active = length + 1, active.outer
    return length


# 1: what has ended is nothing


def test_inference_that_has_ended_is_nothing_where_its_context_was_copied_to(recorder: Recorder) -> None:
    with inferspan.inference("answer"):
        copied = contextvars.copy_context()
        assert copied.run(hook) == "inference"

    assert copied.run(hook) == "nothing"
    assert in_thread(hook, copied) == "nothing"
    copied.run(infer, "late")
    assert sorted(span.name for span in recorder.spans()) == ["answer", "late"]


def test_inference_that_has_ended_leaves_what_is_outside_of_it(recorder: Recorder) -> None:
    with inferspan.inference("outer"):
        with inferspan.inference("inner"):
            copied = contextvars.copy_context()
        assert copied.run(current.open_here) is current.open_here() is not None
    assert copied.run(hook) == "nothing"


def test_inference_that_was_closed_and_not_left_is_nothing(recorder: Recorder) -> None:
    inference = opened()
    active = current.enter(inference)
    assert hook() == "inference"
    current.close(inference)
    assert hook() == "nothing"
    current.leave(active)

    assert hook() == "nothing"


def test_task_that_outlives_its_block_is_an_inference_below_what_was_outside(recorder: Recorder) -> None:
    async def late(go: asyncio.Event) -> None:
        await go.wait()
        infer("late")

    async def main() -> None:
        go = asyncio.Event()
        with recorder.tracer.start_as_current_span("request"):
            async with inferspan.inference("answer"):
                task = asyncio.ensure_future(late(go))
                await asyncio.sleep(0)
            go.set()
            await task

    asyncio.run(main())

    assert recorder.trees() == [("request", "answer", "late")]


# 2: a phase belongs to the thread and the task that entered it


def test_phase_inherited_by_another_thread_is_nothing_there(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block, block.phase("think"):
        copied = contextvars.copy_context()
        assert hook() == copied.run(hook) == "phase", "the same thread"
        assert in_thread(hook, copied) == "nothing"
        in_thread(lambda: infer("inside"), copied)

    assert recorder.trees() == [("answer", "think", "inside")]


def test_phase_inherited_by_another_task_is_nothing_there(recorder: Recorder) -> None:
    async def task() -> str:
        found = hook()
        infer("inside")
        return found

    async def main() -> list[str]:
        async with inferspan.inference("answer") as block, block.phase("think"):
            own = hook()
            return [own, await asyncio.create_task(task()), await asyncio.to_thread(hook), hook()]

    assert asyncio.run(main()) == ["phase", "nothing", "nothing", "phase"]
    assert recorder.trees() == [("answer", "think", "inside")]


def test_phase_of_a_task_is_its_own_again_after_it_waited(recorder: Recorder) -> None:
    async def one(name: str, found: list[str]) -> None:
        async with inferspan.inference(name) as block:
            for _ in range(3):
                async with block.phase("think"):
                    await asyncio.sleep(0)
                    found.append(hook())
                await asyncio.sleep(0)
                found.append(hook())

    async def main() -> list[str]:
        found: list[str] = []
        await asyncio.gather(*(one(f"task{number}", found) for number in range(4)))
        return found

    found = asyncio.run(main())
    assert (found.count("phase"), found.count("inference"), len(found)) == (12, 12, 24)


def test_phase_inherited_by_a_callback_of_the_loop_is_nothing_there(recorder: Recorder) -> None:
    async def main() -> list[str]:
        found: list[str] = []
        async with inferspan.inference("answer") as block, block.phase("think"):
            asyncio.get_running_loop().call_soon(lambda: found.append(hook()))
            await asyncio.sleep(0)
        return found

    assert asyncio.run(main()) == ["nothing"]


@pytest.mark.parametrize("name", ["trio", "greenlet"])
def test_library_of_tasks_that_another_thread_is_just_importing_is_none(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with inferspan.inference("answer") as block, block.phase("think"):
        assert hook() == "phase"


def test_library_of_tasks_that_is_imported_in_a_phase_leaves_it_the_phase(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = SimpleNamespace(parent=None)
    with inferspan.inference("answer") as block, block.phase("think"):
        monkeypatch.setitem(sys.modules, "greenlet", SimpleNamespace(getcurrent=lambda: main))  # type: ignore[arg-type]
        assert hook() == "phase"


def test_phase_inherited_by_another_greenlet_is_nothing_there(recorder: Recorder, greenlet: Any) -> None:
    with inferspan.inference("answer") as block, block.phase("think"):
        other = greenlet.greenlet(hook)
        other.gr_context = contextvars.copy_context()
        assert (hook(), other.switch(), hook()) == ("phase", "nothing", "phase")


def test_phase_inherited_by_another_task_of_trio_is_nothing_there(recorder: Recorder, trio: Any) -> None:
    found = []

    async def task() -> None:
        found.append(hook())

    async def main() -> None:
        async with inferspan.inference("answer") as block, block.phase("think"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task)
            found.append(hook())
            found.append(await trio.to_thread.run_sync(hook))

    trio.run(main)
    assert found == ["nothing", "phase", "nothing"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="contexts are entered with `with` from Python 3.14 on")
def test_context_that_is_entered_for_a_while_is_what_runs_here(recorder: Recorder) -> None:
    with inferspan.inference("answer"):
        copied = contextvars.copy_context()
    with inferspan.inference("other") as block, block.phase("think"):
        inside = contextvars.copy_context()
        with copied:  # type: ignore[attr-defined]
            assert hook() == "nothing"
        assert hook() == "phase"
        with contextvars.Context():  # type: ignore[attr-defined]
            assert hook() == "nothing"
            with inside:  # type: ignore[attr-defined]
                assert hook() == "phase"
        assert hook() == "phase"


def test_suppression_inherited_by_another_thread_is_nothing_there(recorder: Recorder) -> None:
    def inside() -> tuple[str, str]:
        return hook(), in_thread(hook, contextvars.copy_context())

    assert current.run_suppressed(inside, (), {}) == ("phase", "nothing")
    assert hook() == "nothing"


# 3: an inference that is open takes phases from anywhere


def test_open_inference_inherited_elsewhere_takes_phases(recorder: Recorder) -> None:
    def think() -> None:
        phase = current.begin_phase("think")
        assert phase is not None
        current.run_phase(phase, lambda: None, (), {})

    async def main() -> None:
        async with inferspan.inference("answer"):
            in_thread(think, contextvars.copy_context())
            await asyncio.create_task(asyncio.sleep(0, think()))
            await asyncio.to_thread(think)

    asyncio.run(main())

    assert recorder.trees() == [("answer", "think")]
    assert recorder.attributes("think")["inferspan.phase.calls"] == 3


def test_phase_of_a_block_may_be_entered_where_nothing_was_inherited(recorder: Recorder) -> None:
    def think(block: Any, name: str) -> str:
        with block.phase(name):
            return hook()

    with inferspan.inference("answer") as block:
        assert in_thread(lambda: think(block, "a")) == "phase"
        with recorder.tracer.start_as_current_span("unrelated"), inferspan.inference("other"):
            assert in_thread(lambda: think(block, "b")) == "phase"

    assert recorder.trees() == [("answer", "a", ("unrelated", "other"), "b")]


# 4: what is opened inside is below


def test_inferences_opened_inside_of_each_other_are_below(recorder: Recorder) -> None:
    outer = opened("outer")
    entered = [current.enter(outer)]
    inner = opened("inner")
    entered.append(current.enter(inner))
    innermost = opened("innermost")
    entered.append(current.enter(innermost))
    for active, inference in zip(reversed(entered), (innermost, inner, outer), strict=True):
        assert current.here() is active
        current.leave(active)
        current.close(inference)

    assert recorder.trees() == [("outer", ("inner", "innermost"))]


# 5: left in any order


ORDERS = [
    pytest.param(order, id="".join(map(str, order)))
    for size in (2, 3, 4)
    for order in itertools.permutations(range(size))
]


@pytest.mark.parametrize("closes", [True, False], ids=["closed when left", "closed later"])
@pytest.mark.parametrize("order", ORDERS)
def test_blocks_left_in_any_order_leave_nothing_behind(
    recorder: Recorder, order: tuple[int, ...], closes: bool
) -> None:
    with recorder.tracer.start_as_current_span("request") as request:
        before = otel_context.get_current()
        inferences, entered = [], []
        for place in range(len(order)):
            inferences.append(opened(f"work{place}"))
            entered.append(current.enter(inferences[-1]))
        left = set()
        for place in order:
            current.leave(entered[place])
            if closes:
                current.close(inferences[place])
            left.add(place)
            inside = [active for number, active in enumerate(entered) if number not in left]
            assert current.here() is (inside[-1] if inside else None)
        assert current.here() is None
        assert otel_context.get_current() is before
        assert trace.get_current_span() is request
        assert chain() == 0
        for inference in inferences:
            current.close(inference)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_and_phases_left_in_any_order_leave_nothing_behind(recorder: Recorder, order: tuple[int, ...]) -> None:
    before = otel_context.get_current()
    inference = opened()
    entered = [current.enter(inference)]
    phases = [inference.begin(f"phase{place}") for place in range(len(order) - 1)]
    entered += map(current.enter_phase, phases)
    for place in order:
        current.leave(entered[place])
    assert current.here() is None
    assert otel_context.get_current() is before
    assert chain() == 0
    current.close(inference)


def test_block_that_outlives_the_outer_one_is_still_what_runs_here(recorder: Recorder) -> None:
    outer, inner = inferspan.inference("outer"), inferspan.inference("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    active = current.here()
    assert active is not None
    assert active.inference is not None
    assert active.inference.plan.name == "inner"
    assert trace.get_current_span() is active.inference.root
    inner.__exit__(None, None, None)

    assert hook() == "nothing"
    assert not trace.get_current_span().get_span_context().is_valid


def test_leaving_twice_changes_nothing(recorder: Recorder) -> None:
    outer = current.enter(opened("outer"))
    active = current.enter(opened("inner"))
    current.leave(active)
    current.leave(active)

    assert current.here() is outer
    current.leave(outer)
    assert (current.here(), chain()) == (None, 0)


# 6: left in another context


async def stream(name: str = "stream") -> AsyncIterator[int]:
    async with inferspan.inference(name):
        for number in range(10):
            yield number


def test_block_left_in_another_context_leaves_nothing_in_either(recorder: Recorder) -> None:
    copied = contextvars.copy_context()
    block = copied.run(lambda: inferspan.inference("answer").__enter__())
    before = otel_context.get_current()
    assert copied.run(hook) == "inference"
    block.__exit__(None, None, None)

    assert (hook(), copied.run(hook)) == ("nothing", "nothing")
    assert otel_context.get_current() is before
    copied.run(infer, "next")
    assert recorder.trees() == ["answer", "next"], "none of them below the other"


def test_block_left_in_another_context_leaves_alone_what_runs_there(recorder: Recorder) -> None:
    block = contextvars.copy_context().run(lambda: inferspan.inference("elsewhere").__enter__())
    with inferspan.inference("here"):
        own = current.here()
        block.__exit__(None, None, None)
        assert current.here() is own
        assert own is not None
        assert own.inference is not None
        assert trace.get_current_span() is own.inference.root

    assert hook() == "nothing"


def test_span_of_the_program_that_puts_the_context_of_what_is_over_back_does_no_harm(recorder: Recorder) -> None:
    copied = contextvars.copy_context()
    block = copied.run(lambda: inferspan.inference("answer").__enter__())
    block.__exit__(None, None, None)

    def inside() -> None:
        with recorder.tracer.start_as_current_span("request"):
            infer("inside")
        infer("after")
        with inferspan.inference("block"):
            pass

    copied.run(inside)

    parents = {span.name: span.parent for span in recorder.spans()}
    assert (parents["after"], parents["block"]) == (None, None)
    assert parents["inside"] == recorder.span("request").context


def test_span_of_the_program_stays_current_when_the_block_around_it_is_left(recorder: Recorder) -> None:
    block = inferspan.inference("answer")
    block.__enter__()
    with recorder.tracer.start_as_current_span("request") as request:
        block.__exit__(None, None, None)
        assert trace.get_current_span() is request
        infer("inside")
    infer("after")

    assert recorder.span("inside").parent == request.get_span_context()
    assert recorder.span("after").parent is None


def test_phase_that_outlives_its_block_is_not_where_anything_belongs(recorder: Recorder) -> None:
    with inferspan.inference("answer") as block:
        phase = block.phase("think")
        phase.__enter__()
    with recorder.tracer.start_as_current_span("request"):
        infer("inside")
    infer("after")
    phase.__exit__(None, None, None)

    assert recorder.trees() == ["answer", ("request", "inside"), "after"]


@pytest.mark.parametrize("how", ["closed by another task", "closed by the consumer", "dropped"])
def test_consumer_that_abandons_generators_keeps_none_of_them(recorder: Recorder, how: str) -> None:
    """Each leaves its block in another context than it was entered in, or not in the order of a stack."""

    async def abandon(name: str) -> None:
        steps = stream(name)
        await anext(steps)
        if how == "closed by another task":
            await asyncio.create_task(steps.aclose())  # type: ignore[attr-defined]
        elif how == "closed by the consumer":
            await steps.aclose()  # type: ignore[attr-defined]
        del steps
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def main() -> None:
        with recorder.tracer.start_as_current_span("request"):
            for number in range(1000):
                await abandon(f"stream{number}")
                assert chain() <= 1
                assert hook() == "nothing"
            infer("after")

    asyncio.run(main())

    assert len(current.state.open) == 0
    ((request, *below),) = recorder.trees()
    assert request == "request"
    assert below == [*(f"stream{number}" for number in range(1000)), "after"]


def test_consumer_that_holds_several_generators_at_once_keeps_each_apart(recorder: Recorder) -> None:
    async def main() -> list[str]:
        found = []
        first, second = stream("first"), stream("second")
        for _ in range(3):
            await anext(first)
            await anext(second)
        await first.aclose()  # type: ignore[attr-defined]
        await asyncio.create_task(second.aclose())  # type: ignore[attr-defined]
        found.append(hook())
        return found

    assert asyncio.run(main()) == ["nothing"]
    assert {span.name for span in recorder.spans()} == {"first", "second"}


@pytest.mark.parametrize("by_another_task", [False, True], ids=["closed by the consumer", "closed by another task"])
def test_consumer_that_always_holds_a_generator_keeps_only_that(recorder: Recorder, by_another_task: bool) -> None:
    """Each is begun before the one before it is closed, so that nothing is ever left as the innermost."""

    def alive(kind: type) -> int:
        gc.collect()
        return sum(isinstance(each, kind) for each in gc.get_objects())

    before = alive(Inference), alive(_Live)

    async def main() -> None:
        held = stream("stream")
        await anext(held)
        for _ in range(1000):
            following = stream("stream")
            await anext(following)
            closing = held.aclose()  # type: ignore[attr-defined]
            await (asyncio.create_task(closing) if by_another_task else closing)
            held = following
            assert chain() <= 3
        inferspan.force_flush()
        assert alive(Inference) < before[0] + 10
        assert alive(_Live) < before[1] + 10
        await held.aclose()  # type: ignore[attr-defined]
        assert hook() == "nothing"
        assert not trace.get_current_span().get_span_context().is_valid

    asyncio.run(main())

    assert len(current.state.open) == 0
    assert len(recorder.spans()) == 1001


# Into and out of what is called


def test_function_run_in_an_inference_gives_what_it_gives(recorder: Recorder) -> None:
    assert current.run(opened(), lambda a, b: (a, b, hook()), (1,), {"b": 2}) == (1, 2, "inference")
    inference = opened("all inside")
    phase = inference.begin("forward")
    assert current.run(inference, hook, (), {}, inside=phase) == "phase"
    assert (hook(), inference.end_ns is not None) == ("nothing", True)


def test_function_that_raises_in_an_inference_ends_it_with_the_error(recorder: Recorder) -> None:
    def fail() -> None:
        raise KeyError("x")

    before = otel_context.get_current()
    with pytest.raises(KeyError):
        current.run(opened(), fail, (), {})

    assert (hook(), otel_context.get_current()) == ("nothing", before)
    assert recorder.attributes("work")["error.type"] == "KeyError"


def test_function_that_raises_in_a_phase_cuts_it_off(recorder: Recorder) -> None:
    def fail(error: BaseException) -> None:
        raise error

    with inferspan.inference("answer"):
        inference = current.open_here()
        assert inference is not None
        for name, error, discard_at in (("kept", ValueError(), ()), ("discarded", StopIteration(), StopIteration)):
            with pytest.raises(type(error)):
                current.run_phase(inference.begin(name), fail, (error,), {}, discard_at)
            assert hook() == "inference"

    assert recorder.trees() == [("answer", "kept")]
    assert recorder.attributes("kept") == {"error.type": "ValueError"}
    assert recorder.counts("inferspan.phase.duration", "inferspan.phase") == {"kept": 1}


def test_tick_of_a_generation_is_not_that_of_a_thread_that_inherited_it(recorder: Recorder) -> None:
    from inferspan.core.steps import Generation
    from inferspan.integrations.transformers.generate import _has_unfinished_sequences

    ask = _has_unfinished_sequences(lambda model: True)
    inference = opened()
    phase = inference.begin("forward")
    generation = phase.generation = Generation()
    active = current.enter(inference, phase)
    assert ask(None) is True
    assert ask(None) is True
    assert in_thread(lambda: ask(None), contextvars.copy_context()) is True
    assert generation.steps == 1
    current.leave(active)
    current.close(inference)
