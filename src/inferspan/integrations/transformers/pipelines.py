"""Hugging Face pipelines: one inference for each call, whatever the task and however the input comes.

``Pipeline.__call__`` opens and closes the inference. The phases are ``preprocess``, ``forward`` and ``postprocess``
of the pipeline's own class, patched once for each class when it is first called, since the classes are imported
lazily and users write their own. ``forward`` rather than ``_forward``: it includes the copies to and from the device,
and its argument is on the host, so that tokens can be counted without touching a GPU.

A generator or ``Dataset`` gives a lazy result (:mod:`inferspan.integrations.transformers.lazy`).

DataLoader workers see the patched methods too, but are outside of any inference, where these pass through.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Generator, Mapping
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.core.state import state
from inferspan.integrations.patching import Patches
from inferspan.integrations.tensors import read_batch
from inferspan.integrations.transformers import lazy, streamers
from inferspan.integrations.transformers.chats import capture, is_chat
from inferspan.integrations.transformers.generate import PIPELINES, count_output

_OPERATIONS = {
    "feature-extraction": semconv.EMBEDDINGS,
    "image-feature-extraction": semconv.EMBEDDINGS,
    "text2text-generation": semconv.TEXT_COMPLETION,
    "summarization": semconv.TEXT_COMPLETION,
    "translation": semconv.TEXT_COMPLETION,
}
_CHATTY = {
    "text-generation": semconv.TEXT_COMPLETION,
    "image-text-to-text": semconv.GENERATE_CONTENT,
    "any-to-any": semconv.GENERATE_CONTENT,
}


def install_base(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.Pipeline, "__call__", lambda original: _call(original, patches))


install_iterator = lazy.install


# -- the call ----------------------------------------------------------------------------------------------------


def _call(original: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = current.here()
        if state.settings is None or (active is not None and active.phase is not None):
            return original(self, *args, **kwargs)
        if _patched_classes.get(type(self)) is not patches:
            _patch_phases(type(self), patches)
        given = vars(self).get("_forward_params") if active is None else None
        origin = streamers.origin_of(_streamer_of(given, kwargs)) if active is None and (kwargs or given) else None
        around = None if origin is None else origin.inference()
        if around is not None:  # it runs in a thread of an inference() block, which only its streamer knows
            return streamers.run_in(around, original, (self, *args), kwargs)
        outside = None if active is None else active.inference
        # Between a pipeline's phases only the program's own generator or ``Dataset`` runs, and a pipeline that is
        # called in there is another inference. In an inference() block the phases are the block's.
        if outside is not None and outside.plan.source != PIPELINES:
            result = original(self, *args, **kwargs)
            if type(result).__name__ == lazy.TYPE:
                lazy.keep_for_later(result, lambda: _plan(self, args, kwargs))
            return result
        inference = _open(self, args, kwargs, origin)
        if inference is None:
            return original(self, *args, **kwargs)
        entered = current.enter(inference)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            current.leave(entered)
            current.close(inference, error)
            raise
        current.leave(entered)
        if type(result).__name__ != lazy.TYPE or not lazy.keep_open(result, inference):
            current.close(inference)
        return result

    return __call__


def _plan(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
    task, model = getattr(pipeline, "task", ""), getattr(pipeline, "model", None)
    # what a chatty pipeline does depends on its input
    operation = _operation(task, args[0] if args else kwargs.get("inputs")) if task in _CHATTY else ""
    return current.plan(pipeline, (task, operation), _make_plan, model)


def _make_plan(pipeline: Any, key: tuple[str, str], model: Any) -> Plan:
    task, operation = key
    task = str(task or type(pipeline).__name__)
    plan = current.make_plan(operation or _operation(task, None), model=model, source=PIPELINES)
    plan.attributes = {semconv.TASK: task}
    plan.phase_names = _phase_names(pipeline)
    plan.owner = weakref.ref(pipeline)
    return plan


def _open(
    pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any], origin: streamers.Origin | None
) -> Inference | None:
    try:
        plan = _plan(pipeline, args, kwargs)
        parent = None if origin is None else origin.context
        return current.open_inference(plan, model=getattr(pipeline, "model", None), parent=parent)
    except Exception:  # noqa: BLE001 - a pipeline of the program's own
        faults.note("pipelines.open")
        return None


def _streamer_of(given: Any, kwargs: dict[str, Any]) -> Any:
    """The streamer of a call, which may have been given when the pipeline was made."""
    for each in (kwargs, given):
        for found in (each, each.get("generate_kwargs")) if isinstance(each, dict) else ():
            if isinstance(found, dict) and found.get("streamer") is not None:
                return found["streamer"]
    return None


def _operation(task: str, inputs: Any) -> str:
    family = task.split("_", 1)[0]  # translation_en_to_fr
    if family in _CHATTY:
        return semconv.CHAT if is_chat(inputs) else _CHATTY[family]
    return _OPERATIONS.get(family, task)


# -- the phases --------------------------------------------------------------------------------------------------


def _patch_phases(cls: type, patches: Patches) -> None:
    try:
        for name, make in _METHODS.items():
            owner = next((base for base in cls.__mro__ if name in vars(base)), None)
            # A static method, a partial or a callable object is called otherwise than our replacement would call it.
            if owner is not None and inspect.isfunction(vars(owner)[name]):
                patches.wrap(owner, name, make)
    except Exception:  # noqa: BLE001 - a metaclass that lets nothing be set
        faults.note("pipelines.patch")
    _patched_classes[cls] = patches  # not before: another thread's call would go on without


_patched_classes: weakref.WeakKeyDictionary[type, Patches] = weakref.WeakKeyDictionary()


def _phase_names(pipeline: Any) -> tuple[str, str]:
    """Of what comes before the forward and after it, by whether the input is text."""
    return (
        (semconv.TOKENIZE, semconv.DETOKENIZE) if _reads_text(pipeline) else (semconv.PREPROCESS, semconv.POSTPROCESS)
    )


def _reads_text(pipeline: Any) -> bool:
    """Whether the input is text. A pipeline that loads a processor for images, audio or video does not read text,
    but for text-to-audio, where the processor takes text."""
    if getattr(pipeline, "task", None) == "text-to-audio":
        return True
    if getattr(pipeline, "tokenizer", None) is None:
        return False
    for loads, name in _OTHER_PROCESSORS:
        if getattr(pipeline, loads, None) or getattr(pipeline, name, None) is not None:
            return False
    return True


_OTHER_PROCESSORS = [
    (f"_load_{name}", name) for name in ("image_processor", "feature_extractor", "video_processor", "processor")
]


def _next_chunk(inference: Inference, pipeline: Any, chunks: Generator[Any, Any, Any]) -> Any:
    """The next chunk, inside a phase. The step that finds no more of them is no call: its phase is not kept."""
    phase = Phase((inference.plan.phase_names or _phase_names(pipeline))[0], inference, perf_counter_ns())
    return current.run_phase(phase, next, (chunks,), {}, discard_at=StopIteration)


def _preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(original):

        def preprocess_chunks(self: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            inference = current.open_here()
            if inference is not None and inference.plan.settings.capture_content != "NO_CONTENT":
                capture(inference, "note_input", args[0] if args else None, _task_unless_text(self))
            chunks = original(self, *args, **kwargs)
            try:
                while True:
                    inference = current.open_here()
                    try:
                        chunk = next(chunks) if inference is None else _next_chunk(inference, self, chunks)
                    except StopIteration as stop:
                        return stop.value
                    yield chunk
            finally:
                chunks.close()

        return preprocess_chunks

    def preprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        inference = current.open_here()
        if inference is None:
            return original(self, *args, **kwargs)
        if inference.plan.settings.capture_content != "NO_CONTENT":
            capture(inference, "note_input", args[0] if args else None, _task_unless_text(self))
        phase = Phase((inference.plan.phase_names or _phase_names(self))[0], inference, perf_counter_ns())
        return current.run_phase(phase, original, (self, *args), kwargs)

    return preprocess


def _task_unless_text(pipeline: Any) -> str | None:
    return None if _reads_text(pipeline) else getattr(pipeline, "task", None)


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        inference = current.open_here()
        if inference is None:
            return original(self, *args, **kwargs)
        phase = Phase(semconv.FORWARD, inference, perf_counter_ns())
        _note_batch(inference, phase, self, args[0] if args else kwargs.get("model_inputs"))
        result = current.run_phase(phase, original, (self, *args), kwargs)
        if phase.generation is not None:
            _note_generated(phase, result)
        return result

    return forward


def _note_batch(inference: Inference, phase: Phase, pipeline: Any, inputs: Any) -> None:
    try:
        batch = read_batch(inputs)
        if batch is not None:
            inference.add_batch(phase, batch)
        if inference.device is None:
            device = getattr(pipeline, "device", None)
            inference.device = None if device is None else str(device)
        model = getattr(pipeline, "model", None)
        current.begin_forward(phase, model, inference.device, phase.start_ns)
    except Exception:  # noqa: BLE001
        faults.note("pipelines.batch")


@faults.guarded("pipelines.generated")
def _note_generated(phase: Phase, result: Any) -> None:
    """Generated tokens that could not be counted on a GPU: the pipeline has brought its ids to the host now."""
    generation = phase.generation
    if generation is None or generation.read_later is None or not generation.outputs or phase.inference is None:
        return
    if isinstance(result, Mapping):
        found = map(generation.read_later, (result.get(name) for name in ("generated_sequence", "output_ids")))
        generation.outputs = [next((output for output in found if output is not None), generation.outputs[0])]
    count_output(phase.inference, generation)


def _postprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    def postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        inference = current.open_here()
        if inference is None:
            return original(self, *args, **kwargs)
        phase = Phase((inference.plan.phase_names or _phase_names(self))[1], inference, perf_counter_ns())
        result = current.run_phase(phase, original, (self, *args), kwargs)
        inference.counts.items += 1
        if inference.plan.settings.capture_content != "NO_CONTENT":
            capture(inference, "note_output", args[0] if args else None, kwargs, result)
        return result

    return postprocess


def _get_iterator(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = original(self, *args, **kwargs)
        inference = current.open_here()
        if inference is not None:
            _note_workers(inference, iterator)
        return iterator

    return get_iterator


def _note_workers(inference: Inference, iterator: Any) -> None:
    # Read from the DataLoader that was made: a single input has none, and one worker is the most that a generator or
    # a ChunkPipeline gets, whatever the call asked for.
    loader = getattr(getattr(iterator, "loader", None), "loader", None)
    workers = getattr(loader, "num_workers", None)
    inference.set(semconv.PREPROCESS_WORKERS, workers if isinstance(workers, int) and workers > 0 else None)


_METHODS = {
    "get_iterator": _get_iterator,
    "preprocess": _preprocess,
    "forward": _forward,
    "postprocess": _postprocess,
}
