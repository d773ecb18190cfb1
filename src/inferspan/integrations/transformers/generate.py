"""``generate()``: one inference where it is called directly, the heart of its ``forward`` where a pipeline calls it.

When the tokens came is read from ``_has_unfinished_sequences``, which every decoding mode from 4.57 to 5.23 asks
once before the first token and once after each, and which nothing overrides without calling it. Nothing is injected:
a logits processor costs 19 µs a step and changes assisted decoding, a stopping criterion launches kernels, a
streamer copies every token to the host. Where the method is missing there is no time to first token, and that is all.
What the loop runs with is read where transformers has put it together
(:mod:`inferspan.integrations.transformers.settings`).

Dozens of model classes bring a ``generate`` of their own, some in a mixin beside the model (Whisper); each is
patched when its class is made. Most of them end in the general one, on themselves or on a language model inside, once
or for each segment: what those calls return is what is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from threading import get_ident
from time import perf_counter_ns
from types import ModuleType
from typing import TYPE_CHECKING, Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Generation
from inferspan.forks import Later, import_module
from inferspan.integrations.arguments import by_name
from inferspan.integrations.patching import Patches, subclasses
from inferspan.integrations.torch.describe import is_replica
from inferspan.integrations.transformers import streamers
from inferspan.integrations.transformers.chats import capture

if TYPE_CHECKING:
    from inferspan.integrations import outputs
    from inferspan.integrations.transformers import inputs, settings
    from inferspan.integrations.transformers.settings import Loop
else:
    outputs = Later("inferspan.integrations.outputs")
    inputs, settings = Later(f"{__package__}.inputs"), Later(f"{__package__}.settings")

PIPELINES = "pipelines"
_FINISH_REASONS_MAX = 64
_VERDICTS = "_inferspan_verdicts"


def install_utils(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.GenerationMixin, "generate", _generate)
    patches.wrap(module.GenerationMixin, "_get_stopping_criteria", partial(_get_stopping_criteria, patches=patches))
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
        if active is not None and active.is_suppressed:
            return original(self, *args, **kwargs)
        given = by_name(original, args, kwargs)
        run: Callable[[], Any] = partial(original, self, *args, **kwargs)
        if is_general:
            run = partial(_run_loop, run, self, given)
        if active is None:
            origin = streamers.origin_of(given.get("streamer"))
            around = None if origin is None else origin.inference()
            if around is not None:  # it runs in a thread of an inference() block, which only its streamer knows
                return streamers.run_in(around, _generate_in, (around, run, self, given), {})
            return _generate_alone(origin, run, self, given)
        if active.phase is None and active.inference is not None:
            return _generate_in(active.inference, run, self, given)
        return _generate_nested(active, run, self, given)

    return generate


def _run_loop(run: Callable[[], Any], model: Any, given: Mapping[str, Any]) -> Any:
    """The general ``generate``, which has the decoding loop in it."""
    phase = _generating_phase()
    generation = None if phase is None else phase.generation
    # one that it calls itself (for a decoding mode that is loaded from the Hub) returns the same
    if generation is None or generation.loop is not None or (loop := _note_loop(generation, model, given)) is None:
        return run()
    try:
        result = run()
    finally:
        generation.loop = None
    _note_output(generation, loop, result)
    return result


@faults.guarded("generation.loop")
def _note_loop(generation: Generation, model: Any, given: Mapping[str, Any]) -> Loop | None:
    loop = generation.loop = settings.Loop(model, given, generation.steps)
    return loop


def _generating_phase() -> Phase | None:
    """The phase that generates here; ``None`` inside a draft model's ``generate()``."""
    active = current.here()
    phase = None if active is None else active.phase
    return None if phase is None or phase.generation is None else phase


def _generate_alone(
    origin: streamers.Origin | None, run: Callable[[], Any], model: Any, given: Mapping[str, Any]
) -> Any:
    inference = _open(model, origin)
    if inference is None:
        return run()
    return current.run(inference, _generate_in, (inference, run, model, given), {})


def _generate_in(inference: Inference, run: Callable[[], Any], model: Any, given: Mapping[str, Any]) -> Any:
    """A ``generate`` that is a phase of ``inference``."""
    phase = inference.begin(semconv.FORWARD)
    _note_batch(phase, model, given)
    result = current.run_phase(phase, _generate_timed, (phase, run, model, given), {})
    if inference.plan.settings.capture_content != "NO_CONTENT":
        capture(inference, "note_generated", model, given, result)
    return result


def _generate_nested(active: current.Active, run: Callable[[], Any], model: Any, given: Mapping[str, Any]) -> Any:
    """A ``generate`` inside a phase: the pipeline's, the program's own, a wrapper's inner call, a draft model's."""
    phase = active.phase
    assert phase is not None
    running = phase.generation
    if running is None and phase.inference is not None:
        if phase.name != semconv.FORWARD:  # whose input nobody has looked at
            _note_batch(phase, model, given)
        return _generate_timed(phase, run, model, given)
    if running is not None and not running.in_loop:
        return run() if running.end_ns is None else _generate_again(phase, running, run)
    if running is not None:
        running.has_nested = True
    return current.run_suppressed(run, (), {})


def _generate_again(phase: Phase, generation: Generation, run: Callable[[], Any]) -> Any:
    """A further ``generate`` in the same phase, after the first has returned."""
    try:
        result = run()
    finally:
        generation.end_ns = perf_counter_ns()
    if phase.inference is not None:
        _count_output(phase.inference, generation)
    return result


def _generate_timed(phase: Phase, run: Callable[[], Any], model: Any, given: Mapping[str, Any]) -> Any:
    inference = phase.inference
    assert inference is not None
    generation = phase.generation = Generation()
    _begin_generation(phase, inference, generation, model, given)
    try:
        result = run()
    finally:
        generation.end_ns = perf_counter_ns()
    _count_output(inference, generation)
    return result


@faults.guarded("generation.settings")
def _begin_generation(
    phase: Phase, inference: Inference, generation: Generation, model: Any, given: Mapping[str, Any]
) -> None:
    for probe, mark in phase.marks or ():
        probe.generation_begins(phase, mark)
    if inference.generation is None:
        inference.generation = generation
    if given.get("streamer") is not None:
        inference.is_stream = True
    config, pipeline = given.get("generation_config"), inference.plan.owner()
    bases: tuple[Any, ...] = ()
    if config is not None and pipeline is not model and config is getattr(pipeline, "generation_config", None):
        # that which a pipeline of 4.57 keeps
        bases = (getattr(model, "generation_config", None), getattr(pipeline, "_default_generation_config", None))
    inference.attributes.update(settings.recorded_settings(given, bases))
    if settings.is_assisted(model, given):
        generation.is_assisted = True
        inference.set(semconv.ASSISTED, True)
    stops = given["stop_strings"] if "stop_strings" in given else settings.set_in(config, "stop_strings", bases)
    if isinstance(stops, (str, list, tuple)) and inference.plan.settings.content_on_spans:
        inference.set(semconv.STOP_SEQUENCES, [stops] if isinstance(stops, str) else list(stops))
    cached = inputs.cached_of(model, given) if given.get("past_key_values") is not None else None
    if cached is not None:
        inference.set(semconv.CACHE_READ_TOKENS, inference.attributes.get(semconv.CACHE_READ_TOKENS, 0) + cached)


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
def _note_batch(phase: Phase, model: Any, given: Mapping[str, Any]) -> None:
    inference = phase.inference
    if inference is None:
        return
    began_ns = perf_counter_ns()
    batch = inputs.batch_of(model, given)
    if batch is not None:
        inference.add_batch(phase, batch)
        inference.device = batch.device or inference.device
    current.begin_forward(phase, model, None if batch is None else batch.device, began_ns)


def _get_stopping_criteria(original: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
    def get_stopping_criteria(self: Any, *args: Any, **kwargs: Any) -> Any:
        criteria = original(self, *args, **kwargs)
        phase = _generating_phase()
        if phase is not None:
            _begin_loop(phase, self, by_name(original, args, kwargs).get("generation_config"), criteria, patches)
        return criteria

    return get_stopping_criteria


@faults.guarded("generation.loop")
def _begin_loop(phase: Phase, model: Any, config: Any, criteria: Any, patches: Patches) -> None:
    """The decoding loop is about to begin, with these settings."""
    generation = phase.generation
    loop = None if generation is None else generation.loop
    if generation is None or loop is None or loop.model is not model:
        return
    loop.begin(config, criteria)
    if loop.verdicts is not None:  # most programs never need it
        vars(criteria)[_VERDICTS] = loop.verdicts
        patches.wrap(type(criteria), "__call__", _judge)
    if phase.marks:
        running = inputs.loop_of(loop, generation.is_assisted)
        for probe, mark in phase.marks:
            probe.decoding_begins(phase, mark, running)


def _judge(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = original(self, *args, **kwargs)
        verdicts = vars(self).get(_VERDICTS)
        if verdicts is not None:
            verdicts.note(done)
        return done

    return __call__


@faults.guarded("generation.output")
def _note_output(generation: Generation, loop: Loop, result: Any) -> None:
    """What the general ``generate`` returned, where it is not a draft model's."""
    sequences = getattr(result, "sequences", result)
    prompt = inputs.prompt_length(loop, sequences, generation.steps - loop.steps)
    read = partial(outputs.read_output, prompt_length=prompt, ends=loop.ends(prompt))
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
