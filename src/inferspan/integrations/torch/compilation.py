"""torch.compile: what was compiled or recompiled during an inference, and why (:mod:`inferspan.probes.compiles`).

Dynamo hands the metrics of each compilation to ``log_compilation_event``, which torch keeps apart to be overridden: as
it ends, failed or not, in the thread and context that compiled. Nothing is run where nothing is compiled, and
nothing needs to be registered anew after ``torch.compiler.reset()``, as compile callbacks do; these, moreover, report
of two compilations at the same time nothing but the first's begin and the last's end.

With ``torch._dynamo.config.log_compilation_metrics`` off torch does not hand them out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from inferspan import faults
from inferspan.core import current
from inferspan.integrations.patching import Patches


def install(module: ModuleType, patches: Patches) -> None:
    guard_failures = getattr(module, "guard_failures", {})

    @faults.guarded("compilation.note")
    def note(metrics: Any) -> None:
        active = current.here()
        if active is not None and active.inference is not None:
            from inferspan.probes import compiles  # loaded with the first inference

            compiles.CompilesProbe.note(active.inference, compiles.read(metrics, guard_failures))

    def make(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def log_compilation_event(metrics: Any) -> None:
            note(metrics)
            original(metrics)

        return log_compilation_event

    patches.wrap(module, "log_compilation_event", make)
