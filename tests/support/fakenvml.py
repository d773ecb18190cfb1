"""The driver of the tests: the C stub of ``tests/nvml_stub``, under the real pynvml.

``FakeDriver.says`` scripts what it answers from the next call on, ``FakeDriver.calls`` tells what it was asked.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "nvml_stub" / "fakenvml.c"


def build(folder: Path) -> Path:
    """The stub as ``libnvidia-ml.so.1`` in the folder; the test is skipped where there is no gcc."""
    library = folder / "libnvidia-ml.so.1"
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: the stub of the driver cannot be built, DEVICES ARE NOT TESTED")
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE)], check=True)
    return library


class FakeDriver:
    """One test's driver: its own script and trace."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.folder = folder
        self._script = folder / "script"
        self._trace = folder / "trace"
        self.says()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process of its own; LD_LIBRARY_PATH has an effect only there."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "FAKENVML_SCRIPT": str(self._script),
            "FAKENVML_TRACE": str(self._trace),
            "INFERSPAN_DEVICES_LOCK": str(self.folder / "lock"),
            "INFERSPAN_DEVICES": "auto",
        }

    def load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process's pynvml use it, not yet initialised."""
        import pynvml

        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        library = ctypes.CDLL(str(self.library))
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        library.nvmlShutdown()
        self.forget()

    def says(self, *lines: str) -> None:
        """Replace the script: lines ``key=value``, as in the head of ``fakenvml.c``."""
        new = self._script.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self._script)

    def calls(self, pid: int | None = None) -> list[str]:
        """Functions called so far, by this process or by that one."""
        wanted = str(os.getpid() if pid is None else pid)
        return [name for process, name in self.calls_by_process() if process == wanted]

    def calls_by_process(self) -> list[tuple[Any, ...]]:
        lines = self._trace.read_text().splitlines() if self._trace.exists() else []
        return [tuple(line.split(" ")) for line in lines]

    def forget(self) -> None:
        """Start the trace anew."""
        self._trace.write_text("")


def until(condition: Callable[[], Any], patience_s: float = 30.0) -> Any:
    """Ask until the answer is true, and return it; the test fails where that takes too long."""
    deadline, pause = monotonic() + patience_s, threading.Event()
    while not (answer := condition()):
        assert monotonic() < deadline, "it did not happen"
        pause.wait(0.005)
    return answer
