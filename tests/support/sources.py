"""The source of the package, as the tests of its sizes and its imports read it: by ``ast`` and ``tokenize``."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "src" / "inferspan"
_NO_CODE = frozenset(
    (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """One file. ``path`` is relative to the package, ``module`` its dotted name."""

    path: str
    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def code(self) -> frozenset[int]:
        """Numbers of the lines with code: not blank, no comment, no docstring (also not one below a field)."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in _NO_CODE:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                lines.difference_update(lines_of(node))
        return frozenset(lines)

    def code_in(self, node: ast.stmt) -> int:
        """How many lines of code a statement has."""
        return len(self.code.intersection(lines_of(node)))

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """Every function by its qualified name, those inside functions too."""
        yield from _functions(self.tree.body, "")


def lines_of(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def sources() -> dict[str, Source]:
    """All files of the package, by path."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        names = ("inferspan", *path.removesuffix(".py").split("/"))
        module = ".".join(names).removesuffix(".__init__")
        found[path] = Source(path, module, file.read_text("utf-8"))
    return found


def code_without_tables(source: Source) -> int:
    """Lines of code without the tables of names and settings: all of ``semconv.py``, ``SETTINGS`` in ``config.py``."""
    if source.path == "semconv.py":
        return 0
    count = len(source.code)
    if source.path == "config.py":
        count -= source.code_in(_assignment(source, "SETTINGS"))
    return count


def _assignment(source: Source, name: str) -> ast.stmt:
    for node in source.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
    raise LookupError(f"{source.path} has no {name}")


def _functions(body: Iterable[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in body:
        if isinstance(node, _FUNCTIONS):
            yield f"{prefix}{node.name}", node
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        else:
            for block in ("body", "orelse", "finalbody"):
                yield from _functions(getattr(node, block, ()), prefix)
            for handler in getattr(node, "handlers", ()):
                yield from _functions(handler.body, prefix)
