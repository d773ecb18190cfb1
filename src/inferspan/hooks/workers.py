"""Where a process ends without exit handlers: what they would have told is told before.

Processes of ``multiprocessing`` that were forked (a ``Pool``, a DataLoader's workers, a fork server's children) and
Celery's leave by ``os._exit``. Uvicorn ends by the signal that stopped it, whose default handler it has put back. No
handler of a signal is touched here, and a process that has recorded nothing is left alone.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from inferspan.hooks.patches import Patches
from inferspan.inference import scope

_LAST = -sys.maxsize


def _install_processes(module: ModuleType, patches: Patches) -> None:
    def begin(_: Patches) -> None:
        scope.ACTIVE.set(None)  # forked inside an inference: it runs what it is sent, not what follows in there
        module.Finalize(None, scope.leave_process, exitpriority=_LAST)

    module.register_after_fork(patches, begin)  # as long as the patches live
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        module.Finalize(None, scope.leave_process, exitpriority=_LAST)


def _install_uvicorn(module: ModuleType, patches: Patches) -> None:
    signals = module.HANDLED_SIGNALS

    def capturing(
        original: Callable[[Any], AbstractContextManager[None]],
    ) -> Callable[[Any], AbstractContextManager[None]]:
        @contextmanager
        def capture_signals(self: Any) -> Iterator[None]:
            deadly = {number for number in signals if signal.getsignal(number) is signal.SIG_DFL}
            with original(self):
                yield
                if deadly.intersection(self._captured_signals):  # raised again when this is left
                    scope.leave_process()

        return capture_signals

    patches.wrap(module.Server, "capture_signals", capturing)


def _install_billiard(module: ModuleType, patches: Patches) -> None:
    def exiting(original: Callable[..., None]) -> Callable[..., None]:
        def _do_exit(self: Any, *args: Any, **kwargs: Any) -> None:
            scope.leave_process()
            original(self, *args, **kwargs)

        return _do_exit

    patches.wrap(module.Worker, "_do_exit", exiting)


MODULES = {
    "multiprocessing.util": _install_processes,
    "uvicorn.server": _install_uvicorn,
    "billiard.pool": _install_billiard,
}
