"""Hugging Face pipelines: one inference for each call, whatever the task and however the input comes.

``Pipeline.__call__`` opens and closes the inference. The phases are ``preprocess``, ``forward`` and ``postprocess``
of the pipeline's own class, patched once for each class when it is first called, since the classes are imported
lazily and users write their own. ``forward`` rather than ``_forward``: it includes the copies to and from the device,
and its argument is on the host, so that tokens can be counted without touching a GPU.

A generator or ``Dataset`` gives a lazy result. Its inference stays open, but is current only inside ``__next__``,
never across a yield; it ends with the last item, an error, or when the result is dropped (at the time of the last
item, since nobody knows when the consumer lost interest). Nothing is consumed early, and the result keeps its type.

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
from inferspan.core import current, messages
from inferspan.core.batch import read_batch
from inferspan.core.model import ModelInfo
from inferspan.core.patching import Patches
from inferspan.core.record import Inference, Phase
from inferspan.integrations.transformers.generate import count_output

_STREAM = "_inferspan_stream"

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
    pipeline = module.Pipeline
    patches.wrap(pipeline, "__call__", lambda original: _call(original, patches))


def install_iterator(module: ModuleType, patches: Patches) -> None:
    patches.wrap(module.PipelineIterator, "__iter__", _iter)
    patches.wrap(module.PipelineIterator, "__next__", _next)


# -- the call ----------------------------------------------------------------------------------------------------


def _call(original: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = current.ACTIVE.get()
        if current.settings() is None or (active is not None and active.is_phase):
            return original(self, *args, **kwargs)
        _patch_phases(type(self), patches)
        if active is not None and not _is_pipeline(active):  # an inference() block: the phases are the block's
            result = original(self, *args, **kwargs)
            _keep_for_later(self, args, kwargs, result)
            return result
        inference = _open(self, args, kwargs)
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
        if not _keep_open(inference, result):
            _capture_output(inference, result)
            current.close(inference)
        return result

    return __call__


def _is_pipeline(active: Inference | Phase) -> bool:
    """Whether the inference is that of a pipeline. Between its phases only the program's own generator or ``Dataset``
    runs, and a pipeline that is called in there is another inference."""
    return active.inference is not None and semconv.TASK in active.inference.attributes


def _open(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    try:
        task, model, inputs, facts = _told(pipeline, args, kwargs)
        inference = current.open_inference(_operation(task, inputs), facts, model=model)
        if inference is not None:
            inference.set(semconv.TASK, task)
            settings = current.settings()
            if settings is not None and settings.capture_content != "NO_CONTENT":
                inference.content = messages.Content(messages.messages_of(inputs))
        return inference
    except Exception:  # noqa: BLE001
        faults.note("pipelines.open")
        return None


def _told(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, Any, ModelInfo | None]:
    """Task, model, inputs and the model's facts."""
    task = str(getattr(pipeline, "task", "") or type(pipeline).__name__)
    model = getattr(pipeline, "model", None)
    facts = None if model is None else current.model_facts(model)
    return task, model, args[0] if args else kwargs.get("inputs"), facts


def _operation(task: str, inputs: Any) -> str:
    family = task.split("_", 1)[0]  # translation_en_to_fr
    if family in _CHATTY:
        return semconv.CHAT if messages.is_chat(inputs) else _CHATTY[family]
    return _OPERATIONS.get(family, task)


def _capture_output(inference: Inference, result: Any) -> None:
    try:
        if inference.content is not None:
            inference.content.output = messages.completions_of(result)
    except Exception:  # noqa: BLE001
        faults.note("pipelines.output")


# -- the phases --------------------------------------------------------------------------------------------------


def _patch_phases(cls: type, patches: Patches) -> None:
    if _patched_classes.get(cls) is patches:
        return
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


def _reads_text(pipeline: Any) -> bool:
    """Whether the input is text. A pipeline that loads a processor for images, audio or video does not read text,
    but for text-to-audio, where the processor takes text."""
    if getattr(pipeline, "task", None) == "text-to-audio":
        return True
    if getattr(pipeline, "tokenizer", None) is None:
        return False
    for loads, name in _OTHER_PROCESSORS:  # a plain loop: this runs twice in each call
        if getattr(pipeline, loads, None) or getattr(pipeline, name, None) is not None:
            return False
    return True


_OTHER_PROCESSORS = [
    (f"_load_{name}", name) for name in ("image_processor", "feature_extractor", "video_processor", "processor")
]


def _begin(pipeline: Any, text: str, other: str) -> Phase | None:
    """A phase of the inference that is active here; ``None`` outside of one and inside another phase."""
    active = current.ACTIVE.get()
    if type(active) is not Inference:
        return None
    try:
        return active.begin(text if text == other or _reads_text(pipeline) else other)
    except Exception:  # noqa: BLE001
        faults.note("pipelines.phase")
        return None


def _next_chunk(phase: Phase, chunks: Generator[Any, Any, Any]) -> Any:
    """The next chunk, inside ``phase``. The step that finds no more of them is no call: its phase is not kept."""
    token = current.ACTIVE.set(phase)
    try:
        return next(chunks)
    except StopIteration:
        phase.calls = 1  # as if it had ended: nothing to keep, and nothing to cut off
        raise
    except BaseException as error:
        phase.cut_off(error)
        raise
    finally:
        current.ACTIVE.reset(token)
        if phase.inference is not None:
            phase.inference.end(phase)


def _preprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(original):

        def preprocess_chunks(self: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            chunks = original(self, *args, **kwargs)
            try:
                while True:
                    phase = _begin(self, semconv.TOKENIZE, semconv.PREPROCESS)
                    try:
                        chunk = next(chunks) if phase is None else _next_chunk(phase, chunks)
                    except StopIteration as stop:
                        return stop.value
                    yield chunk
            finally:
                chunks.close()

        return preprocess_chunks

    def preprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        phase = _begin(self, semconv.TOKENIZE, semconv.PREPROCESS)
        if phase is None:
            return original(self, *args, **kwargs)
        return current.run_phase(phase, original, (self, *args), kwargs)

    return preprocess


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        phase = _begin(self, semconv.FORWARD, semconv.FORWARD)
        if phase is None:
            return original(self, *args, **kwargs)
        _note_batch(phase, self, args[0] if args else kwargs.get("model_inputs"))
        result = current.run_phase(phase, original, (self, *args), kwargs)
        _note_generated(phase, result)
        return result

    return forward


def _note_batch(phase: Phase, pipeline: Any, inputs: Any) -> None:
    inference = phase.inference
    if inference is None:
        return
    try:
        batch = read_batch(inputs)
        if batch is not None:
            inference.add_batch(batch)
            phase.set(semconv.BATCH_SIZE, batch.rows)
            phase.set(semconv.SEQUENCE_LENGTH, batch.length)
        if semconv.DEVICE not in inference.attributes:
            device = getattr(pipeline, "device", None)
            inference.set(semconv.DEVICE, None if device is None else str(device))
        current.measure(
            phase, getattr(pipeline, "model", None), inference.attributes.get(semconv.DEVICE), phase.start_ns
        )
    except Exception:  # noqa: BLE001
        faults.note("pipelines.batch")


def _note_generated(phase: Phase, result: Any) -> None:
    """Generated tokens that could not be counted on a GPU: the pipeline has brought its ids to the host now."""
    generation = phase.generation
    if generation is None or generation.read_later is None or not generation.outputs or phase.inference is None:
        return
    try:
        if isinstance(result, Mapping):
            found = map(generation.read_later, (result.get(name) for name in ("generated_sequence", "output_ids")))
            generation.outputs = [next((output for output in found if output is not None), generation.outputs[0])]
        count_output(phase.inference, generation)
    except Exception:  # noqa: BLE001
        faults.note("pipelines.generated")


def _postprocess(original: Callable[..., Any]) -> Callable[..., Any]:
    def postprocess(self: Any, *args: Any, **kwargs: Any) -> Any:
        phase = _begin(self, semconv.DETOKENIZE, semconv.POSTPROCESS)
        if phase is None:
            return original(self, *args, **kwargs)
        result = current.run_phase(phase, original, (self, *args), kwargs)
        if phase.inference is not None:
            phase.inference.items += 1
        return result

    return postprocess


def _get_iterator(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = original(self, *args, **kwargs)
        active = current.ACTIVE.get()
        if active is not None and not active.is_phase and active.inference is not None:
            _note_workers(active.inference, iterator)
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


# -- lazy results ------------------------------------------------------------------------------------------------


class _Stream:
    """What a lazy result carries: its inference. It stays behind when the result is pickled or copied."""

    __slots__ = ("inference", "is_open")

    def __init__(self, inference: Inference, is_open: bool = True) -> None:
        self.inference = inference
        self.is_open = is_open  # else it only says which one to open

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def run(self, function: Callable[..., Any], result: Any) -> Any:
        """One step of the consumer, inside the inference."""
        if not self.is_open or self.inference.failure is not None or self.inference.abandoned:
            self.begin_again()  # a Dataset goes on after an item that failed, any result after uninstrument()
        inference = self.inference
        if inference.end_ns is not None:
            return function(result)
        entered = current.enter(inference)
        start_ns = perf_counter_ns()
        try:
            item = function(result)
        except BaseException as error:
            self._left(inference, entered, start_ns)
            current.close(inference, None if isinstance(error, StopIteration) else error)
            raise
        self._left(inference, entered, start_ns)
        return item

    @staticmethod
    def _left(inference: Inference, entered: current.Entered, start_ns: int) -> None:
        current.leave(entered)
        if inference.end_ns is None:
            inference.last_ns = perf_counter_ns()
            inference.busy_ns = (inference.busy_ns or 0) + inference.last_ns - start_ns

    def begin_again(self) -> None:
        """A result that is iterated once more after its end, or goes on after an error: one more inference."""
        ended = self.inference
        if ended.end_ns is None or current.ACTIVE.get() is not None:
            return
        inference = current.open_inference(ended.operation, ended.model)
        if inference is not None:
            for name in (semconv.TASK, semconv.PREPROCESS_WORKERS):
                inference.set(name, ended.attributes.get(name))
            inference.set(semconv.LAZY, True)
            self.inference, self.is_open = inference, True


def _keep_open(inference: Inference, result: Any) -> bool:
    """Whether the result is lazy; then its inference goes with it."""
    try:
        if type(result).__name__ != "PipelineIterator":
            return False
        inference.last_ns = perf_counter_ns()
        inference.busy_ns = inference.last_ns - inference.start_ns
        inference.set(semconv.LAZY, True)
        _attach(_Stream(inference), result)
        return True
    except Exception:  # noqa: BLE001
        faults.note("pipelines.lazy")
        return False


def _keep_for_later(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """A lazy result from an ``inference()`` block is part of that while it lasts, and after it an inference."""
    try:
        if type(result).__name__ == "PipelineIterator":
            task, _, inputs, facts = _told(pipeline, args, kwargs)
            later = Inference("", _operation(task, inputs), facts, 0)
            later.set(semconv.TASK, task)
            later.end_ns = later.start_ns
            _attach(_Stream(later, is_open=False), result)
    except Exception:  # noqa: BLE001
        faults.note("pipelines.lazy")


def _attach(stream: _Stream, result: Any) -> None:
    vars(result)[_STREAM] = stream
    weakref.finalize(result, _abandon, stream).atexit = False


def _abandon(stream: _Stream) -> None:
    # Called by the garbage collector, in whatever thread: it only appends, and only if nothing has ended it before.
    inference = stream.inference
    if inference.end_ns is None:
        inference.abandoned = True
        current.close(inference, end_ns=inference.last_ns)


def _iter(original: Callable[..., Any]) -> Callable[..., Any]:
    def __iter__(self: Any) -> Any:
        stream = vars(self).get(_STREAM)
        if stream is None:
            return original(self)
        stream.begin_again()
        return stream.run(original, self)

    return __iter__


def _next(original: Callable[..., Any]) -> Callable[..., Any]:
    def __next__(self: Any) -> Any:
        stream = vars(self).get(_STREAM)
        return original(self) if stream is None else stream.run(original, self)

    return __next__
