"""From a record to its spans: children with explicit times, then the root's attributes and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from inferspan import semconv
from inferspan.inference import distributed
from inferspan.inference.content import as_json, system_as_json
from inferspan.measure.figures import Figures, attributes_of, fragmentation, part_attributes
from inferspan.telemetry.layers import tell_layers

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from inferspan.config import Settings
    from inferspan.inference.record import Inference, Lone, Phase
    from inferspan.measure.generation import Generation

_NS = 1e-9
_RECOMPILES_MAX = 8


def start_root(tracer: Tracer, inference: Inference, context: Context) -> Span:
    """The live root span, with what a sampler may want to see."""
    if inference.model is not None:
        attributes = inference.model.attributes_for(inference.operation)
    else:
        attributes = {semconv.OPERATION_NAME: inference.operation}
    return tracer.start_span(
        inference.name,
        context,
        SpanKind.INTERNAL,
        attributes,
        start_time=inference.start_ns + inference.unix_offset_ns,
    )


def tell_inference(tracer: Tracer, inference: Inference, figures: Figures, settings: Settings) -> None:
    """Children, then the root's own facts and its end. Only the end where the trace is not recorded."""
    root = inference.root
    if root is None or inference.end_ns is None:
        return
    try:
        if root.is_recording():
            for place, phase in enumerate(inference.phases):
                parts = figures.phases[place] if figures.phases else {}
                told = {name: part_attributes(inference, name, part) for name, part in parts.items()}
                _tell_phase(tracer, phase, inference.context, inference.unix_offset_ns, told)
            if inference.layers is not None and not inference.layers.is_told:
                tell_layers(tracer, inference.layers, inference.context, inference.unix_offset_ns)
            root.set_attributes(_root_attributes(inference, figures, settings))
            _tell_events(root, inference, figures)
            _tell_failure(root, inference)
    finally:  # whatever a span processor does with the children
        root.end(inference.end_ns + inference.unix_offset_ns)


def tell_lone(tracer: Tracer, lone: Lone) -> None:
    """A phase that belongs to no inference."""
    if lone.model is not None:
        lone.phase.set(semconv.REQUEST_MODEL, lone.model)
    place = {lone.phase.name: dict(distributed.attributes())}
    _tell_phase(tracer, lone.phase, lone.context, lone.unix_offset_ns, place)


def time_to_first_token_ns(inference: Inference) -> int | None:
    """From the start of the inference to its first token."""
    generation = inference.generation
    if generation is None or generation.first_token_ns is None:
        return None
    return generation.first_token_ns - inference.start_ns


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
    tracer: Tracer, phase: Phase, context: Context | None, offset_ns: int, measured: dict[str, dict[str, Any]]
) -> None:
    attributes = {**(phase.attributes or {}), **measured.get(phase.name, {})}
    if phase.calls > 1:
        attributes[semconv.PHASE_CALLS] = phase.calls
        attributes[semconv.PHASE_TIME] = phase.busy_ns * _NS
    span = tracer.start_span(phase.name, context, SpanKind.INTERNAL, attributes, start_time=phase.start_ns + offset_ns)
    if phase.generation is not None:
        _tell_generation(tracer, phase.generation, phase, set_span_in_context(span, context), offset_ns, measured)
    if phase.layers is not None and phase.layers.phases == 1:
        tell_layers(tracer, phase.layers, set_span_in_context(span, context), offset_ns)
    _mark(span, phase.error)
    span.end(phase.end_ns + offset_ns)


def _tell_generation(
    tracer: Tracer,
    generation: Generation,
    phase: Phase,
    context: Context,
    offset_ns: int,
    measured: dict[str, dict[str, Any]],
) -> None:
    end_ns = generation.end_ns or phase.end_ns
    first_ns = generation.first_token_ns
    if first_ns is None and phase.error is None:
        return  # a decoding loop of the program's own that never asks whether to go on: nothing tells its steps
    prefill = tracer.start_span(
        semconv.PREFILL,
        context,
        SpanKind.INTERNAL,
        measured.get(semconv.PREFILL),
        start_time=generation.start_ns + offset_ns,
    )
    _mark(prefill, phase.error if first_ns is None else None)
    prefill.end((end_ns if first_ns is None else first_ns) + offset_ns)
    if first_ns is None or (generation.steps < 2 and phase.error is None):
        return
    decode = tracer.start_span(
        semconv.DECODE,
        context,
        SpanKind.INTERNAL,
        {semconv.DECODE_STEPS: generation.steps - 1, **measured.get(semconv.DECODE, {})},
        start_time=first_ns + offset_ns,
    )
    _mark(decode, phase.error)
    decode.end(end_ns + offset_ns)


def _mark(span: Span, error: str | None) -> None:
    if error is not None:
        span.set_attribute(semconv.ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR))


def _root_attributes(inference: Inference, figures: Figures, settings: Settings) -> dict[str, Any]:
    compiles = inference.compiles
    whole = inference.whole
    found: dict[str, Any] = {
        **attributes_of(inference, figures),
        **distributed.attributes(),
        semconv.GPU_PENDING: None if whole is None or whole.watch is None else whole.watch.is_pending,
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


def _tell_events(root: Span, inference: Inference, figures: Figures) -> None:
    at_ns = (inference.end_ns or inference.start_ns) + inference.unix_offset_ns
    for device, _, leak in figures.growths:
        if leak is not None:
            told: dict[str, Any] = {
                semconv.DEVICE: device,
                semconv.GROWTH: leak.bytes_per_inference,
                semconv.GROWN: leak.grown_bytes,
                semconv.WINDOW: leak.inferences,
            }
            root.add_event(semconv.LEAK_EVENT, told, at_ns)
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
        root.add_event(semconv.OUT_OF_MEMORY_EVENT, _present(attributes), at_ns)
    recompiled = [] if inference.compiles is None else [c for c in inference.compiles.kept if c.reason is not None]
    for compiled in recompiled[:_RECOMPILES_MAX]:
        compilation: dict[str, Any] = {
            semconv.COMPILE_FUNCTION: compiled.function,
            semconv.COMPILE_LOCATION: compiled.location,
            semconv.COMPILE_REASON: compiled.reason,
            semconv.COMPILE_TIME: compiled.seconds,
            semconv.ERROR_TYPE: compiled.error,
        }
        root.add_event(semconv.RECOMPILE_EVENT, _present(compilation), compiled.start_ns + inference.unix_offset_ns)


def _tell_failure(root: Span, inference: Inference) -> None:
    failure = inference.failure
    if failure is None or inference.end_ns is None:
        return
    root.set_attribute(semconv.ERROR_TYPE, failure.type)
    root.set_status(Status(StatusCode.ERROR, failure.message))
    attributes = {semconv.EXCEPTION_TYPE: failure.type}
    if failure.stack:
        attributes[semconv.EXCEPTION_STACKTRACE] = failure.stack
    if failure.message is not None:
        attributes[semconv.EXCEPTION_MESSAGE] = failure.message
    root.add_event(semconv.EXCEPTION_EVENT, attributes, inference.end_ns + inference.unix_offset_ns)
