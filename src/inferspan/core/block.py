"""``with inferspan.inference(...)``: an inference of the program's own making.

Inside the block the hooks add what they see (a tokenizer's call, a ``generate()``, a model's forward) as phases of
this inference instead of opening their own; ``phase()`` marks what no hook sees, ``token()`` the tokens of a decoding
loop that is written out. While not instrumented everything here does nothing, and a value that is none (a negative
number, a link to nothing) is left out with one warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import currentframe
from types import FrameType, TracebackType
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext
from opentelemetry.util.types import AttributeValue

from inferspan import faults, semconv
from inferspan.core import current, frames
from inferspan.core.model import ModelInfo, display_name
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.core.state import state
from inferspan.core.steps import DECODE, PREFILL, Generation

Traced = Context | Span | SpanContext | Link
"""What stands for a place in a trace."""


class InferenceBlock:
    """One inference of the program's own; made by :func:`inference`. Usable once, with ``with`` or ``async with``."""

    def __init__(
        self,
        name: str,
        model: Any,
        operation: str | None,
        stream: bool,
        links: Traced | Iterable[Traced] | None,
        parent: Traced | None,
    ) -> None:
        self._name = name
        self._model = model
        self._operation = operation or name
        self._stream = stream
        self._links = links
        self._parent = parent
        self._inference: Inference | None = None
        self._active: current.Active | None = None
        self._is_entered = False
        self._overrides: dict[str, int] = {}
        self._marks: Generation | None = None
        self._marked_in: Phase | None = None

    def phase(self, name: str) -> PhaseBlock:
        """A phase of this inference: ``with block.phase("tokenize"): ...``, sync or async, from any thread or task. Of
        a block that was not entered, it is one of the inference that runs here."""
        return PhaseBlock(self, self._inference if self._is_entered else current.open_here(), name)

    def token(self, count: int = 1) -> None:
        """The next token is there (of a batch, one for each of its rows: ``count`` is how many in all), in a decoding
        loop of your own, from any thread. The first call gives the time to the first token, the others the time per
        token, all together the number of output tokens; a phase in which they come gets ``prefill`` and ``decode``.

        While a ``generate()`` runs in the block this does nothing: its tokens are counted anyway."""
        inference = self._inference
        if inference is None:
            return
        if count.__class__ is not int or count < 1:
            count = _whole("token()", count) or 0
        newest = inference.phases.newest
        generating = None if newest is None else newest.generation
        if not count or (generating is not None and generating.end_ns is None):
            return
        with inference.phases.lock:
            marks = self._marks or self._begin_marks(inference)
            marks.mark(count)
            counts = inference.counts
            counts.output_tokens = (counts.output_tokens or 0) + count

    def set_tokens(self, *, input: int | None = None, output: int | None = None) -> None:  # noqa: A002
        """Tokens read and generated, in place of what the hooks and :meth:`token` count."""
        self._replace("input", "set_tokens(input=…)", input)
        self._replace("output", "set_tokens(output=…)", output)

    def set_batch_size(self, rows: int) -> None:
        """Rows of the batch, in place of what the hooks see."""
        self._replace("rows", "set_batch_size()", rows)

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        """An attribute of the root span. It is the program's own, and its privacy too."""
        if self._inference is not None:
            self._inference.set(name, value)

    def __enter__(self) -> InferenceBlock:
        return self._enter(currentframe())

    def _enter(self, frame: FrameType | None) -> InferenceBlock:
        self._is_entered = True
        model = None if isinstance(self._model, str) else self._model
        plan = self._plan(model)
        links, parent = ((), None) if plan is None else _placed(self._links, self._parent)
        inference = current.open_inference(plan, model=model, links=links, parent=parent)
        if inference is not None:
            inference.is_stream = self._stream
            self._inference = inference
            self._active = current.enter(inference)
            frames.enter(self._active, frame)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inference, active = self._inference, self._active
        self._inference = self._active = self._marks = self._marked_in = None
        if inference is not None and active is not None:
            current.leave(active)
            self._override(inference)
            current.close(inference, error)

    @faults.guarded("block.open")
    def _plan(self, model: Any) -> Plan | None:
        if model is not None:
            return current.plan(model, (self._operation, self._name), _make_plan, model)
        settings, key = current.settings(), (self._name, self._operation, self._model)
        plan = state.plans.named.get(key)
        if settings is not None and (plan is None or plan.settings is not settings):
            plan = current.make_plan(self._operation, info=_named(self._model), name=self._name)
            state.plans.keep_named(key, plan)
        return plan

    def _override(self, inference: Inference) -> None:
        counts, overrides = inference.counts, self._overrides
        self._overrides = {}
        if "input" in overrides:
            counts.input_tokens, counts.input_exact = overrides["input"], True
        if "output" in overrides:
            counts.output_tokens, counts.output_exact = overrides["output"], True
        if "rows" in overrides:
            counts.rows_max = overrides["rows"]
            counts.rows = (counts.rows_max,)

    async def __aenter__(self) -> InferenceBlock:
        return self._enter(currentframe())

    async def __aexit__(self, *raised: Any) -> None:
        self.__exit__(*raised)

    def _replace(self, name: str, where: str, given: int | None) -> None:
        count = None if current.settings() is None else _whole(where, given)
        if count is not None:
            self._overrides[name] = count

    def _begin_marks(self, inference: Inference) -> Generation:
        """The first token: the phase that runs here is the one that generates, else the one that was begun last."""
        active, phase = current.here(), inference.phases.newest
        if active is not None and active.phase is not None and active.inference is inference:
            phase = active.phase
        if phase is None or phase.is_ended or phase.name in (PREFILL, DECODE):  # of a name that says it already
            phase = None
        marks = self._marks = Generation()
        marks.start_ns = inference.start_ns if phase is None else phase.start_ns
        self._marked_in = phase
        if inference.generation is None:
            inference.generation = marks
        return marks

    def _end_marks(self, phase: Phase) -> None:
        """A phase is over: the marks that came in it go with it."""
        if self._marks is not None and self._marked_in is phase and phase.generation is None:
            phase.generation = self._marks.so_far()


class PhaseBlock:
    """One phase of a block's inference; made by :meth:`InferenceBlock.phase`."""

    def __init__(self, block: InferenceBlock, inference: Inference | None, name: str) -> None:
        self._block = block
        self._inference = inference
        self._name = name
        self._phase: Phase | None = None
        self._active: current.Active | None = None

    def __enter__(self) -> PhaseBlock:
        return self._enter(currentframe())

    def _enter(self, frame: FrameType | None) -> PhaseBlock:
        if self._inference is not None and self._inference.end_ns is None:
            self._phase = self._inference.begin(self._name)
            self._active = current.enter_phase(self._phase)
            frames.enter(self._active, frame)
        return self

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        """An attribute of the phase's span."""
        if self._phase is not None:
            self._phase.set(name, value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        phase, active = self._phase, self._active
        self._phase = self._active = None
        if phase is not None and active is not None and phase.inference is not None:
            current.leave(active)
            if error is not None:
                phase.cut_off(error)
            self._block._end_marks(phase)
            phase.inference.end(phase)

    async def __aenter__(self) -> PhaseBlock:
        return self._enter(currentframe())

    async def __aexit__(self, *raised: Any) -> None:
        self.__exit__(*raised)


def inference(
    name: str,
    *,
    model: Any = None,
    operation: str | None = None,
    stream: bool = False,
    links: Traced | Iterable[Traced] | None = None,
    parent: Traced | None = None,
) -> InferenceBlock:
    """An inference of your own, as a context manager.

    Args:
        name: of the root span.
        model: the model, or its name. A model instance also gives its facts and whether it is cold.
        operation: value of ``gen_ai.operation.name``, for example ``chat``; by default the name.
        stream: the tokens are handed on as they come.
        links: what else the inference is for, such as the requests of a batch.
        parent: what the root span is below, in place of what is current.

    Links and parent are contexts or spans of OpenTelemetry. Inside another inference the block is an inference of its
    own, whose root span is a child of the current span.
    """
    return InferenceBlock(name, model, operation, stream, links, parent)


def _make_plan(model: Any, key: tuple[str, str], _: Any) -> Plan:
    operation, name = key
    return current.make_plan(operation, model=model, name=name)


def _named(model: str | None) -> ModelInfo | None:
    if model is None:
        return None
    settings = current.settings()
    local_name = "basename" if settings is None else settings.local_model_name
    info = ModelInfo(display_name(model, semconv.OTHER, local_name)[0])
    info.cold = None
    return info


def _placed(links: Any, parent: Any) -> tuple[tuple[Link, ...], Context | None]:
    if links is None and parent is None:
        return (), None
    from inferspan import arguments

    return arguments.links(links), arguments.parent(parent)


def _whole(where: str, given: Any) -> int | None:
    if given is None or (given.__class__ is int and given >= 0):
        return given
    from inferspan import arguments

    return arguments.whole(where, given)
