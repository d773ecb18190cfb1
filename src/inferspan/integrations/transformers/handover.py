"""A streamer that is handed to a thread, or to a pool of them, belongs to whoever hands it over.

It is found among what the thread is given: its arguments, those of a ``partial``, what a function of the program's
names. Then the thread's function runs with a note of where it was begun, which only
:mod:`inferspan.integrations.transformers.streamers` reads; nothing else of the context goes along.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from threading import Thread
from types import FunctionType
from typing import Any

from inferspan import faults
from inferspan.core import current
from inferspan.integrations.patching import Patches
from inferspan.integrations.transformers.streamers import Origin, handed, origin_here


def install(_: Any, patches: Patches) -> None:
    patches.wrap(Thread, "start", _start)
    pools = sys.modules.get("concurrent.futures.thread")  # transformers has imported it by now
    if pools is not None:
        patches.wrap(pools.ThreadPoolExecutor, "submit", _submit)


def _start(original: Callable[..., None]) -> Callable[..., None]:
    def start(self: Any) -> None:
        target = vars(self).get("_target")
        if target is not None and current.settings() is not None:
            self._target = _noting(target, self._args, self._kwargs)
        original(self)

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return original(self, fn if current.settings() is None else _noting(fn, args, kwargs), *args, **kwargs)

    return submit


def _noting(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function, with a note of what is current here if it is given a streamer."""
    try:
        streamers = frozenset(map(id, filter(_is_streamer, _given(function, args, kwargs))))
        origin = origin_here() if streamers else None
        return function if origin is None else partial(_run, origin, streamers, function)
    except Exception:  # noqa: BLE001 - objects of the program's
        faults.note("streamers.handover")
        return function


def _run(origin: Origin, streamers: frozenset[int], function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = handed.set((origin, streamers))
    try:
        return function(*args, **kwargs)
    finally:
        handed.reset(token)


def _given(function: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
    for each in (*args, *kwargs.values()):
        yield each
        if type(each) is dict:
            yield from each.values()
    if isinstance(function, partial):
        yield from _given(function.func, function.args, function.keywords)
    elif isinstance(function, FunctionType):
        found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        found += [function.__globals__.get(name) for name in function.__code__.co_names]
        for cell in function.__closure__ or ():
            try:
                found.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
        yield from _given(None, found, {})


def _is_streamer(value: Any) -> bool:
    return callable(getattr(type(value), "put", None)) and callable(getattr(type(value), "end", None))
