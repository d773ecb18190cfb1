"""Replacing attributes of classes, and putting them back exactly as they were.

Replacements are plain functions with ``functools.wraps``: they bind, pickle by name, deep-copy and show the
original's signature like any method, which object proxies do not (a pipeline whose bound ``preprocess`` cannot be
pickled breaks every DataLoader that spawns its workers), and they cost a third.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

_MISSING: Any = object()


class Patches:
    """What was replaced, so that it can be undone. Classes are referred to weakly."""

    def __init__(self) -> None:
        self._done: list[tuple[weakref.ref[type | ModuleType], str, Any, Any]] = []
        self._lock = threading.Lock()

    def wrap(
        self, owner: type | ModuleType, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Replace the method (of a module: function) ``owner`` itself defines under ``name`` by ``make(original)``.

        Nothing happens where it does not define one, or where it is ours already.
        """
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if original is _MISSING or is_ours(original):
                return
            self._set(owner, name, original, _mark(functools.wraps(original)(make(original))))

    def wrap_classmethod(
        self, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """The same for a class method; ``make`` gets and gives the plain function whose first argument is the class."""
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if not isinstance(original, classmethod) or is_ours(original.__func__):
                return
            function = original.__func__
            self._set(owner, name, original, classmethod(_mark(functools.wraps(function)(make(function)))))

    def wrap_property_setter(self, owner: type, name: str, make: Callable[[Any], Callable[..., None]]) -> None:
        """The same for the setter of a property."""
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if not isinstance(original, property) or original.fset is None or is_ours(original.fset):
                return
            setter = _mark(functools.wraps(original.fset)(make(original.fset)))
            self._set(owner, name, original, original.setter(setter))

    def define(self, owner: type, name: str, function: Callable[..., Any]) -> None:
        """Give ``owner`` a method that it so far inherits."""
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if original is _MISSING:
                self._set(owner, name, original, _mark(function))

    def undo(self) -> None:
        """Put the originals back, by identity. What somebody else has wrapped over ours stays, and passes through."""
        with self._lock:
            while self._done:
                reference, name, original, replacement = self._done.pop()
                owner = reference()
                if owner is None or vars(owner).get(name) is not replacement:
                    continue
                if original is _MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)

    def _set(self, owner: type | ModuleType, name: str, original: Any, replacement: Any) -> None:
        setattr(owner, name, replacement)
        self._done.append((weakref.ref(owner), name, original, replacement))


def is_ours(function: Any) -> bool:
    """Whether the function itself (not one that wraps it) is a replacement of ours."""
    return getattr(function, "_inferspan_wrapper", None) is function


def _mark(function: Any) -> Any:
    # The mark is the function itself, since functools.wraps copies the attributes of what it wraps.
    function._inferspan_wrapper = function
    return function
