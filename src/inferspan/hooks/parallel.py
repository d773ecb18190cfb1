"""``DataParallel``: its replicas run in threads that know nothing of the caller, so the call is seen here, as a whole.

On one device, or none, it calls the model itself, which is seen as ever; so is the model inside of what runs it on the
calling thread (``DistributedDataParallel``, FSDP, DeepSpeed's engine).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from inferspan.hooks.forwards import call, hide_from_compiler, is_root
from inferspan.hooks.patches import Patches


def _install(module: ModuleType, patches: Patches) -> None:
    parallel = getattr(getattr(module, "nn", None), "DataParallel", None)
    if parallel is None:  # something else by the name of torch
        return
    is_compiling = module.compiler.is_compiling

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or len(self.device_ids) < 2 or not is_root(self.module):
            return super(parallel, self).__call__(*args, **kwargs)
        return call(super(parallel, self).__call__, self.module, args, kwargs, every=True)

    __call__.__qualname__ = f"{parallel.__qualname__}.__call__"
    hide_from_compiler(__call__.__code__)
    patches.define(parallel, "__call__", __call__)


MODULES = {"torch": _install}  # not the class's own module, at whose import torch is half there
