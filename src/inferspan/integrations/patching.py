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

from inferspan import forks

_MISSING: Any = object()


class Patches:
    """What was replaced, so that it can be undone. Classes and replacements are referred to weakly: a class that the
    program drops goes, though its replaced methods know it. The original stays with its replacement."""

    def __init__(self) -> None:
        self._done: list[tuple[weakref.ref[type | ModuleType], str, weakref.ref[Any]]] = []
        self._at_undo: list[Callable[[], None]] = []
        self._renew_lock()
        forks.register(after_in_child=self._renew_lock)

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
            self._set(owner, name, original, functools.wraps(original)(make(original)))

    def wrap_classmethod(
        self, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """The same for a class method; ``make`` gets and gives the plain function whose first argument is the class."""
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if not isinstance(original, classmethod) or is_ours(original.__func__):
                return
            function = functools.wraps(original.__func__)(make(original.__func__))
            self._set(owner, name, original, function, classmethod)

    def wrap_property_setter(self, owner: type, name: str, make: Callable[[Any], Callable[..., None]]) -> None:
        """The same for the setter of a property."""
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if not isinstance(original, property) or original.fset is None or is_ours(original.fset):
                return
            self._set(owner, name, original, functools.wraps(original.fset)(make(original.fset)), original.setter)

    def define(
        self, owner: type, name: str, function: Callable[..., Any], bind: Callable[[Any], Any] = lambda it: it
    ) -> None:
        """Give ``owner`` a method that it so far inherits; ``bind`` is ``classmethod`` for one of the class."""
        with self._lock:
            original = vars(owner).get(name, _MISSING)
            if original is _MISSING:
                self._set(owner, name, original, function, bind)

    def at_undo(self, function: Callable[[], None]) -> None:
        """Call this, too, when all is undone."""
        self._at_undo.append(function)

    def undo(self) -> None:
        """Put the originals back, by identity. What somebody else has wrapped over ours stays, and passes through."""
        with self._lock:
            while self._done:
                self._put_back(*self._done.pop())
            while self._at_undo:
                self._at_undo.pop()()

    def undo_of(self, owner: type, name: str) -> None:
        """The same for one of them."""
        with self._lock:
            for done in [done for done in self._done if done[0]() is owner and done[1] == name]:
                self._done.remove(done)
                self._put_back(*done)

    def _renew_lock(self) -> None:
        # a thread that is not in the forked child may hold it: one that calls a class of pipelines first
        self._lock = threading.Lock()

    def _set(
        self,
        owner: type | ModuleType,
        name: str,
        original: Any,
        function: Any,
        bind: Callable[[Any], Any] = lambda it: it,
    ) -> None:
        # The mark is the function itself, since functools.wraps copies the attributes of what it wraps.
        function._inferspan_wrapper = function
        function._inferspan_original = original
        setattr(owner, name, bind(function))
        self._done.append((weakref.ref(owner), name, weakref.ref(function)))

    @staticmethod
    def _put_back(owner: weakref.ref[Any], name: str, function: weakref.ref[Any]) -> None:
        where, replacement = owner(), function()
        if where is None or replacement is None or _function(vars(where).get(name)) is not replacement:
            return
        if replacement._inferspan_original is _MISSING:
            delattr(where, name)
        else:
            setattr(where, name, replacement._inferspan_original)


def subclasses(cls: type) -> set[type]:
    """All classes below this one that exist now."""
    found: set[type] = set()
    waiting = [cls]
    while waiting:
        new: set[type] = set(type.__subclasses__(waiting.pop())) - found
        found |= new
        waiting.extend(new)
    return found


def is_ours(function: Any) -> bool:
    """Whether the function itself (not one that wraps it) is a replacement of ours."""
    return getattr(function, "_inferspan_wrapper", None) is function


def _function(attribute: Any) -> Any:
    """The plain function behind a method, class method or property as the class has it."""
    if isinstance(attribute, property):
        return attribute.fset
    return attribute.__func__ if isinstance(attribute, classmethod) else attribute
