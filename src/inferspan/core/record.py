"""The record of one inference: what the calling thread notes, and all that it notes.

A record is plain data. Times are ``perf_counter_ns`` readings, so a clock that is set back changes no duration; the
wall clock is read once, when the record opens, and everything is placed relative to it. Spans and metric points are
made of it later, in :mod:`inferspan.emit`; nothing here knows how. What a measure noted is among ``marks``, and only
that measure knows what it is.
"""

from __future__ import annotations

import threading
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.errors import is_cancellation, type_name
from inferspan.core.probe import begin, end
from inferspan.core.steps import DECODE, PREFILL

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span

    from inferspan.core.batch import Batch
    from inferspan.core.errors import Failure
    from inferspan.core.messages import Content
    from inferspan.core.model import ModelInfo
    from inferspan.core.plan import Plan
    from inferspan.core.probe import Probe, Values
    from inferspan.core.steps import Generation

    Marks = list[tuple[Probe, Any]]

_OVERFLOW_MAX = 64
_AT_ONCE_NS = 20_000


def unix_offset_ns() -> int:
    """What to add to ``perf_counter_ns`` for the wall clock's time. Read again where another thread ran in between."""
    for _ in range(4):
        before, wall, after = perf_counter_ns(), time_ns(), perf_counter_ns()
        if after - before < _AT_ONCE_NS:
            break
    return wall - before


class Phase:
    """One phase of an inference, or a standalone phase (a tokenizer called outside of any inference).

    Phases of one name that follow each other without another between them share one record: ``calls`` counts
    them, ``busy_ns`` is the sum of their own times.

    ``is_forward``: a model runs in it, so that measures of forwards apply. ``in_model`` is true while one runs, so that
    a model inside it does not count again. ``modules`` is what records single modules of it, where that is asked for.
    """

    # Defaults are the class's, as with an inference.
    busy_ns: int = 0
    calls: int = 0
    attributes: dict[str, Any] | None = None
    generation: Generation | None = None
    error: str | None = None
    is_cut_off: bool = False  # by an exception, a cancellation, the end of the process
    is_ended: bool = False
    is_forward: bool = False
    in_model: bool = False
    marks: Marks | None = None
    has_ends: bool = False  # some of the marks want to know the end
    modules: Any = None

    def __init__(self, name: str, inference: Inference | None, start_ns: int) -> None:
        self.name = name
        self.inference = inference
        self.start_ns = start_ns
        self.end_ns = start_ns
        if inference is not None:
            inference.phases.newest = self
            if inference.plan.phase_probes:
                self.marks = []
                self.has_ends = begin(self, self.marks, inference.plan.phase_probes, None)

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

    def discard(self) -> None:
        """Nothing happened in it: :meth:`Phases.end` will keep nothing of it."""
        self.is_ended = True

    def parts(self) -> tuple[str, ...]:
        """The names of what is known of it apart: itself and, where it generated, prefill and decode."""
        return (self.name,) if self.generation is None else (self.name, PREFILL, DECODE)

    def mark_of(self, name: str) -> Any:
        """What the measure of this name has noted; ``None`` if nothing."""
        return next((mark for probe, mark in self.marks or () if probe.name == name), None)


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


class Overflow:
    """Forwards of a running inference beyond the bound on its phases: they get no spans, but their values are added to
    the inference's sums."""

    __slots__ = ("end_ns", "inference", "phases")

    def __init__(self, inference: Inference, phases: list[Phase]) -> None:
        self.inference = inference
        self.phases = phases
        self.end_ns = phases[-1].end_ns


class Phases:
    """The phases of one inference. ``kept`` is bounded; what is beyond the bound is counted in ``dropped``, still in
    ``totals_ns`` (by name, prefill and decode apart), and if it is a forward its values are still added up:
    ``overflow`` are those that wait for it, ``sums`` what the background worker has so far."""

    def __init__(self, kept_max: int, submit: Callable[[Overflow], None]) -> None:
        self.kept: list[Phase] = []
        self.dropped = 0
        self.totals_ns: dict[str, int] = {}
        self.overflow: list[Phase] = []
        self.sums: dict[str, Values] = {}
        self.newest: Phase | None = None  # begun last
        self.last: Phase | None = None  # ended last, kept or not
        self.is_closed = False
        self.is_incomplete = False  # some of the overflow was lost: a full queue
        self._kept_max = kept_max
        self._submit = submit
        # Concurrent tasks of one inference() block may add phases at once; a signal handler in the midst of that, too.
        self.lock = threading.RLock()

    def end(self, phase: Phase) -> None:
        """The phase is over: keep it, or add it to the one before it if that has the same name."""
        with self.lock:
            if phase.is_ended or self.is_closed:
                return  # cut off, by the end of the process or uninstrument(), while it ran
            phase.is_ended = True
            if phase.marks and phase.has_ends:
                end(phase, phase.marks)
            phase.end_ns = now = perf_counter_ns()
            spent = now - phase.start_ns
            phase.busy_ns += spent
            phase.calls += 1
            totals = self.totals_ns
            totals[phase.name] = totals.get(phase.name, 0) + spent
            if phase.generation is not None:
                self._add_steps(phase, phase.generation)
            last = self.last
            if last is not None and last.name == phase.name and _mergeable(last, phase):
                last.end_ns = now
                last.busy_ns += spent
                last.calls += 1
                last.error = phase.error
                return
            self.last = phase
            if len(self.kept) < self._kept_max:
                self.kept.append(phase)
            else:
                self.dropped += 1
                self._let_go(phase)

    def cut_off(self) -> None:
        """The phase begun last, which still runs, is over as far as anybody will know."""
        if self.newest is not None:
            self.newest.is_cut_off = self.newest.is_cut_off or not self.newest.is_ended
            self.end(self.newest)

    def drop(self) -> int:
        """Keep none of the phases; how many there were. Their values will still be added up."""
        dropped, self.kept = self.kept, []
        self.dropped += len(dropped)
        self.overflow += [phase for phase in dropped if phase.is_forward]
        return len(dropped)

    def _let_go(self, phase: Phase) -> None:
        if phase.is_forward:
            self.overflow.append(phase)
            if len(self.overflow) >= _OVERFLOW_MAX and phase.inference is not None:
                waiting, self.overflow = self.overflow, []
                self._submit(Overflow(phase.inference, waiting))

    def _add_steps(self, phase: Phase, generation: Generation) -> None:
        totals = self.totals_ns
        first_ns, end_ns = generation.until(phase.end_ns)
        if first_ns is None and not phase.is_cut_off:
            return
        totals[PREFILL] = totals.get(PREFILL, 0) + (first_ns or end_ns) - generation.start_ns
        if first_ns is not None and (generation.steps > 1 or phase.is_cut_off):
            totals[DECODE] = totals.get(DECODE, 0) + end_ns - first_ns


def _mergeable(last: Phase, phase: Phase) -> bool:
    # A forward has facts of its own (shape, prefill and decode); what runs at the same time is not a sequence.
    return (
        last.generation is None
        and phase.generation is None
        and last.attributes is None
        and phase.attributes is None
        and not last.marks
        and not phase.marks
        and not last.is_forward
        and not phase.is_forward
        and last.end_ns <= phase.start_ns
    )


class Counts:
    """Rows, lengths and tokens of all batches of an inference. ``positions`` and ``padded`` are of exact batches only;
    ``rows`` and ``padding`` have one number for each of the first batches; ``items`` counts the results."""

    rows_max: int = 0
    length_max: int = 0
    positions: int = 0
    padded: int = 0
    input_tokens: int | None = None
    input_exact: bool = True
    output_tokens: int | None = None
    output_exact: bool = True
    items: int = 0

    rows: tuple[int, ...] = ()
    padding: tuple[float, ...] = ()
    finish_reasons: tuple[str, ...] = ()

    def add_output(self, tokens: int, exact: bool) -> None:
        """Count what one generation returned."""
        self.output_tokens = (self.output_tokens or 0) + tokens
        self.output_exact = self.output_exact and exact


class Overlap:
    """Which other inferences ran at the same time: ``serial`` counts them in the order of their beginnings,
    ``is_alone`` is true where none did, ``open_after`` are those that went on."""

    serial: int = 0
    is_alone: bool = True
    open_after: int = 0


class Lazy:
    """The times of an inference whose result is computed as it is consumed: what it spent in all steps, and when the
    last of them ended."""

    __slots__ = ("busy_ns", "last_ns")

    def __init__(self, start_ns: int) -> None:
        self.last_ns = perf_counter_ns()
        self.busy_ns = self.last_ns - start_ns


class Inference:
    """One inference. Opened, entered, left and closed by :mod:`inferspan.core.current` only.

    What metrics need has a field; what only the root span carries is in ``attributes``. ``None`` means not known, and
    stays absent. ``self_phase`` is the phase that the inference itself is (a model called directly), which has no span
    of its own. ``device`` is as torch writes it.
    """

    # Defaults are the class's: an instance of twenty-five attributes takes 3 µs to make, one of twelve 1 µs.
    end_ns: int | None = None
    lazy: Lazy | None = None
    generation: Generation | None = None
    self_phase: Phase | None = None
    cold: bool | None = None
    device: str | None = None
    is_stream: bool = False
    is_cancelled: bool = False
    is_abandoned: bool = False
    failure: Failure | None = None
    content: Content | None = None
    hooks_ns: int = 0  # that the calling thread has spent in our hooks
    context: Context | None = None
    root: Span | None = None
    links: tuple[Link, ...] = ()

    def __init__(self, plan: Plan, parent: Context, submit: Callable[[Overflow], None]) -> None:
        self.plan = plan
        self.parent = parent
        # as unix_offset_ns() does, which reads again where another thread ran in between
        self.start_ns, wall_ns, read_ns = perf_counter_ns(), time_ns(), perf_counter_ns()
        is_close = read_ns - self.start_ns < _AT_ONCE_NS
        self.unix_offset_ns = wall_ns - self.start_ns if is_close else unix_offset_ns()
        self.phases = Phases(plan.settings.children_max, submit)
        self.counts = Counts()
        self.overlap = Overlap()
        self.attributes: dict[str, Any] = {}
        self.marks: Marks = []
        self._unclaimed = [None]

    @property
    def info(self) -> ModelInfo | None:
        """What is known of its model."""
        return self.plan.info

    @property
    def operation(self) -> str:
        return self.plan.operation

    def claim(self) -> bool:
        """Whether the caller is the one to close it: true for the first who asks, of a consumer, the garbage collector
        and interpreter exit alike. Taking the last item of a list is atomic."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def begin(self, name: str) -> Phase:
        """Begin a phase now. It must be handed to :meth:`end`, whatever happens in it."""
        return Phase(name, self, perf_counter_ns())

    def end(self, phase: Phase) -> None:
        """The phase is over."""
        self.phases.end(phase)

    def add_batch(self, phase: Phase | None, batch: Batch) -> None:
        """Count what one forward was given, and note it of its phase. Of a long stream the first forwards stand for
        all, as with phases."""
        counts, rows, length, tokens = self.counts, batch.rows, batch.length, batch.tokens
        is_kept = len(counts.rows) < self.plan.settings.children_max
        if is_kept:
            counts.rows = (*counts.rows, rows)
        counts.rows_max = max(counts.rows_max, rows)
        counts.length_max = max(counts.length_max, length or 0)
        if tokens is not None:
            counts.input_tokens = (counts.input_tokens or 0) + tokens
            counts.input_exact = counts.input_exact and batch.exact
            if batch.exact and batch.positions:
                counts.positions += batch.positions
                counts.padded += batch.positions - tokens
                if is_kept and rows > 1:
                    counts.padding = (*counts.padding, 1 - tokens / batch.positions)
        if phase is not None and phase is not self.self_phase:
            attributes = phase.attributes = {} if phase.attributes is None else phase.attributes
            attributes[semconv.BATCH_SIZE] = rows
            if length is not None:
                attributes[semconv.SEQUENCE_LENGTH] = length

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the root span; ``None`` is left out."""
        if value is not None:
            self.attributes[name] = value

    def mark_of(self, name: str) -> Any:
        """What the measure of this name has noted; ``None`` if nothing."""
        return next((mark for probe, mark in self.marks if probe.name == name), None)
