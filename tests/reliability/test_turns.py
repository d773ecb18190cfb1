"""Random programs in which tasks, threads, generators, blocks and streamers take turns (``support.turns``).

Whatever the order, every inference is told once, where it belongs, with its phases and tokens. In a run of the suite
the programs are always the same; ``FUZZ_EXAMPLES=5000`` tries so many, and ``FUZZ_SEED=7`` that one alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import inferspan
from inferspan import semconv
from support.recorder import Recorder
from support.turns import Program, models

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
SEEDS = [int(os.environ["FUZZ_SEED"])] if "FUZZ_SEED" in os.environ else range(EXAMPLES)
STEPS = 60


def told(recorder: Recorder) -> Counter[Any]:
    """Spans as ``Model.all`` has them. Prefill and decode are left out below phases of the program's own."""
    spans = recorder.spans()
    names = {span.context.span_id: span.name.split()[0] for span in spans}
    found: Counter[Any] = Counter()
    for span in spans:
        name, attributes = names[span.context.span_id], span.attributes or {}
        parent = None if span.parent is None else names.get(span.parent.span_id, "missing")
        if semconv.OPERATION_NAME in attributes:
            found[name, parent, attributes.get(semconv.OUTPUT_TOKENS, 0)] += 1
        elif not name.startswith("span") and (name not in (semconv.PREFILL, semconv.DECODE) or parent == "forward"):
            found[name, parent] += 1
    return found


@pytest.fixture(scope="module", autouse=True)
def module_by_hand() -> Iterator[None]:
    """It lasts over ``uninstrument()``."""
    handle = inferspan.instrument_module(models()[0])
    yield
    handle.remove()


@pytest.mark.parametrize("part", range(4))
def test_whoever_takes_turns_with_whom_each_inference_is_told_once_and_where_it_belongs(part: int) -> None:
    for seed in SEEDS[part::4]:
        recorder = Recorder()
        recorder.instrument(process_stats=False)
        program = Program(seed, recorder.tracer)
        try:
            program.run(STEPS)
        finally:
            recorder.close()
        expected = program.model.all()
        found = told(recorder)
        inferences = Counter(inference.name for inference in program.model.told)
        assert (found - expected, expected - found) == (Counter(), Counter()), (seed, program.log)
        assert recorder.counts(semconv.OPERATION_DURATION, semconv.OPERATION_NAME) == dict(inferences), seed
