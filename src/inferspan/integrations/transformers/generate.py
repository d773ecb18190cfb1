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
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.batch import are_ids, begins_with, read_batch, read_output
from inferspan.core.model import id_set
from inferspan.core.patching import Patches, subclasses
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Decoded, Generation
from inferspan.probes.flops import walk

_PASSED = {
    "max_new_tokens": (semconv.MAX_TOKENS, int),
    "temperature": (semconv.TEMPERATURE, float),
    "top_p": (semconv.TOP_P, float),
    "top_k": (semconv.TOP_K, int),
    "min_p": (semconv.MIN_P, float),
    "do_sample": (semconv.DO_SAMPLE, bool),
    "num_beams": (semconv.NUM_BEAMS, int),
    "repetition_penalty": (semconv.REPETITION_PENALTY, float),
    "cache_implementation": (semconv.CACHE_IMPLEMENTATION, str),
}
_TAKEN: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool, int), str: (str,)}


def install_utils(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.GenerationMixin, "generate", _generate)
    patches.wrap(module.GenerationMixin, "_has_unfinished_sequences", _has_unfinished_sequences)


def install_models(module: ModuleType, patches: Patches) -> None:
    base = module.PreTrainedModel

    def patch(cls: type) -> None:
        for owner in cls.__mro__:
            patches.wrap(owner, "generate", _generate)

    def init_subclass(original: Callable[..., None]) -> Callable[..., None]:
        def __init_subclass__(cls: type, **kwargs: Any) -> None:
            original(cls, **kwargs)
            if current.settings() is not None:
                patch(cls)

        return __init_subclass__

    patches.wrap_classmethod(base, "__init_subclass__", init_subclass)
    for cls in subclasses(base):
        patch(cls)


def install_streamers(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.TextStreamer, "__init__", _streamer_init)


# -- generate ----------------------------------------------------------------------------------------------------


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    is_general = getattr(original, "__qualname__", "") == "GenerationMixin.generate"

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = current.ACTIVE.get()
        if current.settings() is None or active is current.SUPPRESSED or _is_compiling():
            return original(self, *args, **kwargs)
        if active is None:
            return _generate_alone(counting, self, args, kwargs)
        if not active.is_phase and active.inference is not None:
            return _generate_in(active.inference, counting, self, args, kwargs)
        return _generate_nested(active, counting, self, args, kwargs)

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_general:
            return original(self, *args, **kwargs)
        _record_shapes(self, args, kwargs)
        result = original(self, *args, **kwargs)
        _note_output(self, args, kwargs, result)
        return result

    return generate


def _generate_alone(original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    inference = _open(model, kwargs.get("streamer"))
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
    return current.run_phase(phase, _generate_timed, (phase, original, model, args, kwargs), {})


def _generate_nested(
    active: Any, original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A ``generate`` inside a phase: the pipeline's, the program's own, a wrapper's inner call, a draft model's."""
    running = active.generation
    if running is None and active.inference is not None:
        if active.name != semconv.FORWARD:  # whose input nobody has looked at
            _note_batch(active, model, args, kwargs)
        return _generate_timed(active, original, model, args, kwargs)
    if running is not None and not running.in_loop:
        if running.end_ns is None:
            return original(model, *args, **kwargs)
        return _generate_again(active, running, original, model, args, kwargs)
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
    generation = phase.generation = Generation()
    generation.timer = phase.timer
    inference = phase.inference
    assert inference is not None
    try:
        if inference.generation is None:
            inference.generation = generation
        _note_settings(inference, model, kwargs)
    except Exception:  # noqa: BLE001
        faults.note("generation.settings")
    try:
        result = original(model, *args, **kwargs)
    finally:
        generation.end_ns = perf_counter_ns()
    _count_output(inference, generation)
    return result


def _open(model: Any, streamer: Any) -> Inference | None:
    try:
        parent = None
        if streamer is not None and not current.has_current_span():
            # Thread(target=model.generate) starts without a context; the streamer brings that of its maker.
            carried = getattr(streamer, "_inferspan_origin", None)
            parent = carried.context if isinstance(carried, _Origin) else None
        return current.open_inference(semconv.TEXT_COMPLETION, current.model_facts(model), model=model, parent=parent)
    except Exception:  # noqa: BLE001
        faults.note("generation.open")
        return None


# -- facts of the call -------------------------------------------------------------------------------------------


def _note_settings(inference: Inference, model: Any, kwargs: dict[str, Any]) -> None:
    # a pipeline always passes a configuration, mostly the model's own
    config = None if semconv.TASK in inference.attributes else kwargs.get("generation_config")
    for name, (attribute, kind) in _PASSED.items():
        value = kwargs[name] if name in kwargs else _set_in(config, name)
        if isinstance(value, _TAKEN[kind]):
            inference.set(attribute, kind(value))
    choices = kwargs.get("num_return_sequences")
    if isinstance(choices, int) and choices != 1:
        inference.set(semconv.CHOICE_COUNT, choices)
    if any(value is not None for name in walk.PROPOSING for value in _in_force(name, model, kwargs)):
        inference.set(semconv.ASSISTED, True)
    if kwargs.get("streamer") is not None:
        inference.stream = True
        inference.set(semconv.STREAM, True)
    stops = kwargs.get("stop_strings")
    settings = current.settings()
    if stops is not None and settings is not None and settings.content_on_spans:
        inference.set(semconv.STOP_SEQUENCES, [stops] if isinstance(stops, str) else list(stops))


_default_configs: dict[type, Any] = {}


def _set_in(config: Any, name: str) -> Any:
    """What the caller has set in a configuration; 4.57 fills in the rest with defaults."""
    if config is None:
        return None
    default = _default_configs.get(type(config))
    if default is None:
        default = _default_configs[type(config)] = type(config)()
    value = getattr(config, name, None)
    return None if value == getattr(default, name, None) else value


def _note_batch(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inference = phase.inference
    if inference is None:
        return
    began_ns = perf_counter_ns()
    try:
        inputs = dict(kwargs)
        unnamed = args[0] if args else kwargs.get("inputs")
        if unnamed is not None and inputs.get("input_ids") is None:
            inputs["input_ids" if are_ids(unnamed) else "inputs"] = unnamed
        end_ids, pad_id = _special_ids(model, kwargs)
        batch = read_batch(inputs, None if pad_id in end_ids else pad_id)
        if batch is not None:
            inference.add_batch(batch)
            phase.set(semconv.BATCH_SIZE, batch.rows)
            phase.set(semconv.SEQUENCE_LENGTH, batch.length)
            inference.set(semconv.DEVICE, batch.device)
        current.measure(phase, model, None if batch is None else batch.device, began_ns)
    except Exception:  # noqa: BLE001
        faults.note("generation.batch")


def _note_output(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """What the general ``generate`` returned, where it is not a draft model's."""
    try:
        active = current.ACTIVE.get()
        generation = None if active is None or not active.is_phase else active.generation
        if generation is None:
            return
        sequences = getattr(result, "sequences", result)
        end_ids, pad_id = _special_ids(model, kwargs)
        stops_otherwise = kwargs.get("stop_strings") is not None or kwargs.get("stopping_criteria") is not None
        prompt = _prompt_length(model, args, kwargs, sequences)
        read = partial(
            read_output,
            prompt_length=prompt,
            end_ids=end_ids,
            limit=_limit(model, kwargs, prompt),
            pad_id=pad_id if stops_otherwise else None,
        )
        output = read(sequences)
        if output is not None:
            generation.outputs.append(output)
            generation.read_later = None if output.exact else read
    except Exception:  # noqa: BLE001
        faults.note("generation.output")


def _record_shapes(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What the decoding loop will run on, read before it: it makes a cache of the caller's longer."""
    try:
        active = current.ACTIVE.get()
        if type(active) is not Phase or active.shapes is None or active.generation is None or active.inference is None:
            return
        facts = current.model_facts(model)
        inventory, work = facts.inventory_of(model), walk.read_shapes(args, kwargs)
        if inventory is None or work is None:
            return
        work.assisted = work.assisted or semconv.ASSISTED in active.inference.attributes
        copies = (
            next((value for value in _in_force(name, model, kwargs) if isinstance(value, int)), 1)
            for name in ("num_beams", "num_return_sequences")
        )
        # a cache of fixed size is computed over in full; of images and audio the language model is only a part
        fixed = any(value is not None for value in _in_force("cache_implementation", model, kwargs))
        is_whole = active.inference.model in (None, facts)
        active.generation.decoded = Decoded(inventory, work, work.rows * max(copies), is_whole and not fixed)
    except Exception:  # noqa: BLE001
        faults.note("generation.work")


def _count_output(inference: Inference, generation: Generation) -> None:
    try:
        if generation.read_later is not None and len(generation.outputs) == 1 and semconv.TASK in inference.attributes:
            return  # the pipeline brings the ids to the host anyway, and counts then
        count_output(inference, generation)
    except Exception:  # noqa: BLE001
        faults.note("generation.count")


def count_output(inference: Inference, generation: Generation) -> None:
    """Add to the inference what its generation has returned since the last time."""
    outputs, generation.outputs = generation.outputs, []
    for output in outputs:
        inference.add_output(output.tokens, output.exact)
    if len(outputs) == 1:  # of several segments, nobody knows here which make one sequence
        known = inference.attributes.get(semconv.FINISH_REASONS, ())
        reasons = (*known, *outputs[0].finish_reasons)[:64]
        inference.set(semconv.FINISH_REASONS, reasons or None)
    elif not outputs and generation.steps:
        # A loop of the class's own may return anything: what can be trusted are its steps, exact for one row.
        rows = inference.rows_max or 1
        inference.add_output(generation.steps * rows, rows == 1)


def _special_ids(model: Any, kwargs: dict[str, Any]) -> tuple[frozenset[int], int | None]:
    """End-of-sequence ids and padding id in force: of the call, else of the configuration passed, else the model's.

    Read anew for each call, since programs set them on the model after loading it.
    """
    end_ids = next(filter(None, map(id_set, _in_force("eos_token_id", model, kwargs))), frozenset())
    pad_id = next((value for value in _in_force("pad_token_id", model, kwargs) if isinstance(value, int)), None)
    return end_ids, pad_id


def _in_force(name: str, model: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    return (
        kwargs.get(name),
        getattr(kwargs.get("generation_config"), name, None),
        getattr(getattr(model, "generation_config", None), name, None),
    )


def _prompt_length(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sequences: Any) -> int:
    """Length of what stands before the generated tokens in each returned row."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        ids = kwargs.get("decoder_input_ids")
        # transformers puts the start token before ids that lack it
        start = 0 if ids is not None and begins_with(sequences, ids) else 1
    else:
        ids = kwargs.get("input_ids")
        if ids is None:
            ids = args[0] if args else kwargs.get("inputs")
        # From embeddings alone only the new tokens come back; from nothing at all, after one start token.
        start = 0 if ids is not None or kwargs.get("inputs_embeds") is not None else 1
    shape = getattr(ids, "shape", None)
    return start + (int(shape[-1]) if shape is not None and len(shape) else 0)


def _limit(model: Any, kwargs: dict[str, Any], prompt: int) -> int | None:
    """How many tokens a row may get at most, ``None`` where that is not told (and nothing but a limit ends it)."""
    names = {"max_new_tokens": 0, "max_length": prompt}
    if kwargs.get("inputs_embeds") is not None:
        del names["max_length"]  # it includes the embeddings, which do not come back
    for name, without in names.items():
        for value in _in_force(name, model, kwargs):
            if isinstance(value, int):
                return value - without
    return None


# -- steps, streamers --------------------------------------------------------------------------------------------


def _has_unfinished_sequences(original: Callable[..., Any]) -> Callable[..., Any]:
    def has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
        unfinished = original(self, *args, **kwargs)
        active = current.ACTIVE.get()
        if type(active) is Phase and active.generation is not None:
            active.generation.tick(bool(unfinished))
        return unfinished

    return has_unfinished_sequences


class _Origin:
    """The context in which a streamer was made. It stays behind when the streamer is pickled or copied."""

    __slots__ = ("context",)

    def __init__(self, context: Context) -> None:
        self.context = context

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _streamer_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if current.settings() is not None and current.has_current_span():
            self._inferspan_origin = _Origin(otel_context.get_current())

    return __init__


def _is_compiling() -> bool:
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and bool(compiler.is_compiling())
