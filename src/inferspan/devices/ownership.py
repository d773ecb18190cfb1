"""Which process of a host reports a device: one byte of a lock file for each.

The operating system releases a process's locks when it ends, however it ends, in a container too; so an owner's death
is noticed by the next process that wants to report, and no process ids are compared. The first byte is the agent's:
while it is locked, no other process owns anything.

Locks are POSIX record locks: a forked child does not inherit them, so it can neither hold nor release its parent's.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Collection

from inferspan import faults

try:
    import fcntl
except ImportError:  # Windows: every process reports
    fcntl = None  # type: ignore[assignment]

_AGENT = 0


class Ownership:
    """``policy`` is ``auto``, ``agent``, or, without a lock, ``always`` or ``never``."""

    def __init__(self, policy: str, path: str = "") -> None:
        self._policy = policy
        self._path = path or os.path.join(tempfile.gettempdir(), "inferspan-devices.lock")
        self._pid = os.getpid()
        self._file: int | None = None
        self._held: set[int] = set()

    def owned(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that this process reports; what it holds it keeps until its end or the agent's start."""
        if self._policy == "never":
            return set()
        file = None if self._policy == "always" or fcntl is None else self._opened()
        if file is None:
            return set(ids)
        if self._policy == "agent":
            if not self._take(file, _AGENT):
                return set()
        elif not _lock(file, _AGENT, fcntl.LOCK_SH):
            self.release()
            return set()
        else:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, _AGENT)
        return {name for name in ids if self._take(file, 1 + zlib.crc32(name.encode()) % (1 << 30))}

    def release(self) -> None:
        """Give everything up: closing the file does."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._held = None, set()

    def _take(self, file: int, offset: int) -> bool:
        if offset not in self._held and _lock(file, offset, fcntl.LOCK_EX):
            self._held.add(offset)
        return offset in self._held

    def _opened(self) -> int | None:
        try:
            if self._file is not None and (self._pid != os.getpid() or not _is_at(self._file, self._path)):
                self.release()
            if self._file is None:
                self._file, self._pid = _open(self._path), os.getpid()
        except OSError as error:
            faults.warn_once(
                "devices lock",
                f"{self._path} cannot be used to agree with other processes on who reports the devices "
                f"({error.strerror}); this one does. Set INFERSPAN_DEVICES_LOCK, or INFERSPAN_DEVICES=never in all "
                "processes but one",
            )
        return self._file


def _is_at(file: int, path: str) -> bool:
    """Whether the open file still has this name: cleaners of old files take it away, and others then lock a new one."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        # O_CREAT only where it is missing: Linux refuses it for another user's file in /tmp (fs.protected_regular)
        file = os.open(path, flags | os.O_CREAT, 0o666)
    os.fchmod(file, 0o666)  # processes of other users agree by it too; nothing is ever written to it
    return file


def _lock(file: int, offset: int, kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB, 1, offset)
    except OSError:
        return False
    return True
