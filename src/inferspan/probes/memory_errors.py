"""What an exception says that was raised because there was no memory: how much was asked for, how much was free.

Torch says it in the message only, which quotes nothing of the program's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "KB": 2**10, "MiB": 2**20, "MB": 2**20, "GiB": 2**30, "GB": 2**30}
_AMOUNT = r"(\d+(?:\.\d+)?) ?(bytes|[KMG]i?B|B)\b"
_REQUESTED = re.compile(rf"(?:[Tt]ried|[Ff]ailed) to allocate {_AMOUNT}|Allocation failed for size::(\d+)")
_FREE = re.compile(rf"of which {_AMOUNT} is free|; {_AMOUNT} free;")
_HOST = "can't allocate memory"
# Not all raise torch's own type: "NPU out of memory", "MPS backend out of memory", "CUDA driver error: out of memory";
# cuBLAS and cuDNN; a small backend (torch's open-registration device), the HPU.
_ON_DEVICE = re.compile(
    r"\b[A-Z]{3,}\w* (?:backend |(?:driver )?error: )?out of memory|_STATUS_ALLOC_FAILED"
    rf"|Failed to allocate {_AMOUNT}|Allocation failed for size::"
)


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """Bytes that were asked for, and that were free on the device; ``None`` where the message does not say.
    ``on_host`` where it was the host's memory."""

    requested: int | None
    free: int | None
    on_host: bool


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """What ``error`` says; ``None`` if it is another error."""
    on_device = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    try:
        message = str(error) if on_device or isinstance(error, (RuntimeError, MemoryError)) else ""
    except Exception:  # noqa: BLE001 - the program's own class
        message = ""
    on_host = isinstance(error, MemoryError) or _HOST in message
    if not (on_device or on_host or _ON_DEVICE.search(message)):
        return None
    return OutOfMemory(_bytes(_REQUESTED, message), _bytes(_FREE, message), on_host)


def _bytes(pattern: re.Pattern[str], message: str) -> int | None:
    found = pattern.search(message)
    if found is None:
        return None
    number, *unit = (group for group in found.groups() if group is not None)
    return round(float(number) * _UNITS[unit[0] if unit else "bytes"])
