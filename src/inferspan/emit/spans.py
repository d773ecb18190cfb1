"""From a record to its spans: children with explicit times, then the root's attributes and its end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Status, StatusCode

from inferspan import semconv
from inferspan.core import rank
from inferspan.core.messages import as_json, system_as_json
from inferspan.emit.layers import tell_layers
from inferspan.probes.figures import Figures, attributes_of, fragmentation, part_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from inferspan.config import Settings
    from inferspan.core.record import Inference, Phase, StandalonePhase
    from inferspan.core.steps import Generation
    from inferspan.emit.writer import TracerWriter

_NS = 1e-9
_RECOMPILES_MAX = 8


def start_root(writer: TracerWriter, inference: Inference, context: Context) -> Span:
    """The live root span, with what a sampler may want to see."""
    if inference.model is None:
        asked: Mapping[str, str] = {semconv.OPERATION_NAME: inference.operation}
    else:
        asked = inference.model.attributes_for(inference.operation)
    return writer.start(inference.name, context, asked, inference.start_ns + inference.unix_offset_ns)


def tell_inference(writer: TracerWriter, inference: Inference, figures: Figures, settings: Settings) -> None:
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
            attributes = _root_attributes(inference, figures, settings)
            events = list(_events(inference, figures))
            for place, phase in enumerate(inference.phases):
                parts = figures.phases[place] if figures.phases else {}
                told = {name: part_attributes(inference, name, part) for name, part in parts.items()}
                _tell_phase(writer, phase, inference.context, inference.unix_offset_ns, told)
            if inference.layers is not None and not inference.layers.is_told:
                tell_layers(writer, inference.layers, inference.unix_offset_ns, inference.context)
    finally:  # whatever a span processor does with the children
        writer.end(
            root, attributes, events, None if failure is None else Status(StatusCode.ERROR, failure.message), end_ns
        )


def emit_standalone(writer: TracerWriter, standalone: StandalonePhase) -> None:
    """A phase that belongs to no inference."""
    if standalone.model is not None:
        standalone.phase.set(semconv.REQUEST_MODEL, standalone.model)
    place = {standalone.phase.name: dict(rank.attributes())}
    _tell_phase(writer, standalone.phase, standalone.context, standalone.unix_offset_ns, place)


def time_to_first_token_ns(inference: Inference) -> int | None:
    """From the start of the inference to its first token."""
    generation = inference.generation
    first_ns = None if generation is None else generation.until(inference.end_ns or inference.start_ns)[0]
    return None if first_ns is None else first_ns - inference.start_ns


def time_per_output_token_s(inference: Inference) -> float | None:
    """Mean over the tokens after the first, of the inference's first generation."""
    generation = inference.generation
    if generation is None:
        return None
    if inference.attributes.get(semconv.ASSISTED) and (inference.rows_max or 1) == 1:
        # a step yields several tokens
        tokens = inference.output_tokens or 0
        if tokens < 2 or generation.first_token_ns is None or generation.last_token_ns is None:
            return None
        return (generation.last_token_ns - generation.first_token_ns) / (tokens - 1) * _NS
    step = generation.time_per_step_ns()
    return None if step is None else step * _NS


def _tell_phase(
    writer: TracerWriter, phase: Phase, context: Context | None, offset_ns: int, measured: dict[str, dict[str, Any]]
) -> None:
    attributes = {**(phase.attributes or {}), **measured.get(phase.name, {})}
    if phase.calls > 1:
        attributes[semconv.PHASE_CALLS] = phase.calls
        attributes[semconv.PHASE_TIME] = phase.busy_ns * _NS
    below: list[Callable[[Context], None]] = []
    if phase.generation is not None:
        below.append(partial(_tell_generation, writer, phase.generation, phase, offset_ns, measured))
    if phase.layers is not None and phase.layers.phases == 1:
        below.append(partial(tell_layers, writer, phase.layers, offset_ns))
    start_ns, end_ns = phase.start_ns + offset_ns, phase.end_ns + offset_ns
    writer.write(phase.name, context, attributes, start_ns, end_ns, phase.error, below)


def _tell_generation(
    writer: TracerWriter,
    generation: Generation,
    phase: Phase,
    offset_ns: int,
    measured: dict[str, dict[str, Any]],
    context: Context,
) -> None:
    first_ns, end_ns = generation.until(phase.end_ns)
    if first_ns is None and not phase.is_cut_off:
        return  # a decoding loop of the program's own that never asks whether to go on: nothing tells its steps
    prefill = measured.get(semconv.PREFILL, {})
    start_ns = generation.start_ns + offset_ns
    if first_ns is None:
        writer.write(semconv.PREFILL, context, prefill, start_ns, end_ns + offset_ns, phase.error)
        return
    writer.write(semconv.PREFILL, context, prefill, start_ns, first_ns + offset_ns)
    if generation.steps > 1 or phase.is_cut_off:
        decode = {semconv.DECODE_STEPS: generation.steps - 1, **measured.get(semconv.DECODE, {})}
        writer.write(semconv.DECODE, context, decode, first_ns + offset_ns, end_ns + offset_ns, phase.error)


def _root_attributes(inference: Inference, figures: Figures, settings: Settings) -> dict[str, Any]:
    compiles = inference.compiles
    whole = inference.whole
    found: dict[str, Any] = {
        **attributes_of(inference, figures),
        **rank.attributes(),
        semconv.GPU_PENDING: None if whole is None or whole.timer is None else whole.timer.is_pending,
        semconv.COMPILE_COUNT: None if compiles is None else compiles.count,
        semconv.COMPILE_TIME: None if compiles is None else compiles.seconds,
        semconv.COLD: inference.cold,
        semconv.BATCH_SIZE: inference.rows_max or None,
        semconv.SEQUENCE_LENGTH: inference.length_max or None,
        semconv.ITEMS: inference.items if inference.items > 1 else None,
        semconv.INPUT_TOKENS: inference.input_tokens,
        semconv.INPUT_TOKENS_EXACT: None if inference.input_exact else False,
        semconv.OUTPUT_TOKENS: inference.output_tokens,
        semconv.OUTPUT_TOKENS_EXACT: None if inference.output_exact else False,
        semconv.PADDING_RATIO: inference.padded / inference.positions if inference.padded else None,
        semconv.BUSY_TIME: None if inference.busy_ns is None else inference.busy_ns * _NS,
        semconv.ABANDONED: inference.abandoned or None,
        semconv.CANCELLED: inference.cancelled or None,
        semconv.CHILDREN_DROPPED: inference.phases_dropped or None,
        semconv.CPU_TIME: None if inference.cpu_time_ns is None else inference.cpu_time_ns * _NS,
        semconv.MEMORY_USAGE_BEFORE: inference.memory_start_bytes,
        semconv.MEMORY_USAGE: inference.memory_bytes,
        semconv.TIME_PER_OUTPUT_TOKEN: time_per_output_token_s(inference),
    }
    first_ns = time_to_first_token_ns(inference)
    if first_ns is not None:
        found[semconv.TIME_TO_FIRST_TOKEN] = first_ns * _NS
        if inference.stream:
            found[semconv.TIME_TO_FIRST_CHUNK] = first_ns * _NS
    if inference.cold and inference.model is not None and inference.model.load_ns is not None:
        found[semconv.LOAD_TIME] = inference.model.load_ns * _NS
    if settings.content_on_spans:
        found.update(content_attributes(inference, settings))
    found.update(inference.attributes)
    if inference.failure is not None:
        found[semconv.ERROR_TYPE] = inference.failure.type
    return _present(found)


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def content_attributes(inference: Inference, settings: Settings) -> dict[str, str]:
    """Prompts and completions, in the conventions' JSON form."""
    content = inference.content
    if content is None:
        return {}
    length = settings.content_length
    found: dict[str, str] = {}
    messages = [message for message in content.input if message[0] != "system"]
    if messages:
        found[semconv.INPUT_MESSAGES] = as_json(messages, length)
    if content.output:
        found[semconv.OUTPUT_MESSAGES] = as_json(content.output, length)
    system = system_as_json(content.input, length)
    if system is not None:
        found[semconv.SYSTEM_INSTRUCTIONS] = system
    return found


def _events(inference: Inference, figures: Figures) -> Iterator[Event]:
    at_ns = (inference.end_ns or inference.start_ns) + inference.unix_offset_ns
    for device, _, leak in figures.growths:
        if leak is not None:
            told: dict[str, Any] = {
                semconv.DEVICE: device,
                semconv.GROWTH: leak.bytes_per_inference,
                semconv.GROWN: leak.grown_bytes,
                semconv.WINDOW: leak.inferences,
            }
            yield Event(semconv.LEAK_EVENT, told, at_ns)
    failed = inference.out_of_memory
    if failed is not None:
        memory = inference.memory_after
        attributes = {
            semconv.OOM_REQUESTED: failed.requested,
            semconv.OOM_FREE: failed.free,
            semconv.MEMORY_AFTER: None if memory is None else memory.allocated,
            semconv.MEMORY_HELD: None if memory is None else memory.reserved,
            semconv.MEMORY_FRAGMENTATION: None if memory is None else fragmentation(memory),
        }
        yield Event(semconv.OUT_OF_MEMORY_EVENT, _present(attributes), at_ns)
    recompiled = [] if inference.compiles is None else [c for c in inference.compiles.kept if c.reason is not None]
    for compiled in recompiled[:_RECOMPILES_MAX]:
        compilation: dict[str, Any] = {
            semconv.COMPILE_FUNCTION: compiled.function,
            semconv.COMPILE_LOCATION: compiled.location,
            semconv.COMPILE_REASON: compiled.reason,
            semconv.COMPILE_TIME: compiled.seconds,
            semconv.ERROR_TYPE: compiled.error,
        }
        yield Event(semconv.RECOMPILE_EVENT, _present(compilation), compiled.start_ns + inference.unix_offset_ns)
    failure = inference.failure
    if failure is not None:
        exception: dict[str, Any] = {
            semconv.EXCEPTION_TYPE: failure.type,
            semconv.EXCEPTION_STACKTRACE: failure.stack or None,
            semconv.EXCEPTION_MESSAGE: failure.message,
        }
        yield Event(semconv.EXCEPTION_EVENT, _present(exception), at_ns)
