"""Patches what the program has imported, and what it imports later; and puts it back.

Nothing here imports a library. An integration's own file is imported inside the program's import of what it patches;
older versions of wrapt hold a lock of theirs meanwhile, so such a file must import nothing but what is loaded already,
or two threads that import may wait for each other (``tests/unit/integrations/test_registry.py`` looks).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from wrapt import register_post_import_hook

from inferspan import faults
from inferspan.core.state import state
from inferspan.integrations import INTEGRATIONS, Integration, Library
from inferspan.integrations.patching import Patches

if TYPE_CHECKING:
    from inferspan.config import Settings

Install = Callable[[ModuleType, Patches], None]


class Registry:
    """The integrations of a table, and what they have patched."""

    def __init__(self, table: Sequence[Integration] = INTEGRATIONS) -> None:
        self._table = table
        self._enabled: tuple[Integration, ...] = ()
        self._patches: Patches | None = None
        self._awaited: set[tuple[str, str]] = set()

    def install(self, settings: Settings) -> None:
        """Patch what is imported already, now, and the rest when the program imports it."""
        self._patches = state.patches = Patches()
        self._enabled = tuple(integration for integration in self._table if integration.is_enabled(settings))
        faults.look_past(integration.library.name for integration in self._enabled)
        for integration in self._enabled:
            for module_name in integration.modules:
                self._await(integration, module_name)

    def remove(self) -> None:
        """Put everything back as it was."""
        patches, self._patches, self._enabled = self._patches, None, ()
        state.patches = None
        if patches is not None:
            patches.undo()

    def _await(self, integration: Integration, module_name: str) -> None:
        module = sys.modules.get(module_name)
        if module is not None and _is_initializing(module):
            faults.warn_once(
                f"half imported {module_name}",
                f"{module_name} is only half imported, so inferspan cannot instrument it; "
                "call inferspan.instrument() before or after importing it, not during",
            )
            return
        key = (integration.name, module_name)
        if key not in self._awaited:
            self._awaited.add(key)
            # calls back at once if the module is there already; wrapt has no way to unregister
            register_post_import_hook(partial(self._imported, integration, module_name), module_name)
        elif module is not None:
            self._imported(integration, module_name, module)

    def _imported(self, integration: Integration, module_name: str, module: ModuleType) -> None:
        patches = self._patches
        if patches is None or integration not in self._enabled or self._is_too_old(integration):
            return
        try:
            file = import_module(integration.file, __package__)
            install: Install = getattr(file, integration.modules[module_name])
            install(module, patches)
        except Exception:  # noqa: BLE001 - an import of the program's own must not fail because of us
            faults.note(f"hooks.{integration.name}: {module.__name__}")

    def _is_too_old(self, integration: Integration) -> bool:
        for library in integration.libraries:
            version = _old_version(library)
            if version is not None and library.oldest is not None:
                major, minor = library.oldest
                needing = [each.name for each in self._enabled if library in each.libraries and each.is_selectable]
                faults.warn_once(
                    f"old {library.name}",
                    f"{library.name} {version} is older than {major}.{minor}, the oldest that inferspan supports; "
                    f"this is not instrumented: {', '.join(needing) or 'everything of it'}",
                )
                return True
        return False


def _is_initializing(module: ModuleType) -> bool:
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _old_version(library: Library) -> str | None:
    """The version that is imported if it is known, and too old."""
    if library.oldest is None:
        return None
    version = str(getattr(sys.modules.get(library.name), "__version__", ""))
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return version if len(found) == 2 and found < library.oldest else None
