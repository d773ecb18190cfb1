"""The terminal that a drawing is for: its width, its characters and colours, and text that does no harm in it."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from typing import IO

_WIDTH_UNKNOWN = 100
_WIDTH_PIPED_MAX = 120
_WIDTH_MIN = 40
TEXT_MAX = 120


@dataclass(frozen=True, slots=True)
class Glyphs:
    """``from_left[n]`` is a column of which n eighths are covered, counted from its left edge."""

    branch: str
    last: str
    pipe: str
    from_left: str
    from_right: str
    separator: str
    ellipsis: str
    arrow: str
    at_most: str
    micro: str


_LINES = Glyphs("├─ ", "└─ ", "│  ", " ▏▎▍▌▋▊▉█", " ▕▕▐▐▐▐██", " · ", "…", "→", "≤", "µ")
_ASCII = Glyphs("|- ", "`- ", "|  ", " ||||####", " ||||####", "; ", "...", "->", "<=", "u")

_ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f]).*?(?:\x1b\\|[\x07\x9c]|$)"
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The stream, as far as a drawing depends on it."""

    width: int
    colour: bool
    encoding: str
    glyphs: Glyphs

    def clean(self, text: object, cells: int) -> str:
        """Text of others on one line, without anything that a terminal would act on, cut to ``cells``."""
        # The regular expression must not see text of any length: unterminated sequences make it quadratic.
        shown = _ESCAPE_SEQUENCES.sub("", str(text)[: 4 * TEXT_MAX])
        shown = "".join(
            " " if char.isspace() else char
            for char in shown
            if char.isspace() or not unicodedata.category(char).startswith("C")
        )
        shown = " ".join(shown.split()).encode(self.encoding, "replace").decode(self.encoding)
        return clip(shown, cells, self.glyphs.ellipsis)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text.strip() else text


BOLD, DIM, RED, CYAN = "1", "2", "31", "36"


def terminal_of(out: IO[str], width: int | None) -> Terminal:
    is_terminal = out.isatty()
    if width is None:
        width = shutil.get_terminal_size((_WIDTH_UNKNOWN, 24)).columns
        if not is_terminal:
            width = min(width, _WIDTH_PIPED_MAX)
    encoding = getattr(out, "encoding", None) or "utf-8"
    glyphs = _LINES
    try:
        "".join(getattr(_LINES, name) for name in Glyphs.__slots__).encode(encoding)
    except UnicodeError:
        glyphs = _ASCII
    except LookupError:
        encoding, glyphs = "ascii", _ASCII
    # Not a setting of ours but of terminals (no-color.org), and the SDK makes this class without arguments.
    colour = is_terminal and not os.environ.get("NO_COLOR")
    return Terminal(max(width, _WIDTH_MIN), colour, encoding, glyphs)


def cells_of(text: str) -> int:
    """Columns that the text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cell(char) for char in text)


def _cell(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def clip(text: str, cells: int, ellipsis: str) -> str:
    if cells_of(text) <= cells and len(text) <= 2 * cells:
        return text
    kept, left = [], cells - len(ellipsis)
    for char in text[: 2 * cells]:
        left -= _cell(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept) + ellipsis


def pad(text: str, cells: int) -> str:
    return text + " " * (cells - cells_of(text))
