"""Limits of what the package may grow to, and of how its modules hang together, read from the source.

Lines of code are counted without blanks, comments and docstrings. A list of exceptions names what is beyond a limit
today; what has come below it has to leave the list. What a default ``instrument()`` loads is counted in
``tests/integration/test_loaded_code.py``, which needs torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from support.sources import Source, code_without_tables, sources

FILE_MAX = 400
FUNCTION_MAX = 40
CORE_MAX = 900
FIELDS_MAX = 25

LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
"""``path:qualified name``."""
CORE_TODAY = 1445  # it has to fall to CORE_MAX; 150 of it are tokens, links and a parent of blocks, and generators
FIELDS_TODAY: dict[str, int] = {}
GLOBALS_TODAY: set[str] = set()
"""Modules with a ``global`` statement; at most one is to be left, that holds the state of the instrumentation."""
SDK_INTERNALS = {"emit/fastpath.py"}
"""Modules that use private names of OpenTelemetry."""

SOURCES = sources()


def test_no_file_is_too_long() -> None:
    counts = {path: code_without_tables(source) for path, source in SOURCES.items()}
    _assert_within(counts, FILE_MAX, LONG_FILES)


def test_no_function_is_too_long() -> None:
    counts = {
        f"{path}:{name}": source.code_in(function)
        for path, source in SOURCES.items()
        for name, function in source.functions()
    }
    _assert_within(counts, FUNCTION_MAX, LONG_FUNCTIONS)


def test_the_core_is_small() -> None:
    counts = {path: len(source.code) for path, source in SOURCES.items() if path.startswith("core/")}
    count, allowed = sum(counts.values()), max(CORE_MAX, CORE_TODAY)
    assert count <= allowed, f"core/ has {count} lines of code, {count - allowed} more than {allowed}: {counts}"


@pytest.mark.parametrize("name", ["Inference", "Phase"])
def test_a_record_has_few_fields(name: str) -> None:
    fields, allowed = _fields(SOURCES["core/record.py"], name), FIELDS_TODAY.get(name, FIELDS_MAX)
    over = len(fields) - allowed
    assert over <= 0, f"{name} has {len(fields)} fields, {over} more than {allowed}: {sorted(fields)}"


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {source.module for source in SOURCES.values()}
    graph = {source.module: set(_imports(source, modules)) for source in SOURCES.values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other in a circle: " + " <- ".join(error.args[1]))


def test_no_global_statement_outside_the_known_modules() -> None:
    found = {
        path for path, source in SOURCES.items() if any(isinstance(node, ast.Global) for node in ast.walk(source.tree))
    }
    added, gone = sorted(found - GLOBALS_TODAY), sorted(GLOBALS_TODAY - found)
    assert not added, f"`global` belongs into the one module with the state of the instrumentation, not into {added}"
    assert not gone, f"{gone} have no `global` any more: take them out of GLOBALS_TODAY"


def test_private_names_of_opentelemetry_stand_in_few_files() -> None:
    own = {name for source in SOURCES.values() for name in _defined_names(source.tree)}
    found = {
        path: names
        for path, source in SOURCES.items()
        if path not in SDK_INTERNALS and _imports_the_sdk(source) and (names := sorted(_foreign(source.tree, own)))
    }
    assert not found, f"private names of OpenTelemetry's objects belong into emit/fastpath.py: {found}"


def _assert_within(counts: dict[str, int], limit: int, exceptions: dict[str, int]) -> None:
    """Fail with a line for each that is beyond its limit, and for each exception that is none any more."""
    found = []
    for name, count in counts.items():
        allowed = exceptions.get(name, limit)
        if count > allowed:
            found.append(f"{name} has {count} lines of code, {count - allowed} more than {allowed}")
    small = [name for name in exceptions if counts.get(name, 0) <= limit]
    found += [f"{name} is no exception any more: take it out of the list" for name in small]
    assert not found, "\n".join(found)


def _fields(source: Source, name: str) -> set[str]:
    """Annotated in the class, or set in its ``__init__``."""
    cls = next(node for node in source.tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for function in cls.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            found.update(
                node.attr
                for node in ast.walk(function)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            )
    return found


def _imports(source: Source, modules: set[str]) -> Iterator[str]:
    """Modules of the package that this one imports when it is imported itself, without the packages around them."""
    for node in _run_at_import(source.tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _run_at_import(node.orelse)
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from _run_at_import(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from _run_at_import(handler.body)


def _imports_the_sdk(source: Source) -> bool:
    """Whether it has objects of OpenTelemetry in its hands; names of the semantic conventions are none."""
    for node in ast.walk(source.tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(f"{name}.".startswith("opentelemetry.") and ".semconv." not in name for name in names):
            return True
    return False


def _defined_names(tree: ast.Module) -> Iterator[str]:
    """Names that this module gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own_object(node.value):
            yield node.attr


def _foreign(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private attributes, also by ``getattr`` and the like, that nothing of ours is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_own_object(node.value):
            name = node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            name = next((str(part.value) for part in node.args[1:2] if isinstance(part, ast.Constant)), "")
        else:
            continue
        is_private = name.startswith("_") and not name.startswith(("__", "_inferspan_"))
        if is_private and name not in own and name not in ("_replace", "_asdict"):  # those are of any named tuple
            yield ast.unparse(node)


def _is_own_object(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")
