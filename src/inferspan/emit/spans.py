"""From a record and its report to spans: children with explicit times, then the root's attributes and its end.

All attributes of a root are put together in one place (:func:`root_attributes`). Where two have the same name, the one
further down this list wins: what probes report; the rank; what the record counts; content; what integrations and the
program have set; the type of the error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Status, StatusCode

from inferspan import faults, semconv
from inferspan.core import rank
from inferspan.core.steps import DECODE, PREFILL
from inferspan.forks import import_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.context import Context

    from inferspan.core.probe import ChildSpan, Probe, Report, Values
    from inferspan.core.record import Inference, Phase, StandalonePhase
    from inferspan.core.steps import Generation
    from inferspan.emit.writer import TracerWriter

    PartAttributes = Mapping[str, Mapping[str, Any]]

_NS = 1e-9


def emit_inference(writer: TracerWriter, inference: Inference, report: Report, probes: Iterable[Probe]) -> None:
    """Children, then the root's own facts and its end. Only the end where the trace is not recorded."""
    root = inference.root
    if root is None or inference.end_ns is None:
        return
    end_ns = inference.end_ns + inference.unix_offset_ns
    attributes: dict[str, Any] = {}
    events: list[Event] = []
    failure = inference.failure
    try:
        if root.is_recording():
            attributes = root_attributes(inference, report)
            events = list(_events(inference, report))
            _emit_children(writer, inference, report, probes)
    finally:  # whatever a span processor does with the children
        status = None if failure is None else Status(StatusCode.ERROR, failure.message)
        writer.end(root, attributes, events, status, end_ns)


def emit_standalone(writer: TracerWriter, standalone: StandalonePhase) -> None:
    """A phase that belongs to no inference."""
    phase = standalone.phase
    if standalone.model is not None:
        phase.set(semconv.REQUEST_MODEL, standalone.model)
    _emit_phase(writer, phase, standalone.context, standalone.unix_offset_ns, {phase.name: rank.attributes()}, ())


def time_to_first_token_ns(inference: Inference) -> int | None:
    """From the start of the inference to its first token."""
    generation = inference.generation
    first_ns = None if generation is None else generation.until(inference.end_ns or inference.start_ns)[0]
    return None if first_ns is None else first_ns - inference.start_ns


def time_per_output_token_s(inference: Inference) -> float | None:
    """Mean over the tokens after the first, of the inference's first generation."""
    generation, counts = inference.generation, inference.counts
    if generation is None:
        return None
    if (generation.is_assisted or generation.tokens_later) and (counts.rows_max or 1) == 1:
        # a step yields several tokens
        later = generation.tokens_later or (counts.output_tokens or 0) - 1
        if later < 1 or generation.first_token_ns is None or generation.last_token_ns is None:
            return None
        return (generation.last_token_ns - generation.first_token_ns) / later * _NS
    step = generation.time_per_step_ns()
    return None if step is None else step * _NS


# -- children ----------------------------------------------------------------------------------------------------------


def _emit_children(writer: TracerWriter, inference: Inference, report: Report, probes: Iterable[Probe]) -> None:
    offset_ns = inference.unix_offset_ns
    for index, phase in enumerate(inference.phases.kept):
        parts = report.parts[index] if report.parts else {}
        attributes = {part: _described(inference, part, values, probes) for part, values in parts.items()}
        below = [span for span in report.spans if span.phase is phase]
        _emit_phase(writer, phase, inference.context, offset_ns, attributes, below)
    for span in report.spans:
        if span.phase is None:
            _emit_child(writer, span, offset_ns, inference.context)


def _described(inference: Inference, part: str, values: Values, probes: Iterable[Probe]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for probe in probes:
        try:
            found.update(probe.describe(inference, part, values))
        except Exception:  # noqa: BLE001 - it loses only itself
            faults.note("probes.describe")
    return _present(found)


def _emit_phase(
    writer: TracerWriter,
    phase: Phase,
    context: Context | None,
    offset_ns: int,
    parts: PartAttributes,
    children: Iterable[ChildSpan],
) -> None:
    attributes = {**(phase.attributes or {}), **parts.get(phase.name, {})}
    if phase.calls > 1:
        attributes[semconv.PHASE_CALLS] = phase.calls
        attributes[semconv.PHASE_TIME] = phase.busy_ns * _NS
    below: list[Callable[[Context], None]] = []
    if phase.generation is not None:
        below.append(partial(_emit_generation, writer, phase.generation, phase, offset_ns, parts))
    below += [partial(_emit_child, writer, child, offset_ns) for child in children]
    start_ns, end_ns = phase.start_ns + offset_ns, phase.end_ns + offset_ns
    writer.write(phase.name, context, attributes, start_ns, end_ns, phase.error, below)


def _emit_generation(
    writer: TracerWriter,
    generation: Generation,
    phase: Phase,
    offset_ns: int,
    parts: PartAttributes,
    context: Context,
) -> None:
    first_ns, end_ns = generation.until(phase.end_ns)
    if first_ns is None and not phase.is_cut_off:
        return  # a decoding loop of the program's own that never asks whether to go on: its steps are not known
    prefill = dict(parts.get(PREFILL, {}))
    start_ns = generation.start_ns + offset_ns
    if first_ns is None:
        writer.write(PREFILL, context, prefill, start_ns, end_ns + offset_ns, phase.error)
        return
    writer.write(PREFILL, context, prefill, start_ns, first_ns + offset_ns)
    if generation.steps > 1 or phase.is_cut_off:
        decode = {semconv.DECODE_STEPS: generation.steps - 1, **parts.get(DECODE, {})}
        writer.write(DECODE, context, decode, first_ns + offset_ns, end_ns + offset_ns, phase.error)


def _emit_child(writer: TracerWriter, span: ChildSpan, offset_ns: int, context: Context | None) -> None:
    start_ns, end_ns = span.start_ns + offset_ns, span.end_ns + offset_ns
    writer.write(span.name, context, dict(span.attributes), start_ns, end_ns, span.error)


# -- the root ----------------------------------------------------------------------------------------------------------


def root_attributes(inference: Inference, report: Report) -> dict[str, Any]:
    """All attributes of the root span, by the precedence that the module's docstring gives."""
    settings = inference.plan.settings
    found: dict[str, Any] = {**report.attributes, **rank.attributes(), **_counted(inference), **_timed(inference)}
    if settings.content_on_spans and inference.content is not None:
        found.update(import_module("inferspan.emit.content").content_attributes(inference, settings))
    found.update(inference.attributes)
    found.update({name: value for name, value in _settled(inference).items() if name not in inference.attributes})
    if inference.failure is not None:
        found[semconv.ERROR_TYPE] = inference.failure.type
    return _present(found)


def _counted(inference: Inference) -> dict[str, Any]:
    counts = inference.counts
    return {
        semconv.COLD: inference.cold,
        semconv.BATCH_SIZE: counts.rows_max or None,
        semconv.SEQUENCE_LENGTH: counts.length_max or None,
        semconv.ITEMS: counts.items if counts.items > 1 else None,
        semconv.INPUT_TOKENS: counts.input_tokens,
        semconv.INPUT_TOKENS_EXACT: None if counts.input_exact else False,
        semconv.OUTPUT_TOKENS: counts.output_tokens,
        semconv.OUTPUT_TOKENS_EXACT: None if counts.output_exact else False,
        semconv.PADDING_RATIO: counts.padded / counts.positions if counts.padded else None,
        semconv.STREAM: inference.is_stream or None,
        semconv.ASSISTED: True if inference.generation is not None and inference.generation.is_assisted else None,
        semconv.ABANDONED: inference.is_abandoned or None,
        semconv.CANCELLED: inference.is_cancelled or None,
        semconv.CHILDREN_DROPPED: inference.phases.dropped or None,
    }


def _settled(inference: Inference) -> dict[str, Any]:
    """What is known last, and so stays where a limit on attributes drops the first."""
    return {
        semconv.DEVICE: inference.device,
        semconv.FINISH_REASONS: inference.counts.finish_reasons or None,
    }


def _timed(inference: Inference) -> dict[str, Any]:
    lazy, info = inference.lazy, inference.info
    first_ns = time_to_first_token_ns(inference)
    first_s = None if first_ns is None else first_ns * _NS
    is_loaded_now = inference.cold and info is not None and info.load_ns is not None
    return {
        semconv.BUSY_TIME: None if lazy is None else lazy.busy_ns * _NS,
        semconv.TIME_PER_OUTPUT_TOKEN: time_per_output_token_s(inference),
        semconv.TIME_TO_FIRST_TOKEN: first_s,
        semconv.TIME_TO_FIRST_CHUNK: first_s if inference.is_stream else None,
        semconv.LOAD_TIME: info.load_ns * _NS if is_loaded_now and info and info.load_ns is not None else None,
    }


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _events(inference: Inference, report: Report) -> Iterator[Event]:
    offset_ns = inference.unix_offset_ns
    for event in report.events:
        yield Event(event.name, _present(dict(event.attributes)), event.at_ns + offset_ns)
    failure = inference.failure
    if failure is not None:
        exception: dict[str, Any] = {
            semconv.EXCEPTION_TYPE: failure.type,
            semconv.EXCEPTION_STACKTRACE: failure.stack or None,
            semconv.EXCEPTION_MESSAGE: failure.message,
        }
        at_ns = inference.start_ns if inference.end_ns is None else inference.end_ns
        yield Event(semconv.EXCEPTION_EVENT, _present(exception), at_ns + offset_ns)
