"""Random programs in which tasks, threads, generators, blocks and streamers take turns, and what must come out of them.

An *actor* is a place where steps are done: a task, a thread, or one of these in a copy of a context, as a callback is.
One step is done at a time, so that a program is the same every time; which step, and by whom, is drawn. Blocks are left
by whoever is drawn, and so in any order and any context.

:class:`Model` says what comes out by the rules of docs/architecture.md, without any of the machinery: what was entered
where is a list, which is copied with its context, and what has ended or was left is passed over in it.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import queue
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

import torch
from opentelemetry.trace import Tracer
from transformers.generation.streamers import BaseStreamer

import inferspan
from support import cheap

LIMIT_S = 60.0
STEPS = {
    "enter": 4,
    "leave": 3,
    "enter_phase": 3,
    "leave_phase": 3,
    "call": 3,
    "generate": 2,
    "token": 2,
    "spawn": 3,
    "stream": 2,
}
KINDS = ("with", "generator", "async generator")
ENDS = ("exhausted", "closed", "dropped")
ACTORS = ("context", "task", "thread", "thread with a copy")


@cache
def models() -> tuple[Any, Any]:
    return cheap.module(), cheap.language_model()


# -- what must come out ------------------------------------------------------------------------------------------------


class Told:
    """An inference. ``output`` is how many tokens it gave."""

    def __init__(self, name: str, parent: str | None) -> None:
        self.name = name
        self.parent = parent
        self.phases: Counter[tuple[str, str]] = Counter()
        self.output = 0
        self.is_ended = False


class Entered:
    """An inference, a phase of one, or a span of the program's, that was made current. A phase is of its place. What a
    generator has entered is the current span, but nothing runs in it while that waits, as it does here."""

    def __init__(
        self, name: str, told: Told | None = None, place: object = None, *, by_generator: bool = False
    ) -> None:
        self.name = name
        self.told = told
        self.place = place
        self.by_generator = by_generator
        self.is_left = False

    @property
    def counts(self) -> bool:
        return not self.is_left and not (self.told is not None and self.told.is_ended)

    @property
    def is_phase(self) -> bool:
        return self.place is not None


class Model:
    """What must come out. ``entered`` are the lists of all actors."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.entered: dict[Any, list[Entered]] = {}

    def here(self, actor: Actor) -> Told | Entered | None:
        """The inference that runs here, or a phase of one, or nothing."""
        found = [
            entered
            for entered in self.entered[actor]
            if entered.counts and entered.told is not None and not entered.by_generator
        ]
        if not found:
            return None
        last = found[-1]
        if not last.is_phase:
            return last.told
        return last if last.place is actor.place else None

    def parent(self, actor: Actor) -> str | None:
        return next((each.name for each in reversed(self.entered[actor]) if each.counts and not each.is_phase), None)

    def infer(self, name: str, parent: str | None) -> Told:
        told = Told(name, parent)
        self.told.append(told)
        return told

    def call(self, actor: Actor) -> None:
        here = self.here(actor)
        if here is None:
            self.infer("forward", self.parent(actor))
        elif isinstance(here, Told):
            here.phases["forward", here.name] += 1

    def generate(self, actor: Actor, tokens: int, *, in_thread: bool = False) -> str:
        """``in_thread``: of its own, to which only the streamer leads. Under which inference what it begins is."""
        here = self.here(actor)
        if here is None or (in_thread and isinstance(here, Entered)):
            here = self.infer("text_completion", self.parent(actor))
        told = here.told if isinstance(here, Entered) else here
        assert told is not None
        told.output += tokens
        if isinstance(here, Told):
            told.phases["forward", told.name] += 1
            told.phases["prefill", "forward"] += 1
            told.phases["decode", "forward"] += tokens > 1
        return told.name

    def all(self) -> Counter[Any]:
        """Spans: what each is called, what is above it, and of inferences how many tokens they gave."""
        found: Counter[Any] = Counter((told.name, told.parent, told.output) for told in self.told)
        for told in self.told:
            found.update(+told.phases)
        return found


# -- what is done ------------------------------------------------------------------------------------------------------


class Actor:
    """Where steps are done. ``place`` is its thread and task."""

    def __init__(self) -> None:
        self.place: object = self

    async def do(self, step: Callable[[], Any]) -> Any:
        return step()

    async def stop(self) -> None:
        pass


class Callback(Actor):
    """Where another one is, in a context of its own."""

    def __init__(self, where: Actor, context: contextvars.Context) -> None:
        self.where, self.context = where, context
        self.place = where.place

    async def do(self, step: Callable[[], Any]) -> Any:
        return await self.where.do(lambda: self.context.run(step))


class Task(Actor):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.steps: asyncio.Queue[Any] = asyncio.Queue()
        self.loop = loop

    def begin(self) -> None:
        """From any thread, in a copy of its context."""
        if threading.current_thread() is threading.main_thread():
            self.task: Any = self.loop.create_task(self._run())
        else:
            self.task = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._run(), self.loop), loop=self.loop)

    async def _run(self) -> None:
        while (step := await self.steps.get()) is not None:
            step()

    async def do(self, step: Callable[[], Any]) -> Any:
        done: asyncio.Future[Any] = self.loop.create_future()
        self.steps.put_nowait(lambda: _settle(done, step))
        return await asyncio.wait_for(done, LIMIT_S)

    async def stop(self) -> None:
        self.steps.put_nowait(None)
        await self.task


def _settle(done: asyncio.Future[Any], step: Callable[[], Any]) -> None:
    try:
        done.set_result(step())
    except BaseException as error:  # noqa: BLE001 - whoever has drawn it wants to know
        done.set_exception(error)


class Thread(Actor):
    def __init__(self) -> None:
        super().__init__()
        self.steps: queue.Queue[Any] = queue.Queue()
        self.results: queue.Queue[Any] = queue.Queue()

    def begin(self, *, with_copy: bool) -> None:
        run = contextvars.copy_context().run if with_copy else contextvars.Context().run
        self.thread = threading.Thread(target=run, args=(self._run,), daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (step := self.steps.get()) is not None:
            try:
                self.results.put((step(), None))
            except BaseException as error:  # noqa: BLE001 - as above
                self.results.put((None, error))

    async def do(self, step: Callable[[], Any]) -> Any:
        self.steps.put(step)
        result, error = self.results.get(timeout=LIMIT_S)
        if error is not None:
            raise error
        return result

    async def stop(self) -> None:
        self.steps.put(None)
        self.thread.join(LIMIT_S)


class Block:
    """A block that is entered and left by whoever is drawn: as it is, or by a generator that has it inside."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.steps: Any = None
        self.block = inferspan.inference(name)

    def enter(self) -> None:
        if self.kind == "with":
            self.block.__enter__()
        elif self.kind == "generator":
            self.steps = self._generator()
            next(self.steps)
        else:
            self.steps = self._async_generator()
            _now(self.steps.__anext__())

    def leave(self, how: str) -> None:
        steps, self.steps = self.steps, None
        if self.kind == "with":
            self.block.__exit__(None, None, None)
        elif self.kind == "generator":
            if how == "exhausted":
                next(steps, None)
            elif how == "closed":
                steps.close()
        elif how == "exhausted":
            _now(steps.__anext__())
        else:
            _now(steps.aclose())

    def _generator(self) -> Iterator[None]:
        with self.block:
            yield

    async def _async_generator(self) -> AsyncIterator[None]:
        async with self.block:
            yield


def _now(awaitable: Any) -> None:
    """Run what waits for nothing."""
    try:
        awaitable.__await__().send(None)
    except (StopIteration, StopAsyncIteration):
        return
    raise AssertionError("it waits")


class Streamer(BaseStreamer):
    """Has the first piece classified."""

    def __init__(self, classify: Callable[[], Any]) -> None:
        self.classify = [classify]

    def put(self, value: Any) -> None:
        while self.classify:
            self.classify.pop()()

    def end(self) -> None:
        pass


class Duck:
    """Of no class that transformers knows."""

    __init__, put, end = Streamer.__init__, Streamer.put, Streamer.end


class Program:
    """Draws the steps of one program, does them, and tells the model. ``log`` is what was drawn."""

    def __init__(self, seed: int, tracer: Tracer) -> None:
        self.random = random.Random(seed)
        self.tracer = tracer
        self.model = Model()
        self.log: list[str] = []
        self.actors: list[Actor] = []
        self.blocks: dict[Told, Block] = {}
        self.entries: dict[Told, Entered] = {}
        self.phases: dict[Entered, Any] = {}
        self.numbers = itertools.count()

    def run(self, number: int) -> None:
        contextvars.Context().run(asyncio.run, self._main(number))

    async def _main(self, number: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.actors = [Actor()]
        self.model.entered[self.actors[0]] = []
        for _ in range(number):
            await self._draw()
        while self.blocks:
            await self._leave(self.random.choice(self.actors))
        for actor in self.actors:  # nothing is left behind
            await self._call(actor)
        for actor in reversed(self.actors):
            await actor.stop()

    async def _draw(self) -> None:
        name = self.random.choices(list(STEPS), STEPS.values())[0]
        await getattr(self, f"_{name}")(self.random.choice(self.actors))

    def _say(self, actor: Actor, *what: object) -> None:
        self.log.append(" ".join(map(str, (type(actor).__name__, self.actors.index(actor), *what))))

    # each of these: what comes of it, then the step itself

    async def _enter(self, actor: Actor) -> None:
        name, kind = f"block{next(self.numbers)}", self.random.choice(KINDS)
        self._say(actor, "enters", name, kind)
        told = self.model.infer(name, self.model.parent(actor))
        self.entries[told] = Entered(name, told, by_generator=kind != "with")
        self.model.entered[actor].append(self.entries[told])
        self.blocks[told] = Block(kind, name)
        await actor.do(self.blocks[told].enter)

    async def _leave(self, actor: Actor) -> None:
        if not self.blocks:
            return
        told, how = self.random.choice(list(self.blocks)), self.random.choice(ENDS)
        self._say(actor, "leaves", told.name, how)
        told.is_ended = self.entries[told].is_left = True
        block = self.blocks.pop(told)
        await actor.do(lambda: block.leave(how))

    async def _enter_phase(self, actor: Actor) -> None:
        if not self.blocks:
            return
        told, name = self.random.choice(list(self.blocks)), f"phase{next(self.numbers)}"
        self._say(actor, "enters", name, "of", told.name)
        entered = Entered(name, told, actor.place)
        self.model.entered[actor].append(entered)
        phase = self.phases[entered] = self.blocks[told].block.phase(name)
        await actor.do(phase.__enter__)

    async def _leave_phase(self, actor: Actor) -> None:
        if not self.phases:
            return
        entered = self.random.choice(list(self.phases))
        self._say(actor, "leaves", entered.name)
        assert entered.told is not None
        if entered.counts:
            entered.told.phases[entered.name, entered.told.name] += 1
        entered.is_left = True
        phase = self.phases.pop(entered)
        await actor.do(lambda: phase.__exit__(None, None, None))

    async def _call(self, actor: Actor) -> None:
        await self._in_span(actor, "calls", self.model.call, lambda: models()[0](torch.ones(1)))

    async def _generate(self, actor: Actor) -> None:
        tokens = self.random.randint(1, 3)
        await self._in_span(
            actor,
            f"generates {tokens}",
            lambda actor: self.model.generate(actor, tokens),
            lambda: cheap.generate(models()[1], tokens),
        )

    async def _in_span(self, actor: Actor, what: str, tell: Callable[[Actor], Any], step: Callable[[], Any]) -> None:
        """Within a span of the program's own, or not."""
        if self.random.random() < 0.7:
            self._say(actor, what)
            tell(actor)
            await actor.do(step)
            return
        name = f"span{next(self.numbers)}"
        self._say(actor, what, "in", name)
        self.model.entered[actor].append(Entered(name))
        tell(actor)
        self.model.entered[actor].pop()

        def inside() -> None:
            with self.tracer.start_as_current_span(name):
                step()

        await actor.do(inside)

    async def _token(self, actor: Actor) -> None:
        if not self.blocks or not hasattr(inferspan.inference(""), "token"):
            return
        told, count = self.random.choice(list(self.blocks)), self.random.randint(1, 3)
        self._say(actor, "marks", count, "of", told.name)
        told.output += count
        block = self.blocks[told].block
        await actor.do(lambda: block.token(count))

    async def _spawn(self, actor: Actor) -> None:
        kind = self.random.choice(ACTORS)
        self._say(actor, "begins", kind, len(self.actors))
        await self._add(actor, kind)

    async def _add(self, actor: Actor, kind: str) -> None:
        if kind == "context":
            spawned: Any = Callback(actor, await actor.do(contextvars.copy_context))
        elif kind == "task":
            spawned = Task(self.loop)
            await actor.do(spawned.begin)
        else:
            spawned = Thread()
            await actor.do(lambda: spawned.begin(with_copy=kind != "thread"))
        self.actors.append(spawned)
        self.model.entered[spawned] = [] if kind == "thread" else list(self.model.entered[actor])

    async def _stream(self, actor: Actor) -> None:
        """A ``generate()`` in a thread that only its streamer leads back from."""
        tokens, make = self.random.randint(1, 3), self.random.choice((Streamer, Duck))
        elsewhere = self.random.random() < 0.5
        self._say(actor, "streams", tokens, make.__name__, "classified elsewhere" if elsewhere else "classified there")

        def tell(actor: Actor) -> None:
            name = self.model.generate(actor, tokens, in_thread=True)
            if elsewhere:  # else it is a part of the generation
                self.model.infer("forward", name)

        def classify() -> None:
            if not elsewhere:
                models()[0](torch.ones(1))
                return
            thread = threading.Thread(target=contextvars.copy_context().run, args=(models()[0], torch.ones(1)))
            thread.start()
            thread.join(LIMIT_S)

        def step() -> None:
            streamer = make(classify)
            thread = threading.Thread(target=lambda: cheap.generate(models()[1], tokens, streamer=streamer))
            thread.start()
            thread.join(LIMIT_S)

        await self._in_span(actor, "…", tell, step)
