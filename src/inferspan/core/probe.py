"""What a measure has to offer: one class in one file owns it whole, from the calling thread to its last attribute.

A probe says whether it applies to a call site (:meth:`Probe.prepare`, asked once for a plan), notes something on the
calling thread (``begin``, ``end`` and what happens in between: no wait, no lock, no SDK), says on the background worker
when its numbers are ready, and turns them into attributes, points and events there (:meth:`Probe.report`).

What it noted of an inference or a phase is its *mark*, of any type, handed back to it by each later call. A measure of
forwards has a *value* for each part of one (the forward itself, its prefill, its decode); values of one part are added
up over all forwards of the inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from inferspan import faults

if TYPE_CHECKING:
    from inferspan.config import Settings
    from inferspan.core.model import ModelInfo
    from inferspan.core.record import Inference, Phase

Values = dict[str, Any]
"""Of one part, by the name of the probe."""


class Brackets(Enum):
    """What a probe's ``begin`` and ``end`` enclose. A measure of ``FORWARD`` is asked at the first forward on a device,
    since the device is known only then; so is one of an inference that runs ``on_device``."""

    INFERENCE = "inference"
    FORWARD = "forward"
    PHASE = "phase"


class CallSite(NamedTuple):
    """One model on one device under the settings in force. ``device`` is as torch writes it; ``None``: not known."""

    settings: Settings
    model: Any
    info: ModelInfo | None
    device: str | None


class DecodingLoop(NamedTuple):
    """One decoding loop: its model and arguments. ``is_even``: each step is one forward over one new position of each
    row (not where a draft proposes tokens, or where the prompt comes in chunks). ``is_plain``: no code but
    transformers' own runs in it."""

    model: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_even: bool
    is_plain: bool


class Point(NamedTuple):
    """One metric point. ``of_operation``: its attributes begin with operation and model, else with the model alone.
    ``has_exemplar``: it may point at the trace."""

    metric: str
    value: float
    attributes: Mapping[str, str] = {}
    of_operation: bool = True
    has_exemplar: bool = True


class Event(NamedTuple):
    """One event of the root span; ``at_ns`` is a reading of ``perf_counter_ns``."""

    name: str
    attributes: Mapping[str, Any]
    at_ns: int


class ChildSpan(NamedTuple):
    """One span below the root, or below ``phase``. Times are readings of ``perf_counter_ns``."""

    name: str
    attributes: Mapping[str, Any]
    start_ns: int
    end_ns: int
    error: str | None
    phase: Phase | None = None


@dataclass(slots=True)
class Report:
    """What all probes know of one finished inference. ``None`` in ``attributes`` (of the root span) means absent.

    ``parts`` has the values of each kept phase, ``totals`` their sums over all phases, both by the part's name;
    ``results`` what a probe leaves for those behind it in the table, by its name.
    """

    parts: list[dict[str, Values]] = field(default_factory=list)
    totals: dict[str, Values] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    spans: list[ChildSpan] = field(default_factory=list)


class Probe:
    """One measure. Every method has a default that does nothing, so a measure writes down what it does and no more."""

    name: str
    brackets = Brackets.INFERENCE
    begins: bool = False
    ends: bool = False

    def __init_subclass__(cls) -> None:
        # what does nothing is not called
        cls.begins, cls.ends = cls.begin is not Probe.begin, cls.end is not Probe.end

    def prepare(self, site: CallSite) -> Probe | None:
        """The probe for this call site, bound to its device if need be; ``None`` where it does not apply."""
        return self

    # -- on the calling thread

    def begin(self, record: Any, model: Any) -> Any:
        """The inference or phase begins; what comes back is the mark. ``None``: nothing to note this time."""
        return None

    def end(self, record: Any, mark: Any) -> None:
        """It is over."""

    def failed(self, inference: Inference, error: BaseException) -> Any:
        """The inference ended by this exception: what to keep of it as the mark, if there is none."""
        return None

    def model_called(self, phase: Phase, mark: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A model begins to run in the phase, the outermost one."""

    def generation_begins(self, phase: Phase, mark: Any) -> None:
        """``phase.generation`` has been made: the phase generates."""

    def decoding_begins(self, phase: Phase, mark: Any, loop: DecodingLoop) -> None:
        """A decoding loop is about to run in the phase."""

    # -- on the background worker

    def is_ready(self, record: Any, mark: Any) -> bool:
        """Whether the numbers can be read, or never will be. Never waits."""
        return True

    def value(self, phase: Phase, part: str, mark: Any) -> Any:
        """What is known of one part of a forward; ``None`` if nothing is."""
        return None

    def add(self, one: Any, other: Any) -> Any:
        """The sum of two values of one part, each of which may be ``None``."""
        return None

    def describe(self, inference: Inference, part: str, values: Values) -> Mapping[str, Any]:
        """Attributes of the span of one part."""
        return {}

    def report(self, inference: Inference, mark: Any, report: Report) -> None:
        """Add what is known of the whole inference. Asked of each probe in the order of the table, with or without a
        mark."""

    def close(self) -> None:
        """The instrumentation ends: release what is held."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of probes. ``load`` imports and makes the probe; it is called only if ``is_wanted``, and with
    ``on_device`` only where a forward runs on something else than the CPU."""

    name: str
    is_wanted: Callable[[CallSite], bool]
    load: Callable[[], Probe]
    on_device: bool = False


def begin(record: Inference | Phase, marks: list[tuple[Probe, Any]], probes: Iterable[Probe], model: Any) -> bool:
    """Have the probes note that an inference or a phase begins. One that fails loses only itself. Whether one of them
    wants to note the end, too."""
    has_ends = False
    for probe in probes:
        try:
            mark = probe.begin(record, model)
            if mark is not None:
                marks.append((probe, mark))
                has_ends = has_ends or probe.ends
        except Exception:  # noqa: BLE001
            faults.note("probes.begin")
    return has_ends


def end(record: Inference | Phase, marks: Iterable[tuple[Probe, Any]]) -> None:
    """Have them note its end."""
    for probe, mark in marks:
        try:
            if probe.ends:
                probe.end(record, mark)
        except Exception:  # noqa: BLE001
            faults.note("probes.end")


def add_up(totals: dict[str, Values], parts: Mapping[str, Values], probes: Iterable[Probe]) -> None:
    """Add the parts of one more phase to the sums."""
    for part, values in parts.items():
        known = totals.get(part)
        if known is None:
            totals[part] = dict(values)
            continue
        for probe in probes:
            if probe.name in known or probe.name in values:
                known[probe.name] = _sum(probe, known.get(probe.name), values.get(probe.name))


def parts_of(phase: Phase) -> dict[str, Values]:
    """The values of a forward and, where it generated, of its prefill and decode."""
    if not phase.is_forward:
        return {}
    marks = phase.marks or ()
    return {part: {probe.name: _value(probe, phase, part, mark) for probe, mark in marks} for part in phase.parts()}


@faults.guarded("probes.value")
def _value(probe: Probe, phase: Phase, part: str, mark: Any) -> Any:
    return probe.value(phase, part, mark)


@faults.guarded("probes.add")
def _sum(probe: Probe, one: Any, other: Any) -> Any:
    return probe.add(one, other)


def is_ready(record: Inference | Phase, marks: Sequence[tuple[Probe, Any]] | None) -> bool:
    """Whether all that was noted can be read."""
    return marks is None or all(probe.is_ready(record, mark) for probe, mark in marks)
