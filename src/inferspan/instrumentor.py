"""The ``BaseInstrumentor`` behind the entry point ``inferspan``, and so behind :func:`inferspan.instrument`."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from inferspan import config, faults, forks, integrations
from inferspan.core import current, process
from inferspan.core.plan import Probes
from inferspan.emit import providers
from inferspan.emit.pipeline import Pipeline
from inferspan.integrations import processes
from inferspan.integrations.registry import Registry
from inferspan.integrations.torch.describe import TorchDescriber
from inferspan.probes import TABLE

_PROVIDERS = ("tracer_provider", "meter_provider", "logger_provider")


class _State:
    """What is instrumented now, and the lock under which that changes."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.pipeline: Pipeline | None = None
        self._renew_lock()
        forks.register(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self.lock = threading.RLock()  # a thread that is not in the forked child may hold it


state = _State()


class InferspanInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its module is untyped
    """Instruments transformers and torch in this process; a singleton, like every instrumentor."""

    def __new__(cls, *args: Any, **kwargs: Any) -> InferspanInstrumentor:
        with state.lock:  # the base class lets two threads that come first make one each
            made: InferspanInstrumentor = super().__new__(cls, *args, **kwargs)
            return made

    def instrumentation_dependencies(self) -> Collection[str]:
        # None is required: `inference()` blocks need no library, and an old one gets a warning of our own. In
        # automatic mode the extra `instruments-any` decides, which is read from the distribution's metadata.
        return ()

    def instrument(self, **kwargs: Any) -> None:
        with state.lock:
            super().instrument(**kwargs)

    def uninstrument(self, **kwargs: Any) -> None:
        with state.lock:
            super().uninstrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, None) for name in _PROVIDERS}
        # opentelemetry-instrument passes what concerns it alone
        for name in ("skip_dep_check", "raise_exception_on_conflict"):
            kwargs.pop(name, None)
        settings = config.load(kwargs)
        faults.forget()
        if "torch" not in sys.modules and importlib.util.find_spec("torch") is None:
            faults.warn("torch is not installed: inferspan has only inferspan.inference() blocks to record")
        providers.put_versions_on_scope(integrations.version_attributes())
        probes = Probes(TABLE)
        state.pipeline = Pipeline(settings, probes, **given, may_be_killed=processes.may_be_killed)
        current.connect(state.pipeline, settings, probes, TorchDescriber())
        state.registry.install(settings)

    def _uninstrument(self, **kwargs: Any) -> None:
        state.registry.remove()
        process.abandon_open()  # what still runs in other threads ends here, with what is known of it
        current.disconnect()
        pipeline, state.pipeline = state.pipeline, None
        if pipeline is not None:
            pipeline.close()

    @classmethod
    def flush(cls, timeout_s: float) -> bool:
        """Emit everything finished, and have the providers flush; true if there was nothing left to do."""
        pipeline = state.pipeline
        return True if pipeline is None else pipeline.flush(timeout_s)
