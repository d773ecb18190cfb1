"""Random programs of inferences: what they do, and a model of what must come out of them.

A program is a list of steps, tuples whose first part says what. :class:`Program` runs it on real classes;
:class:`Model` says, without any of them, which traces there must be. Both walk the steps in the same way, with one
method for each kind. What a step raises ends the steps around it up to a ``catch``, or to the top.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import inferspan
from support import cheap, tiny

Step = tuple[Any, ...]
Body = Sequence[Step]

PHASES = ("preprocess", "forward", "postprocess")
LIMIT_S = 60.0


class Planned(Exception):
    """What fails, fails on purpose."""


ERRORS: dict[str, type[BaseException]] = {
    "support.programs.Planned": Planned,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "asyncio.exceptions.CancelledError": asyncio.CancelledError,
}
CANCELLED = "asyncio.exceptions.CancelledError"
Caught = (Planned, KeyboardInterrupt, SystemExit, asyncio.CancelledError)


# -- what must come out ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Told:
    """One phase: its name, calls that it stands for, the error that ended it, and what is below it."""

    name: str
    error: str | None = None
    below: tuple[str, ...] = ()
    calls: int = 1

    @property
    def is_merged(self) -> bool:
        """Whether one more of that name is the same span. A forward has facts of its own."""
        return self.name != "forward"

    def text(self) -> str:
        own = f"{self.name}*{self.calls}" if self.calls > 1 else self.name
        return "".join((own, f"!{self.error}" if self.error else "", f"({' '.join(self.below)})" if self.below else ""))


@dataclass(eq=False)
class Trace:
    """One inference, or (without ``is_inference``) a span of the program's own."""

    name: str
    phases: list[Told] = field(default_factory=list)
    error: str | None = None
    items: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    abandoned: bool = False
    is_single: bool = False
    is_lone: bool = False

    def add(self, name: str, error: str | None = None, below: tuple[str, ...] = ()) -> None:
        last = self.phases[-1] if self.phases else None
        error = None if error == CANCELLED else error
        if last is not None and last.name == name and last.is_merged:
            last.calls += 1
            last.error = error
        else:
            self.phases.append(Told(name, error, below))

    def fail(self, error: str) -> None:
        self.error = error

    def kept(self, children_max: int) -> list[str]:
        return [phase.text() for phase in self.phases[:children_max]]

    def text(self, children_max: int) -> str:
        """All of it that is compared."""
        dropped = max(0, len(self.phases) - children_max)
        facts = [
            *(["cancelled"] if self.error == CANCELLED else [f"!{self.error}"] if self.error else []),
            *([f"items={self.items}"] if self.items > 1 else []),
            *([f"in={self.input_tokens}"] if self.input_tokens else []),
            *([f"out={self.output_tokens}"] if self.output_tokens else []),
            *(["abandoned"] if self.abandoned else []),
            *([f"dropped={dropped}"] if dropped else []),
        ]
        return " ".join([self.name, f"[{' '.join(self.kept(children_max))}]", *facts])


class Raised(Exception):
    """In the model, what the program raises: the name of its class."""


PHASE = Trace("phase")
"""Inside a phase nothing is recorded."""


class Model:
    """Walks a program and keeps the traces; ``active`` is where it is."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.children: list[list[Trace]] = []
        self.streams: dict[int, tuple[Trace, list[Any]]] = {}

    def run(self, body: Body, active: Trace | None) -> None:
        for step in body:
            getattr(self, "_" + step[0])(active, *step[1:])

    def top(self, body: Body) -> None:
        """As :meth:`Program.top`: what is raised ends here, and streams that are open are dropped."""
        for step in body:
            self._catch(None, [step])
        for stream, left in self.streams.values():
            self._end(stream, left)

    def _end(self, stream: Trace, left: list[Any]) -> None:
        if stream not in self.traces:
            stream.abandoned = True
            self.traces.append(stream)

    def _catch(self, active: Trace | None, body: Body) -> None:
        try:
            self.run(body, active)
        except Raised:
            pass

    def _flush(self, active: Trace | None) -> None:
        pass

    _collect = _flush

    def _reinstrument(self, active: Trace | None) -> None:
        for stream, left in self.streams.values():
            self._end(stream, left)

    def _item(self, into: Trace, item: Any) -> None:
        """Phases of one item of a pipeline."""
        for phase in PHASES:
            failed = item[1] if item is not None and item[0] == phase else None
            if into is not PHASE:
                into.add(phase, failed)
            if failed is not None:
                raise Raised(failed)

    def _pipeline(self, active: Trace | None, items: Sequence[Any], single: bool) -> None:
        into = Trace("cheap") if active is None else active
        try:
            for item in items:
                self._item(into, item)
                if into is not PHASE:
                    into.items += 1
        except Raised as raised:
            if active is None:
                into.fail(raised.args[0])
            raise
        finally:
            if active is None:
                self.traces.append(into)

    def _open(self, active: Trace | None, key: int, items: Sequence[Any]) -> None:
        if key in self.streams:
            self._end(*self.streams[key])
        self.streams[key] = Trace("cheap"), list(items)

    def _take(self, active: Trace | None, key: int, number: int) -> None:
        if key not in self.streams:
            return
        stream, left = self.streams[key]
        is_own = True
        if stream in self.traces:  # it has been uninstrumented meanwhile
            is_own, stream = active is None, active or Trace("cheap")
            if is_own:
                self.streams[key] = stream, left
        for _ in range(number):
            if not left:
                if is_own:
                    self.traces.append(stream)
                del self.streams[key]
                return
            try:
                self._item(stream, left.pop(0))
            except Raised as raised:
                if is_own:
                    stream.fail(raised.args[0])
                    self.traces.append(stream)
                del self.streams[key]
                raise
            if stream is not PHASE:
                stream.items += 1

    def _drop(self, active: Trace | None, key: int) -> None:
        if key in self.streams:
            self._end(*self.streams.pop(key))

    def _generate(self, active: Trace | None, tokens: int, fails_at: int | None, error: str) -> None:
        failed = error if fails_at is not None and fails_at < tokens else None
        if active is PHASE:
            pass
        else:
            into = Trace("text_completion") if active is None else active
            steps = tokens if failed is None else fails_at
            told = None if failed == CANCELLED else failed
            end = f"!{told}" if told else ""
            if steps == 0:
                below: tuple[str, ...] = (f"prefill{end}",)
            elif steps == 1:
                below = ("prefill", f"decode{end}") if failed else ("prefill",)
            else:
                below = ("prefill", f"decode{end}")
            into.add("forward", failed, below)
            into.input_tokens += 2
            if failed is None:
                into.output_tokens += tokens
            if active is None:
                if failed:
                    into.fail(failed)
                self.traces.append(into)
        if failed:
            raise Raised(failed)

    def _module(self, active: Trace | None, error: str | None) -> None:
        if active is None:
            self.traces.append(Trace("forward", error=error, is_single=True))
        elif active is not PHASE:
            active.add("forward", error)
        if error:
            raise Raised(error)

    def _tokenize(self, active: Trace | None) -> None:
        if active is None:
            self.traces.append(Trace("tokenize", is_lone=True))
        elif active is not PHASE:
            active.add("tokenize")

    def _block(self, active: Trace | None, body: Body) -> None:
        into = Trace("block")  # wherever it is
        try:
            self.run(body, into)
        except Raised as raised:
            into.fail(raised.args[0])
            raise
        finally:
            self.traces.append(into)

    def _phase(self, active: Trace | None, name: str, body: Body) -> None:
        failed = None
        is_recorded = active is not None and active is not PHASE
        try:
            self.run(body, PHASE if is_recorded else active)
        except Raised as raised:
            failed = raised.args[0]
            raise
        finally:
            if active is not None and active is not PHASE:
                active.add(name, failed)

    def _raise(self, active: Trace | None, error: str) -> None:
        raise Raised(error)

    def _threads(self, active: Trace | None, bodies: Sequence[Body]) -> None:
        for body in bodies:
            model = Model()
            model.top(body)
            self.traces += model.traces
            self.children += model.children

    def _fork(self, active: Trace | None, body: Body) -> None:
        model = Model()
        model.top(body)
        self.children.append(model.traces)

    def _tasks(self, active: Trace | None, tasks: Sequence[tuple[int, int | None, str]]) -> None:
        for number, fails_at, error in tasks:
            into = Trace("task")
            for place in range(number):
                into.add(f"p{place}", error if place == fails_at else None)
                if place == fails_at:
                    into.fail(error)
                    break
            self.traces.append(into)

    def _together(self, active: Trace | None, number: int) -> None:
        into = Trace("together")
        for place in range(number):
            into.add(f"q{place}")
        self.traces.append(into)


# -- what is done ------------------------------------------------------------------------------------------------------


class Program:
    """Runs one program. ``told`` reads what has come out so far, as texts, ``forget`` empties that; ``reinstrument``
    does what it says."""

    def __init__(
        self, told: Callable[[], list[str]], reinstrument: Callable[[], None], forget: Callable[[], None]
    ) -> None:
        self.told = told
        self.reinstrument = reinstrument
        self.forget = forget
        self.pipe, self.lm, self.module, self.tokenizer = models()
        self.streams: dict[int, Any] = {}
        self.children: list[list[str]] = []
        self.bad: list[str] = []

    def another(self) -> Program:
        """The same, for another thread."""
        other = Program(self.told, self.reinstrument, self.forget)
        other.children, other.bad = self.children, self.bad
        return other

    def run(self, body: Body) -> None:
        for step in body:
            getattr(self, "_" + step[0])(*step[1:])

    def top(self, body: Body) -> None:
        for step in body:
            self._catch([step])
        self.streams.clear()

    def _catch(self, body: Body) -> None:
        try:
            self.run(body)
        except Caught:
            pass

    def _flush(self) -> None:
        if not inferspan.force_flush(LIMIT_S):
            self.bad.append("a flush has failed")

    def _collect(self) -> None:
        gc.collect(0)

    def _reinstrument(self) -> None:
        self.reinstrument()

    def _pipeline(self, items: Sequence[Any], single: bool) -> None:
        inputs = [_input(item) for item in items]
        self.pipe(inputs[0] if single else inputs)

    def _open(self, key: int, items: Sequence[Any]) -> None:
        self.streams.pop(key, None)
        self.streams[key] = iter(self.pipe(_input(item) for item in items))

    def _take(self, key: int, number: int) -> None:
        stream = self.streams.get(key)
        if stream is None:
            return
        try:
            for _ in range(number):
                next(stream)
        except StopIteration:
            del self.streams[key]
        except Caught:
            del self.streams[key]
            raise

    def _drop(self, key: int) -> None:
        self.streams.pop(key, None)

    def _generate(self, tokens: int, fails_at: int | None, error: str) -> None:
        planned = None if fails_at is None else cheap.FailsAt(fails_at, ERRORS[error]())
        cheap.generate(self.lm, tokens, fails_at=planned)

    def _module(self, error: str | None) -> None:
        self.module(torch.ones(1) if error is None else ERRORS[error]())

    def _tokenize(self) -> None:
        self.tokenizer("a cat sat")

    def _block(self, body: Body) -> None:
        with inferspan.inference("block"):
            self.run(body)

    def _phase(self, name: str, body: Body) -> None:
        with inferspan.inference("nested").phase(name):
            self.run(body)

    def _raise(self, error: str) -> None:
        raise ERRORS[error]()

    def _threads(self, bodies: Sequence[Body]) -> None:
        threads = [threading.Thread(target=self.another().top, args=(body,), daemon=True) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
            if thread.is_alive():
                self.bad.append("a thread hangs")

    def _fork(self, body: Body) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                other = self.another()
                other.bad, other.children = [], []
                self.forget()
                contextvars.Context().run(other.top, body)
                other._flush()
                os.write(writing, json.dumps([other.told(), other.bad]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        ended = _wait(child)
        with os.fdopen(reading) as answer:
            text = answer.read() if ended else ""
        if not text:
            self.bad.append("a child hangs" if not ended else "a child says nothing")
            return
        told, bad = json.loads(text)
        self.children.append(told)
        self.bad += bad

    def _tasks(self, tasks: Sequence[tuple[int, int | None, str]]) -> None:
        async def task(number: int, fails_at: int | None, error: str) -> None:
            async with inferspan.inference("task") as block:
                for place in range(number):
                    async with block.phase(f"p{place}"):
                        await asyncio.sleep(0)
                        if place == fails_at and error == CANCELLED:
                            current = asyncio.current_task()
                            assert current is not None
                            current.cancel()
                            await asyncio.sleep(1)
                        if place == fails_at:
                            raise Planned

        async def all_tasks() -> None:
            await asyncio.gather(*(task(*each) for each in tasks), return_exceptions=True)

        contextvars.Context().run(asyncio.run, all_tasks())

    def _together(self, number: int) -> None:
        async def part(block: Any, place: int) -> None:
            async with block.phase(f"q{place}"):
                await asyncio.sleep(0.001)

        async def all_parts() -> None:
            async with inferspan.inference("together") as block:
                await asyncio.gather(*(part(block, place) for place in range(number)))

        contextvars.Context().run(asyncio.run, all_parts())


@cache
def models() -> tuple[Any, Any, Any, Any]:
    """Pipeline, language model, module and tokenizer of all programs."""
    return cheap.pipeline(), cheap.language_model(), cheap.module(), tiny.word_tokenizer()


def _input(item: Any) -> Any:
    return 1 if item is None else (item[0], ERRORS[item[1]]())


def _wait(child: int) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return False
        time.sleep(0.001)
    return True
