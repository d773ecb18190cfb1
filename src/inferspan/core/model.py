"""What is known of a model, read once for each instance and remembered as long as the instance lives.

Nothing here keeps a model alive: the memory is keyed weakly. Names are made safe to show: of a local folder only the
last part, or the class where the setting says so; a snapshot folder of the Hub's cache gives the Hub id back.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping
from typing import Any

from inferspan import faults, semconv
from inferspan.core import rank
from inferspan.probes.flops.walk import Inventory, class_of, take_inventory

_SNAPSHOT = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<revision>[0-9a-f]{7,64})")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NAME_MAX = 256

_facts: weakref.WeakKeyDictionary[Any, ModelInfo]


class ModelInfo:
    """What never changes between the inferences of one model instance.

    ``provider`` is the value of ``gen_ai.provider.name``, if there is one.
    ``cold`` is true until its first inference begins, ``None`` where only a name is known. ``load_ns`` is how long
    ``from_pretrained`` took, ``None`` where the model came another way. ``dtype`` is that of its weights as torch
    names it, ``devices`` over how many it is spread; both are known with its inventory.
    """

    __slots__ = (
        "_has_inventory",
        "_inventory",
        "cold",
        "devices",
        "dtype",
        "load_ns",
        "name",
        "provider",
        "revision",
        "start_attributes",
    )

    def __init__(self, name: str, provider: str | None = None) -> None:
        self.name = name
        self.provider = provider
        self.revision: str | None = None
        self.cold: bool | None = True
        self.load_ns: int | None = None
        self.start_attributes: dict[str, dict[str, str]] = {}
        self._inventory: Inventory | None = None
        self._has_inventory = False
        self.dtype: str | None = None
        self.devices = 1

    def inventory_of(self, model: Any) -> Inventory | None:
        """The model's matrix products, listed when first asked for."""
        if not self._has_inventory:
            self._has_inventory = True
            self._inventory = take_inventory(model)
            self.dtype = _dtype(model)
            spread = getattr(model, "hf_device_map", None)
            self.devices = max(len(set(spread.values())) if isinstance(spread, dict) else 1, _shards(self._inventory))
        return self._inventory

    def attributes_for(self, operation: str) -> Mapping[str, str]:
        """The root span's attributes that a sampler may look at, made once for each operation."""
        found = self.start_attributes.get(operation)
        if found is None:
            found = {semconv.OPERATION_NAME: operation, semconv.REQUEST_MODEL: self.name}
            if self.provider is not None:
                found[semconv.PROVIDER_NAME] = self.provider
            self.start_attributes[operation] = found
        return found

    def rename(self, name: str) -> None:
        """Call it otherwise, from the next inference on."""
        self.name = name
        self.start_attributes = {}

    def take_cold(self) -> bool | None:
        """True for the first caller only; ``None`` where nothing tells."""
        was = self.cold
        if was:
            self.cold = False
        return was


_facts = weakref.WeakKeyDictionary()


def facts_of(model: Any, local_name: str = "basename") -> ModelInfo:
    """The facts of this model instance."""
    try:
        facts = _facts.get(model)
        if facts is None:
            facts = _facts.setdefault(model, _read(model, local_name))
        return facts
    except TypeError:  # cannot be referred to weakly, or not hashed: nothing is remembered of it
        return _read(model, local_name)


def forget(model: Any) -> None:
    """Drop what is known: the next inference of this instance is cold again (it has been loaded anew)."""
    _facts.pop(model, None)


def display_name(source: str, fallback: str, local_name: str) -> tuple[str, str | None]:
    """Name to show, and the revision if the source tells it, of a Hub id or a path."""
    source = source.encode("utf-8", "replace").decode()  # a folder's name may be no text, and would fail its export
    snapshot = _SNAPSHOT.search(source)
    if snapshot:
        return snapshot["id"].replace("--", "/", 1)[:_NAME_MAX], snapshot["revision"]
    if not source:
        return fallback, None
    if _HUB_ID.fullmatch(source) and not os.path.isdir(source):
        return source[:_NAME_MAX], None
    if local_name == "class":
        return fallback, None
    last = re.split(r"[/\\]", source.rstrip("/\\"))[-1]
    return (last or fallback)[:_NAME_MAX], None


def describe(model: Any, facts: ModelInfo) -> dict[str, Any]:
    """The model's own facts, for its ``load`` span or its first inference. Takes about a millisecond."""
    config = getattr(model, "config", None)
    attributes: dict[str, Any] = {semconv.MODEL_CLASS: _class_name(model)}
    attributes[semconv.MODEL_TYPE] = _text(getattr(config, "model_type", None))
    attributes[semconv.MODEL_REVISION] = facts.revision
    count, size = _call(model, "num_parameters"), _call(model, "get_memory_footprint")
    if count is None and size is None:
        count, size = _count_weights(model)
    attributes[semconv.MODEL_PARAMETERS] = count
    attributes[semconv.MODEL_SIZE] = size
    attributes[semconv.MODEL_DTYPE] = _dtype(model)
    attributes[semconv.MODEL_QUANTIZATION] = _quantization(config)
    attributes[semconv.MODEL_ATTENTION] = _text(getattr(config, "_attn_implementation", None))
    attributes[semconv.WORLD_SIZE] = rank.world_size()
    return {name: value for name, value in attributes.items() if value is not None}


def _read(model: Any, local_name: str) -> ModelInfo:
    config = getattr(model, "config", None)
    source = getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None) or ""
    name, revision = display_name(str(source), _class_name(model), local_name)
    is_huggingface = any(base.__module__.partition(".")[0] == "transformers" for base in type(model).__mro__)
    facts = ModelInfo(name, semconv.HUGGINGFACE if is_huggingface else None)
    facts.revision = revision or _text(getattr(config, "_commit_hash", None))
    return facts


def _class_name(model: Any) -> str:
    cls = class_of(model)
    if cls.__module__.startswith("torch.jit."):  # what was scripted or traced remembers its class
        return _text(getattr(model, "original_name", None)) or cls.__name__
    return cls.__name__


def device_of(model: Any, of_input: str | None) -> str | None:
    """Device on which the work of a call begins and ends: its input's, or where the model's hooks move that to."""
    if of_input is None or of_input == "cpu":
        spread = getattr(model, "__dict__", {}).get("hf_device_map")
        if isinstance(spread, dict) and spread:
            first = next(iter(spread.values()))
            return f"cuda:{first}" if isinstance(first, int) else str(first)
    return of_input


def id_set(value: Any) -> frozenset[int] | None:
    """One id or a list of ids, as transformers takes them, as a set."""
    if isinstance(value, int):
        return frozenset((value,)) if value >= 0 else frozenset()
    if isinstance(value, (list, tuple)):
        return frozenset(item for item in value if isinstance(item, int))
    return None


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


def _dtype(model: Any) -> str | None:
    try:
        dtype = getattr(model, "dtype", None)
    except Exception:  # noqa: BLE001 - that of a PreTrainedModel without any parameter is a StopIteration
        return None
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _quantization(config: Any) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    method = (
        quantization.get("quant_method")
        if isinstance(quantization, Mapping)
        else getattr(quantization, "quant_method", None)
    )
    return _text(getattr(method, "value", method))


def _shards(inventory: Inventory | None) -> int:
    return 1 if inventory is None else inventory.shards


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
