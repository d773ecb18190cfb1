"""The instrumentation in force: its settings, where finished records go, and what is remembered between inferences."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol

from inferspan.core.model import Describer, Models
from inferspan.core.plan import Plans, Probes

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from inferspan.config import Settings
    from inferspan.core.record import Inference, Overflow, StandalonePhase


class Sink(Protocol):
    """What :mod:`inferspan.emit` is to the calling thread."""

    def start_root(self, inference: Inference, context: Context) -> Span:
        """Start the live root span; a span that is not recording where the trace is not sampled."""

    def submit(self, record: Inference | Overflow) -> None:
        """Take a finished record. Never blocks and takes no lock: it may be called by the garbage collector."""

    def submit_standalone(self, record: StandalonePhase) -> None:
        """Take a finished phase of no inference. Called by the thread that ran it."""

    def leave_process(self) -> None:
        """Emit everything finished and have the providers flush, if there was anything in this process."""


class State:
    """The instrumentation in force: ``settings`` and ``sink`` are ``None`` while there is none."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.sink: Sink | None = None
        self.describer: Describer | None = None
        self.patches: Any = None  # what the integrations have replaced
        self.probes = Probes(())
        self.plans = Plans()
        self.models = Models()
        self.open: dict[int, Inference] = {}
        self.serials = itertools.count(1)
        self.last_serial = 0


state = State()
