"""What is known of a model, read once for each instance and remembered as long as the instance lives.

Nothing here keeps a model alive: the memory is keyed weakly. Names are made safe to show: of a local folder only the
last part, or the class where the setting says so; a snapshot folder of the Hub's cache gives the Hub id back. How a
framework's models are read is the business of a :class:`Describer` of its integration.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from inferspan import semconv

_SNAPSHOT = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<revision>[0-9a-f]{7,64})")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NAME_MAX = 256


class Witness(Protocol):
    """A few places of a model that change when what is known of it does."""

    def look(self) -> object:
        """What they are now: equal to what they were as long as nothing has changed. Asked before each inference, so it
        may take a microsecond, no more."""

    def adapter(self) -> str | None:
        """The names of the adapters that are in use, bounded."""


class Describer(Protocol):
    """How the models of one framework are read."""

    def source_of(self, model: Any) -> str:
        """The Hub id or path that the model came from; empty if it has none."""

    def class_of(self, model: Any) -> str:
        """The name of its class, as its author wrote it."""

    def provider_of(self, model: Any) -> str | None:
        """Value of ``gen_ai.provider.name``."""

    def revision_of(self, model: Any) -> str | None:
        """Its revision, if it is known."""

    def witness(self, model: Any) -> Witness | None:
        """What says that the model is still as it was read; ``None``: it never changes."""

    def device_of(self, model: Any, of_input: str | None) -> str | None:
        """Device on which the work of a call begins and ends: its input's, or where the model's hooks move that to."""

    def describe(self, model: Any, info: ModelInfo) -> dict[str, Any]:
        """Attributes for its ``load`` span or its first inference. May take a millisecond."""


class ModelInfo:
    """What does not change between the inferences of one model instance.

    ``provider`` is the value of ``gen_ai.provider.name``, if there is one.
    ``cold`` is true until its first inference begins, ``None`` where only a name is known. ``load_ns`` is how long
    ``from_pretrained`` took, ``None`` where the model came another way. ``is_described``: its attributes need not be
    read for the next inference. ``dtype`` is that of its weights as torch names it, ``devices`` over how many it is
    spread; both are set by the measure that lists its weights. ``facts`` is what measures remember of it, by name.
    ``adapter`` names the adapters that are in use. ``is_stale``: something else is known of the instance by now.
    """

    def __init__(self, name: str, provider: str | None = None) -> None:
        self.name = name
        self.provider = provider
        self.revision: str | None = None
        self.cold: bool | None = True
        self.load_ns: int | None = None
        self.is_described = False
        self.is_stale = False
        self.asked: dict[str, dict[str, str]] = {}
        self.facts: dict[str, Any] = {}
        self.dtype: str | None = None
        self.devices = 1
        self.adapter: str | None = None
        self.witness: Witness | None = None
        self.seen: object = None

    def attributes_for(self, operation: str) -> Mapping[str, str]:
        """The root span's attributes that a sampler may look at, made once for each operation."""
        found = self.asked.get(operation)
        if found is None:
            found = {semconv.OPERATION_NAME: operation, semconv.REQUEST_MODEL: self.name}
            if self.provider is not None:
                found[semconv.PROVIDER_NAME] = self.provider
            if self.adapter is not None:
                found[semconv.MODEL_ADAPTER] = self.adapter
            self.asked[operation] = found
        return found

    def take_cold(self) -> bool | None:
        """True for the first caller only; ``None`` where it is not known."""
        was = self.cold
        if was:
            self.cold = False
        return was

    def renewed(self) -> ModelInfo:
        """The same model after it has changed: what is read of it is read anew."""
        info = ModelInfo(self.name, self.provider)
        info.revision, info.cold, info.load_ns = self.revision, self.cold, self.load_ns
        return info


class Models:
    """What is known of all model instances that have been seen."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[weakref.ref[Any], ModelInfo]] = {}

    def info_of(self, model: Any, describer: Describer, local_name: str = "basename") -> ModelInfo:
        """What is known of this instance now."""
        known = self._by_id.get(id(model))
        if known is not None and known[0]() is model:
            info = known[1]
            if info.witness is None or info.witness.look() == info.seen:
                return info
            return self._keep(model, info.renewed(), describer)
        return self._keep(model, _read(model, describer, local_name), describer)

    def rename(self, model: Any, name: str, describer: Describer) -> None:
        """Call it otherwise, from the next inference on."""
        info = self.info_of(model, describer)
        renamed = info.renewed()
        renamed.name, renamed.is_described = name, info.is_described
        self._keep(model, renamed, describer)

    def forget(self, model: Any) -> None:
        """Drop what is known: the next inference of this instance is cold again (it has been loaded anew)."""
        known = self._by_id.pop(id(model), None)
        if known is not None:
            known[1].is_stale = True

    def _keep(self, model: Any, info: ModelInfo, describer: Describer) -> ModelInfo:
        place = id(model)
        try:
            owner = weakref.ref(model, lambda _: self._by_id.pop(place, None))
        except TypeError:  # cannot be referred to weakly: nothing is remembered of it
            return info
        self.forget(model)
        info.witness = describer.witness(model)
        if info.witness is not None:
            info.seen, info.adapter = info.witness.look(), info.witness.adapter()
        self._by_id[place] = owner, info
        return info


def _read(model: Any, describer: Describer, local_name: str) -> ModelInfo:
    name, revision = display_name(describer.source_of(model), describer.class_of(model), local_name)
    info = ModelInfo(name, describer.provider_of(model))
    info.revision = revision or describer.revision_of(model)
    return info


def display_name(source: str, fallback: str, local_name: str) -> tuple[str, str | None]:
    """Name to show, and the revision if the source has it, of a Hub id or a path."""
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
