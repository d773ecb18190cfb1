"""``generate()``: one inference where it is called directly, the heart of its ``forward`` where a pipeline calls it.

When the tokens came is read from ``_has_unfinished_sequences``, which every decoding mode from 4.57 to 5.23 asks
once before the first token and once after each, and which nothing overrides without calling it. Nothing is injected:
a logits processor costs 19 µs a step and changes assisted decoding, a stopping criterion launches kernels, a
streamer copies every token to the host. Where the method is missing there is no time to first token, and that is all.

Dozens of model classes bring a ``generate`` of their own, some in a mixin beside the model (Whisper); each is
patched when its class is made. Most of them end in the general one, on themselves or on a language model inside, once
or for each segment: what those calls return is what is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from threading import get_ident
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Generation
from inferspan.forks import import_module
from inferspan.integrations.patching import Patches, subclasses
from inferspan.integrations.tensors import read_output
from inferspan.integrations.torch.describe import is_replica
from inferspan.integrations.transformers import inputs, streamers
from inferspan.integrations.transformers.chats import capture

PIPELINES = "pipelines"
_FINISH_REASONS_MAX = 64


def install_utils(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.GenerationMixin, "generate", _generate)
    patches.wrap(module.GenerationMixin, "_has_unfinished_sequences", _has_unfinished_sequences)


def install_models(module: ModuleType, patches: Patches) -> None:
    base = module.PreTrainedModel

    def patch(cls: type) -> None:
        for owner in cls.__mro__:
            patches.wrap(owner, "generate", _generate)
            patches.wrap(owner, "generate_with_fallback", _with_fallback)

    def init_subclass(original: Callable[..., None]) -> Callable[..., None]:
        def __init_subclass__(cls: type, **kwargs: Any) -> None:
            original(cls, **kwargs)
            if current.settings() is not None:
                patch(cls)

        return __init_subclass__

    patches.wrap_classmethod(base, "__init_subclass__", init_subclass)
    for cls in subclasses(base):
        patch(cls)


def _with_fallback(original: Callable[..., Any]) -> Callable[..., Any]:
    """Whisper's alone, so what it takes is loaded with Whisper."""
    wrapped: Callable[..., Any] = import_module(f"{__package__}.fallback").with_fallback(original)
    return wrapped


# -- generate ----------------------------------------------------------------------------------------------------


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    is_general = getattr(original, "__qualname__", "") == "GenerationMixin.generate"

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.settings() is None or _is_compiling():
            return original(self, *args, **kwargs)
        active = current.here()
        if active is None:
            origin = streamers.origin_of(kwargs["streamer"]) if "streamer" in kwargs else None
            around = None if origin is None else origin.inference()
            if around is not None:  # it runs in a thread of an inference() block, which only its streamer knows
                return streamers.run_in(around, _generate_in, (around, counting, self, args, kwargs), {})
            return _generate_alone(origin, counting, self, args, kwargs)
        if active.is_suppressed:
            return original(self, *args, **kwargs)
        if active.phase is None and active.inference is not None:
            return _generate_in(active.inference, counting, self, args, kwargs)
        return _generate_nested(active, counting, self, args, kwargs)

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_general:
            return original(self, *args, **kwargs)
        phase = _generating_phase()
        if phase is not None:
            _note_loop(phase, self, args, kwargs)
        result = original(self, *args, **kwargs)
        if phase is not None:
            _note_output(phase, self, args, kwargs, result)
        return result

    return generate


def _generating_phase() -> Phase | None:
    """The phase that generates here; ``None`` inside a draft model's ``generate()``."""
    active = current.here()
    phase = None if active is None else active.phase
    return None if phase is None or phase.generation is None else phase


def _generate_alone(
    origin: streamers.Origin | None,
    original: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    inference = _open(model, origin)
    if inference is None:
        return original(model, *args, **kwargs)
    return current.run(inference, _generate_in, (inference, original, model, args, kwargs), {})


def _generate_in(
    inference: Inference,
    original: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A ``generate`` that is a phase of ``inference``."""
    phase = inference.begin(semconv.FORWARD)
    _note_batch(phase, model, args, kwargs)
    result = current.run_phase(phase, _generate_timed, (phase, original, model, args, kwargs), {})
    if inference.plan.settings.capture_content != "NO_CONTENT":
        capture(inference, "note_generated", model, args, kwargs, result)
    return result


def _generate_nested(
    active: current.Active, original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A ``generate`` inside a phase: the pipeline's, the program's own, a wrapper's inner call, a draft model's."""
    phase = active.phase
    assert phase is not None
    running = phase.generation
    if running is None and phase.inference is not None:
        if phase.name != semconv.FORWARD:  # whose input nobody has looked at
            _note_batch(phase, model, args, kwargs)
        return _generate_timed(phase, original, model, args, kwargs)
    if running is not None and not running.in_loop:
        if running.end_ns is None:
            return original(model, *args, **kwargs)
        return _generate_again(phase, running, original, model, args, kwargs)
    if running is not None:
        running.has_nested = True
    return current.run_suppressed(original, (model, *args), kwargs)


def _generate_again(
    phase: Phase,
    generation: Generation,
    original: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A further ``generate`` in the same phase, after the first has returned."""
    try:
        result = original(model, *args, **kwargs)
    finally:
        generation.end_ns = perf_counter_ns()
    if phase.inference is not None:
        _count_output(phase.inference, generation)
    return result


def _generate_timed(
    phase: Phase, original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    inference = phase.inference
    assert inference is not None
    generation = phase.generation = Generation()
    _begin_generation(phase, inference, generation, model, kwargs)
    try:
        result = original(model, *args, **kwargs)
    finally:
        generation.end_ns = perf_counter_ns()
    _count_output(inference, generation)
    return result


@faults.guarded("generation.settings")
def _begin_generation(
    phase: Phase, inference: Inference, generation: Generation, model: Any, kwargs: dict[str, Any]
) -> None:
    for probe, mark in phase.marks or ():
        probe.generation_begins(phase, mark)
    if inference.generation is None:
        inference.generation = generation
    # a pipeline always passes a configuration, mostly the model's own
    config = None if inference.plan.source == PIPELINES else kwargs.get("generation_config")
    inference.attributes.update(inputs.recorded_settings(config, kwargs))
    if inputs.is_assisted(model, kwargs):
        generation.is_assisted = True
        inference.set(semconv.ASSISTED, True)
    if kwargs.get("streamer") is not None:
        inference.is_stream = True
    stops = kwargs.get("stop_strings")
    if stops is not None and inference.plan.settings.content_on_spans:
        inference.set(semconv.STOP_SEQUENCES, [stops] if isinstance(stops, str) else list(stops))


def _make_plan(model: Any, _: str, __: Any) -> Plan:
    return current.make_plan(semconv.TEXT_COMPLETION, model=model)


@faults.guarded("generation.open")
def _open(model: Any, origin: streamers.Origin | None) -> Inference | None:
    if is_replica(model):
        return None
    plan = current.plan(model, "generate", _make_plan, model)
    return current.open_inference(plan, model=model, parent=None if origin is None else origin.context)


# -- what goes in and comes out ------------------------------------------------------------------------------------


@faults.guarded("generation.batch")
def _note_batch(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inference = phase.inference
    if inference is None:
        return
    began_ns = perf_counter_ns()
    batch = inputs.batch_of(model, args, kwargs)
    if batch is not None:
        inference.add_batch(phase, batch)
        inference.device = batch.device or inference.device
    current.begin_forward(phase, model, None if batch is None else batch.device, began_ns)


@faults.guarded("generation.work")
def _note_loop(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    marks, generation = phase.marks, phase.generation
    if marks and generation is not None:
        loop = inputs.loop_of(model, args, kwargs, generation.is_assisted)
        for probe, mark in marks:
            probe.decoding_begins(phase, mark, loop)


@faults.guarded("generation.output")
def _note_output(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """What the general ``generate`` returned, where it is not a draft model's."""
    generation = phase.generation
    if generation is None:
        return
    sequences = getattr(result, "sequences", result)
    end_ids, pad_id = inputs.special_ids(model, kwargs)
    stops_otherwise = kwargs.get("stop_strings") is not None or kwargs.get("stopping_criteria") is not None
    prompt = inputs.prompt_length(model, args, kwargs, sequences)
    read = partial(
        read_output,
        prompt_length=prompt,
        end_ids=end_ids,
        limit=inputs.limit(model, kwargs, prompt),
        pad_id=pad_id if stops_otherwise else None,
    )
    output = read(sequences)
    if output is not None:
        generation.outputs.append(output)
        generation.read_later = None if output.exact else read


@faults.guarded("generation.count")
def _count_output(inference: Inference, generation: Generation) -> None:
    is_pipeline = inference.plan.source == PIPELINES
    if generation.read_later is not None and len(generation.outputs) == 1 and is_pipeline:
        return  # the pipeline brings the ids to the host anyway, and counts then
    count_output(inference, generation)


def count_output(inference: Inference, generation: Generation) -> None:
    """Add to the inference what its generation has returned since the last time."""
    outputs, generation.outputs = generation.outputs, []
    counts = inference.counts
    for output in outputs:
        counts.add_output(output.tokens, output.exact)
    if len(outputs) == 1:  # of several segments, nobody knows here which make one sequence
        counts.finish_reasons = (*counts.finish_reasons, *outputs[0].finish_reasons)[:_FINISH_REASONS_MAX]
    elif not outputs and generation.steps:
        # A loop of the class's own may return anything: what can be trusted are its steps, exact for one row.
        rows = counts.rows_max or 1
        counts.add_output(generation.steps * rows, rows == 1)


# -- steps, streamers --------------------------------------------------------------------------------------------


def _has_unfinished_sequences(original: Callable[..., Any]) -> Callable[..., Any]:
    innermost = current.innermost

    def has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
        unfinished = original(self, *args, **kwargs)
        active = innermost()
        phase = None if active is None else active.phase
        # not one that another thread has inherited
        if active is not None and phase is not None and phase.generation is not None and active.ident == get_ident():
            phase.generation.tick(bool(unfinished))
        return unfinished

    return has_unfinished_sequences


def _is_compiling() -> bool:
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and bool(compiler.is_compiling())
