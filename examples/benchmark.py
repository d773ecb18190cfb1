"""Code of your own under `inferspan bench`: a callable that takes requests, and a plain torch module.

    inferspan bench examples.benchmark:answers --batch-sizes 1,4
    inferspan bench examples.benchmark:network --batch-sizes 1,16,256

Each function is called once, before anything is measured, and what it returns is what is called.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from examples import tiny_models


def answers() -> Callable[[list[str]], object]:
    """A callable gets the requests of one batch: lines of --data, or words made up."""
    pipe = tiny_models.classifier()
    return lambda batch: pipe(batch, batch_size=len(batch))


def network() -> tuple[torch.nn.Module, Callable[[int, int | None], torch.Tensor]]:
    """A module comes with what makes its inputs, of a batch size and, where --input-tokens is given, a length."""
    module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    return module, lambda batch_size, length: torch.randn(batch_size, 64)
