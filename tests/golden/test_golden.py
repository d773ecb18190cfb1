"""The golden run: what Inferspan tells of each scenario is what it told when that was recorded.

``README.md`` beside this file says how to run it, how to record it anew, and what a reviewer has to look at.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from golden import groups, internals
from golden.compare import difference, renamed
from golden.stage import quick_collections

ROOT = Path(__file__).resolve().parents[2]
# How often Dynamo compiles depends on what the process has compiled before: this group has a process of its own.
PROCESS_WIDE = {"compiled"}


@pytest.fixture(autouse=True, scope="module")
def collections() -> Iterator[None]:
    with quick_collections():
        yield


@pytest.fixture(autouse=True)
def no_faults_afterwards() -> Iterator[None]:
    yield
    internals.forget_faults()


@pytest.mark.parametrize("fast_path", ["true", "false"], ids=["fast path", "plain path"])
@pytest.mark.parametrize("group", groups.NAMES)
def test_golden_run_emits_what_was_recorded(group: str, fast_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the short ways past the SDK's public interface, and on the ordinary ones."""
    try:
        recorded = groups.recorded(group)
    except LookupError as error:
        pytest.skip(f"{error}: THE GOLDEN RUN IS NOT COMPARED")
    monkeypatch.setenv("INFERSPAN_FAST_PATH", fast_path)
    if group in PROCESS_WIDE:
        command = [sys.executable, "-m", "golden.record", "--check", group]
        path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    found = difference(recorded.read_text(), groups.text(group))
    assert not found, f"{recorded.name} of the golden run differs:\n{found}"


def test_renamed_text_is_sorted_by_the_new_names() -> None:
    recorded = "- forward\n    a.one = 1\n    b.two = 2\nc.old counter\n  {a.one=2, b.two=2} 1\nd.e gauge s\n"
    found = renamed(recorded, {"a.one": "z.one", "c.old": "x.new", "b": "no"})
    assert found == "- forward\n    b.two = 2\n    z.one = 1\nd.e gauge s\nx.new counter\n  {b.two=2, z.one=2} 1\n"
