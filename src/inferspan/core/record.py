"""The record of one inference: what the calling thread notes, and all that it notes.

A record is plain data. Times are ``perf_counter_ns`` readings, so a clock that is set back changes no duration; the
wall clock is read once, when the record opens, and everything is placed relative to it. Spans and metric points are
made of it later, in :mod:`inferspan.emit`; nothing here knows how.
"""

from __future__ import annotations

import threading
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.errors import is_cancellation, type_name
from inferspan.probes import host_allocations
from inferspan.probes.figures import Part, add_parts, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from inferspan.core.batch import Batch
    from inferspan.core.errors import Failure
    from inferspan.core.model import ModelInfo
    from inferspan.core.steps import Generation
    from inferspan.probes.accelerator import Accelerator, Memory, Timer
    from inferspan.probes.compiles import Compiles
    from inferspan.probes.flops.walk import CallShapes, Inventory
    from inferspan.probes.layers import Layers
    from inferspan.probes.out_of_memory import OutOfMemory

    Attributes = Mapping[str, Any]

_UNREAD_MAX = 64
_AT_ONCE_NS = 20_000


def unix_offset_ns() -> int:
    """What to add to ``perf_counter_ns`` for the wall clock's time. Read again where another thread ran in between."""
    for _ in range(4):
        before, wall, after = perf_counter_ns(), time_ns(), perf_counter_ns()
        if after - before < _AT_ONCE_NS:
            break
    return wall - before


class Phase:
    """One phase of an inference, or a phase on its own (a tokenizer called outside of any inference).

    Phases of one name that follow each other without another between them share one record: ``calls`` counts
    them, ``busy_ns`` is the sum of their own times.

    One that ``is_measured`` is a forward. ``timer`` times it on the device; ``shapes`` is what its models were called
    with, ``None`` where FLOPs are not counted; ``in_model`` while one of them runs, so that a model inside it does not
    count again. ``layers`` records its model's layers, where they are asked for.
    """

    is_phase = True

    # Defaults are the class's, as with an inference.
    busy_ns: int = 0
    calls: int = 0
    attributes: dict[str, Any] | None = None
    generation: Generation | None = None
    error: str | None = None
    is_cut_off: bool = False  # by an exception, a cancellation, the end of the process
    is_measured: bool = False
    timer: Timer | None = None
    shapes: list[tuple[Inventory, CallShapes]] | None = None
    in_model: bool = False
    layers: Layers | None = None
    host: host_allocations.Mark | None = None

    def __init__(self, name: str, inference: Inference | None, start_ns: int) -> None:
        self.name = name
        self.inference = inference
        self.start_ns = start_ns
        self.end_ns = start_ns

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the phase's span; ``None`` is left out."""
        if value is not None:
            if self.attributes is None:
                self.attributes = {}
            self.attributes[name] = value

    def cut_off(self, error: BaseException) -> None:
        """It ends by an exception, which is an error unless somebody has cancelled it."""
        self.is_cut_off = True
        self.error = None if is_cancellation(error) else type_name(error)


class StandalonePhase:
    """A finished phase that belongs to no inference: one span, under what was current when it began."""

    __slots__ = ("context", "model", "phase", "unix_offset_ns")

    def __init__(self, phase: Phase, context: Context, model: str | None) -> None:
        self.phase = phase
        self.context = context
        self.model = model
        self.unix_offset_ns = unix_offset_ns()

    @property
    def end_ns(self) -> int:
        return self.phase.end_ns


class Inference:
    """One inference. Opened, entered, left and closed by :mod:`inferspan.core.current` only.

    Fields that metrics need have a slot each; what only the root span carries is in ``attributes``. ``None`` means
    not known, and stays absent. ``phases`` is bounded; what is beyond the bound is counted in ``phases_dropped`` and
    still in ``phase_totals_ns`` and ``totals``. ``whole`` is the phase that the inference itself is (a model called
    directly), which has no span of its own.
    """

    is_phase = False

    # Defaults are the class's: an instance of fifty attributes takes 4 µs to make, one of fifteen 1 µs.
    end_ns: int | None = None
    _last_phase: Phase | None = None  # kept or not
    _newest: Phase | None = None  # begun last
    phases_dropped: int = 0
    rows_max: int = 0
    length_max: int = 0
    positions: int = 0
    padded: int = 0
    input_tokens: int | None = None
    input_exact: bool = True
    output_tokens: int | None = None
    output_exact: bool = True
    generation: Generation | None = None
    items: int = 0
    cold: bool | None = None
    stream: bool = False
    single_span: bool = False
    whole: Phase | None = None
    accelerator: Accelerator | None = None
    memory_before: Memory | None = None
    memory_after: Memory | None = None
    out_of_memory: OutOfMemory | None = None
    compiles: Compiles | None = None
    layers: Layers | None = None
    has_layers: bool | None = None  # not decided
    serial: int = 0
    hooks_ns: int = 0  # that the calling thread has spent in our hooks
    is_alone: bool = False
    open_after: int = 0
    busy_ns: int | None = None
    cpu_start_ns: int | None = None
    cpu_time_ns: int | None = None
    memory_start_bytes: int | None = None
    memory_bytes: int | None = None
    failure: Failure | None = None
    cancelled: bool = False
    abandoned: bool = False
    content: Any = None
    fork_generation: int = 0
    parent: Context | None = None
    context: Context | None = None
    root: Span | None = None

    def __init__(self, name: str, operation: str, model: ModelInfo | None, phases_max: int) -> None:
        self.name = name
        self.operation = operation
        self.model = model
        self.start_ns = perf_counter_ns()
        self.unix_offset_ns = unix_offset_ns()
        self.last_ns = self.start_ns
        self.phases: list[Phase] = []
        self.phases_max = phases_max
        self.phase_totals_ns: dict[str, int] = {}
        self.attributes: dict[str, Any] = {}
        self.batch_rows: list[int] = []
        self.padding: list[float] = []
        self.totals: dict[str, Part] = {}
        self.unread: list[Phase] = []
        # Concurrent tasks of one inference() block may add phases at once; a signal handler in the midst of that, too.
        self.lock = threading.RLock()

    @property
    def inference(self) -> Inference:
        return self

    def begin(self, name: str) -> Phase:
        """Begin a phase now. It must be handed to :meth:`end`, whatever happens in it."""
        phase = self._newest = Phase(name, self, perf_counter_ns())
        if host_allocations.is_tracing:
            phase.host = host_allocations.Mark()
        return phase

    def end(self, phase: Phase) -> None:
        """The phase is over: keep it, or add it to the one before it if that has the same name."""
        with self.lock:
            if phase.calls or self.end_ns is not None:
                return  # cut off, by the end of the process or uninstrument(), while it ran
            if phase.timer is not None:
                phase.timer.stop()
                phase.set(semconv.GPU_PENDING, phase.timer.is_pending)
            if phase.host is not None:
                phase.set(semconv.HOST_ALLOCATED, phase.host.allocated())
                phase.set(semconv.HOST_PEAK, phase.host.peak())
            phase.end_ns = now = perf_counter_ns()
            spent = now - phase.start_ns
            phase.busy_ns += spent
            phase.calls += 1
            totals = self.phase_totals_ns
            totals[phase.name] = totals.get(phase.name, 0) + spent
            if phase.generation is not None:
                self._add_parts_to_totals(phase, phase.generation)
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
                self._let_go(phase)

    def cut_off(self) -> None:
        """The phase begun last, which still runs, is over as far as anybody will know."""
        if self._newest is not None:
            self._newest.is_cut_off = self._newest.is_cut_off or not self._newest.calls
            self.end(self._newest)

    def drop_phases(self) -> int:
        """Keep none of the phases; how many there were."""
        dropped, self.phases, self.layers = self.phases, [], None
        self.phases_dropped += len(dropped)
        for phase in dropped:
            add_parts(self.totals, parts_of(phase))
        return len(dropped)

    def read_rest(self) -> None:
        """Add what was measured in phases that are not kept to the sums."""
        while self.unread:
            add_parts(self.totals, parts_of(self.unread.pop(0)))

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

    def _let_go(self, phase: Phase) -> None:
        # The device may still be at it; of a long stream the first have been done long ago.
        if not phase.is_measured:
            return
        unread = self.unread
        unread.append(phase)
        while unread and (len(unread) > _UNREAD_MAX or unread[0].timer is None or unread[0].timer.is_ready()):
            add_parts(self.totals, parts_of(unread.pop(0)))

    def _add_parts_to_totals(self, phase: Phase, generation: Generation) -> None:
        totals = self.phase_totals_ns
        first_ns, end_ns = generation.until(phase.end_ns)
        if first_ns is None and not phase.is_cut_off:
            return
        totals[semconv.PREFILL] = totals.get(semconv.PREFILL, 0) + (first_ns or end_ns) - generation.start_ns
        if first_ns is not None and (generation.steps > 1 or phase.is_cut_off):
            totals[semconv.DECODE] = totals.get(semconv.DECODE, 0) + end_ns - first_ns

    @staticmethod
    def _mergeable(last: Phase, phase: Phase) -> bool:
        # A forward has facts of its own (shape, prefill and decode); what runs at the same time is not a sequence.
        return (
            last.generation is None
            and phase.generation is None
            and last.attributes is None
            and phase.attributes is None
            and not last.is_measured
            and not phase.is_measured
            and last.end_ns <= phase.start_ns
        )
