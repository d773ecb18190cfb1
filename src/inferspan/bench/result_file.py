"""The file of one run: :func:`load`, :func:`save`, and its JSON schema.

``version`` is that of the format. A file of an older version is brought up to date as it is read (``_UPGRADES``), a
field that this version does not know is ignored; a file of a newer version, a damaged or a foreign one is refused
with the name of the field.
"""

from __future__ import annotations

import dataclasses
import gzip
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from inferspan.bench import results
from inferspan.bench.results import FORMAT, VERSION, Result, Samples

__all__ = ["FormatError", "load", "save", "schema"]


class FormatError(ValueError):
    """A file that is no result, or a damaged one; the text names file and field."""


_ADAPTER: TypeAdapter[Result] = TypeAdapter(Result)
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From that version to the next; each only renames and moves, so that the file means what it meant."""
_PHASE_COLUMNS = ("phases_s", "phases_gpu_s", "phases_flops")
_ROWS = tuple(f.name for f in dataclasses.fields(Samples) if f.name not in _PHASE_COLUMNS)
_GZIP_MAGIC = b"\x1f\x8b"


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result, plain or gzipped.

    Raises:
        FormatError: the file cannot be read, is no result of ``inferspan bench``, is damaged, or is too new.
    """
    try:
        data = Path(path).read_bytes()
        document = json.loads(gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path} is no JSON, or cut off: {error}") from error
    return parse(document, str(path))


def parse(document: Any, name: str = "document") -> Result:
    """A result from parsed JSON.

    Raises:
        FormatError: it is none; the text names the field.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FormatError(f'{name} is no result of `inferspan bench`: its field "format" is not "{FORMAT}"')
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError(f'{name}: field "version" is {version!r}, and should be a whole number above 0')
    if version > VERSION:
        raise FormatError(
            f'{name}: field "version" is {version}, and this Inferspan reads up to {VERSION}: pip install -U inferspan'
        )
    for step in range(version, VERSION):
        document = _UPGRADES[step](document)
    try:
        result = _ADAPTER.validate_json(json.dumps({**document, "version": VERSION}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FormatError(f'{name}: field "{_dotted(first["loc"])}": {first["msg"]}') from None
    _check_rows(result, name)
    return result


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result; gzipped if the name ends in ``.gz``. The file is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    text = json.dumps(to_document(result), separators=(",", ":"), allow_nan=False).encode()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_bytes(gzip.compress(text) if target.suffix == ".gz" else text)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def to_document(result: Result) -> dict[str, Any]:
    """The result as plain data for JSON: times to the nanosecond, and no columns or fields without a value."""
    found: dict[str, Any] = _plain(dataclasses.asdict(result))
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of the format, as ``docs/bench-result.schema.json`` has it."""
    found: dict[str, Any] = _bare(_ADAPTER.json_schema())
    parts = {name: {"description": _about(name), **part} for name, part in found.pop("$defs").items()}
    found["properties"]["format"]["const"] = FORMAT
    found["properties"]["version"]["const"] = VERSION
    found = {**found, "title": "Result of inferspan bench", "description": _about("Result"), "$defs": parts}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **dict(sorted(found.items(), reverse=True))}


def _about(name: str) -> str:
    """What a class is for; pydantic says it only from 2.13 on."""
    return inspect.cleandoc(getattr(results, name).__doc__)


def _bare(part: Any, names: bool = False) -> Any:
    """Without the titles that repeat the fields' names. ``names``: the keys of this part are fields."""
    if isinstance(part, dict):
        return {
            name: _bare(value, name in ("properties", "$defs"))
            for name, value in part.items()
            if names or name != "title"
        }
    if isinstance(part, list):
        return [_bare(item) for item in part]
    return int(part) if isinstance(part, float) and part.is_integer() else part


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None and item != []}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _dotted(location: tuple[int | str, ...]) -> str:
    """``targets[0].configurations[2].batch_size``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _check_rows(result: Result, name: str) -> None:
    line = result.timeline
    for field_ in dataclasses.fields(line)[2:]:
        rows = getattr(line, field_.name)
        if rows and len(rows) != len(line.offset_s):
            raise FormatError(
                f'{name}: field "timeline.{field_.name}" has {len(rows)} rows, and offset_s {len(line.offset_s)}'
            )
    for place, target in enumerate(result.targets):
        sets = {"cold": target.cold}
        for number, configuration in enumerate(target.configurations):
            sets[f"configurations[{number}].samples"] = configuration.samples
        for where, samples in sets.items():
            columns = {column: getattr(samples, column) for column in _ROWS}
            for group in _PHASE_COLUMNS:
                columns.update({f"{group}.{phase}": rows for phase, rows in getattr(samples, group).items()})
            for column, rows in columns.items():
                if rows and len(rows) != len(samples):
                    raise FormatError(
                        f'{name}: field "targets[{place}].{where}.{column}" has {len(rows)} rows, '
                        f"and latency_s {len(samples)}"
                    )
