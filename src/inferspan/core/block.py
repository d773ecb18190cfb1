"""``with inferspan.inference(...)``: an inference of the program's own making.

Inside the block the hooks add what they see (a tokenizer's call, a ``generate()``, a model's forward) as phases of
this inference instead of opening their own; ``phase()`` marks what no hook sees. While not instrumented everything
here does nothing.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from opentelemetry.util.types import AttributeValue

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.model import ModelInfo, display_name
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.core.state import state


class InferenceBlock:
    """One inference of the program's own; made by :func:`inference`. Usable once, with ``with`` or ``async with``."""

    def __init__(self, name: str, model: Any, operation: str | None) -> None:
        self._name = name
        self._model = model
        self._operation = operation or name
        self._inference: Inference | None = None
        self._active: current.Active | None = None
        self._is_entered = False
        self._overrides: dict[str, int] = {}

    def phase(self, name: str) -> PhaseBlock:
        """A phase of this inference: ``with block.phase("tokenize"): ...``, sync or async, from any thread or task. Of
        a block that was not entered, it is one of the inference that runs here."""
        return PhaseBlock(self._inference if self._is_entered else current.open_here(), name)

    def set_tokens(self, *, input: int | None = None, output: int | None = None) -> None:  # noqa: A002
        """Tokens read and generated, in place of what the hooks count."""
        self._overrides.update(
            {name: int(count) for name, count in (("input", input), ("output", output)) if count is not None}
        )

    def set_batch_size(self, rows: int) -> None:
        """Rows of the batch, in place of what the hooks see."""
        self._overrides["rows"] = int(rows)

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        """An attribute of the root span. It is the program's own, and its privacy too."""
        if self._inference is not None:
            self._inference.set(name, value)

    def __enter__(self) -> InferenceBlock:
        self._is_entered = True
        model = None if isinstance(self._model, str) else self._model
        inference = current.open_inference(self._plan(model), model=model)
        if inference is not None:
            self._inference = inference
            self._active = current.enter(inference)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inference, active = self._inference, self._active
        self._inference = self._active = None
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
        if "input" in overrides:
            counts.input_tokens, counts.input_exact = overrides["input"], True
        if "output" in overrides:
            counts.output_tokens, counts.output_exact = overrides["output"], True
        if "rows" in overrides:
            counts.rows_max = overrides["rows"]
            counts.rows = (counts.rows_max,)

    async def __aenter__(self) -> InferenceBlock:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class PhaseBlock:
    """One phase of a block's inference; made by :meth:`InferenceBlock.phase`."""

    def __init__(self, inference: Inference | None, name: str) -> None:
        self._inference = inference
        self._name = name
        self._phase: Phase | None = None
        self._active: current.Active | None = None

    def __enter__(self) -> PhaseBlock:
        if self._inference is not None and self._inference.end_ns is None:
            self._phase = self._inference.begin(self._name)
            self._active = current.enter_phase(self._phase)
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
            phase.inference.end(phase)

    async def __aenter__(self) -> PhaseBlock:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def inference(name: str, *, model: Any = None, operation: str | None = None) -> InferenceBlock:
    """An inference of your own, as a context manager.

    Args:
        name: of the root span.
        model: the model, or its name. A model instance also gives its facts and whether it is cold.
        operation: value of ``gen_ai.operation.name``, for example ``chat``; by default the name.

    Inside another inference the block is an inference of its own, whose root span is a child of the current span.
    """
    return InferenceBlock(name, model, operation)


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
