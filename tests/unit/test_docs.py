"""The generated parts of the documentation are what the tables say."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import inferspan
from inferspan import config, semconv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """scripts/docs.py as a module."""
    spec = importlib.util.spec_from_file_location("inferspan_docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, docs: ModuleType) -> Path:
    """The scripts and every file that they write, brought up to date."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "scripts").mkdir()
    for script in ("docs.py", "architecture.py"):
        shutil.copy(ROOT / "scripts" / script, folder / "scripts")
    for file in [*(file for file, _ in docs.PARTS.values()), *docs.WHOLE]:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    assert run(folder) == (0, "")
    return folder


@pytest.fixture
def copy(tmp_path: Path, written: Path) -> Path:
    """A copy of that, which the test may alter."""
    return shutil.copytree(written, tmp_path / "copy")


def run(root: Path, *arguments: str) -> tuple[int, str]:
    """Status and output of ``scripts/docs.py`` under ``root``."""
    path = os.pathsep.join([str(Path(inferspan.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / "docs.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_docs_are_what_the_tables_say() -> None:
    assert run(ROOT, "--check") == (0, "")


def test_docs_check_of_unchanged_files_passes(copy: Path) -> None:
    assert run(copy, "--check") == (0, "")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("docs/configuration.md", "| `64` |", "| `65` |", id="another default"),
        pytest.param("docs/telemetry.md", "| `inferspan.cold` |", "| `inferspan.warm` |", id="another name"),
        pytest.param("docs/telemetry.md", "<!-- events: end -->", "| more |\n<!-- events: end -->", id="one row more"),
    ],
)
def test_docs_check_of_an_altered_file_fails_and_names_it(copy: Path, file: str, old: str, new: str) -> None:
    text = (copy / file).read_text("utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), "utf-8")

    assert run(copy, "--check") == (1, f"{file} is not what the tables say: run `make docs`\n")


def test_docs_written_anew_mend_an_altered_part_and_keep_the_rest(copy: Path) -> None:
    file = copy / "docs" / "telemetry.md"
    before = file.read_text("utf-8")
    file.write_text(before.replace("| `inferspan.cold` |", "| `inferspan.warm` |") + "By hand.\n", "utf-8")

    assert run(copy) == (0, "")
    assert file.read_text("utf-8") == before + "By hand.\n"


def test_docs_with_a_part_missing_say_which(copy: Path) -> None:
    file = copy / "docs" / "telemetry.md"
    file.write_text(file.read_text("utf-8").replace("<!-- metrics: begin -->", ""), "utf-8")

    status, output = run(copy, "--check")
    assert (status, output) == (
        1,
        "docs/telemetry.md has no part <!-- metrics: begin --> … <!-- metrics: end -->\n",
    )


def test_docs_tables_have_every_row(docs: ModuleType) -> None:
    def names(table: str) -> list[str]:
        return [line.split("|")[1].strip().strip("`") for line in table.splitlines()[2:]]

    assert names(docs.settings()) == [setting.variable for setting in config.SETTINGS]
    assert names(docs.attributes()) == list(semconv.ATTRIBUTES)
    assert names(docs.spans()) == list(semconv.SPANS)
    assert names(docs.metrics()) == list(semconv.METRICS)
    assert names(docs.events()) == list(semconv.EVENTS)


def test_architecture_says_of_every_name_which_file_makes_it(docs: ModuleType) -> None:
    assert docs.architecture.unmade() == set()


def test_architecture_has_every_file(docs: ModuleType) -> None:
    rows = [line.split("|")[1].strip().strip("`") for line in docs.architecture.files().splitlines() if ".py`" in line]
    package = Path(inferspan.__file__).parent
    files = [file.relative_to(package) for file in package.rglob("*.py")]
    folders = [folder for folder in docs.architecture.FOLDERS if folder]
    found = [str(file).partition("/")[2] if str(file).partition("/")[0] in folders else str(file) for file in files]
    assert sorted(rows) == sorted(name for name in found if name != "__init__.py")
