"""docs/extending.md does what it says: its code blocks, in a copy of the source, are a measure and a library more."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
BLOCK = re.compile(r"(?:<!-- (\w+)(?:: (.*?))? -->\n)?```(\w*)\n(.*?)```\n", re.DOTALL)
AFTER = """
import json, sys

from inferspan import config
from inferspan.integrations.patching import is_ours


def points_of(name):
    found = [
        {**dict(point.attributes), "is_counted": point.value >= 0}
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]
    return sorted(found, key=str)


made = spans.get_finished_spans()
root = next(span for span in made if span.parent is None)
points = points_of("inferspan.page_faults")
is_patched = is_ours(vars(Encoder)["encode"])
inferspan.uninstrument()
spans.clear()
Encoder().encode(["four"])
print(json.dumps({
    "spans": [(span.name, span.parent and span.parent.span_id == root.context.span_id) for span in made],
    "attributes": dict(root.attributes),
    "points": points,
    "hooks": "toylib" in config.HOOKS,
    "patched": is_patched,
    "left": [name for name, method in vars(Encoder).items() if hasattr(method, "_inferspan_wrapper")],
    "after": len(spans.get_finished_spans()),
    "torch": "torch" in sys.modules,
}))
"""


def blocks(kind: str) -> list[tuple[str, str]]:
    """Argument and text of the page's blocks that are marked so."""
    return [(argument, text) for found, argument, _, text in BLOCK.findall(PAGE) if found == kind]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with the page's files and rows, and nothing else changed."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in blocks("file"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        assert not path.exists(), f"{name} is there already"
        path.write_text(text, "utf-8")
    for argument, text in blocks("row"):
        name, _, anchor = argument.partition(", before: ")
        before = (folder / name).read_text("utf-8")
        assert before.count(f"\n{anchor}") == 1, f"{name} has no single line {anchor!r}"
        (folder / name).write_text(before.replace(f"\n{anchor}", f"\n{text}{anchor}"), "utf-8")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_page_adds_a_measure_and_a_library_by_their_files_and_rows_alone(copy: Path) -> None:
    ((_, program),) = blocks("program")
    done = subprocess.run(
        [sys.executable, "-c", program + AFTER],
        capture_output=True,
        text=True,
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(copy / "src"), str(copy)])},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)

    attributes = found.pop("attributes")
    measured = {name: attributes.pop(name) for name in list(attributes) if name.startswith("inferspan.process.")}
    assert attributes == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": "toy/encoder",
        "gen_ai.usage.input_tokens": 3,
        "inferspan.batch.size": 2,
        "inferspan.cold": True,
        "inferspan.model.class": "Encoder",
        "inferspan.sequence.length": 2,
    }
    assert measured["inferspan.process.page_faults"] >= 0
    of_call = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "toy/encoder", "is_counted": True}
    assert found == {
        "spans": [["tokenize", True], ["forward", True], ["embeddings toy/encoder", None]],
        "points": [{**of_call, "inferspan.page_fault.type": kind} for kind in ("major", "minor")],
        "hooks": True,
        "patched": True,
        "left": [],
        "after": 0,
        "torch": False,
    }


def test_page_shows_the_trace_that_comes_out() -> None:
    ((_, trace),) = blocks("trace")
    assert re.findall(r"^[├└─ ]*(\S+)", trace, re.MULTILINE) == ["embeddings", "tokenize", "forward"]


def test_new_files_have_names_of_their_own_and_pass_the_same_rules(copy: Path) -> None:
    files = [name for name, _ in blocks("file") if name.startswith("src/")]
    assert files == ["src/inferspan/probes/page_faults.py", "src/inferspan/integrations/toylib.py"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), *files],
        capture_output=True,
        text=True,
        cwd=copy,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "All checks passed!\n")


def test_templates_are_python() -> None:
    templates = [text for kind, _, language, text in BLOCK.findall(PAGE) if not kind and language == "python"]
    assert len(templates) == 2
    for text in templates:
        ast.parse(text)
