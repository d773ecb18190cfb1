"""``from_pretrained`` of models: one ``load`` span with the model's own facts, and the time for its cold start.

Everything inside (parts that are loaded by their own ``from_pretrained``, a warm-up forward) is suppressed; requests to
the Hub that other instrumentations record nest under the span.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.model import ModelInfo, display_name
from inferspan.core.record import Inference
from inferspan.core.state import state
from inferspan.integrations.patching import Patches


def install(module: ModuleType, patches: Patches) -> None:
    patches.wrap_classmethod(module.PreTrainedModel, "from_pretrained", _from_pretrained)


def _from_pretrained(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        active = current.here()
        inference = None if active is not None and active.phase is not None else _open(cls, args, kwargs)
        if inference is None:
            return original(cls, *args, **kwargs)

        def load() -> Any:
            result = current.run_suppressed(original, (cls, *args), kwargs)
            _note_model(inference, result, kwargs)
            return result

        return current.run(inference, load, (), {})

    return from_pretrained


@faults.guarded("loading.open")
def _open(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    settings = current.settings()
    if settings is None:
        return None
    source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
    name, revision = display_name("" if source is None else str(source), cls.__name__, settings.local_model_name)
    info = ModelInfo(name, semconv.HUGGINGFACE)
    info.revision = revision
    info.cold = None
    return current.open_inference(current.make_plan(semconv.LOAD_OPERATION, info=info))


@faults.guarded("loading.note")
def _note_model(inference: Inference, result: Any, kwargs: dict[str, Any]) -> None:
    model = result[0] if isinstance(result, tuple) else result  # with output_loading_info=True
    loaded, describer = inference.info, state.describer
    state.models.forget(model)
    info = current.model_info(model)
    if loaded is not None:
        info.name = loaded.name
        info.revision = loaded.revision or info.revision
    revision = kwargs.get("revision")
    if info.revision is None and isinstance(revision, str):
        info.revision = revision
    info.load_ns = perf_counter_ns() - inference.start_ns
    if describer is not None:
        info.is_described = True
        inference.attributes.update(describer.describe(model, info))
    device = getattr(model, "device", None)
    inference.device = None if device is None else str(device)
