"""Handlers of ``os.fork`` that hold their owners weakly: what is registered for forks cannot be taken back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


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
