"""What torch's and transformers' models say of themselves: name, class, provider, weights, and whether they changed.

Only attributes are read, none is set, and nothing is imported: a model that is here has brought its library along.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

from inferspan import semconv
from inferspan.core import rank
from inferspan.core.model import ModelInfo

_PACKED = "torch.ao.nn.quantized"
_MATRIX = (("in_features", "out_features"), ("nx", "nf"), ("infeatures", "outfeatures"))
_PACKS = ("torch.uint8", "torch.int16", "torch.int32")  # of weights that are stored in them several go into one
_ADAPTER_MAX, _ADAPTERS_MAX = 64, 8
# Those whose layers and processors do what their names say.
_LIBRARIES = frozenset(
    ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "gptqmodel", "auto_gptq", "awq", "hqq")
)


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
        attributes[semconv.MODEL_PARAMETERS], attributes[semconv.MODEL_SIZE] = _count_weights(model)
        attributes[semconv.MODEL_DTYPE] = dtype_of(model)
        attributes[semconv.MODEL_QUANTIZATION] = _quantization(config)
        attributes[semconv.MODEL_ATTENTION] = text(getattr(config, "_attn_implementation", None))
        attributes[semconv.WORLD_SIZE] = rank.world_size()
        return {name: value for name, value in attributes.items() if value is not None}


class _Witness:
    """The places that show a cast, a move, a quantisation, an adapter or a new head: the parts of the model and of what
    holds its last linear layer, the first parameter, that layer's weight, peft's configurations, the first layer with
    adapters."""

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
        model = self._parents[0]()
        configured = None if model is None else model.__dict__.get("peft_config")
        if isinstance(configured, dict):
            seen += (*configured, None)
        layer = None if self._adapters is None else self._adapters()
        if layer is not None:
            seen += (*layer.active_adapters, None, *layer.merged_adapters, layer.disable_adapters)
        return seen

    def adapter(self) -> str | None:
        layer = None if self._adapters is None else self._adapters()
        if layer is None or (layer.disable_adapters and not layer.merged_adapters):
            return None
        names = layer.merged_adapters or layer.active_adapters
        return "+".join(str(name)[:_ADAPTER_MAX] for name in names[:_ADAPTERS_MAX]) or None


def is_replica(model: Any) -> bool:
    """Whether it is one of ``DataParallel``'s, which runs in a thread without a context, for the inference of all."""
    return "_is_replica" in getattr(model, "__dict__", ())


def written_class(module: Any) -> type:
    """The class that a module was written as: torch's ``fully_shard()`` puts one of its own making before it."""
    cls = type(module)
    bases = cls.__bases__
    return bases[1] if len(bases) == 2 and cls.__module__.startswith("torch.distributed.") else cls


def is_of_library(function: Any) -> bool:
    """Whether a method is one of torch, transformers or their companions, and not of the program's own."""
    return str(getattr(function, "__module__", None)).partition(".")[0] in _LIBRARIES


def matrix_of(own: dict[str, Any]) -> tuple[int, int] | None:
    """Logical sizes of a linear layer, however it stores its weight."""
    for rows, columns in _MATRIX:
        if rows in own and columns in own:
            return own[rows], own[columns]
    return None


def dtype_of(model: Any) -> str | None:
    """Of its weights, as torch names it."""
    try:
        dtype = getattr(model, "dtype", None)
    except Exception:  # noqa: BLE001 - that of a PreTrainedModel without any parameter is a StopIteration
        return None
    return None if dtype is None else str(dtype).removeprefix("torch.")


def text(value: Any) -> str | None:
    """The value if it is a text that says something."""
    return value if isinstance(value, str) and value else None


def _count_weights(model: Any) -> tuple[int | None, int | None]:
    """Number of parameters, as if none were packed, and the bytes of parameters and buffers as they are. What is tied
    or shares its memory counts once. ``None`` where a format of its own hides it."""
    count: int | None = 0
    size: int | None = 0
    try:
        is_quantized = getattr(getattr(model, "config", None), "quantization_config", None) is not None
        seen: set[Any] = {id(_tied_away(model))}
        for module in model.modules():
            named = dict(module.named_parameters(recurse=False))
            parameters = [tensor for tensor in named.values() if _is_first(tensor, seen)]
            buffers = [tensor for tensor in module.buffers(recurse=False) if _is_first(tensor, seen)]
            numbers = _packed(module, named)
            if numbers is None:
                numbers = _numbers(parameters, buffers if is_quantized else [])
            is_hidden = type(module).__module__.startswith(_PACKED)  # in an object that is no tensor
            count = None if count is None or numbers is None or is_hidden else count + numbers
            is_hidden = is_hidden or any(map(_is_wrapper, (*parameters, *buffers)))
            size = None if size is None or is_hidden else size + sum(map(_bytes, (*parameters, *buffers)))
        return count, size
    except Exception:  # noqa: BLE001 - no module, or one whose lazy parameters have no shape yet
        return None, None


def _is_first(tensor: Any, seen: set[Any]) -> bool:
    """Whether nothing seen before is this tensor, or another one of the same memory."""
    key: Any = id(tensor)
    if type(tensor).__name__ in ("Parameter", "Tensor") and tensor.device.type != "meta":
        place = tensor.data_ptr()
        key = (place, tensor.dtype, tuple(tensor.shape)) if place else key
    if key in seen:
        return False
    seen.add(key)
    return True


def _packed(module: Any, named: dict[str, Any]) -> int | None:
    """Of a linear layer that stores less than its weight has: how many numbers it stands for."""
    own = module.__dict__
    sizes, buffers = None if own.get("_modules") else matrix_of(own), own.get("_buffers") or {}
    if sizes is None or not (named or buffers):
        return None
    if any(tensor.numel() >= sizes[0] * sizes[1] for tensor in named.values()):
        return None
    bias = named.get("bias", buffers.get("bias"))
    return sizes[0] * sizes[1] + (0 if bias is None else int(bias.numel()))


def _numbers(parameters: list[Any], buffers: list[Any]) -> int | None:
    """How many numbers these stand for; ``None`` where they are packed and nothing says how."""
    count = 0
    for tensor in (*parameters, *buffers):
        if str(tensor.dtype) in _PACKS and tensor.dim() > 1:
            shape = getattr(getattr(tensor, "quant_state", None), "shape", None)
            if shape is None:
                return None
            count += math.prod(shape)
    return count + sum(int(it.numel()) for it in parameters if str(it.dtype) not in _PACKS or it.dim() < 2)


def _is_wrapper(tensor: Any) -> bool:
    """Whether a tensor holds others, whose bytes its own shape and dtype do not show."""
    return hasattr(type(tensor), "__tensor_flatten__") and type(tensor).__name__ != "DTensor"


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _tied_away(model: Any) -> Any:
    """The weight of a head that is tied to the embeddings, but lost that when it was offloaded (to ``meta``)."""
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return None
    ends = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    try:
        embeddings, head = (getattr(end() if callable(end) else None, "weight", None) for end in ends)
    except NotImplementedError:  # 4.57, of models without embeddings
        return None
    if embeddings is None or head is None or embeddings is head or embeddings.shape != head.shape:
        return None
    return head if head.device.type == "meta" else None


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
