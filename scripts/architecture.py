"""The generated parts of docs/architecture.md, read from the source; ``scripts/docs.py`` writes them.

They say what each file is for, which folder imports which, the way of a record, and which file makes which name.

Nothing is imported but the package's own location and the tables in ``semconv.py``: the files are parsed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from textwrap import shorten

import inferspan
from inferspan import semconv

PACKAGE = Path(inferspan.__file__).resolve().parent
FOLDERS = ("", "core", "probes", "integrations", "emit", "devices", "exporters", "bench", "cli")
READERS = ("cli/", "exporters/", "semconv.py")
"""These use names to read what others have made; so does ``bench/``, but for what it makes itself."""

STEPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "calling thread: an integration's wrapped method",
        (
            ("core/current.py", "here"),
            ("core/current.py", "plan"),
            ("core/current.py", "open_inference"),
            ("core/probe.py", "begin"),
            ("emit/pipeline.py", "Pipeline.start_root"),
            ("core/current.py", "enter"),
            ("core/record.py", "Inference.begin"),
            ("core/current.py", "begin_forward"),
            ("core/record.py", "Inference.end"),
            ("core/probe.py", "end"),
            ("core/current.py", "leave"),
            ("core/current.py", "close"),
            ("emit/worker.py", "Worker.submit"),
        ),
    ),
    (
        "background worker: Pipeline._emit",
        (
            ("core/probe.py", "is_ready"),
            ("core/probe.py", "parts_of"),
            ("core/probe.py", "add_up"),
            ("core/probe.py", "Probe.report"),
            ("emit/metrics.py", "Points.emit_inference"),
            ("emit/content.py", "content_attributes"),
            ("emit/spans.py", "root_attributes"),
            ("emit/spans.py", "emit_inference"),
            ("emit/writer.py", "TracerWriter.write"),
        ),
    ),
)
"""The functions that a record passes, in order."""


def way() -> str:
    """The way of a record, as text: function, file, and the first sentence of its docstring."""
    lines = ["```"]
    for index, (where, steps) in enumerate(STEPS):
        lines += ["│" if index else "", where] if index else [where]
        for file, name in steps:
            purpose = shorten(_first_sentence(_function(file, name)).partition(": ")[0], 72, placeholder=" …")
            lines.append(f"├─ {name + '()':25}{file:18}{purpose}")
    return "\n".join([*lines, "▼", "span processors, metric readers and log processors of the program", "```"])


def files() -> str:
    """Every file with the first sentence of its docstring."""
    parts = []
    for folder in FOLDERS:
        prefix = f"{folder}/" if folder else ""
        rows = [
            (f"`{path.removeprefix(prefix)}`", _first_sentence(tree))
            for path, tree in _trees().items()
            if (path.startswith(prefix) if folder else "/" not in path) and path != f"{prefix}__init__.py"
        ]
        purpose = _first_sentence(_trees()[f"{prefix}__init__.py"])
        parts.append(f"**`{prefix or 'inferspan/'}`** {purpose}.\n\n" + _table(("file", "what it is for"), rows))
    return "\n\n".join(parts)


def imports() -> str:
    """Which folder imports which, when it is loaded itself."""
    rows = []
    for folder in FOLDERS:
        found: set[str] = set()
        for path, tree in _trees().items():
            if _folder(path) == folder:
                found.update(_folder(other) for other in _imported(tree))
        shown = [f"`{other}`" for other in FOLDERS if other in found and other not in (folder, "")]
        rows.append((f"`{folder}`" if folder else "top level", ", ".join(shown) or "none of these"))
    return _table(("folder", "imports from"), rows)


def makers() -> str:
    """Which file makes which attribute, metric and event."""
    tables = (semconv.ATTRIBUTES, semconv.METRICS, semconv.EVENTS)
    constants = {name: value for name, value in vars(semconv).items() if isinstance(value, str)}
    made: dict[str, list[set[str]]] = {}
    for path, tree in _trees().items():
        if path.startswith(READERS):
            continue
        for constant, is_key in _used(tree):
            value = constants.get(constant, "")
            for index, table in enumerate(tables):
                # an attribute is made where it is a key; the same name may be an attribute and a metric
                is_row = value in table and constant in _rows(index) and (is_key or index > 0)
                if is_row and (value in _of_bench() or not path.startswith("bench/")):
                    made.setdefault(path, [set(), set(), set()])[index].add(value)
    rows = [
        (f"`{path}`", *(", ".join(f"`{it}`" for it in sorted(names)) for names in found))
        for path, found in made.items()
    ]
    return _table(("file", "attributes", "metrics", "events"), rows)


def unmade() -> set[str]:
    """Names in the tables that no file seems to make."""
    text = makers()
    return {
        name
        for table in (semconv.ATTRIBUTES, semconv.METRICS, semconv.EVENTS)
        for name in table
        if f"`{name}`" not in text
    }


def _of_bench() -> set[str]:
    metrics = [metric for metric in semconv.METRICS.values() if metric.source == "bench"]
    others = {name for metric in semconv.METRICS.values() if metric not in metrics for name in metric.attributes}
    return {name for metric in metrics for name in (metric.name, *metric.attributes) if name not in others}


@cache
def _rows(index: int) -> frozenset[str]:
    """The constants of ``semconv.py`` that are rows of this table."""
    makes = ("_attribute", "_metric", "EVENTS")[index]
    found = set()
    for node in _trees()["semconv.py"].body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            call = node.value
            if isinstance(call, ast.Call) and ast.unparse(call.func) == makes:
                found.add(node.targets[0].id)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("EVENTS[") and index == 2:
            found.add(ast.unparse(node.targets[0])[len("EVENTS[") : -1])
    return frozenset(found)


@cache
def _trees() -> dict[str, ast.Module]:
    return {
        file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text("utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"), key=lambda file: (file.parent, file.name != "__init__.py", file.name))
    }


def _folder(path: str) -> str:
    first, slash, _ = path.partition("/")
    return first if slash else ""


def _function(path: str, name: str) -> ast.FunctionDef:
    body: list[ast.stmt] = _trees()[path].body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((it for it in body if isinstance(it, (ast.FunctionDef, ast.ClassDef)) and it.name == part), None)
        if found is None:
            raise SystemExit(f"scripts/architecture.py: {path} has no {name}")
        body = found.body
    assert isinstance(found, ast.FunctionDef)
    return found


def _first_sentence(node: ast.Module | ast.FunctionDef) -> str:
    text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    for mark in (". ", "; "):
        text = text.partition(mark)[0]
    return text.rstrip(".").replace(":mod:", "").replace(":func:", "").replace(":class:", "").replace("``", "`")


def _imported(tree: ast.Module) -> Iterator[str]:
    """Files of the package that this one imports when it is loaded."""
    for node in _run_at_import(tree.body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "inferspan":
            base = "/".join((node.module or "").split(".")[1:])
            for alias in node.names:
                inner = f"{base}/{alias.name}" if base else alias.name
                for path in (f"{inner}.py", f"{inner}/__init__.py", f"{base}.py", f"{base}/__init__.py"):
                    if path in _trees():
                        yield path
                        break


def _run_at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node


def _used(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Each ``semconv.NAME``, and whether it is the key of something that is made: of a dict, of an assignment, of
    ``set(NAME, …)``, of a row of a table."""
    keys: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys.update(map(id, filter(None, node.keys)))
        elif isinstance(node, ast.DictComp):
            keys.add(id(node.key))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.add(id(node.slice))
        elif isinstance(node, ast.Call):
            keys.update(id(it) for it in node.args if isinstance(it, ast.Attribute))
            keys.update(id(it.value) for it in node.keywords)
        elif isinstance(node, ast.Tuple):
            keys.update(map(id, node.elts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "semconv":
            yield node.attr, id(node) in keys


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
