"""What is measured: a pipeline, ``generate()``, a torch module, or any callable; loaded as its specification says."""

from __future__ import annotations

import gc
import sys

from inferspan.bench import callables, models
from inferspan.bench.specification import Specification, Target, TargetError, parse

__all__ = ["Specification", "Target", "TargetError", "free", "load", "parse"]


def load(specification: Specification) -> Target:
    """Load it. What is loaded is in evaluation mode.

    Raises:
        TargetError: it cannot be loaded; the text says why.
    """
    try:
        return callables.load(specification) if specification.is_callable else models.load(specification)
    except TargetError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise TargetError(f"{specification.name} cannot be loaded: {type(error).__name__}: {lines[0]}") from error


def free() -> None:
    """Give back what nobody holds any more, before the next configuration or after an allocation that failed."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
