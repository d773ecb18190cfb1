"""Where each library is patched: one file for each, and the table of them.

A hook only opens, marks and closes records; it never makes a span. To support one more library, write one file with
a ``MODULES`` mapping (module of that library → function that patches it) and add one line to ``_TABLE``.

Nothing here imports a library: a hook is called when the program itself has imported the module that it patches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

from wrapt import register_post_import_hook

from inferspan import faults
from inferspan.core import current
from inferspan.integrations import processes
from inferspan.integrations.patching import Patches
from inferspan.integrations.torch import compilation, eval_modules, graphs, layers, parallel
from inferspan.integrations.transformers import continuous_batching, generate, loading, models, pipelines, tokenizers

Install = Callable[[ModuleType, Patches], None]

_TABLE: Mapping[str, Mapping[str, Install]] = {
    "pipelines": pipelines.MODULES,
    "generation": generate.MODULES,
    "continuous_batching": continuous_batching.MODULES,
    "tokenizers": tokenizers.MODULES,
    "models": models.MODULES,
    "modules": eval_modules.MODULES,
    "modules_by_hand": eval_modules.BY_HAND,
    "parallel": parallel.MODULES,
    "layers": layers.MODULES,
    "loading": loading.MODULES,
    "graphs": graphs.MODULES,
    "compilation": compilation.MODULES,
    "workers": processes.MODULES,
}

_OLDEST = {"transformers": (4, 57), "torch": (2, 4)}

_patches: Patches | None = None
_enabled: frozenset[str] = frozenset()
_awaited: set[tuple[str, str]] = set()


def install(enabled: frozenset[str]) -> None:
    """Patch what is imported already, now, and the rest when the program imports it."""
    global _patches, _enabled
    _patches, _enabled = Patches(), enabled
    current.state.patches = _patches
    for hook, installs in _TABLE.items():
        for module_name, function in installs.items():
            _await(hook, module_name, function)


def remove() -> None:
    """Put everything back as it was."""
    global _patches
    patches, _patches = _patches, None
    current.state.patches = None
    if patches is not None:
        patches.undo()


def _await(hook: str, module_name: str, function: Install) -> None:
    module = sys.modules.get(module_name)
    if module is not None and _is_initializing(module):
        faults.warn_once(
            f"half imported {module_name}",
            f"{module_name} is only half imported, so inferspan cannot instrument it; "
            "call inferspan.instrument() before or after importing it, not during",
        )
        return
    key = (hook, module_name)
    if key not in _awaited:
        _awaited.add(key)
        # calls back at once if the module is there already; wrapt has no way to unregister
        register_post_import_hook(partial(_imported, hook, function), module_name)
    elif module is not None:
        _imported(hook, function, module)


def _imported(hook: str, function: Install, module: ModuleType) -> None:
    patches = _patches
    if patches is None or hook not in _enabled or _too_old():
        return
    try:
        function(module, patches)
    except Exception:  # noqa: BLE001 - an import of the program's own must not fail because of us
        faults.note(f"hooks.{hook}: {module.__name__}")


def _is_initializing(module: ModuleType) -> bool:
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _too_old() -> bool:
    for library, oldest in _OLDEST.items():
        version = str(getattr(sys.modules.get(library), "__version__", ""))
        found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if len(found) == 2 and found < oldest:
            faults.warn_once(
                f"old {library}",
                f"{library} {version} is older than {oldest[0]}.{oldest[1]}, the oldest that inferspan supports: "
                "its calls are not instrumented",
            )
            return True
    return False
