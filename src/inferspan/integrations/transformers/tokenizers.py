"""Tokenizers called directly: one span for each outermost call, under whatever is current.

Inside a phase (a pipeline's preprocess, a streamer inside ``generate``) the five methods pass through; inside an
``inference()`` block they are its phases. Counting tokens is left to what runs the model, so that nothing counts twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.model import display_name
from inferspan.core.record import Phase
from inferspan.integrations.patching import Patches


def install(module: ModuleType, patches: Patches) -> None:
    base = module.PreTrainedTokenizerBase
    for name in ("__call__", "encode", "apply_chat_template"):
        patches.wrap(base, name, _phase(semconv.TOKENIZE, _note_encoded))
    for name in ("decode", "batch_decode"):
        patches.wrap(base, name, _phase(semconv.DETOKENIZE, _note_decoded))


def _phase(
    name: str, note: Callable[[Phase, tuple[Any, ...], dict[str, Any], Any], None]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def tokenizer_method(self: Any, *args: Any, **kwargs: Any) -> Any:
            inside = current.here()
            if inside is not None and inside.phase is not None:
                return original(self, *args, **kwargs)
            phase = None if current.settings() is None or _in_worker() else current.begin_phase(name)
            if phase is None:
                return original(self, *args, **kwargs)
            active = current.enter_phase(phase)
            try:
                result = original(self, *args, **kwargs)
                if phase.inference is None:
                    note(phase, args, kwargs, result)
                return result
            except BaseException as error:
                phase.cut_off(error)
                raise
            finally:
                current.leave(active)
                _end(phase, self)

        return tokenizer_method

    return make


@faults.guarded("tokenizers.end")
def _end(phase: Phase, tokenizer: Any) -> None:
    current.end_phase(phase, _name(tokenizer) if phase.inference is None else None)


def _name(tokenizer: Any) -> str | None:
    settings = current.settings()
    local = "basename" if settings is None else settings.local_model_name
    source = getattr(tokenizer, "name_or_path", None)
    return display_name(source, type(tokenizer).__name__, local)[0] if isinstance(source, str) else None


def _in_worker() -> bool:
    """Whether this process is a DataLoader worker, whose tokenizer is part of what the parent infers."""
    data = sys.modules.get("torch.utils.data")
    get_worker_info = None if data is None else getattr(data, "get_worker_info", None)
    return get_worker_info is not None and get_worker_info() is not None


@faults.guarded("tokenizers.note")
def _note_encoded(phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    ids = result["input_ids"] if type(result).__name__ == "BatchEncoding" else result
    shape = getattr(ids, "shape", None)
    if shape is not None and len(shape) == 2:
        phase.set(semconv.BATCH_SIZE, int(shape[0]))
        phase.set(semconv.SEQUENCE_LENGTH, int(shape[1]))
    elif type(ids) is list and ids:
        nested = type(ids[0]) is list
        phase.set(semconv.BATCH_SIZE, len(ids) if nested else 1)
        phase.set(semconv.SEQUENCE_LENGTH, max(map(len, ids)) if nested else len(ids))


@faults.guarded("tokenizers.note")
def _note_decoded(phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    ids = args[0] if args else kwargs.get("token_ids", kwargs.get("sequences"))
    device = getattr(ids, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        phase.set(semconv.INPUT_DEVICE, str(device))
