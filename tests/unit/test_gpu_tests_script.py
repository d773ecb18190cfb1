"""``scripts/gpu_tests.py``: what is packed for a machine without a package index, and what is used of it there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_tests
import pytest
from environment import ROOT, SetupError


class Index:
    """Has one wheel, of this size, and notes what pip was asked for."""

    def __init__(self, size: int = 7) -> None:
        self.size = size
        self.asked: list[str] = []

    def call(self, step: Any, command: list[str]) -> None:
        self.asked = command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "opentelemetry_sdk-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("opentelemetry/sdk.py", "x" * self.size)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packed"
    monkeypatch.setattr(gpu_tests, "PACKED", folder)
    return folder


def has(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)


def test_pack_replaces_the_one_before(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(packed, "opentelemetry_sdk-0.9")
    index = Index()
    monkeypatch.setattr(gpu_tests.Step, "call", lambda step, command: index.call(step, command))
    assert gpu_tests.main(["pack"]) == 0
    assert [str(path.relative_to(packed)) for path in sorted(packed.rglob("*")) if path.is_file()] == [
        "opentelemetry_sdk-1.0/opentelemetry/sdk.py"
    ]
    assert capsys.readouterr().out.endswith(" s\n  opentelemetry_sdk-1.0\n")
    assert {"--platform=any", "--abi=none", "--only-binary=:all:"} < set(index.asked), "pure wheels"
    assert index.asked[-3:] == ["opentelemetry-sdk", "opentelemetry-instrumentation", "nvidia-ml-py"]
    assert index.asked[index.asked.index("--constraint") + 1] == str(ROOT / "constraints" / "newest.txt")


def test_pack_that_is_too_large_leaves_the_one_before(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(packed, "opentelemetry_sdk-0.9")
    index = Index(size=2 << 20)
    monkeypatch.setattr(gpu_tests.Step, "call", lambda step, command: index.call(step, command))
    monkeypatch.setattr(gpu_tests, "SIZE_MAX", 1 << 20)
    with pytest.raises(SetupError, match="has 2 MiB; 1 MiB is what can be carried"):
        gpu_tests.pack()
    assert [path.name for path in packed.iterdir()] == ["opentelemetry_sdk-0.9"]


def test_what_is_missing_is_used_and_opentelemetry_of_one_version(packed: Path) -> None:
    has(packed, "opentelemetry_api-1.0", "opentelemetry_sdk-1.0", "pytest-1.0", "no_such_distribution-1.0")
    assert [folder.name for folder in gpu_tests.lacking()] == [
        "no_such_distribution-1.0",
        "opentelemetry_api-1.0",
        "opentelemetry_sdk-1.0",
    ]


def test_tests_run_by_this_python_with_the_pack(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(packed, "no_such_distribution-1.0")
    ran: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        ran.update(command=command, **options)
        return SimpleNamespace(returncode=5)

    monkeypatch.setattr(gpu_tests, "is_installed", lambda name: not name.startswith("no_such"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "of-the-machine")
    assert gpu_tests.main(["test", "-k", "graphs"]) == 5
    assert ran["command"] == [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu", "-k", "graphs"]
    assert ran["cwd"] == ROOT
    assert ran["env"]["PYTHONPATH"].split(os.pathsep) == [
        str(ROOT / "src"),
        str(ROOT / "tests"),
        str(packed / "no_such_distribution-1.0"),
        "of-the-machine",
    ]


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ((), "has no torch, transformers, pytest: name another one, make gpu-test PYTHON=..."),
        (gpu_tests.NEEDED, "There is no .gpu-wheels here: make gpu-pack where there is a package index"),
    ],
)
def test_what_is_not_there_is_said(
    installed: tuple[str, ...],
    says: str,
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu_tests, "is_installed", lambda name: name in installed)
    assert gpu_tests.main(["test"]) == 1
    assert says in capsys.readouterr().err


def test_another_word_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_tests.main(["run"]) == 2
    assert "gpu_tests.py pack" in capsys.readouterr().err
