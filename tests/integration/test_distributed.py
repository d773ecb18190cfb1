"""Models on several devices and in several processes: one inference is one trace, and each process is told apart."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

import inferspan
from support import tiny
from support.recorder import Recorder

accelerate = pytest.importorskip("accelerate", reason="not installed: accelerate")

TESTS = Path(__file__).resolve().parents[1]
EXAMPLE = TESTS.parent / "examples" / "tensor_parallel.py"
# What the console script `opentelemetry-instrument` does, for environments that have no such script in their bin.
INSTRUMENT = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
TIME_LIMIT_S = 300


def torchrun(*arguments: str, **environ: str) -> str:
    """Two processes of a program, by torchrun; what they printed."""
    if sys.platform == "win32" or not torch.distributed.is_available():
        pytest.skip("torchrun with gloo is not to be had here")
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
        pytest.param("compiled", ["forward"] * 2, id="DistributedDataParallel compiled"),
        pytest.param("flat sharded", ["forward"], id="FullyShardedDataParallel"),
        pytest.param("wrapped", ["forward"] * 3, id="modules of one's own"),
        pytest.param("sharded", ["forward", GENERATE], id="fully_shard"),
        pytest.param("sharded own", ["forward"] * 2, id="fully_shard of one's own"),
        pytest.param("synchronized", [GENERATE], id="generate synced_gpus"),
        pytest.param("tensor parallel", ["load model", "forward", COMPLETE], id="tensor parallel"),
        pytest.param("stages", ["forward"], id="pipeline stages"),
        pytest.param("stages in a block", [["stages", "forward"]], id="pipeline stages in a block"),
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


@pytest.mark.parametrize("row", ["wrapped", "sharded own"], indirect=True)
def test_model_is_the_one_inside(row: list[dict[str, Any]]) -> None:
    for rank in row:
        assert {told["gen_ai.request.model"] for _, told in rank["spans"]} == {"Rate"}


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
        assert "gen_ai.client.operation.duration" in of_process
        assert {point["inferspan.rank"] for points in of_process.values() for point in points} == {number}


@pytest.mark.parametrize("row", ["joined"], indirect=True)
def test_processes_that_are_sent_one_context_make_one_trace(row: list[dict[str, Any]]) -> None:
    assert row[0]["traces"] == row[1]["traces"]


@pytest.mark.parametrize("row", ["chosen"], indirect=True)
def test_only_chosen_ranks_record_and_all_compute(row: list[dict[str, Any]]) -> None:
    assert [rank["on"] == rank["off"] for rank in row] == [True, True]
    assert [rank["trees"] for rank in row] == [[], [CLASSIFY]]
    assert [[name for name in rank["points"] if name.startswith("gen_ai.")] == [] for rank in row] == [True, False]


# -- without a line of code ------------------------------------------------------------------------------------------

SERVE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import torch, transformers
from support import tiny
torch.distributed.init_process_group("gloo")
pipe = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
pipe("A good film")
torch.distributed.destroy_process_group()
"""
NO_OTHERS = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
# the arguments of torchrun that make each process one of `opentelemetry-instrument`
INSTRUMENTED = ("--no-python", sys.executable, "-c", INSTRUMENT, sys.executable)


def exported(output: str) -> list[dict[str, Any]]:
    """The spans that the SDK's console exporter has printed: a JSON document each."""
    found, decoder = [], json.JSONDecoder()
    for start in re.finditer(r"^\{$", output, re.MULTILINE):
        span, _ = decoder.raw_decode(output, start.start())
        found.append(span)
    return found


def test_processes_of_torchrun_are_told_apart_on_the_span_and_by_the_sdk(tmp_path: Path) -> None:
    program = tmp_path / "serve.py"
    program.write_text(SERVE)
    # a file each, since what two processes write into one pipe may be mixed
    files = ("--log-dir", str(tmp_path), "--redirects", "1")
    torchrun(*files, *INSTRUMENTED, str(program), OTEL_TRACES_EXPORTER="console", **NO_OTHERS)
    spans = [span for path in tmp_path.rglob("stdout.log") for span in exported(path.read_text())]

    assert sorted(span["name"] for span in spans) == sorted(2 * CLASSIFY)
    roots = [span for span in spans if span["parent_id"] is None]
    assert sorted(root["attributes"]["inferspan.rank"] for root in roots) == [0, 1]
    assert [root["attributes"]["inferspan.world_size"] for root in roots] == [2, 2]
    instances = {root["resource"]["attributes"].get("service.instance.id") for root in roots}
    assert instances == {None} or len(instances) == 2  # the oldest SDK makes none


def test_example_of_tensor_parallelism_is_drawn_once() -> None:
    if importlib.util.find_spec("torch.distributed.tensor._api") is None:
        pytest.skip("needs DTensor, newer than the installed torch")
    output = torchrun(
        *INSTRUMENTED, str(EXAMPLE), OTEL_TRACES_EXPORTER="inferspan_console", INFERSPAN_RANKS="0", **NO_OTHERS
    )

    drawn = [line.split("  ")[0] for line in output.splitlines() if line.startswith(("load ", "text_completion "))]
    assert drawn == ["load tiny-llama-random", "text_completion tiny-llama-random"]


# -- one process -----------------------------------------------------------------------------------------------------

IDS = torch.arange(3, 19).reshape(2, 8)


class OnCpus(torch.nn.DataParallel[torch.nn.Module]):
    """``DataParallel`` over two places that are both the CPU. torch's own goes without replicas there, and copies and
    synchronises by CUDA; what it makes replicas with, and that each runs in a thread of its own, is as it is."""

    def __init__(self, module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(module)
        self.device_ids, self.output_device, self.dim = [0, 1], 0, 0
        self.src_device_obj = torch.device("cpu")
        replicating = sys.modules["torch.nn.parallel.replicate"]
        monkeypatch.setattr(replicating, "_get_device_index", lambda device, *_: device)
        copies = {
            "_broadcast_coalesced_reshape": lambda tensors, devices, detach=False: [list(tensors) for _ in devices]
        }
        for name, copy in copies.items():
            monkeypatch.setattr(replicating, name, copy)

    def scatter(self, inputs: Any, kwargs: Any, device_ids: Any) -> Any:
        assert not inputs
        return [(), ()], [{name: value[half : half + 1] for name, value in kwargs.items()} for half in (0, 1)]

    def parallel_apply(self, replicas: Any, inputs: Any, kwargs: Any) -> Any:
        def run(at: int) -> Any:
            with torch.no_grad():
                return replicas[at](**kwargs[at])

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(run, range(2)))

    def gather(self, outputs: Any, output_device: Any) -> Any:
        return torch.cat([getattr(output, "logits", output) for output in outputs])


class Generates(torch.nn.Module):
    """A model of one's own around one that generates."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.causal_lm()

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.model.generate(input_ids, max_new_tokens=3, min_new_tokens=3)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(tiny.classifier, id="transformers"),
        pytest.param(lambda: Generates().eval(), id="of one's own"),
    ],
)
def test_replicas_of_data_parallel_are_one_inference(
    build: Callable[[], torch.nn.Module], bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        off = OnCpus(build(), monkeypatch)(input_ids=IDS)
        bare_recorder.instrument()
        on = OnCpus(build(), monkeypatch)(input_ids=IDS)

    assert torch.equal(on, off)
    assert bare_recorder.trees() == ["forward"]
    told = bare_recorder.span("forward").attributes or {}
    assert told["inferspan.batch.size"] == 2
    assert told["inferspan.model.class"] == type(build()).__name__


class DeepSpeedEngine(torch.nn.Module):
    """What runs a model, and is none; by the name of DeepSpeed's own."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize(
    ("build", "call"),
    [
        pytest.param(tiny.classifier, {"input_ids": IDS}, id="transformers"),
        pytest.param(
            lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)), {"input": torch.ones(2, 4)}, id="of one's own"
        ),
    ],
)
def test_model_inside_of_an_engine_is_the_one(
    build: Callable[[], torch.nn.Module], call: Any, recorder: Recorder
) -> None:
    model = build()
    DeepSpeedEngine(model).eval()(**call)

    assert recorder.trees() == ["forward"]
    assert (recorder.span("forward").attributes or {})["inferspan.model.class"] == type(model).__name__


def test_data_parallel_is_put_back_and_compiles_as_before(bare_recorder: Recorder) -> None:
    def compiled() -> Any:
        torch.compiler.reset()
        counters.clear()
        model = torch.nn.DataParallel(tiny.seeded(lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)))).eval()
        with torch.no_grad():
            result = torch.compile(model, backend="eager", fullgraph=True)(torch.ones(2, 4))
        return result.tolist(), dict(counters["stats"])

    off = compiled()
    bare_recorder.instrument()

    assert compiled() == off
    assert bare_recorder.trees() == ["forward"]
    bare_recorder.close()
    assert "__call__" not in vars(torch.nn.DataParallel)


def in_two_places(folder: Path) -> Any:
    """Layers on the CPU and, in turn, on the disk."""
    model = tiny.causal_lm()
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu")
    places |= {f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(len(model.model.layers))}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def loaded(folder: Path) -> Any:
    tiny.causal_lm().save_pretrained(folder / "model")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model", device_map="auto")


@pytest.mark.parametrize(
    ("build", "before", "name"),
    [
        pytest.param(in_two_places, [], "LlamaForCausalLM", id="dispatch_model"),
        pytest.param(
            lambda _: accelerate.cpu_offload(tiny.causal_lm(), torch.device("cpu")),
            *([], "LlamaForCausalLM"),
            id="cpu_offload",
        ),
        pytest.param(loaded, ["load model"], "model", id="device_map"),
    ],
)
def test_what_accelerate_spreads_is_one_inference(
    build: Callable[[Path], Any], before: list[str], name: str, bare_recorder: Recorder, tmp_path: Path
) -> None:
    def results() -> Any:
        model = build(tmp_path)
        with torch.no_grad():
            logits = model(input_ids=IDS).logits.tolist()
        return logits, model.generate(IDS, max_new_tokens=3, min_new_tokens=3).tolist()

    off = results()
    bare_recorder.instrument()

    assert results() == off
    generate = (f"text_completion {name}", ("forward", "prefill", "decode"))
    assert bare_recorder.trees() == [*before, "forward", generate]
