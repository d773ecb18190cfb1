"""What runs a model, or a stage of one, more than once for one inference: the call is seen here, as a whole.

The replicas of ``DataParallel`` run in threads that know nothing of the caller; the schedules of
``torch.distributed.pipelining`` run a stage for each microbatch. What runs its model once, on the calling thread, needs
nothing: ``DataParallel`` on one device or none, ``DistributedDataParallel``, FSDP, DeepSpeed's engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from inferspan.integrations.patching import Patches
from inferspan.integrations.torch.calls import call, hide_from_compiler, is_root, unwrap_model


def install(module: ModuleType, patches: Patches) -> None:
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


def install_schedules(module: ModuleType, patches: Patches) -> None:
    for schedule in (module.PipelineScheduleSingle, module.PipelineScheduleMulti):
        patches.wrap(schedule, "step", _step)


def _step(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        stage = getattr(self, "_stage", None) or next(iter(getattr(self, "_stages", ())), None)
        model = unwrap_model(getattr(stage, "submod", None))
        if not is_root(model):
            return original(self, *args, **kwargs)
        return call(partial(original, self), model, args, kwargs, every=True)

    return step
