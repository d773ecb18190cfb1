"""The groups of scenarios, one module each, and where their recorded text is."""

from __future__ import annotations

import gc
import importlib
import random
from importlib.metadata import version
from pathlib import Path

from golden.stage import Group, run

NAMES = (
    "tasks",
    "pipelines",
    "generation",
    "models",
    "compiled",
    "texts",
    "errors",
    "blocks",
    "batching",
    "layers",
    "content",
    "settings",
    "providers",
    "lifecycle",
    "devices",
)
"""Each is a module of ``golden.scenarios`` with a ``GROUP``."""

PINNED = ("torch", "transformers", "opentelemetry-sdk")
"""What the text depends on: a recording is for one version of each."""

_CONSTRAINTS = Path(__file__).parents[2] / "constraints"


def load(name: str) -> Group:
    """The scenarios of one group."""
    group: Group = importlib.import_module(f"golden.scenarios.{name}").GROUP
    return group


def text(name: str, chance: random.Random | None = None) -> str:
    """The text of one group. ``chance`` runs its scenarios in another order; they are written in their own."""
    group = load(name)
    order = list(group)
    if chance is not None:
        chance.shuffle(order)
    gc.collect()
    gc.freeze()  # what the groups before have left is looked at no more
    found = {scenario: run(scenario, group[scenario]) for scenario in order}
    return "\n\n".join(found[scenario] for scenario in group) + "\n"


def recorded(name: str) -> Path:
    """The file with the recorded text of one group."""
    return Path(__file__).parent / "recorded" / installed() / f"{name}.txt"


def installed() -> str:
    """``newest`` or ``oldest``, by what is installed.

    Raises:
        LookupError: it is neither.
    """
    for name in ("newest", "oldest"):
        pins = _pins(name)
        if all(version(each).split("+")[0] == pins[each] for each in PINNED):
            return name
    raise LookupError("neither the newest nor the oldest dependencies are installed")


def _pins(name: str) -> dict[str, str]:
    lines = (_CONSTRAINTS / f"{name}.txt").read_text().splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)
