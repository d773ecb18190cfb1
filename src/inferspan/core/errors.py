"""What is kept of the exception that ended an inference: text only, and nothing that says who runs what where.

The exception itself would hold its frames, and with them the program's tensors, until the background worker comes
round. Its message may quote the prompt or a path, so it counts as content and is left out unless content is captured;
so do its notes, and the exceptions that it was raised from or groups. The stack has of each frame the file as the
program imports it (``acme/ranker.py``) or else its last part, never the folders above: they hold names of users,
customers and projects.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from dataclasses import dataclass
from types import FrameType

_FRAMES_MAX = 32
_SEPARATOR = re.compile(r"[/\\]")
# a DataLoader's worker puts its whole traceback into the message
_QUOTED_FILE = re.compile(r'(?<=File ")[^"\n]*[/\\](?=[^"/\\\n]*", line \d)')
# transformers imports code that comes with a model by the name of the model's folder
_NAMED_AFTER_FOLDERS = "transformers_modules"


@dataclass(frozen=True, slots=True)
class Failure:
    """``type`` is the class with its module unless built in; ``stack`` the innermost frames: file, line and function,
    without the message and without source lines, which may hold a prompt that is written out in the program."""

    type: str
    stack: str
    message: str | None


def failure_of(error: BaseException, *, with_message: bool, message_length: int) -> Failure:
    """What to keep of ``error``."""
    return Failure(type_name(error), stack_of(error), _message(error, message_length) if with_message else None)


def stack_of(error: BaseException) -> str:
    """The innermost frames of ``error``."""
    frames = list(traceback.walk_tb(error.__traceback__))[-_FRAMES_MAX:]
    return "".join(f'  File "{_file(frame)}", line {line}, in {frame.f_code.co_name}\n' for frame, line in frames)


def _file(frame: FrameType) -> str:
    """The frame's file without the folders above its outermost package; its last part where it is in none."""
    path, names = _SEPARATOR.split(frame.f_code.co_filename), str(frame.f_globals.get("__name__")).split(".")
    packages = names if path[-1].startswith("__init__.") else names[:-1]
    is_inside = packages == path[-1 - len(packages) : -1] and names[0] != _NAMED_AFTER_FOLDERS
    return "/".join((*packages, path[-1])) if is_inside else path[-1]


def is_cancellation(error: BaseException) -> bool:
    """Whether the exception says that the caller lost interest, rather than that something failed."""
    return isinstance(error, (asyncio.CancelledError, GeneratorExit)) or "Cancel" in type(error).__name__


def type_name(error: BaseException) -> str:
    """Class of the exception as ``error.type`` wants it."""
    return name_of(type(error))


def name_of(cls: type[BaseException]) -> str:
    """The same of the class alone. A module that is named after a file or a folder is left out."""
    module = str(cls.__module__)
    if module == "builtins" or _SEPARATOR.search(module) or module.partition(".")[0] == _NAMED_AFTER_FOLDERS:
        return cls.__qualname__
    return f"{module}.{cls.__qualname__}"


def _message(error: BaseException, length: int) -> str | None:
    try:
        return _QUOTED_FILE.sub("", str(error))[:length]
    except Exception:  # noqa: BLE001 - the program's own class
        return None
