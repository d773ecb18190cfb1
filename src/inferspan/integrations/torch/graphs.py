"""CUDA graphs: while one is captured, no thread of ours may ask CUDA anything (:mod:`inferspan.probes.accelerator`).

``torch.cuda.graph``, ``make_graphed_callables`` and the graph trees of ``mode="reduce-overhead"`` all capture through
``torch.cuda.CUDAGraph``. Newer versions end a capture in ``capture_end_pre``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from inferspan.integrations.patching import Patches
from inferspan.probes.captures import captures


def install(module: ModuleType, patches: Patches) -> None:
    graph = module.CUDAGraph
    patches.wrap(graph, "capture_begin", _capture_begin)
    for name in ("capture_end_pre", "capture_end"):
        patches.wrap(graph, name, _capture_end)


def _capture_begin(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        captures.begin(self)
        try:
            return original(self, *args, **kwargs)
        except BaseException:
            captures.end(self)
            raise

    return capture_begin


def _capture_end(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            captures.end(self)

    return capture_end
