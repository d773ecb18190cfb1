"""Forks in the middle of inferences, from random threads, while the worker works; ``FORKS=1000`` does as many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FORKS = int(os.environ.get("FORKS", "50"))
LIMIT_S = 120 + FORKS


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks among threads are for Linux")
def test_forks_in_the_middle_of_inferences_lose_double_and_block_nothing() -> None:
    folder = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "support.forks", str(FORKS)],
        env={**os.environ, "PYTHONPATH": path, "INFERSPAN_DEVICES": "never"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    facts = {name: told[name] for name in ("children", "lost", "doubled", "bad", "faults", "flushed")}
    expected = {"children": FORKS, "lost": 0, "doubled": 0, "bad": [], "faults": {}, "flushed": True}
    assert facts == expected, done.stderr[-4000:]
    assert told["of children"] == 3 * FORKS
