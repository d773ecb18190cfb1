"""What has to be done about ``os.fork``.

Handlers hold their owners weakly: what is registered for forks cannot be taken back. And what of ours is imported while
the program runs is imported where no fork can happen: a child that is forked in the midst of an import of another
thread could never import that module.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from importlib import import_module as _import
from types import ModuleType
from typing import Any

_FORK_WAIT_S = 0.5


def register(**handlers: Callable[[], None]) -> None:
    """``before``, ``after_in_parent``, ``after_in_child``: methods, called as long as their owners live."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**{when: _weakly(method) for when, method in handlers.items()})


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


class _Imports:
    """One import of ours at a time, and no fork meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._forker: int | None = None
        register(before=self._before, after_in_parent=self._after, after_in_child=self._renew)

    def __call__(self, name: str) -> ModuleType:
        with self._lock:
            return _import(name)

    def _before(self) -> None:
        if self._lock.acquire(timeout=_FORK_WAIT_S):  # an import that hangs does not hang the fork
            self._forker = threading.get_ident()

    def _after(self) -> None:
        if self._forker == threading.get_ident():
            self._forker = None
            self._lock.release()

    def _renew(self) -> None:
        self._lock, self._forker = threading.RLock(), None


import_module = _Imports()
"""As ``importlib.import_module``, for modules of ours that are loaded when they are first needed."""


class Later:
    """A module of ours that is loaded when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__[name] = getattr(import_module(self._name), name)
        return found
