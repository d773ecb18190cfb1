"""What torch's and transformers' models say of themselves: name, class, provider, weights, and whether they changed.

Only attributes are read, none is set, and nothing is imported: a model that is here has brought its library along.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from inferspan import faults, semconv
from inferspan.core import rank
from inferspan.core.model import ModelInfo

_PACKED = "torch.ao.nn.quantized"


class TorchDescriber:
    """Reads torch modules, and anything else that has a class."""

    def source_of(self, model: Any) -> str:
        config = getattr(model, "config", None)
        return str(getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None) or "")

    def class_of(self, model: Any) -> str:
        cls = written_class(model)
        if cls.__module__.startswith("torch.jit."):  # what was scripted or traced remembers its class
            return text(getattr(model, "original_name", None)) or cls.__name__
        return cls.__name__

    def provider_of(self, model: Any) -> str | None:
        bases = type(model).__mro__
        return (
            semconv.HUGGINGFACE if any(base.__module__.partition(".")[0] == "transformers" for base in bases) else None
        )

    def revision_of(self, model: Any) -> str | None:
        return text(getattr(getattr(model, "config", None), "_commit_hash", None))

    def device_of(self, model: Any, of_input: str | None) -> str | None:
        if of_input is None or of_input == "cpu":
            spread = getattr(model, "__dict__", {}).get("hf_device_map")
            if isinstance(spread, dict) and spread:
                first = next(iter(spread.values()))
                # a bare number is of the kind of device that the weights are on, some of which may be on the host
                kinds = (weight.device.type for weight in getattr(model, "parameters", tuple)())
                kind = next((kind for kind in kinds if kind not in ("cpu", "meta")), "cuda")
                return f"{kind}:{first}" if isinstance(first, int) else str(first)
        return of_input

    def witness(self, model: Any) -> _Witness | None:
        return _Witness(model) if isinstance(getattr(model, "_modules", None), dict) else None

    def describe(self, model: Any, info: ModelInfo) -> dict[str, Any]:
        config = getattr(model, "config", None)
        attributes: dict[str, Any] = {semconv.MODEL_CLASS: self.class_of(model)}
        attributes[semconv.MODEL_TYPE] = text(getattr(config, "model_type", None))
        attributes[semconv.MODEL_REVISION] = info.revision
        count, size = _call(model, "num_parameters"), _call(model, "get_memory_footprint")
        if count is None and size is None:
            count, size = _count_weights(model)
        is_packed = has_packed_weights(model)
        attributes[semconv.MODEL_PARAMETERS] = None if is_packed else count
        attributes[semconv.MODEL_SIZE] = None if is_packed else size
        attributes[semconv.MODEL_DTYPE] = dtype_of(model)
        attributes[semconv.MODEL_QUANTIZATION] = _quantization(config)
        attributes[semconv.MODEL_ATTENTION] = text(getattr(config, "_attn_implementation", None))
        attributes[semconv.WORLD_SIZE] = rank.world_size()
        return {name: value for name, value in attributes.items() if value is not None}


class _Witness:
    """The places that show a cast, a move, a quantisation, an adapter or a new head: the parts of the model and of what
    holds its last linear layer, the first parameter, that layer's weight, the first layer with adapters."""

    __slots__ = ("_adapters", "_parents", "_weights")

    def __init__(self, model: Any) -> None:
        first = last = parent = adapters = None
        for module in model.modules():
            own = module.__dict__
            if first is None and any(tensor is not None for tensor in (own.get("_parameters") or {}).values()):
                first = module
            if adapters is None and "merged_adapters" in own and hasattr(type(module), "active_adapters"):
                adapters = module
            for child in (own.get("_modules") or {}).values():
                if child is not None and "in_features" in child.__dict__:
                    last, parent = child, module
        self._parents = [weakref.ref(module) for module in (model, parent) if module is not None]
        self._weights = [weakref.ref(module) for module in (first, last) if module is not None]
        self._adapters = None if adapters is None else weakref.ref(adapters)

    def look(self) -> list[Any]:
        seen: list[Any] = []
        for place in self._parents:
            module = place()
            if module is not None:
                seen += map(id, module._modules.values())
        for place in self._weights:
            module = place()
            for tensor in () if module is None else module._parameters.values():
                if tensor is not None:
                    seen += (type(tensor), tensor.dtype, tensor.device)
                    break
        layer = None if self._adapters is None else self._adapters()
        if layer is not None:
            seen += (*layer.active_adapters, None, *layer.merged_adapters, layer.disable_adapters)
        return seen


def is_replica(model: Any) -> bool:
    """Whether it is one of ``DataParallel``'s, which runs in a thread without a context, for the inference of all."""
    return "_is_replica" in getattr(model, "__dict__", ())


def written_class(module: Any) -> type:
    """The class that a module was written as: torch's ``fully_shard()`` puts one of its own making before it."""
    cls = type(module)
    bases = cls.__bases__
    return bases[1] if len(bases) == 2 and cls.__module__.startswith("torch.distributed.") else cls


def has_packed_weights(model: Any) -> bool:
    """Whether weights are packed into objects that are no parameters (``torch.ao``'s dynamic quantisation), so that
    what counts parameters misses them."""
    try:
        return any(type(module).__module__.startswith(_PACKED) for module in model.modules())
    except Exception:  # noqa: BLE001 - no module
        return False


def dtype_of(model: Any) -> str | None:
    """Of its weights, as torch names it."""
    try:
        dtype = getattr(model, "dtype", None)
    except Exception:  # noqa: BLE001 - that of a PreTrainedModel without any parameter is a StopIteration
        return None
    return None if dtype is None else str(dtype).removeprefix("torch.")


def id_set(value: Any) -> frozenset[int] | None:
    """One id or a list of ids, as transformers takes them, as a set."""
    if isinstance(value, int):
        return frozenset((value,)) if value >= 0 else frozenset()
    if isinstance(value, (list, tuple)):
        return frozenset(item for item in value if isinstance(item, int))
    return None


def text(value: Any) -> str | None:
    """The value if it is a text that says something."""
    return value if isinstance(value, str) and value else None


def _call(model: Any, name: str) -> int | None:
    method = getattr(model, name, None)
    if method is None:
        return None
    try:
        return int(method())
    except Exception:  # noqa: BLE001 - a user's own class may define the name with another meaning
        faults.note(f"model.{name}")
        return None


def _count_weights(model: Any) -> tuple[int | None, int | None]:
    """Number of parameters of a plain module, and the bytes of these and its buffers."""
    try:
        weights = list(model.parameters())
        size = sum(tensor.numel() * tensor.element_size() for tensor in (*weights, *model.buffers()))
        return sum(tensor.numel() for tensor in weights), size
    except Exception:  # noqa: BLE001 - no module, or one whose lazy parameters have no shape yet
        return None, None


def _quantization(config: Any) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    method = (
        quantization.get("quant_method")
        if isinstance(quantization, Mapping)
        else getattr(quantization, "quant_method", None)
    )
    return text(getattr(method, "value", method))
