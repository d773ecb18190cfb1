"""The figures that the tests here measure, printed as one table at the end: it goes to docs/gpu-results.md."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest

Note = Callable[[str, str], None]

_rows: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def note() -> Note:
    """``note(what, figure)``: one row of the table."""
    return lambda what, figure: _rows.append((what, figure))


@pytest.fixture(scope="session")
def cuda() -> Iterator[Any]:
    """torch, with a GPU that works; the test is skipped where there is none."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here: WHAT ONLY A GPU CAN SHOW IS NOT TESTED")
    torch.cuda.init()
    return torch


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _rows:
        return
    import torch
    import transformers

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    board = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "no nvidia-smi"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {sys.version.split()[0]}"
    terminalreporter.write_sep("=", "docs/gpu-results.md")
    terminalreporter.write_line(f"{date.today()}, {board}, {versions}: make gpu-test\n")
    terminalreporter.write_line("| what | measured |\n| --- | --- |")
    for what, figure in _rows:
        terminalreporter.write_line(f"| {what} | {figure} |")
