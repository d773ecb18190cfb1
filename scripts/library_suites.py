"""The libraries' own tests, without Inferspan and with it: what ends otherwise is named, and is a bug of ours.

    python scripts/library_suites.py accelerate peft transformers
    INFERSPAN_LAYERS= python scripts/library_suites.py transformers

Takes the tests from the source distribution of the very version that is installed, and runs them in two processes one
after the other, the second with `-p support.instrumented`. Tests that need a model hub fail alike in both. A test that
ends otherwise is run again twice both ways: one that then ends both ways without us is unsteady of itself.

Prints a table row for each suite (docs/compatibility.md has them) and exits with 1 if there is a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 7200
AGAIN = 2

Outcomes = dict[str, str]


@dataclass(frozen=True)
class Suite:
    """Which of a library's tests to run: files and pytest's own arguments."""

    files: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    """What the tests import and the source distribution lacks: file and content."""
    settings: dict[str, str] = field(default_factory=dict)
    """Of Inferspan, where the environment does not say otherwise."""


SUITES = {
    "accelerate": Suite(
        tuple(
            f"tests/test_{name}.py"
            for name in (
                *("hooks", "modeling_utils", "big_modeling", "offload", "activation_checkpointing_offload"),
                *("accelerator", "data_loader", "compile", "utils", "optimizer", "scheduler", "state_checkpointing"),
            )
        ),
        # its tests put hardly a model in eval()
        settings={
            "INFERSPAN_MODULES": "eval,ModelForTest,BiggerModelForTest,NestedModelForTest,ModelWithTiedWeights,"
            "RegressionModel,RegionalCompilationModel,DummyModel",
            "INFERSPAN_LAYERS": "1",
        },
    ),
    "peft": Suite(
        ("tests/test_custom_models.py", "tests/test_bufferdict.py"),  # the others load models from the hub
        # two kinds of adapters on linear layers; with all kinds and layers it is 19,000 tests
        (
            "-k",
            "not custom_models or (TestPeftCustomModel and Vanilla and (LoRA or IA3) and not autocast and not float16"
            " and not (VBLoRA or GraLoRA or GLoRA or RandLora or TinyLoRA or UniLora or VeLoRA))",
        ),
        missing={"tests/__init__.py": ""},
        settings={"INFERSPAN_LAYERS": "1"},
    ),
    "transformers": Suite(
        ("tests/test_families.py", "tests/test_monkey_patching.py", "tests/test_image_transforms.py"),
        ("-k", "not generation_tester_mixin_inheritance"),
        missing={
            "tests/test_families.py": (ROOT / "tests/support/transformers_common.py").read_text(encoding="utf-8"),
            "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
            "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
        },
        settings={"INFERSPAN_LAYERS": "transformer"},
    ),
}


def sources(library: str, folder: Path) -> Path:
    """The unpacked source distribution of the installed version."""
    name = f"{library}-{version(library)}"
    if not (folder / name).exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--no-binary", ":all:", f"{library}=={version(library)}"], cwd=folder, check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder)
    for path, content in SUITES[library].missing.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder / name


def run(library: str, at: Path, instrumented: bool, tests: tuple[str, ...], arguments: tuple[str, ...]) -> Outcomes:
    """How each test ended, by name."""
    log, outcomes = (at.parent / f"{library}-{'on' if instrumented else 'off'}.{kind}" for kind in ("log", "json"))
    outcomes.unlink(missing_ok=True)
    environment = (
        SUITES[library].settings
        | os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(
                (str(ROOT / "src"), str(ROOT / "tests"), str(at), os.environ.get("PYTHONPATH", ""))
            ),
        }
    )
    plugins = ["-p", "support.outcomes", *(["-p", "support.instrumented"] if instrumented else [])]
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(at), "-o", "addopts=", "-o", "filterwarnings="]
    command += ["-o", "faulthandler_timeout=600", "-p", "no:cacheprovider", *plugins, "--outcomes", str(outcomes)]
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(
            [*command, *arguments, *tests],
            cwd=at,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
            check=False,
        )
    if not outcomes.exists():
        sys.exit(f"{library}: pytest did not end\n" + "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:]))
    found: Outcomes = json.loads(outcomes.read_text(encoding="utf-8"))
    return found


def said(library: str, folder: Path) -> str:
    """Spans and faults of the instrumented run, as its last lines say."""
    lines = re.findall(r"^inferspan: (.+)$", (folder / f"{library}-on.log").read_text(encoding="utf-8"), re.MULTILINE)
    return lines[0] if lines else "did not end"


def compare(library: str, folder: Path) -> bool:
    """Run a suite off and on, print its row and what differs; whether nothing does."""
    at, suite = sources(library, folder), SUITES[library]
    present = tuple(file for file in suite.files if (at / file).exists())
    off = run(library, at, False, present, suite.arguments)
    on = run(library, at, True, present, suite.arguments)
    spans = said(library, folder)
    differing = tuple(name for name in sorted({*off, *on}) if off.get(name) != on.get(name))
    seen = {name: (f"{off.get(name)}, with us {on.get(name)}", {off.get(name)}, {on.get(name)}) for name in differing}
    for _ in range(AGAIN if differing else 0):
        for way, instrumented in ((1, False), (2, True)):
            again = run(library, at, instrumented, tuple({name.split(" subtest: ")[0] for name in differing}), ())
            for name in differing:
                seen[name][way].add(again.get(name))
    unsteady = [name for name in differing if seen[name][1] & seen[name][2]]
    ended = {
        word: sum(outcome.startswith(word) for outcome in off.values()) for word in ("passed", "skipped", "failed")
    }
    row = (f"{library} {version(library)}", len(off), *ended.values(), spans, len(differing) - len(unsteady))
    print("|", " | ".join(map(str, row)), "|", flush=True)
    for name in differing:
        print(f"    {'unsteady' if name in unsteady else 'DIFFERS'}: {name}: {seen[name][0]}", flush=True)
    return len(differing) == len(unsteady) and spans.endswith(" 0 faults")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", choices=SUITES)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "suites", help="for sources and logs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| suite | tests | passed | skipped | failed without us too | with us on | differences |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    same = [compare(library, options.folder.resolve()) for library in options.libraries]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
