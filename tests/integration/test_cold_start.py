"""What makes an inference cold, told apart: the load, the first call, a compilation, a compilation anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo

from support import tiny
from support.recorder import Recorder


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_an_inference_that_compiles_says_so_and_the_next_one_is_warm(bare_recorder: Recorder) -> None:
    bare_recorder.instrument()
    model = torch.compile(tiny.classifier(), backend="eager", dynamic=False)
    with torch.no_grad():
        for ids in (torch.ones(1, 4, dtype=torch.long),) * 2 + (torch.ones(1, 6, dtype=torch.long),):
            model(input_ids=ids)
    first, second, third = bare_recorder.spans()
    assert (first.attributes["inferspan.cold"], second.attributes["inferspan.cold"]) == (True, False)
    assert first.attributes["inferspan.compile.count"] >= 1
    assert first.attributes["inferspan.compile.time"] > 0
    # on torch 2.4 the model's own output class, around which the graph breaks, is compiled anew for each key
    assert "forward" not in [event.attributes["inferspan.compile.function"] for event in first.events]
    assert "inferspan.compile.count" not in second.attributes
    assert "inferspan.compile.time" not in second.attributes
    mismatches = [
        event for event in third.events if " mismatch at index" in event.attributes["inferspan.compile.reason"]
    ]
    event = mismatches[0]
    assert event.name == "inferspan.recompile"
    assert event.attributes["inferspan.compile.time"] > 0
    assert third.start_time <= event.timestamp <= third.end_time
    assert third.attributes["inferspan.cold"] is False
    assert sum(bare_recorder.counts("inferspan.compile.recompiles").values()) >= 1
    assert sum(bare_recorder.counts("inferspan.compile.duration").values()) == 2


def test_nothing_is_told_of_compilations_that_are_not_to_be_measured(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(measure={"flops"})
    with torch.no_grad():
        torch.compile(tiny.classifier(), backend="eager")(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert "inferspan.compile.count" not in bare_recorder.spans()[0].attributes
