"""The result of a program's own call in a short form: enough that another result shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

_LONG = 12


def short(value: Any) -> str:
    """The type, and the value where that is short and the same on each machine; else a digest of it."""
    if isinstance(value, torch.Tensor):
        exact = "" if value.dtype.is_floating_point else f" {_digest(value.tolist())}"
        return f"Tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}{exact}"
    if isinstance(value, np.ndarray):
        return f"ndarray {value.dtype} {list(value.shape)}"
    if isinstance(value, Image.Image):
        return f"Image {value.mode} {value.size}"
    if isinstance(value, (float, np.floating)):
        return "float"  # kernels differ in the last digits
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"str of {len(value)} {_digest(value)}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {short(each)}" for key, each in value.items())
        return f"{_name(value, dict)}{{{inside}}}"
    if isinstance(value, (list, tuple)):
        return f"{_name(value, list)}[{_several(value)}]"
    return repr(value) if isinstance(value, (int, bool, type(None))) else type(value).__name__


def _several(values: Any) -> str:
    if len(values) > _LONG and all(isinstance(value, int) for value in values):
        return f"{len(values)} int {_digest(values)}"
    texts = [short(value) for value in values]
    if len(texts) > _LONG:
        return f"{len(texts)} {_digest(texts)}"
    return ", ".join(texts)


def _name(value: Any, plain: type) -> str:
    return "" if type(value) is plain else type(value).__name__


def _digest(value: Any) -> str:
    return f"#{hashlib.sha256(repr(value).encode()).hexdigest()[:10]}"


def raised(call: Callable[[], Any]) -> Any:
    """The exception that the call ends with, in words; its result where it ends with none."""
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - whichever it is, it is the result
        text = str(error).splitlines()[:1]
        return f"raised {type(error).__name__} {' '.join(text)}".rstrip()
