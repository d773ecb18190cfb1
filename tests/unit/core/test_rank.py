"""Rank and number of processes: where they are read, when, and where they are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

import inferspan
from inferspan import semconv
from inferspan.core import rank as this_rank
from support.recorder import Recorder


@pytest.fixture(autouse=True)
def launched_by_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    this_rank.read_environment()
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    this_rank.read_environment({})


def join(rank: int, size: int) -> None:
    """Be one of so many processes, of which there is no other."""
    torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())


@pytest.mark.parametrize(
    ("environ", "told", "size"),
    [
        pytest.param({}, {}, None, id="not launched"),
        pytest.param({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, {"inferspan.rank": 3}, 8, id="torchrun"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, {}, None, id="one process"),
        pytest.param({"RANK": "3"}, {}, None, id="half told"),
        pytest.param({"RANK": "first", "WORLD_SIZE": "8"}, {}, None, id="of another meaning"),
    ],
)
def test_launcher_is_read(environ: dict[str, str], told: dict[str, int], size: int | None) -> None:
    this_rank.read_environment(environ)

    assert (this_rank.attributes(), this_rank.world_size()) == (told, size)


def test_group_of_the_program_wins_and_what_it_said_stays() -> None:
    this_rank.read_environment({"RANK": "0", "WORLD_SIZE": "2"})
    join(1, 4)

    assert (this_rank.attributes(), this_rank.world_size()) == ({"inferspan.rank": 1}, 4)

    torch.distributed.destroy_process_group()

    assert (this_rank.attributes(), this_rank.world_size()) == ({"inferspan.rank": 1}, 4)

    join(2, 3)

    assert (this_rank.attributes(), this_rank.world_size()) == ({"inferspan.rank": 2}, 3)


def test_group_of_one_process_has_no_rank() -> None:
    join(0, 1)

    assert (this_rank.attributes(), this_rank.world_size()) == ({}, None)


def test_nothing_is_initialised_for_it(recorder: Recorder) -> None:
    with inferspan.inference("one"):
        pass

    assert recorder.span("one").attributes.get("inferspan.rank") is None
    assert not torch.distributed.is_initialized()


def ranks(recorder: Recorder) -> dict[str, list[Any]]:
    """Of each metric the ranks of its points, in one collection that has those of the process: on a busy machine the
    first snapshots may come too late for theirs."""
    for _ in range(30):
        data = recorder.reader.get_metrics_data()
        assert data is not None
        found = {
            metric.name: [point.attributes.get("inferspan.rank") for point in metric.data.data_points]
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
        }
        if found.get("process.memory.usage"):
            return found
    return pytest.fail("no reading of the process in 30 collections")


def test_rank_is_on_the_root_and_on_all_points_but_those_of_the_host(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(devices="always")
    join(1, 2)
    with inferspan.inference("one") as block, block.phase("think"):
        pass

    assert bare_recorder.trees() == [("one", "think")]
    assert bare_recorder.span("one").attributes["inferspan.rank"] == 1
    assert "inferspan.rank" not in bare_recorder.span("think").attributes
    told = ranks(bare_recorder)
    assert told["gen_ai.client.operation.duration"] == told["inferspan.phase.duration"] == [1]
    assert told["inferspan.inference.active"] == told["process.memory.usage"] == [1]
    own = {name for name, metric in semconv.METRICS.items() if metric.source in ("", "process")}
    assert {rank for name, found in told.items() if name in own for rank in found} == {1}
    assert {rank for name, found in told.items() if name not in own for rank in found} == {None}


@pytest.mark.parametrize(
    ("rank", "recorded"),
    [pytest.param(0, 1, id="chosen"), pytest.param(1, 0, id="not chosen"), pytest.param(5, 1, id="in a range")],
)
def test_only_chosen_ranks_record(bare_recorder: Recorder, rank: int, recorded: int) -> None:
    bare_recorder.instrument(ranks="0,4-7")
    join(rank, 8)
    with inferspan.inference("one") as block:
        block.set_attribute("mine", 1)

    assert len(bare_recorder.spans()) == recorded
    assert len(bare_recorder.points("gen_ai.client.operation.duration")) == recorded


def test_a_process_without_a_rank_records_whatever_is_chosen(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(ranks="7")
    with inferspan.inference("one"):
        pass

    assert bare_recorder.trees() == ["one"]
