"""A program of several processes, started by torchrun: each does every row of ``ROWS``, without us and with us, and
writes what came of it and what was told to ``rank0.json``, ``rank1.json``, … in the folder given.

    torchrun --nproc-per-node 2 ranks.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from opentelemetry import context, propagate
from opentelemetry.sdk.trace import TracerProvider
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

import inferspan
from inferspan import faults
from support import tiny
from support.recorder import Recorder

PATIENCE = timedelta(seconds=60)
"""For each exchange: where one process fails, the other does not wait for it for ever."""

TEXT = "A good film"


class Absent(Exception):
    """What a row needs is not there."""


def ids(rank: int) -> torch.Tensor:
    """A prompt of eight tokens, another one in each process."""
    return torch.arange(3, 11).reshape(1, 8) + rank


@torch.no_grad()
def data_parallel(rank: int, folder: Path) -> Any:
    return DistributedDataParallel(tiny.classifier())(input_ids=ids(rank)).logits.tolist()


class Rate(torch.nn.Module):
    """A model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)


def wrapped(rank: int, folder: Path) -> Any:
    """Put in ``eval()`` from outside of what runs it, or from inside."""
    rows = torch.ones(2, 4)
    outside = DistributedDataParallel(tiny.seeded(Rate)).eval()(rows).tolist()
    inside = DistributedDataParallel(tiny.seeded(Rate).eval())(rows).tolist()
    flat = FullyShardedDataParallel(tiny.seeded(Rate), device_id=torch.device("cpu")).eval()
    with torch.no_grad():
        return outside, inside, flat(rows).tolist()


@torch.no_grad()
def compiled(rank: int, folder: Path) -> Any:
    model = torch.compile(DistributedDataParallel(tiny.classifier()), backend="eager")
    return model(input_ids=ids(rank)).logits.tolist(), model(input_ids=ids(rank)).logits.tolist()


@torch.no_grad()
def flat_sharded(rank: int, folder: Path) -> Any:
    model = FullyShardedDataParallel(tiny.causal_lm(), device_id=torch.device("cpu"))
    return model(input_ids=ids(rank)).logits.tolist()


def shard(*modules: torch.nn.Module) -> None:
    try:
        from torch.distributed.fsdp import fully_shard  # which on CPUs needs torch 2.6
    except ImportError as error:
        raise Absent("fully_shard") from error
    mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))
    for module in modules:
        fully_shard(module, mesh=mesh)


@torch.no_grad()
def sharded(rank: int, folder: Path) -> Any:
    model = tiny.causal_lm()
    shard(*model.model.layers, model)
    logits = model(input_ids=ids(rank)).logits.tolist()
    return logits, model.generate(ids(rank), max_new_tokens=4, min_new_tokens=4, synced_gpus=True).tolist()


@torch.no_grad()
def sharded_own(rank: int, folder: Path) -> Any:
    """torch gives the instance another class, before or after `eval()`."""
    before, after = tiny.seeded(Rate).eval(), tiny.seeded(Rate)
    shard(before, after)
    return [model(torch.ones(2, 4)).tolist() for model in (before, after.eval())]


def synchronized(rank: int, folder: Path) -> Any:
    """Who is done first goes on with the others, and throws away what it computes."""
    length = 3 + 2 * rank
    return tiny.causal_lm().generate(ids(0), max_new_tokens=length, min_new_tokens=length, synced_gpus=True).tolist()


def tensor_parallel(rank: int, folder: Path) -> Any:
    try:
        from torch.distributed.tensor import DTensor  # of torch 2.5, which transformers wants for this
    except ImportError as error:
        raise Absent("DTensor") from error
    if rank == 0 and not (folder / "model").exists():
        tiny.causal_lm().save_pretrained(folder / "model")
    distributed.barrier()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", tp_plan="auto")
    with torch.no_grad():
        logits = model(input_ids=ids(0)).logits
    assert isinstance(next(model.model.layers[0].self_attn.parameters()), DTensor)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tiny.text_tokenizer())
    return logits.tolist(), pipeline(TEXT, max_new_tokens=4, min_new_tokens=4, do_sample=False)


@torch.no_grad()
def stages(rank: int, folder: Path, model: torch.nn.Module | None = None) -> Any:
    """Each process has one layer, and gets the rows one by one."""
    row = torch.ones(1, 4)
    stage = PipelineStage(
        model or tiny.seeded(Rate, rank).eval(),
        *(rank, distributed.get_world_size(), torch.device("cpu")),
        input_args=(row,),
        output_args=(row,),
    )
    result = ScheduleGPipe(stage, 4).step(*([torch.ones(4, 4)] if rank == 0 else []))
    return None if result is None else result.tolist()


def stages_in_block(rank: int, folder: Path) -> Any:
    """The same with a layer that is no model to us: a block makes one inference of it."""
    with inferspan.inference("stages") as block, block.phase("forward"):
        return stages(rank, folder, tiny.seeded(lambda: torch.nn.Linear(4, 4), rank))


def joined(rank: int, folder: Path) -> Any:
    """One request to all: the context of the first one's span goes to the others like any object."""
    pipeline = transformers.pipeline("text-classification", model=tiny.classifier(), tokenizer=tiny.word_tokenizer())
    carrier: dict[str, str] = {}
    with TracerProvider().get_tracer("test").start_as_current_span("request"):
        propagate.inject(carrier)
    sent = [carrier, pipeline]
    distributed.broadcast_object_list(sent)
    token = context.attach(propagate.extract(sent[0]))
    try:
        return sent[1](TEXT)
    finally:
        context.detach(token)


ROWS: dict[str, Callable[[int, Path], Any]] = {
    "data parallel": data_parallel,
    "wrapped": wrapped,
    "compiled": compiled,
    "flat sharded": flat_sharded,
    "sharded": sharded,
    "sharded own": sharded_own,
    "synchronized": synchronized,
    "tensor parallel": tensor_parallel,
    "stages": stages,
    "stages in a block": stages_in_block,
    "joined": joined,
}


def told_of(row: Callable[[int, Path], Any], rank: int, folder: Path, **settings: Any) -> dict[str, Any]:
    """The row off and on, and what the second run told."""
    try:
        off = row(rank, folder)
        recorder = Recorder()
        recorder.instrument(devices="always", **settings)
        try:
            on = row(rank, folder)
            told = {
                "trees": recorder.trees(),
                "spans": [[span.name, dict(span.attributes or {})] for span in recorder.spans()],
                "traces": sorted({format(span.context.trace_id, "032x") for span in recorder.spans()}),
                "points": {
                    name: [dict(p.attributes) for p in recorder.points(name)] for name in recorder.metric_names()
                },
            }
        finally:
            recorder.close()
        return {"off": off, "on": on, **told}
    except Absent as absent:
        return {"absent": str(absent)}
    except Exception:  # noqa: BLE001 - the other rows are told, too
        return {"error": traceback.format_exc()}


def main(folder: Path) -> None:
    faults.reraise = True
    transformers.logging.set_verbosity_error()
    distributed.init_process_group("gloo", timeout=PATIENCE)
    rank = distributed.get_rank()
    found = {}
    for name, row in ROWS.items():
        found[name] = told_of(row, rank, folder)
        distributed.barrier()
    found["chosen"] = told_of(ROWS["joined"], rank, folder, ranks="1")
    distributed.barrier()
    distributed.destroy_process_group()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
