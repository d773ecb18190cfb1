"""``scripts/backends.py`` as a user runs it, with a ``go`` that only does as if."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "backends.py"
PROGRAMS = ["prometheus", "promtool", "alertmanager", "amtool", "jaeger", "otelcol"]
BUILDS = """#!/bin/sh
echo "$@" >> "$CALLS"
while [ "$1" != -o ]; do shift; done
echo program > "$2"
"""
FAILS = """#!/bin/sh
echo "go: downloading example.org/module v1.0.0"
echo "{}"
exit 1
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the go of these tests is a shell script")


class Builder:
    """The script, its cache and its go."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.calls = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()

    def has_go(self, script: str) -> None:
        go = self._bin / "go"
        go.write_text(script)
        go.chmod(go.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments: str) -> tuple[int, str]:
        environ = {
            "PATH": f"{self._bin}{os.pathsep}/bin{os.pathsep}/usr/bin",
            "INFERSPAN_BACKENDS_CACHE": str(self.cache),
            "CALLS": str(self.calls),
        }
        if not (self._bin / "go").exists():
            environ["PATH"] = str(self._bin)
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], env=environ, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_build_of_everything_and_then_of_nothing(builder: Builder) -> None:
    builder.has_go(BUILDS)
    status, output = builder.run()
    calls = builder.calls.read_text()
    again = builder.run()

    assert status == 0, output
    assert len(calls.splitlines()) == len(PROGRAMS)
    assert [line.rpartition("...")[0] for line in output.splitlines()[:-1]] == [
        "[backends] building prometheus and promtool (Prometheus 3.14) ",
        "[backends] building alertmanager and amtool (Alertmanager 0.31) ",
        "[backends] building jaeger (Jaeger 2.13) ",
        "[backends] building otelcol (OpenTelemetry Collector 0.159) ",
    ]
    assert again == (0, f"[backends] {', '.join(PROGRAMS)}: all there, in {builder.cache}\n")
    assert builder.calls.read_text() == calls
    # what was left half done is not in the cache
    assert sorted(path.name.partition("-")[0] for path in builder.cache.iterdir()) == [
        "alertmanager",
        "collector",
        "jaeger",
        "prometheus",
    ]
    for name in PROGRAMS:
        status, path = builder.run("--path", name)
        assert (status, Path(path.strip()).read_text()) == (0, "program\n")


def test_path_of_what_is_not_built_says_what_to_do(builder: Builder) -> None:
    assert builder.run("--path", "promtool") == (1, "[backends] promtool is not built yet: run `make backends`.\n")


def test_path_of_an_unknown_program_names_the_known(builder: Builder) -> None:
    names = ", ".join(PROGRAMS)

    assert builder.run("--path", "tempo") == (1, f"[backends] There is no program tempo here, only {names}.\n")


def test_without_go_nothing_is_built_and_that_is_said(builder: Builder) -> None:
    status, output = builder.run()

    assert status == 0
    assert output == (
        "[backends] !!!!! NOTHING IS BUILT: no Go toolchain on PATH (https://go.dev/dl), so no"
        f" {', '.join(PROGRAMS)}: tests that need one will be skipped !!!!!\n"
    )


@pytest.mark.parametrize(
    ("said", "explained", "expected"),
    [
        pytest.param("dial tcp: lookup proxy.golang.org: no such host", "Is there a network?", 75, id="network"),
        pytest.param("go: go.mod requires go >= 1.26 (running go 1.21)", "requires go >= 1.26", 75, id="old Go"),
        pytest.param("write /x: no space left on device", "The disk is full", 1, id="disk"),
        pytest.param("main.go:1:1: expected 'package'", "expected 'package'", 1, id="anything else"),
    ],
)
def test_build_that_fails_is_explained_and_leaves_nothing(
    builder: Builder, said: str, explained: str, expected: int
) -> None:
    builder.has_go(FAILS.format(said))
    status, output = builder.run()

    assert status == expected
    assert explained in output
    assert said in output
    assert "downloading" not in output
    assert list(builder.cache.iterdir()) == []
