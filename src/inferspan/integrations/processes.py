"""Where a process ends without exit handlers: what they would have emitted is emitted before.

Processes of ``multiprocessing`` that were forked (a ``Pool``, a DataLoader's workers, a fork server's children) and
Celery's leave by ``os._exit``. Uvicorn ends by the signal that stopped it, whose default handler it has put back. No
handler of a signal is touched here, and a process that has recorded nothing is left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any

from inferspan.core import current, process
from inferspan.integrations.patching import Patches

_LAST = -sys.maxsize
_SPARK = ("pyspark.daemon", "pyspark.worker")


def may_be_killed() -> bool:
    """Whether this process is one that may be ended without a word: a worker of Ray, Spark, Celery, ``multiprocessing``
    (pools, DataLoader, Dask), or a function of AWS Lambda, which sleeps between its calls and may never wake up."""
    ray, celery, main = (sys.modules.get(name) for name in ("ray._private.worker", "billiard.process", "__main__"))
    multiprocessing = sys.modules.get("multiprocessing.process")
    return (
        (ray is not None and ray.global_worker.mode == ray.WORKER_MODE)
        or (celery is not None and celery.current_process().name != "MainProcess")
        or (multiprocessing is not None and multiprocessing.parent_process() is not None)
        or getattr(getattr(main, "__spec__", None), "name", None) in _SPARK
        or "AWS_LAMBDA_FUNCTION_NAME" in os.environ
    )


def install_multiprocessing(module: ModuleType, patches: Patches) -> None:
    def begin(_: Patches) -> None:
        current.forget_all()  # forked inside an inference: it runs what it is sent, not what follows in there
        module.Finalize(None, process.leave_process, exitpriority=_LAST)

    module.register_after_fork(patches, begin)  # as long as the patches live
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        module.Finalize(None, process.leave_process, exitpriority=_LAST)


def install_uvicorn(module: ModuleType, patches: Patches) -> None:
    def stopping(original: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
        async def shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
            await original(self, *args, **kwargs)
            if getattr(self, "_captured_signals", None):  # raised again as soon as this returns
                process.leave_process()

        return shutdown

    patches.wrap(module.Server, "shutdown", stopping)


def install_billiard(module: ModuleType, patches: Patches) -> None:
    def exiting(original: Callable[..., None]) -> Callable[..., None]:
        def _do_exit(self: Any, *args: Any, **kwargs: Any) -> None:
            process.leave_process()
            original(self, *args, **kwargs)

        return _do_exit

    patches.wrap(module.Worker, "_do_exit", exiting)
