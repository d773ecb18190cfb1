"""What is kept of the exception that ended an inference: text only.

The exception itself would hold its frames, and with them the program's tensors, until the telemetry thread comes
round. Its message may quote the prompt or a path, so it counts as content and is left out unless content is captured.
"""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass

_FRAMES_MAX = 32


@dataclass(frozen=True, slots=True)
class Failure:
    """``type`` is the class with its module unless built in; ``stack`` the innermost frames: file, line and function,
    without the message and without source lines, which may hold a prompt that is written out in the program."""

    type: str
    stack: str
    message: str | None


def failure_of(error: BaseException, *, with_message: bool, message_length: int) -> Failure:
    """What to keep of ``error``."""
    frames = list(traceback.walk_tb(error.__traceback__))[-_FRAMES_MAX:]
    stack = "".join(
        f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n' for frame, line in frames
    )
    return Failure(type_name(error), stack, _message(error, message_length) if with_message else None)


def is_cancellation(error: BaseException) -> bool:
    """Whether the exception says that the caller lost interest, rather than that something failed."""
    return isinstance(error, (asyncio.CancelledError, GeneratorExit)) or "Cancel" in type(error).__name__


def type_name(error: BaseException) -> str:
    """Class of the exception as ``error.type`` wants it."""
    return name_of(type(error))


def name_of(cls: type[BaseException]) -> str:
    """The same of the class alone."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(error: BaseException, length: int) -> str | None:
    try:
        return str(error)[:length]
    except Exception:  # noqa: BLE001 - the program's own class
        return None
