"""Which CUDA graphs are being captured: while one is, no thread of ours may ask CUDA whether an event is done.

A query by any thread while a stream is captured in CUDA's default mode ruins that capture (pytorch#148594 is the same
for NCCL's watchdog). Recording an event is allowed.
"""

from __future__ import annotations

import threading
from typing import Any

from inferspan import forks


class Captures:
    """Which graphs are being captured in this process. Fed by :mod:`inferspan.integrations.torch.graphs`."""

    def __init__(self) -> None:
        self._reset()
        forks.register(after_in_child=self._reset)

    def _reset(self) -> None:
        self._running: set[int] = set()
        self._reading = threading.Lock()

    def begin(self, graph: Any) -> None:
        """A capture is about to begin: readers that have begun to query finish first, which takes microseconds."""
        # not for ever: a signal handler may capture while its own thread is reading
        read = self._reading.acquire(timeout=1.0)
        self._running.add(id(graph))
        if read:
            self._reading.release()

    def end(self, graph: Any) -> None:
        """It has ended, well or not."""
        self._running.discard(id(graph))

    def keep_out(self) -> bool:
        """Whether a capture can be kept from beginning now; then :meth:`let_in` must follow. Never waits."""
        if not self._reading.acquire(blocking=False):
            return False
        if self._running:
            self._reading.release()
            return False
        return True

    def let_in(self) -> None:
        """What :meth:`keep_out` allowed is over."""
        self._reading.release()


captures = Captures()
