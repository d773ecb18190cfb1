"""Graphs of a device: while one is captured, no thread of ours may ask it anything (:mod:`inferspan.probes.captures`).

``torch.cuda.graph``, ``make_graphed_callables`` and the graph trees of ``mode="reduce-overhead"`` all capture through
``torch.cuda.CUDAGraph``. The other kinds have classes like it, and since 2.15 ``torch.accelerator.Graph`` captures for
any of them, past their own. Newer versions end a capture in ``capture_end_pre``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from inferspan.integrations.patching import Patches
from inferspan.probes.captures import captures


def install(module: ModuleType, patches: Patches) -> None:
    for graph in list(vars(module).values()):
        if isinstance(graph, type) and not graph.__module__.endswith("._C"):  # their bases are in C++
            patches.wrap(graph, "capture_begin", _capture_begin)
            patches.wrap(graph, "capture_end_pre", _capture_end)
            patches.wrap(graph, "capture_end", _capture_end)


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
