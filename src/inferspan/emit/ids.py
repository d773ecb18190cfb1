"""Trace and span ids from a random source of our own.

The SDK's ``RandomIdGenerator`` draws from the global :mod:`random` module, which programs that do inference
seed as a matter of course: after ``random.seed(0)`` two runs have the same trace ids, and starting a span
shifts the numbers that the program itself draws next. This generator has a source that nobody else seeds or
reads. ``OTEL_PYTHON_ID_GENERATOR=inferspan`` chooses it, or ``TracerProvider(id_generator=…)``.

It never returns the invalid id 0, never touches the global random stream, and in a forked child draws other
ids than in the parent. It is not a source of secrets.
"""

from __future__ import annotations

import os
import random

from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import INVALID_SPAN_ID, INVALID_TRACE_ID

from inferspan import forks

_SEED_BYTES = 32


class IndependentIdGenerator(IdGenerator):
    """64 random bits for a span, 128 for a trace. Threads may share one: each draw is one atomic C call."""

    def __init__(self) -> None:
        self._reseed()
        forks.register(after_in_child=self._reseed)

    def generate_span_id(self) -> int:
        span_id = self._draw(64)
        while span_id == INVALID_SPAN_ID:
            span_id = self._draw(64)
        return span_id

    def generate_trace_id(self) -> int:
        trace_id = self._draw(128)
        while trace_id == INVALID_TRACE_ID:
            trace_id = self._draw(128)
        return trace_id

    def is_trace_id_random(self) -> bool:
        """Sets the W3C ``random`` flag, where the SDK knows it."""
        return True

    def _reseed(self) -> None:
        self._draw = random.Random(os.urandom(_SEED_BYTES)).getrandbits
