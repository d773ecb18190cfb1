"""``generate()``: one inference where it is called directly, the heart of its ``forward`` where a pipeline calls it.

When the tokens came is read from ``_has_unfinished_sequences``, which every decoding mode from 4.57 to 5.23 asks
once before the first token and once after each, and which nothing overrides without calling it. Nothing is injected:
a logits processor costs 19 µs a step and changes assisted decoding, a stopping criterion launches kernels, a
streamer copies every token to the host. Where the method is missing there is no time to first token, and that is all.

38 model classes bring their own ``generate``; each is patched when its class is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from inferspan import faults, semconv
from inferspan.hooks.patches import Patches
from inferspan.inference import scope
from inferspan.inference.error import type_name
from inferspan.inference.model import id_set
from inferspan.inference.record import Inference, Phase
from inferspan.measure import tokens
from inferspan.measure.generation import Generation

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


def _install_utils(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.GenerationMixin, "generate", _generate)
    patches.wrap(module.GenerationMixin, "_has_unfinished_sequences", _has_unfinished_sequences)


def _install_models(module: ModuleType, patches: Patches) -> None:
    base = module.PreTrainedModel

    def patch(cls: type) -> None:
        if "generate" in vars(cls):
            patches.wrap(cls, "generate", _generate)

    def init_subclass(original: Callable[..., None]) -> Callable[..., None]:
        def __init_subclass__(cls: type, **kwargs: Any) -> None:
            original(cls, **kwargs)
            if scope.settings() is not None:
                patch(cls)

        return __init_subclass__

    patches.wrap_classmethod(base, "__init_subclass__", init_subclass)
    for cls in _subclasses(base):
        patch(cls)


def _install_streamers(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.TextStreamer, "__init__", _streamer_init)


MODULES = {
    "transformers.generation.utils": _install_utils,
    "transformers.modeling_utils": _install_models,
    "transformers.generation.streamers": _install_streamers,
}


def _subclasses(cls: type) -> set[type]:
    found: set[type] = set()
    waiting = [cls]
    while waiting:
        sub: type
        for sub in waiting.pop().__subclasses__():
            if sub not in found:
                found.add(sub)
                waiting.append(sub)
    return found


# -- generate ----------------------------------------------------------------------------------------------------


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = scope.ACTIVE.get()
        if scope.settings() is None or active is scope.MUTED or _is_compiling():
            return original(self, *args, **kwargs)
        if active is None:
            return _generate_alone(original, self, args, kwargs)
        if not active.is_phase and active.inference is not None:
            return _generate_in(active.inference, original, self, args, kwargs)
        return _generate_nested(active, original, self, args, kwargs)

    return generate


def _generate_alone(original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    inference = _open(model, kwargs.get("streamer"))
    if inference is None:
        return original(model, *args, **kwargs)
    entered = scope.enter(inference)
    error: BaseException | None = None
    try:
        return _generate_in(inference, original, model, args, kwargs)
    except BaseException as raised:
        error = raised
        raise
    finally:
        scope.leave(entered)
        scope.close(inference, error)


def _generate_in(
    inference: Inference,
    original: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A ``generate`` that is a phase of ``inference``."""
    phase = inference.begin(semconv.FORWARD)
    token = scope.ACTIVE.set(phase)
    try:
        _note_batch(phase, model, args, kwargs)
        return _generate_timed(phase, original, model, args, kwargs)
    except BaseException as error:
        phase.error = type_name(error)
        raise
    finally:
        scope.ACTIVE.reset(token)
        inference.end(phase)


def _generate_nested(
    active: Any, original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A ``generate`` inside a phase: the pipeline's own, a wrapper's inner call, or another model's."""
    running = active.generation
    if running is None and active.name == semconv.FORWARD and active.inference is not None:
        return _generate_timed(active, original, model, args, kwargs)
    if running is not None and running.model_id == id(model):
        running.restart()
        return original(model, *args, **kwargs)
    token = scope.ACTIVE.set(scope.MUTED)
    try:
        return original(model, *args, **kwargs)
    finally:
        scope.ACTIVE.reset(token)


def _generate_timed(
    phase: Phase, original: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    generation = phase.generation = Generation(id(model))
    inference = phase.inference
    assert inference is not None
    try:
        if inference.generation is None:
            inference.generation = generation
        _note_settings(inference, kwargs)
    except Exception:  # noqa: BLE001
        faults.note("generation.settings")
    try:
        result = original(model, *args, **kwargs)
    finally:
        generation.end_ns = perf_counter_ns()
    try:
        _note_output(inference, generation, model, args, kwargs, result)
    except Exception:  # noqa: BLE001
        faults.note("generation.output")
    return result


def _open(model: Any, streamer: Any) -> Inference | None:
    try:
        parent = None
        if streamer is not None and not scope.has_current_span():
            # Thread(target=model.generate) starts without a context; the streamer brings that of its maker.
            carried = getattr(streamer, "_inferspan_origin", None)
            parent = carried.context if isinstance(carried, _Origin) else None
        return scope.open_inference(semconv.TEXT_COMPLETION, scope.model_facts(model), model=model, parent=parent)
    except Exception:  # noqa: BLE001
        faults.note("generation.open")
        return None


# -- facts of the call -------------------------------------------------------------------------------------------


def _note_settings(inference: Inference, kwargs: dict[str, Any]) -> None:
    for name, (attribute, kind) in _PASSED.items():
        value = kwargs.get(name)
        if isinstance(value, (bool, int, float, str)):
            inference.set(attribute, kind(value))
    choices = kwargs.get("num_return_sequences")
    if isinstance(choices, int) and choices != 1:
        inference.set(semconv.CHOICE_COUNT, choices)
    if kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens") is not None:
        inference.set(semconv.ASSISTED, True)
    if kwargs.get("streamer") is not None:
        inference.stream = True
        inference.set(semconv.STREAM, True)
    stops = kwargs.get("stop_strings")
    settings = scope.settings()
    if stops is not None and settings is not None and settings.content_on_spans:
        inference.set(semconv.STOP_SEQUENCES, [stops] if isinstance(stops, str) else list(stops))


def _note_batch(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inference = phase.inference
    if inference is None:
        return
    try:
        inputs = dict(kwargs)
        ids = args[0] if args else kwargs.get("inputs")
        if ids is not None and inputs.get("input_ids") is None:
            inputs["input_ids"] = ids
        batch = tokens.read_batch(inputs, scope.model_facts(model).pad_id)
        if batch is not None:
            inference.add_batch(batch)
            phase.set(semconv.BATCH_SIZE, batch.rows)
            phase.set(semconv.SEQUENCE_LENGTH, batch.length)
            inference.set(semconv.DEVICE, batch.device)
    except Exception:  # noqa: BLE001
        faults.note("generation.batch")


def _note_output(
    inference: Inference,
    generation: Generation,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> None:
    sequences = getattr(result, "sequences", result)
    if "generate" in _own_generate(model):
        # A class with a generate of its own may return anything (Whisper: segments without their prompt): what
        # can be trusted are the steps, exact for one row.
        rows = inference.rows_max or 1
        if generation.steps:
            inference.add_output(generation.steps * rows, rows == 1)
        return
    facts = scope.model_facts(model)
    config = kwargs.get("generation_config")
    end_ids = id_set(kwargs.get("eos_token_id"))
    if end_ids is None:
        end_ids = id_set(getattr(config, "eos_token_id", None))
    if end_ids is None:
        end_ids = facts.end_ids or frozenset()
    prompt = _prompt_length(model, args, kwargs)
    output = tokens.read_output(sequences, prompt, end_ids, _limit(model, config, kwargs))
    if output is None:
        return
    inference.add_output(output.tokens, output.exact)
    if output.finish_reasons:
        known = inference.attributes.get(semconv.FINISH_REASONS, ())
        inference.set(semconv.FINISH_REASONS, (*known, *output.finish_reasons)[:64])


def _own_generate(model: Any) -> dict[str, Any]:
    for cls in type(model).__mro__:
        if "generate" in vars(cls):
            return {} if cls.__name__ == "GenerationMixin" else {"generate": cls}
    return {}


def _prompt_length(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Length of what stands before the generated tokens in each returned row."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        ids = kwargs.get("decoder_input_ids")
        start = 1
    else:
        ids = kwargs.get("input_ids")
        if ids is None:
            ids = args[0] if args else kwargs.get("inputs")
        # From embeddings alone only the new tokens come back; from nothing at all, after one start token.
        start = 0 if kwargs.get("inputs_embeds") is not None else 1
    shape = getattr(ids, "shape", None)
    return int(shape[-1]) if shape is not None and len(shape) else start


def _limit(model: Any, config: Any, kwargs: dict[str, Any]) -> int | None:
    for value in (
        kwargs.get("max_new_tokens"),
        getattr(config, "max_new_tokens", None),
        getattr(getattr(model, "generation_config", None), "max_new_tokens", None),
    ):
        if isinstance(value, int):
            return value
    return None


# -- steps, streamers --------------------------------------------------------------------------------------------


def _has_unfinished_sequences(original: Callable[..., Any]) -> Callable[..., Any]:
    def has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
        unfinished = original(self, *args, **kwargs)
        active = scope.ACTIVE.get()
        if type(active) is Phase and active.generation is not None:
            active.generation.tick()
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
        if scope.settings() is not None and scope.has_current_span():
            self._inferspan_origin = _Origin(otel_context.get_current())

    return __init__


def _is_compiling() -> bool:
    compiler = sys.modules.get("torch.compiler")
    return compiler is not None and bool(compiler.is_compiling())
