"""How much of the package a default ``instrument()`` loads: lines of code, without the tables of names and settings."""

from __future__ import annotations

import os
import subprocess
import sys

from support.sources import code_without_tables, sources

LOADED_MAX = 6690  # it has to fall to 4,500; 180 of it are streamers in threads, generators, tokens and links of blocks

PROGRAM = """
import sys
import torch
import transformers.pipelines
import inferspan
inferspan.instrument()
print(*(name for name in sys.modules if name.partition(".")[0] == "inferspan"))
"""


def test_a_default_instrument_loads_little() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("INFERSPAN_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    by_module = {source.module: source for source in sources().values()}
    counts = {name: code_without_tables(by_module[name]) for name in done.stdout.split()}
    count = sum(counts.values())
    largest = sorted(counts.items(), key=lambda item: -item[1])[:12]
    assert count <= LOADED_MAX, (
        f"{count} lines are loaded, {count - LOADED_MAX} more than {LOADED_MAX}; most: {largest}"
    )
