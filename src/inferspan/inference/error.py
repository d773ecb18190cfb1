"""What is kept of the exception that ended an inference: text only.

The exception itself would hold its frames, and with them the program's tensors, until the telemetry thread comes
round. Its message may quote the prompt or a path, so it counts as content and is left out unless content is captured.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

_FRAMES_MAX = 32


@dataclass(frozen=True, slots=True)
class Failure:
    """``type`` is the class with its module unless built in; ``stack`` the innermost frames, without the message."""

    type: str
    stack: str
    message: str | None


def failure_of(error: BaseException, *, with_message: bool, message_length: int) -> Failure:
    """What to keep of ``error``."""
    stack = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__, limit=-_FRAMES_MAX)))
    message = str(error)[:message_length] if with_message else None
    return Failure(type_name(error), stack, message)


def type_name(error: BaseException) -> str:
    """Class of the exception as ``error.type`` wants it."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
