"""``with inferspan.inference(...)``: an inference of the program's own making.

Inside the block the hooks add what they see (a tokenizer's call, a ``generate()``, a model's forward) as phases of
this inference instead of opening their own; ``phase()`` marks what no hook sees. While not instrumented everything
here does nothing.
"""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import Any

from opentelemetry.util.types import AttributeValue

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.model import ModelInfo, display_name
from inferspan.core.record import Inference, Phase


class InferenceBlock:
    """One inference of the program's own; made by :func:`inference`. Usable once, with ``with`` or ``async with``."""

    def __init__(self, name: str, model: Any, operation: str | None) -> None:
        self._name = name
        self._model = model
        self._operation = operation or name
        self._inference: Inference | None = None
        self._entered: current.Entered | None = None
        self._told: dict[str, int] = {}

    def phase(self, name: str) -> PhaseBlock:
        """A phase of this inference: ``with block.phase("tokenize"): ...``, sync or async."""
        return PhaseBlock(name)

    def set_tokens(self, *, input: int | None = None, output: int | None = None) -> None:  # noqa: A002
        """Tokens read and generated, in place of what the hooks count."""
        self._told.update(
            {name: int(count) for name, count in (("input", input), ("output", output)) if count is not None}
        )

    def set_batch_size(self, rows: int) -> None:
        """Rows of the batch, in place of what the hooks see."""
        self._told["rows"] = int(rows)

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        """An attribute of the root span. It is the program's own, and its privacy too."""
        if self._inference is not None:
            self._inference.set(name, value)

    def __enter__(self) -> InferenceBlock:
        inference = None
        if current.ACTIVE.get() is None:
            try:
                facts = _facts(self._model)
            except Exception:  # noqa: BLE001
                faults.note("block.open")
                facts = None
            model = None if isinstance(self._model, str) else self._model
            inference = current.open_inference(self._operation, facts, name=self._name, model=model)
        if inference is not None:
            self._inference = inference
            self._entered = current.enter(inference)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inference, entered = self._inference, self._entered
        self._inference = self._entered = None
        if inference is not None and entered is not None:
            current.leave(entered)
            self._tell(inference)
            current.close(inference, error)

    def _tell(self, inference: Inference) -> None:
        if "input" in self._told:
            inference.input_tokens, inference.input_exact = self._told["input"], True
        if "output" in self._told:
            inference.output_tokens, inference.output_exact = self._told["output"], True
        if "rows" in self._told:
            inference.rows_max = self._told["rows"]
            inference.batch_rows = [inference.rows_max]

    async def __aenter__(self) -> InferenceBlock:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class PhaseBlock:
    """One phase of the inference that is active; made by :meth:`InferenceBlock.phase`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._phase: Phase | None = None
        self._token: Token[Inference | Phase | None] | None = None

    def __enter__(self) -> PhaseBlock:
        active = current.ACTIVE.get()
        if active is not None and not active.is_phase and active.inference is not None:
            self._phase = active.inference.begin(self._name)
            self._token = current.ACTIVE.set(self._phase)
        return self

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        """An attribute of the phase's span."""
        if self._phase is not None:
            self._phase.set(name, value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        phase, token = self._phase, self._token
        self._phase = self._token = None
        if phase is not None and token is not None and phase.inference is not None:
            try:
                current.ACTIVE.reset(token)
            except ValueError:  # left in another context, like in scope.leave
                pass
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

    Inside another inference the block is part of that one, and opens no trace of its own.
    """
    return InferenceBlock(name, model, operation)


def _facts(model: Any) -> ModelInfo | None:
    if model is None:
        return None
    if not isinstance(model, str):
        return current.model_facts(model)
    settings = current.settings()
    local_name = "basename" if settings is None else settings.local_model_name
    facts = ModelInfo(display_name(model, semconv.OTHER, local_name)[0])
    facts.cold = None
    return facts
