"""The record of one inference: what the calling thread notes, and all that it notes.

A record is plain data. Times are ``perf_counter_ns`` readings, so a clock that is set back changes no duration; the
wall clock is read once, when the record opens, and everything is placed relative to it. Spans and metric points are
made of it later, in :mod:`inferspan.telemetry`; nothing here knows how.
"""

from __future__ import annotations

import threading
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any

from inferspan import semconv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from inferspan.inference.error import Failure
    from inferspan.inference.model import ModelFacts
    from inferspan.measure.generation import Generation
    from inferspan.measure.tokens import Batch

    Attributes = Mapping[str, Any]


class Phase:
    """One phase of an inference, or a phase on its own (a tokenizer called outside of any inference).

    Phases of one name that follow each other without another between them share one record: ``calls`` counts
    them, ``busy_ns`` is the sum of their own times.
    """

    __slots__ = (
        "attributes",
        "busy_ns",
        "calls",
        "end_ns",
        "error",
        "generation",
        "inference",
        "name",
        "start_ns",
    )

    is_phase = True

    def __init__(self, name: str, inference: Inference | None, start_ns: int) -> None:
        self.name = name
        self.inference = inference
        self.start_ns = start_ns
        self.end_ns = start_ns
        self.busy_ns = 0
        self.calls = 0
        self.attributes: dict[str, Any] | None = None
        self.generation: Generation | None = None
        self.error: str | None = None

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the phase's span; ``None`` is left out."""
        if value is not None:
            if self.attributes is None:
                self.attributes = {}
            self.attributes[name] = value


class Lone:
    """A finished phase that belongs to no inference: one span, under what was current when it began."""

    __slots__ = ("context", "model", "phase", "unix_offset_ns")

    def __init__(self, phase: Phase, context: Context, model: str | None) -> None:
        self.phase = phase
        self.context = context
        self.model = model
        self.unix_offset_ns = time_ns() - perf_counter_ns()


class Inference:
    """One inference. Opened, entered, left and closed by :mod:`inferspan.inference.scope` only.

    Fields that metrics need have a slot each; what only the root span carries is in ``attributes``. ``None`` means
    not known, and stays absent. ``phases`` is bounded; what is beyond the bound is counted in ``phases_dropped`` and
    still in ``phase_totals_ns``.
    """

    is_phase = False

    def __init__(self, name: str, operation: str, model: ModelFacts | None, phases_max: int) -> None:
        self.name = name
        self.operation = operation
        self.model = model
        self.start_ns = perf_counter_ns()
        self.unix_offset_ns = time_ns() - self.start_ns
        self.end_ns: int | None = None
        self.last_ns = self.start_ns
        self.phases: list[Phase] = []
        self.phases_max = phases_max
        self._last_phase: Phase | None = None  # kept or not
        self.phases_dropped = 0
        self.phase_totals_ns: dict[str, int] = {}
        self.attributes: dict[str, Any] = {}
        self.batch_rows: list[int] = []
        self.rows_max = 0
        self.length_max = 0
        self.padding: list[float] = []
        self.positions = 0
        self.padded = 0
        self.input_tokens: int | None = None
        self.input_exact = True
        self.output_tokens: int | None = None
        self.output_exact = True
        self.generation: Generation | None = None
        self.items = 0
        self.cold: bool | None = None
        self.stream = False
        self.single_span = False
        self.busy_ns: int | None = None
        self.cpu_start_ns: int | None = None
        self.cpu_time_ns: int | None = None
        self.memory_bytes: int | None = None
        self.failure: Failure | None = None
        self.cancelled = False
        self.abandoned = False
        self.content: Any = None
        self.fork_generation = 0
        self.parent: Context | None = None
        self.context: Context | None = None
        self.root: Span | None = None
        # Concurrent tasks of one inference() block may add phases at once.
        self.lock = threading.Lock()

    @property
    def inference(self) -> Inference:
        return self

    def begin(self, name: str) -> Phase:
        """Begin a phase now. It must be handed to :meth:`end`, whatever happens in it."""
        return Phase(name, self, perf_counter_ns())

    def end(self, phase: Phase) -> None:
        """The phase is over: keep it, or add it to the one before it if that has the same name."""
        phase.end_ns = now = perf_counter_ns()
        spent = now - phase.start_ns
        phase.busy_ns += spent
        phase.calls += 1
        with self.lock:
            self._add_to_totals(phase, spent)
            last = self._last_phase
            if last is not None and last.name == phase.name and self._mergeable(last, phase):
                last.end_ns = now
                last.busy_ns += spent
                last.calls += 1
                last.error = phase.error
                return
            self._last_phase = phase
            if len(self.phases) < self.phases_max:
                self.phases.append(phase)
            else:
                self.phases_dropped += 1

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the root span; ``None`` is left out."""
        if value is not None:
            self.attributes[name] = value

    def add_batch(self, batch: Batch) -> None:
        """Count what one forward was given. Of a long stream the first forwards stand for all, as with phases."""
        kept = len(self.batch_rows) < self.phases_max
        if kept:
            self.batch_rows.append(batch.rows)
        self.rows_max = max(self.rows_max, batch.rows)
        self.length_max = max(self.length_max, batch.length or 0)
        if batch.tokens is not None:
            self.input_tokens = (self.input_tokens or 0) + batch.tokens
            self.input_exact = self.input_exact and batch.exact
            if batch.exact and batch.positions:
                self.positions += batch.positions
                self.padded += batch.positions - batch.tokens
                if kept and batch.rows > 1:
                    self.padding.append(1 - batch.tokens / batch.positions)

    def add_output(self, tokens: int, exact: bool) -> None:
        """Count what one generation returned."""
        self.output_tokens = (self.output_tokens or 0) + tokens
        self.output_exact = self.output_exact and exact

    def _add_to_totals(self, phase: Phase, spent: int) -> None:
        totals = self.phase_totals_ns
        totals[phase.name] = totals.get(phase.name, 0) + spent
        generation = phase.generation
        if generation is None or generation.first_token_ns is None:
            return
        first_ns = generation.first_token_ns
        totals[semconv.PREFILL] = totals.get(semconv.PREFILL, 0) + first_ns - generation.start_ns
        if generation.steps > 1:
            end_ns = generation.end_ns or phase.end_ns
            totals[semconv.DECODE] = totals.get(semconv.DECODE, 0) + end_ns - first_ns

    @staticmethod
    def _mergeable(last: Phase, phase: Phase) -> bool:
        # A forward has facts of its own (shape, prefill and decode); what runs at the same time is not a sequence.
        return (
            last.generation is None
            and phase.generation is None
            and last.attributes is None
            and phase.attributes is None
            and last.end_ns <= phase.start_ns
        )
