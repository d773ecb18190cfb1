"""torch's own open-registration device: a backend that nobody here wrote, with streams, events and an allocator.

``INFERSPAN_OPENREG`` names the folder that has the package ``torch_openreg``, built for the torch that is installed
(its sources are in torch's repository, below ``test/cpp_extensions``). Without it the tests here are skipped. It
becomes the accelerator of the whole process, so ``make openreg`` runs them by themselves.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferspan.probes import accelerator

FOLDER = os.environ.get("INFERSPAN_OPENREG", "")  # before the environment is cleaned for each test
_COMPLETED = 88
"""Where an event has its flag: behind a mutex and a condition of libstdc++ on Linux. The gate looks whether it is."""


@pytest.fixture(scope="session")
def openreg_folder() -> Path:
    if not FOLDER:
        pytest.skip("INFERSPAN_OPENREG names no torch_openreg: NO DEVICE BUT STAND-INS IS TESTED")
    return Path(FOLDER).resolve()


@pytest.fixture(scope="session")
def openreg(openreg_folder: Path) -> Any:
    """torch, with the device registered as ``openreg``."""
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(openreg_folder))
    import torch_openreg  # noqa: F401

    torch.ones(1, device="openreg:0")  # as a program that uses it already
    return torch


class Gate:
    """A stream of the device that works on nothing until the test says so."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._closed, self._stream, self._other = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        assert library.orEventCreate(ctypes.byref(self._closed)) == 0
        for stream in (self._stream, self._other):
            assert library.orStreamCreate(ctypes.byref(stream)) == 0
        where = ctypes.cast(self._closed, ctypes.POINTER(ctypes.c_void_p))[0]
        ctypes.c_bool.from_address((where or 0) + _COMPLETED).value = False
        assert library.orEventQuery(self._closed) != 0, "an event is laid out otherwise in this build"
        self.stream_id = self._stream.value

    def close(self) -> None:
        """What is queued from now on waits."""
        assert self._library.orStreamWaitEvent(self._stream, self._closed, 0) == 0

    def open(self) -> None:
        """The stream goes on."""
        assert self._library.orEventRecord(self._closed, self._other) == 0


@pytest.fixture
def gate(openreg: Any, openreg_folder: Path) -> Iterator[Gate]:
    """The gate of a stream that is the current one of ``openreg:0``."""
    gate = Gate(ctypes.CDLL(str(openreg_folder / "torch_openreg" / "lib" / "libopenreg.so")))
    before = openreg.accelerator.current_stream(0)
    kind = before.device_type
    openreg.accelerator.set_stream(openreg.Stream(stream_id=gate.stream_id, device_index=0, device_type=kind))
    yield gate
    gate.open()
    openreg.accelerator.set_stream(before)


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the events of another."""
    monkeypatch.setattr(accelerator, "_known", {})
