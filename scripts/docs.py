"""Writes the generated parts of the documentation from the tables that the code reads.

    python scripts/docs.py           writes them anew
    python scripts/docs.py --check   exits with 1 where a file differs, and names it

A generated part stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; the rest of a file is by hand.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import architecture

from inferspan import config, semconv
from inferspan.bench import differences, result_file

ROOT = Path(__file__).resolve().parent.parent


def settings() -> str:
    """The settings, one row each."""
    rows = []
    for setting in config.SETTINGS:
        default = config.default_of(setting)
        shown = (
            "all"
            if default == frozenset(config.HOOKS)
            else str(default).lower()
            if default in (True, False)
            else ", ".join(sorted(default))
            if isinstance(default, frozenset)
            else default
        )
        shown = f"`{shown}`" if shown != "" else ""
        names = "<br>".join(f"`{name}`" for name in config.variables(setting)[:1])
        rows.append((names, f"`{setting.field}`", shown, setting.allowed, setting.meaning))
    return _table(("variable", "keyword", "default", "allowed", "meaning"), rows)


def spans() -> str:
    """The kinds of span."""
    return _table(
        ("span", "what it covers", "parent"),
        ((f"`{span.name}`", span.brief, span.parent) for span in semconv.SPANS.values()),
    )


def attributes() -> str:
    """The attributes of spans, scope and points."""
    return _table(
        ("attribute", "type", "unit", "meaning", "absent where"),
        (
            (f"`{a.name}`", a.type, f"`{a.unit}`" if a.unit else "", a.brief, a.absent)
            for a in semconv.ATTRIBUTES.values()
        ),
    )


def metrics() -> str:
    """The metrics."""
    rows = []
    for metric in semconv.METRICS.values():
        brief = metric.brief
        if metric.opt_in:
            brief += f". Only with `OTEL_SEMCONV_STABILITY_OPT_IN={metric.opt_in}`"
            if metric.replaces:
                brief += f", in place of `{metric.replaces}`"
        if semconv.SOURCES.get(metric.source):
            brief += f". {semconv.SOURCES[metric.source]}"
        rows.append(
            (
                f"`{metric.name}`",
                metric.instrument.replace("_", " "),
                f"`{metric.unit}`",
                brief,
                ", ".join(f"`{name}`" for name in metric.attributes),
                ", ".join(f"{bucket:g}" for bucket in metric.buckets or ()),
            )
        )
    return _table(("metric", "instrument", "unit", "meaning", "attributes", "bucket bounds"), rows)


def events() -> str:
    """The events."""
    return _table(
        ("event", "signal", "meaning", "attributes"),
        (
            (f"`{event.name}`", event.signal, event.brief, ", ".join(f"`{name}`" for name in event.attributes))
            for event in semconv.EVENTS.values()
        ),
    )


def refusals() -> str:
    """In what two runs of ``inferspan bench`` may differ."""
    rows = [
        (group, ", ".join(f"`{name}`" for name in names))
        for group, refuses in (("refused", True), ("a warning", False))
        if (names := [name for name, level in differences.MATTERS.items() if level is refuses])
    ]
    return _table(("a difference is", "in"), rows)


def promises() -> str:
    """What is promised, and the tests that show it."""
    return _table(("what ended before", "what becomes of it", "shown by"), _marked("promise"))


def faults() -> str:
    """What may go wrong."""
    return _table(("fault", "what becomes of it", "shown by"), _marked("fault"))


def losses() -> str:
    """What is lost by necessity."""
    return _table(("what is lost", "shown by"), _marked("lost"))


def _marked(mark: str) -> list[tuple[str, ...]]:
    """The texts of these marks, each once, with links to the tests that bear it."""
    found: dict[tuple[str, ...], list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text("utf-8")
        for test in ast.parse(text).body if f"pytest.mark.{mark}(" in text else []:
            for call in (call for part in getattr(test, "decorator_list", ()) for call in ast.walk(part)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == f"pytest.mark.{mark}":
                    assert isinstance(test, ast.FunctionDef)
                    name = test.name.removeprefix("test_").replace("_", " ")
                    link = f"[{name}](../{file.relative_to(ROOT).as_posix()})"
                    found.setdefault(tuple(map(ast.literal_eval, call.args)), []).append(link)
    return [(*texts, "; ".join(dict.fromkeys(links))) for texts, links in found.items()]


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("docs/configuration.md", settings),
    "spans": ("docs/telemetry.md", spans),
    "attributes": ("docs/telemetry.md", attributes),
    "metrics": ("docs/telemetry.md", metrics),
    "events": ("docs/telemetry.md", events),
    "differences": ("docs/bench.md", refusals),
    "promises": ("docs/reliability.md", promises),
    "faults": ("docs/reliability.md", faults),
    "losses": ("docs/reliability.md", losses),
    "way": ("docs/architecture.md", architecture.way),
    "imports": ("docs/architecture.md", architecture.imports),
    "files": ("docs/architecture.md", architecture.files),
    "makers": ("docs/architecture.md", architecture.makers),
}


def result_schema() -> str:
    """The format of the files that ``inferspan bench`` saves."""
    return json.dumps(result_file.schema(), indent=2, ensure_ascii=False) + "\n"


WHOLE: dict[str, Callable[[], str]] = {"docs/bench-result.schema.json": result_schema}
"""Files of which all is generated."""


def differing() -> list[str]:
    """Files whose generated parts are not what the tables say."""
    return [
        str(path.relative_to(ROOT))
        for path, text in _rendered().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]


def write() -> None:
    """Write every generated part."""
    for path, text in _rendered().items():
        path.write_text(text, "utf-8")


def _rendered() -> dict[Path, str]:
    texts = {ROOT / file: make() for file, make in WHOLE.items()}
    for name, (file, make) in PARTS.items():
        path = ROOT / file
        text = texts.get(path) or path.read_text("utf-8")
        pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{file} has no part <!-- {name}: begin --> … <!-- {name}: end -->")
        made = make()
        texts[path] = pattern.sub(lambda match, made=made: f"{match[1]}{made}\n{match[2]}", text)
    return texts


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> int:
    if "--check" not in sys.argv[1:]:
        write()
        return 0
    files = differing()
    for file in files:
        print(f"{file} is not what the tables say: run `make docs`")
    return 1 if files else 0


if __name__ == "__main__":
    sys.exit(main())
