"""Layers of models, on request: which modules they are.

The modules are found once for each model, when it is first called, and tracked like roots are
(:mod:`inferspan.integrations.torch.calls`): nothing is registered on them, so nothing is copied, pickled or asserted
on. What is recorded of them is in :mod:`inferspan.probes.layers`.

``transformer`` finds blocks by their structure: the innermost members of a list that have attention, and something
else that multiplies by a weight. What is neither list nor attention is recognised by names alone in one place: a module
with children is attention if its name or class says so, which holds for all of transformers. The rest of a block that
has weights of two dimensions is its MLP, be it one module, experts, or two linears beside each other. What has no
attention has no parts: the other layers of a hybrid, the repeated members of any other model.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from inferspan import faults
from inferspan.core.state import state
from inferspan.integrations.patching import Patches
from inferspan.integrations.torch.calls import track, unwrap_model, wrap_call

if TYPE_CHECKING:
    from inferspan.config import Settings

TRANSFORMER = "transformer"
WHOLE, ATTENTION, MLP = "", "attention", "mlp"
_ATTENTION = re.compile("attn|attention", re.IGNORECASE)

_chosen: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_plans: weakref.WeakKeyDictionary[Any, LayerPlan] = weakref.WeakKeyDictionary()


class Slot(NamedTuple):
    """What a module is to its model (its identity): a layer, by its name, or a part of one."""

    model: int
    layer: str
    part: str


class LayerPlan:
    """What is recorded of one model: its modules' slots, by identity; none where nothing was found."""

    __slots__ = ("_inferences", "slots")

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self._inferences = count()

    def takes_next(self, every: int) -> bool:
        """Whether the inference that begins is the one of so ``every`` that is recorded."""
        return next(self._inferences) % every == 0


def choose(model: Any, layers: str | int | None) -> None:
    """The layers of this instance, whatever the settings say; ``None`` leaves it to them.

    Raises:
        ValueError: neither a pattern nor a depth from 1 on.
    """
    _plans.pop(model, None)
    _chosen.pop(model, None)
    if layers is not None:
        if isinstance(layers, bool) or (isinstance(layers, int) and layers < 1) or not isinstance(layers, (int, str)):
            raise ValueError(f"layers={layers!r}: allowed are 'transformer', a depth from 1 on, a pattern")
        _chosen[model] = str(layers)
    state.plans.forget(model)


def is_chosen(model: Any) -> bool:
    """Whether :func:`choose` has said which layers of this instance are recorded."""
    try:
        return model is not None and unwrap_model(model) in _chosen
    except TypeError:  # cannot be hashed or referred to weakly
        return False


def plan_of(model: Any, settings: Settings) -> LayerPlan | None:
    """What is recorded of this model; ``None`` if nothing is to be."""
    model = unwrap_model(model)
    wanted, patches = _chosen.get(model) or settings.layers, state.patches
    if not wanted or patches is None:
        return None
    plan = _plans.get(model)
    if plan is None:
        if not _plans:
            patches.at_undo(_plans.clear)
        plan = _plans[model] = _make_plan(model, wanted, settings.layers_max, patches)
    return plan


def _make_plan(model: Any, wanted: str, layers_max: int, patches: Patches) -> LayerPlan:
    plan = LayerPlan()
    found = list(islice(_find(model, wanted), layers_max + 1))
    if not found:
        faults.warn_once(f"layers {type(model).__name__}", f"no layers {wanted!r} were found in {type(model).__name__}")
    if len(found) > layers_max:
        del found[layers_max:]
        faults.warn_once(
            f"layers_max {type(model).__name__}",
            f"{type(model).__name__} has more than {layers_max} layers {wanted!r}: the rest is not recorded "
            "(INFERSPAN_LAYERS_MAX)",
        )
    for name, layer in found:
        parts = _parts(layer) if wanted == TRANSFORMER else ()
        for part, module in ((WHOLE, layer), *parts):
            plan.slots.setdefault(id(module), Slot(id(model), name, part))
            track(module)
            wrap_call(type(module), patches)
    return plan


# -- which modules -----------------------------------------------------------------------------------------------------


def _find(model: Any, wanted: str) -> Iterator[tuple[str, Any]]:
    """Names and modules of the layers."""
    if wanted == TRANSFORMER:
        yield from _blocks(model, "") or _repeated(model, "")
    elif wanted.isdecimal():
        yield from _at_depth(model, "", int(wanted))
    else:
        patterns = [pattern.strip() for pattern in wanted.split(",")]
        for name, module in model.named_modules():
            if name and not _is_list(module) and any(fnmatchcase(name, pattern) for pattern in patterns):
                yield name, module


def _children(module: Any, prefix: str) -> list[tuple[str, Any]]:
    return [(prefix + name, child) for name, child in module._modules.items() if child is not None]


def _is_list(module: Any) -> bool:
    """Whether it only holds modules, and is never called."""
    nn = sys.modules["torch"].nn
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _blocks(module: Any, prefix: str) -> list[tuple[str, Any]]:
    children = _children(module, prefix)
    found = [block for name, child in children for block in _blocks(child, f"{name}.")]
    is_listed = _is_list(module) or isinstance(module, sys.modules["torch"].nn.Sequential)
    if not found and is_listed and any(_parts(child) for _, child in children):
        found = [(name, child) for name, child in children if child._modules]  # of a hybrid some have no attention
    return found


def _repeated(module: Any, prefix: str) -> list[tuple[str, Any]]:
    children = _children(module, prefix)
    kinds = {type(child) for _, child in children}
    if len(children) > 1 and len(kinds) == 1 and all(child._modules for _, child in children):
        return children
    return [found for name, child in children for found in _repeated(child, f"{name}.")]


def _at_depth(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, child in _children(module, prefix):
        if _is_list(child):
            yield from _at_depth(child, f"{name}.", depth)
        elif depth > 1:
            yield from _at_depth(child, f"{name}.", depth - 1)
        else:
            yield name, child


def _parts(block: Any) -> list[tuple[str, Any]]:
    """Attention and MLP of a block, empty where it has not both."""
    found = list(_attention_and_rest(block))
    return found if len({part for part, _ in found}) == 2 else []


def _attention_and_rest(block: Any) -> Iterator[tuple[str, Any]]:
    for name, child in _children(block, ""):
        if _is_attention(name, child):
            yield ATTENTION, child
        elif _is_list(child) or any(_is_attention(path.rpartition(".")[2], it) for path, it in child.named_modules()):
            yield from _attention_and_rest(child)
        elif any(weight.dim() > 1 for weight in (*child.parameters(), *child.buffers())):
            yield MLP, child


def _is_attention(name: str, module: Any) -> bool:
    called = _ATTENTION.search(name) or _ATTENTION.search(type(module).__name__)
    return bool(called and module._modules and not _is_list(module))
