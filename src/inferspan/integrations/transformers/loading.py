"""``from_pretrained`` of models: one ``load`` span with the model's own facts, and the time for its cold start.

Everything inside (parts that are loaded by their own ``from_pretrained``, a warm-up forward) is muted; requests to
the Hub that other instrumentations record nest under the span.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.model import ModelInfo, describe, display_name, forget
from inferspan.core.patching import Patches
from inferspan.core.record import Inference


def install(module: ModuleType, patches: Patches) -> None:
    patches.wrap_classmethod(module.PreTrainedModel, "from_pretrained", _from_pretrained)


def _from_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        active = current.ACTIVE.get()
        inference = None if active is not None and active.is_phase else _open(cls, args, kwargs)
        if inference is None:
            return original(cls, *args, **kwargs)

        def load() -> Any:
            result = original(cls, *args, **kwargs)
            _note_model(inference, result, kwargs)
            return result

        return current.run(inference, load, (), {}, inside=current.SUPPRESSED)

    return from_pretrained


def _open(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    try:
        settings = current.settings()
        if settings is None:
            return None
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        name, revision = display_name("" if source is None else str(source), cls.__name__, settings.local_model_name)
        facts = ModelInfo(name, semconv.HUGGINGFACE)
        facts.revision = revision
        facts.cold = None
        inference = current.open_inference(semconv.LOAD_OPERATION, facts)
        if inference is not None:
            inference.single_span = True
        return inference
    except Exception:  # noqa: BLE001
        faults.note("loading.open")
        return None


def _note_model(inference: Inference, result: Any, kwargs: dict[str, Any]) -> None:
    try:
        model = result[0] if isinstance(result, tuple) else result  # with output_loading_info=True
        forget(model)
        facts = current.model_facts(model)
        loaded = inference.model
        if loaded is not None:
            facts.name = loaded.name
            facts.revision = loaded.revision or facts.revision
        revision = kwargs.get("revision")
        if facts.revision is None and isinstance(revision, str):
            facts.revision = revision
        facts.load_ns = current.elapsed_ns(inference)
        inference.attributes.update(describe(model, facts))
        device = getattr(model, "device", None)
        inference.set(semconv.DEVICE, None if device is None else str(device))
    except Exception:  # noqa: BLE001
        faults.note("loading.note")
