"""The ``BaseInstrumentor`` behind the entry point ``inferspan``, and so behind :func:`inferspan.instrument`."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from inferspan import config, faults, integrations
from inferspan.core import current
from inferspan.core.plan import Probes
from inferspan.emit.pipeline import Pipeline
from inferspan.integrations.torch.describe import TorchDescriber
from inferspan.probes import TABLE

# What is measured by hooks of its own, whichever libraries are instrumented.
_NEEDED = {"gpu_time": "graphs", "compiles": "compilation"}
# What may be asked for by a call or a setting of its own, or is needed whatever the settings say.
_ON_REQUEST = {"modules_by_hand", "layers", "parallel", "workers"}
_PROVIDERS = ("tracer_provider", "meter_provider", "logger_provider")
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that is not in the forked child may hold it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class InferspanInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its module is untyped
    """Instruments transformers and torch in this process; a singleton, like every instrumentor."""

    _pipeline: Pipeline | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> InferspanInstrumentor:
        with _lock:  # the base class lets two threads that come first make one each
            made: InferspanInstrumentor = super().__new__(cls, *args, **kwargs)
            return made

    def instrumentation_dependencies(self) -> Collection[str]:
        # None is required: `inference()` blocks need no library, and an old one gets a warning of our own. In
        # automatic mode the extra `instruments-any` decides, which is read from the distribution's metadata.
        return ()

    def instrument(self, **kwargs: Any) -> None:
        with _lock:
            super().instrument(**kwargs)

    def uninstrument(self, **kwargs: Any) -> None:
        with _lock:
            super().uninstrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        providers = {name: kwargs.pop(name, None) for name in _PROVIDERS}
        # opentelemetry-instrument passes what concerns it alone
        for name in ("skip_dep_check", "raise_exception_on_conflict"):
            kwargs.pop(name, None)
        settings = config.load(kwargs)
        faults.forget()
        if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
            faults.warn("torch is not installed: inferspan has only inferspan.inference() blocks to record")
        probes = Probes(TABLE)
        pipeline = Pipeline(settings, probes, **providers)
        InferspanInstrumentor._pipeline = pipeline
        current.connect(pipeline, settings, probes, TorchDescriber())
        needed = {hook for measure, hook in _NEEDED.items() if measure in settings.measure} | _ON_REQUEST
        integrations.install(settings.hooks | needed)

    def _uninstrument(self, **kwargs: Any) -> None:
        integrations.remove()
        current.abandon_open()  # what still runs in other threads ends here, with what is known of it
        current.disconnect()
        pipeline, InferspanInstrumentor._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()

    @classmethod
    def flush(cls, timeout_s: float) -> bool:
        """Emit everything finished, and have the providers flush; true if there was nothing left to do."""
        pipeline = cls._pipeline
        return True if pipeline is None else pipeline.flush(timeout_s)
