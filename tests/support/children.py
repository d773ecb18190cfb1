"""What happens in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


def in_child(action: Callable[[], Any]) -> str:
    """What ``action`` returns in a forked child, as text, or the exception that it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, repr(action()).encode())
        except BaseException as error:  # noqa: BLE001 - the parent reads it
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text
