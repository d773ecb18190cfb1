"""Whisper's fallback: a segment that came out badly is decoded again, at a higher temperature.

What the attempts before have generated was computed, and takes its time, but is not returned; nor is what was taken for
silence. Only the last attempt of each row counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.batch import Output
from inferspan.core.record import Phase


def with_fallback(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate_with_fallback(self: Any, *args: Any, **kwargs: Any) -> Any:
        active = current.here()
        phase = None if active is None else active.phase
        if phase is None or phase.generation is None:
            return original(self, *args, **kwargs)
        before = len(phase.generation.outputs)
        result = original(self, *args, **kwargs)
        _keep_returned(phase, before, result)
        return result

    return generate_with_fallback


@faults.guarded("generation.fallback")
def _keep_returned(phase: Phase, before: int, result: tuple[Any, ...]) -> None:
    """Of what the attempts since ``before`` have generated, keep what came back: each row without its end."""
    generation, inference = phase.generation, phase.inference
    assert generation is not None
    attempts = generation.outputs[before:]
    rows, are_skipped = result[0], result[2]
    kept = [int(row.shape[0]) for row, is_skipped in zip(rows, are_skipped, strict=True) if is_skipped is not True]
    if not attempts or (len(attempts) == 1 and len(kept) == len(rows)):
        return
    if len(rows) == len(kept) == 1:
        output = attempts[-1]
    else:
        # which row ended how is known where all did alike
        reasons = {reason for attempt in attempts for reason in attempt.finish_reasons or (None,)}
        (reason,) = reasons if len(reasons) == 1 else (None,)
        ends = 0 if reason == "length" else len(kept)
        known = () if reason is None else (reason,) * len(kept)
        output = Output(sum(kept) + ends, reason is not None or not kept, known, max(kept, default=0))
    generation.outputs[before:] = [output]
    if inference is not None and len(attempts) > 1:
        discarded = inference.attributes.get(semconv.FALLBACKS, 0)
        inference.set(semconv.FALLBACKS, discarded + len(attempts) - 1)
