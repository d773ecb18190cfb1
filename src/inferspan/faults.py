"""What happens when something of ours goes wrong: it is told once, counted, and never reaches the program.

Hot paths catch inline (``except Exception: faults.note("pipelines.open")``), because a context manager there would
cost more than the work that it guards. The guarded part is always our own code, never the wrapped call.

Messages go to the logger ``inferspan``. Problems that the user can mend (a wrong setting, an old library) are also
issued as :class:`InferspanWarning`, so that they can be filtered; under ``-W error`` they are logged instead of
raised, since a warning must not end the program that we watch.
"""

from __future__ import annotations

import logging
import warnings

logger = logging.getLogger("inferspan")

_TOLD_MAX = 256

reraise = False
"""Set by our own tests: a fault then fails the test that met it."""

_told: dict[str, object] = {}
_counts: dict[str, int] = {}


class InferspanWarning(UserWarning):
    """Something that the user can mend: what it is, what is used instead, and what to do stand in the message."""


def note(place: str) -> None:
    """Report the exception being handled: the first at ``place`` with its traceback, then only counted."""
    if reraise:
        raise  # called from an except block: this is that exception
    _counts[place] = _counts.get(place, 0) + 1
    if _first_time(place):
        try:
            logger.warning(
                "inferspan: a fault in %s; the program is not affected, this part of its telemetry is missing. "
                "Further faults there are counted, not logged.",
                place,
                exc_info=True,
            )
        except Exception:  # noqa: BLE001 - a log handler of the program's; and there is nowhere left to tell it
            pass


def counts() -> dict[str, int]:
    """Faults so far, by place."""
    return dict(_counts)


def warn_once(key: str, message: str) -> None:
    """Issue ``message`` as an :class:`InferspanWarning`, the first time for this ``key``."""
    if _first_time(key):
        warn(message)


def warn(message: str) -> None:
    """Issue ``message`` as an :class:`InferspanWarning`, never raising."""
    try:
        try:
            warnings.warn(message, InferspanWarning, stacklevel=2)
        except InferspanWarning:
            logger.warning(message)
    except Exception:  # noqa: BLE001 - a log handler of the program's, or what it does with warnings
        pass


def forget() -> None:
    """Tell everything anew: called by ``instrument()``, so that a second set-up is not silent about its faults."""
    _told.clear()


def _first_time(key: str) -> bool:
    # no lock: a signal handler may come here while this runs, and a fork
    mine = object()
    return len(_told) < _TOLD_MAX and _told.setdefault(key, mine) is mine
