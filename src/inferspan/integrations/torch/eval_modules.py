"""Plain torch modules: what is put in ``eval()`` by itself is a model, and each call of it a ``forward`` span.

``eval()`` means inference, and is called on roots only: for the modules below torch calls ``train(False)``. The
instance is remembered, and its class gets the wrapped ``__call__`` (:mod:`inferspan.integrations.torch.calls`);
layers of torch's own that hold no others are left out (a frozen ``BatchNorm2d`` is no model). A setting names classes
all of whose instances are models, whether put in ``eval()`` or not. :func:`instrument_module` does it by hand.

Scripted modules run below their root without Python, so each call of one is its root's. A program that
``torch.export`` made is watched when ``module()`` gives it, a package of AOTInductor when it is called.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from inferspan import faults
from inferspan.core import current
from inferspan.core.state import state
from inferspan.integrations.patching import Patches, subclasses
from inferspan.integrations.torch.calls import forget, is_root, roots, track_root, untrack_root, unwrap_model, wrap_call

EVAL = "eval"

_by_hand: dict[int, ModuleHandle] = {}


def install(torch: Any, patches: Patches) -> None:
    settings = current.settings()
    # some programs put an imitation in the place of torch
    wanted = frozenset() if settings is None or not hasattr(torch, "jit") else settings.modules
    if EVAL in wanted:
        patches.wrap(torch.nn.Module, "eval", lambda original: _eval(original, patches))
        wrap_call(torch.jit.ScriptModule, patches, every=True)
    names = wanted - {EVAL}
    if names:
        _guard_named(torch.nn.Module, names, patches)


def install_by_hand(_: ModuleType, patches: Patches) -> None:
    patches.at_undo(forget)
    for handle in list(_by_hand.values()):
        handle._install(patches)


def install_exported(module: ModuleType, patches: Patches) -> None:
    if _wants_eval():
        patches.wrap(module.ExportedProgram, "module", lambda original: _module(original, patches))


def install_packaged(module: ModuleType, patches: Patches) -> None:
    if _wants_eval() and hasattr(module, "AOTICompiledModel"):
        wrap_call(module.AOTICompiledModel, patches, every=True)


def _wants_eval() -> bool:
    settings = current.settings()
    return settings is not None and EVAL in settings.modules


# -- by eval(), by name, by export -----------------------------------------------------------------------------------


def _eval(original: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
    is_compiling = sys.modules["torch"].compiler.is_compiling

    def eval(self: Any) -> Any:  # noqa: A001
        result = original(self)
        if not is_compiling():
            _watch(self, patches)
        return result

    return eval


def _module(original: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
    def module(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _watch(result, patches)
        return result

    return module


def _watch(module: Any, patches: Patches) -> None:
    try:
        model = unwrap_model(module)
        if current.settings() is not None and not is_root(model) and _may_be_model(model):
            track_root(model, patches)
    except Exception:  # noqa: BLE001 - a metaclass that lets nothing be set
        faults.note("modules.watch")


def _may_be_model(module: Any) -> bool:
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None and isinstance(module, modeling.PreTrainedModel):
        return False  # those are seen by another hook, or are not to be
    return bool(module._modules) or not type(module).__module__.startswith("torch.nn.")


def _guard_named(base: Any, names: Iterable[str], patches: Patches) -> None:
    def guard_if_named(cls: type) -> None:
        if cls.__name__ in names or f"{cls.__module__}.{cls.__qualname__}" in names:
            wrap_call(cls, patches, every=True)

    def __init_subclass__(cls: type, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs)
        if current.settings() is not None:
            guard_if_named(cls)

    patches.define(base, "__init_subclass__", __init_subclass__, classmethod)
    for cls in subclasses(base):
        guard_if_named(cls)


# -- by hand -----------------------------------------------------------------------------------------------------------


class ModuleHandle:
    """One module that is a model of its own. Made by :func:`instrument_module`; :meth:`remove`, or the end of a
    ``with`` block, undoes it. It refers to the module weakly."""

    def __init__(self, module: Any, name: str | None, has_layers: bool) -> None:
        self._module: Callable[[], Any] = weakref.ref(module, lambda _: _by_hand.pop(id(self), None))
        self._name = name
        self._has_layers = has_layers
        self._was_root = False

    def remove(self) -> None:
        """The module is what it was before, called as before."""
        module, self._module = self._module(), _nothing
        _by_hand.pop(id(self), None)
        if module is None:
            return
        state.models.forget(module)
        if self._has_layers:
            from inferspan.integrations.torch.layers import choose

            choose(module, None)
        if not self._was_root:
            untrack_root(module)
            patches = state.patches
            if patches is not None and not any(type(root) is type(module) for root in roots()):
                patches.undo_of(type(module), "__call__")

    def __enter__(self) -> ModuleHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _install(self, patches: Patches) -> None:
        module = self._module()
        if module is None:
            return
        self._was_root = is_root(module)
        track_root(module, patches)
        describer = state.describer
        if self._name is not None and describer is not None:
            state.models.rename(module, self._name, describer)


def _nothing() -> None:
    return None


def instrument_module(module: Any, *, name: str | None = None, layers: str | int | None = None) -> ModuleHandle:
    """Make each call of this torch module an inference of its own, unless it is part of one.

    Args:
        module: a ``torch.nn.Module``. A call of it that trains is no inference.
        name: of the model on spans and metrics; by default its class.
        layers: which of its layers are recorded apart, as in the setting ``layers``, which decides by default.

    Returns:
        A handle whose ``remove()`` undoes it; also a context manager.

    Raises:
        TypeError: not a ``torch.nn.Module``.
        ValueError: ``layers`` is neither a pattern nor a depth from 1 on.

    It may be called before ``instrument()``, and lasts over ``uninstrument()``.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(module, torch.nn.Module):
        raise TypeError(f"instrument_module() takes a torch.nn.Module, not {type(module).__name__}")
    model = unwrap_model(module)
    if layers is not None:
        from inferspan.integrations.torch.layers import choose  # of those who ask for layers alone

        choose(model, layers)
    handle = ModuleHandle(model, name, layers is not None)
    _by_hand[id(handle)] = handle
    if state.patches is not None:
        handle._install(state.patches)
    return handle
