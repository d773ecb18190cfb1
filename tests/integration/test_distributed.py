"""Models on several devices and in several processes: one inference is one trace, and each process is told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import inferspan
from support import tiny
from support.recorder import Recorder

TESTS = Path(__file__).resolve().parents[1]
TIME_LIMIT_S = 300


def torchrun(*arguments: str, **environ: str) -> str:
    """Two processes of a program, by torchrun; what they printed."""
    paths = (str(Path(inferspan.__file__).parents[1]), str(TESTS), os.environ.get("PYTHONPATH", ""))
    done = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environ},
        start_new_session=True,
    )
    try:
        output, _ = done.communicate(timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        done.terminate()  # torchrun ends its processes
        output, _ = done.communicate(timeout=60)
        pytest.fail(f"torchrun does not end:\n{output[-4000:]}")
    assert done.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process of ``support/ranks.py`` has told, by row."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(str(TESTS / "support" / "ranks.py"), str(folder))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def row(request: pytest.FixtureRequest, ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of it, from both processes."""
    found = [rank[request.param] for rank in ranks]
    for rank in found:
        if "absent" in rank:
            pytest.skip(f"needs {rank['absent']}, newer than the installed torch")
        assert "error" not in rank, rank["error"]
    return found


def span(rank: dict[str, Any], name: str) -> dict[str, Any]:
    """Attributes of the first span of that name: a root, where one is called so."""
    return next(attributes for told, attributes in rank["spans"] if told == name)


GENERATE = ["text_completion LlamaForCausalLM", ["forward", "prefill", "decode"]]
CLASSIFY = ["text-classification BertForSequenceClassification", "tokenize", "forward", "detokenize"]
COMPLETE = ["text_completion model", "tokenize", ["forward", "prefill", "decode"], "detokenize"]


@pytest.mark.parametrize(
    ("row", "trees"),
    [
        pytest.param("data parallel", ["forward"], id="DistributedDataParallel"),
        pytest.param("flat sharded", ["forward"], id="FullyShardedDataParallel"),
        pytest.param("sharded", ["forward", GENERATE], id="fully_shard"),
        pytest.param("synchronized", [GENERATE], id="generate synced_gpus"),
        pytest.param("tensor parallel", ["load model", "forward", COMPLETE], id="tensor parallel"),
        pytest.param("stages", [["stages", "forward"]], id="pipeline stages in a block"),
        pytest.param("joined", [CLASSIFY], id="objects sent"),
    ],
    indirect=["row"],
)
def test_one_inference_is_one_trace_in_each_process_with_the_same_result(
    row: list[dict[str, Any]], trees: list[Any]
) -> None:
    for number, rank in enumerate(row):
        assert rank["on"] == rank["off"]
        assert rank["trees"] == trees
        roots = [span(rank, tree if isinstance(tree, str) else tree[0]) for tree in trees]
        assert [root["inferspan.rank"] for root in roots] == [number] * len(roots)


def figures(attributes: dict[str, Any]) -> tuple[Any, ...]:
    """What a model on one device and the same on several have in common."""
    names = ("flops.count", "flops.exact", "model.class", "model.parameters", "world_size")
    return tuple(attributes.get(f"inferspan.{name}") for name in names)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        pytest.param("sharded", "forward", id="fully_shard"),
        pytest.param("tensor parallel", "load model", id="tensor parallel"),
    ],
    indirect=["row"],
)
def test_flops_and_parameters_of_a_sharded_model_are_those_of_the_whole(
    row: list[dict[str, Any]], facts: str, recorder: Recorder
) -> None:
    model = tiny.causal_lm()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 11).reshape(1, 8))
    whole = recorder.span("forward").attributes or {}
    flops, *known = figures(dict(whole))

    for rank in row:
        assert figures({**span(rank, "forward"), **span(rank, facts)}) == (flops, *known[:-1], 2)


@pytest.mark.parametrize("row", ["synchronized"], indirect=True)
def test_who_waits_for_others_counts_its_own_tokens_and_all_that_it_computes(row: list[dict[str, Any]]) -> None:
    roots = [span(rank, "text_completion LlamaForCausalLM") for rank in row]

    assert [root["gen_ai.usage.output_tokens"] for root in roots] == [3, 5]
    assert [span(rank, "decode")["inferspan.decode.steps"] for rank in row] == [4, 4]
    assert roots[0]["inferspan.flops.count"] == roots[1]["inferspan.flops.count"]


@pytest.mark.parametrize("row", ["data parallel"], indirect=True)
def test_points_have_the_rank_but_for_those_of_the_host(row: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(row):
        of_process = {
            name: points for name, points in rank["points"].items() if name.startswith(("gen_ai.", "process."))
        }
        assert {"gen_ai.client.operation.duration", "process.memory.usage"} <= set(of_process)
        assert {point["inferspan.rank"] for points in of_process.values() for point in points} == {number}


@pytest.mark.parametrize("row", ["joined"], indirect=True)
def test_processes_that_are_sent_one_context_make_one_trace(row: list[dict[str, Any]]) -> None:
    assert row[0]["traces"] == row[1]["traces"]


@pytest.mark.parametrize("row", ["chosen"], indirect=True)
def test_only_chosen_ranks_record_and_all_compute(row: list[dict[str, Any]]) -> None:
    assert [rank["on"] == rank["off"] for rank in row] == [True, True]
    assert [rank["trees"] for rank in row] == [[], [CLASSIFY]]
    assert [[name for name in rank["points"] if name.startswith("gen_ai.")] == [] for rank in row] == [True, False]
