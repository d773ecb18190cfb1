"""The arguments of a call by the names that its function gives them, however they were passed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

_names: weakref.WeakKeyDictionary[Callable[..., Any], tuple[str, ...]] = weakref.WeakKeyDictionary()


def by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a method, without ``self``. What has no name (``*args``) is left out."""
    if not args:
        return kwargs
    try:
        names = _names.get(function)
        if names is None:
            code = inspect.unwrap(function).__code__
            names = _names[function] = code.co_varnames[1 : code.co_argcount]
    except Exception:  # noqa: BLE001 - not a function of Python's
        return kwargs
    return {**dict(zip(names, args, strict=False)), **kwargs}
