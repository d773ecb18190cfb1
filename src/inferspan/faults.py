"""What happens when something of ours goes wrong: it is reported once, counted, and never reaches the program.

A function of ours that runs inside the program's calls is decorated with :func:`guarded`, which costs one call more,
about 0.13 µs. Where that counts, or where only a part of a function is guarded, ``except Exception:
faults.note("place")`` stands inline: it costs nothing while nothing is raised. The guarded part is always our own code,
never the wrapped call.

Messages go to the logger ``inferspan``. Problems that the user can mend (a wrong setting, an old library) are also
issued as :class:`InferspanWarning`, at the line of the user's that led to them, so that they can be filtered; under
``-W error`` they are logged instead of raised, since a warning must not end the program that we watch.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from types import FrameType
from typing import ParamSpec, TypeVar, overload

from inferspan.core.errors import stack_of, type_name

_P = ParamSpec("_P")
_R = TypeVar("_R")
_D = TypeVar("_D")

logger = logging.getLogger("inferspan")

_REPORTED_MAX = 256

reraise = False
"""Set by our own tests: a fault then fails the test that met it."""

_reported: dict[str, object] = {}
_counts: dict[str, int] = {}
# whose frames are between us and the user: packages, by the first part of a module's name
_between = {"inferspan", "importlib", "opentelemetry", "threading", "wrapt"}


class InferspanWarning(UserWarning):
    """Something that the user can mend: what it is, what is used instead, and what to do stand in the message."""


@overload
def guarded(place: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R | None]]: ...
@overload
def guarded(place: str, default: _D) -> Callable[[Callable[_P, _R]], Callable[_P, _R | _D]]: ...
def guarded(place: str, default: object = None) -> Callable[[Callable[_P, _R]], Callable[_P, object]]:
    """A decorator: what the function raises is a fault at ``place``, and its result is then ``default``.

    Only for plain functions: what a generator or a coroutine raises comes later. An interruption
    (``KeyboardInterrupt``, ``SystemExit``) is the program's own and goes on.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, object]:
        @functools.wraps(function)
        def guarded_function(*args: _P.args, **kwargs: _P.kwargs) -> object:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - whatever it is, it is ours
                note(place)
                return default

        return guarded_function

    return decorate


def note(place: str) -> None:
    """Report the exception being handled: the first at ``place`` with where it came from, then only counted. Without
    its message, which may quote what the program works on: programs export their logs."""
    if reraise:
        raise  # called from an except block: this is that exception
    _counts[place] = _counts.get(place, 0) + 1
    error = sys.exc_info()[1]
    if error is not None and _is_first(place):
        try:
            logger.warning(
                "inferspan: a fault in %s; the program is not affected, this part of its telemetry is missing. "
                "Further faults there are counted, not logged. %s at\n%s",
                *(place, type_name(error), stack_of(error)),
            )
        except Exception:  # noqa: BLE001 - a log handler of the program's; and there is nowhere left to report it
            pass


def counts() -> dict[str, int]:
    """Faults so far, by place."""
    return dict(_counts)


def warn_once(key: str, message: str) -> None:
    """Issue ``message`` as an :class:`InferspanWarning`, the first time for this ``key``."""
    if _is_first(key):
        warn(message)


def warn(message: str) -> None:
    """Issue ``message`` as an :class:`InferspanWarning`, never raising."""
    try:
        frame = _user_frame()
        try:
            # not by a stack level: how that counts the frames of importlib differs from version to version
            warnings.warn_explicit(
                message,
                InferspanWarning,
                frame.f_code.co_filename,
                frame.f_lineno,
                frame.f_globals.get("__name__", "<string>"),
                frame.f_globals.setdefault("__warningregistry__", {}),
            )
        except InferspanWarning:
            logger.warning(message)
    except Exception:  # noqa: BLE001 - a log handler of the program's, or what it does with warnings
        pass


def look_past(packages: Iterable[str]) -> None:
    """A warning does not point into these packages either, but at who called them, or imported them."""
    _between.update(packages)


def forget() -> None:
    """Report everything anew: called by ``instrument()``, so that a second set-up is not silent about its faults."""
    _reported.clear()


def _user_frame() -> FrameType:
    """The innermost frame of the user's; in a thread of ours, which has none, the one that issues the warning."""
    ours = sys._getframe(1)
    while ours.f_globals is globals() and ours.f_back is not None:
        ours = ours.f_back
    frame: FrameType | None = ours
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _between and not frame.f_code.co_filename.startswith("<frozen "):
            return frame
        frame = frame.f_back
    return ours


def _is_first(key: str) -> bool:
    # no lock: a signal handler may come here while this runs, and a fork
    mine = object()
    return len(_reported) < _REPORTED_MAX and _reported.setdefault(key, mine) is mine
