"""A stand-in for a GPU, on which real models seem to run: time, memory, MFU, leaks. And the driver's stub."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import torch
import transformers

import inferspan
from golden.outcome import raised
from golden.renames import RENAMES
from golden.scenarios.parts import IDS, ROWS, THREE, Net, called, classifier, each, lm
from golden.stage import Group, Stage
from inferspan.config import MEASURES
from support import tiny
from support.fakedevice import FakeGpu, install, obeyed
from support.fakenvml import FakeDriver, build, until

GROUP = Group("devices")

STEP_S = 0.01
MIB = 1 << 20
XIDS = RENAMES.get("inferspan.device.xids", "inferspan.device.xids")


def _on_gpu(scenario: Callable[[Stage, FakeGpu], Any], stage: Stage) -> Any:
    gpu = FakeGpu()
    install(gpu, stage.patch, as_host=True)
    gpu.allocate(1000)
    result = scenario(stage, gpu)
    stage.tracer_provider.force_flush()
    obeyed(gpu)
    return result


def on_gpu(function: Callable[[Stage, FakeGpu], Any]) -> Callable[[Stage, FakeGpu], Any]:
    """Adds the scenario, for which models on the CPU run on a GPU that has handed out 1000 bytes."""
    GROUP[function.__name__] = partial(_on_gpu, function)
    return function


def working(model: Any, gpu: FakeGpu, *, finishes: bool = True, memory: int = 0, kept: int = 0) -> Any:
    """The model, whose every forward takes the GPU a step and ``memory``, of which it keeps some."""

    def work(*_: Any) -> None:
        gpu.allocate(memory)
        gpu.free(memory - kept)
        gpu.work(STEP_S)
        if finishes:
            gpu.finish()

    model.register_forward_hook(work)
    return model


@on_gpu
def model(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    made = working(tiny.classifier(), gpu, memory=5000, kept=100)
    return [called(made, IDS), called(made, IDS)]


@on_gpu
def module(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    return called(working(Net(), gpu, memory=500).eval(), ROWS)


@on_gpu
def device_that_lags_behind(stage: Stage, gpu: FakeGpu) -> Any:
    """Told when the device is done."""
    stage.instrument()
    found = called(working(tiny.classifier(), gpu, finishes=False), IDS)
    stage.say(f"{len(stage.exporter.get_finished_spans())} spans before it is done")
    gpu.finish()
    return found


@on_gpu
def generation(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    return working(lm(), gpu, memory=20 * MIB, kept=10).generate(IDS, max_new_tokens=5)


@on_gpu
def generation_in_bfloat16(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    return working(lm().to(torch.bfloat16), gpu).generate(IDS, max_new_tokens=5)


@on_gpu
def generation_by_a_device_without_a_peak(stage: Stage, gpu: FakeGpu) -> Any:
    gpu.name = "Some other board"
    stage.instrument()
    return working(lm(), gpu).generate(IDS, max_new_tokens=3)


@on_gpu
def pipeline(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    made = working(tiny.causal_lm(), gpu, memory=MIB)
    pipe = transformers.pipeline("text-generation", model=made, tokenizer=tiny.text_tokenizer(), device="cpu")
    return pipe(THREE[:2], max_new_tokens=3, do_sample=False, eos_token_id=None)


@on_gpu
def stream_with_few_children(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument(children_max=2)
    pipe = classifier()
    working(pipe.model, gpu)
    return list(pipe(each(THREE * 3)))


@on_gpu
def block(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    made = working(tiny.classifier(), gpu, memory=4000)
    with inferspan.inference("answer") as answer:
        called(made, IDS)
        with answer.phase("rest"):
            gpu.allocate(77)
        return called(made, IDS)


@on_gpu
def layers(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument(layers="transformer")
    made = lm()
    for layer in made.model.layers:
        working(layer.self_attn, gpu, memory=300, kept=200)
        working(layer.mlp, gpu)
    return made.generate(IDS, max_new_tokens=3)


@on_gpu
def few_timers(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument(layers="transformer", gpu_timers_max=4)
    made = tiny.classifier()
    for layer in made.bert.encoder.layer:
        working(layer, gpu, finishes=False)
    found = called(made, IDS)
    gpu.finish()
    return found


@on_gpu
def no_timers(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument(gpu_timers_max=0)
    return called(working(tiny.classifier(), gpu), IDS)


def _measured(measure: Any, stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument(measure=measure)
    return working(lm(), gpu, memory=MIB, kept=5).generate(IDS, max_new_tokens=3)


for _measure in MEASURES:
    GROUP[f"measure, all but {_measure}"] = partial(_on_gpu, partial(_measured, set(MEASURES) - {_measure}))
GROUP["measure, nothing"] = partial(_on_gpu, partial(_measured, ()))


@on_gpu
def not_initialized(stage: Stage, gpu: FakeGpu) -> Any:
    gpu.initialized = False
    stage.instrument()
    return called(tiny.classifier(), IDS)


@on_gpu
def captured_by_the_program(stage: Stage, gpu: FakeGpu) -> Any:
    """Not touched inside of the capture of a graph."""
    stage.instrument()
    gpu.capturing = True
    found = called(tiny.classifier(), IDS)
    gpu.capturing = False
    return found


@on_gpu
def device_that_is_lost(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    made = tiny.classifier()
    found = [called(made, IDS)]
    gpu.error = RuntimeError("CUDA error: device lost")
    return [*found, called(made, IDS), called(made, IDS)]


@on_gpu
def out_of_memory(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    gpu.allocate(3 << 30)
    gpu.reserved, gpu.inactive = 8 << 30, 2 << 30
    message = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 5.00 "
    made = tiny.classifier()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError(f"{message}GiB is free.")

    made.register_forward_hook(fail)
    return raised(lambda: called(made, IDS)).split()[:2]


@on_gpu
def out_of_memory_that_the_program_handles(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    made = tiny.classifier()

    def fail(*_: Any) -> None:
        gpu.failures += 1
        gpu.retries += 2

    made.register_forward_hook(fail)
    return called(made, IDS)


@on_gpu
def peak_that_the_program_resets(stage: Stage, gpu: FakeGpu) -> Any:
    stage.instrument()
    gpu.allocate(MIB)
    gpu.free(MIB)
    made = working(tiny.classifier(), gpu, memory=300)
    first = called(made, IDS)
    made.register_forward_hook(lambda *_: gpu.reset_peak())
    return [first, called(made, IDS)]


@on_gpu
def allocator_that_does_not_count(stage: Stage, gpu: FakeGpu) -> Any:
    gpu.counts_memory = False
    stage.instrument()
    return called(working(tiny.classifier(), gpu, memory=300), IDS)


@on_gpu
def two_at_once(stage: Stage, gpu: FakeGpu) -> Any:
    """Their memory is shared, and both say so."""
    stage.instrument()
    made, meet = tiny.classifier(), threading.Barrier(2)
    made.register_forward_pre_hook(lambda *_: (meet.wait(60), None)[1])
    threads = [threading.Thread(target=called, args=(made, IDS)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@on_gpu
def leak(stage: Stage, gpu: FakeGpu) -> Any:
    """Growth of the allocator by 4 KiB an inference: of 700 spans the one with the event, the warning, the points."""
    stage.instrument(measure="memory,leaks", children_max=0)
    made = working(torch.nn.Sequential(torch.nn.Linear(4, 4)), gpu, memory=3 * MIB, kept=4096).eval()
    for _ in range(700):
        called(made, ROWS)
    for number, span in enumerate(stage.spans()):
        for event in span.events:
            stage.say(f"inference {number}: {event.name} {dict(sorted((event.attributes or {}).items()))}")
    stage.exporter.clear()


# -- the driver --------------------------------------------------------------------------------------------------------


@cache
def _library() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    folder = tempfile.TemporaryDirectory()  # until the process ends
    return folder, build(Path(folder.name))


def _driver(lines: tuple[str, ...], settings: dict[str, Any], stage: Stage) -> Any:
    driver = FakeDriver(_library()[1], stage.folder)
    driver.load(stage.patch)
    driver.says(*lines)
    stage.instrument(devices="always", **settings)
    return called(tiny.classifier(), IDS)


def _known_to_torch(stage: Stage) -> None:
    """The driver's first board is torch's ``cuda:0``."""
    board = SimpleNamespace(uuid="00000000-0000-0000-0000-000000000000")
    stage.patch.setattr(torch.cuda, "is_initialized", lambda: True)
    stage.patch.setattr(torch.cuda, "device_count", lambda: 1)
    stage.patch.setattr(torch.cuda, "get_device_properties", lambda index: board)


@GROUP
def driver_of_a_board_that_torch_knows(stage: Stage) -> Any:
    driver = FakeDriver(_library()[1], stage.folder)
    driver.load(stage.patch)
    _known_to_torch(stage)
    stage.instrument(devices="always")


@GROUP
def driver_read_twice(stage: Stage) -> Any:
    """What is a mean since the last collection."""
    driver = FakeDriver(_library()[1], stage.folder)
    driver.load(stage.patch)
    stage.instrument(devices="always", devices_detail="gpm", devices_interval=0.5)
    stage.collect()
    sleep(0.6)


@GROUP
def driver_that_tells_errors(stage: Stage) -> Any:
    driver = FakeDriver(_library()[1], stage.folder)
    driver.load(stage.patch)
    stage.instrument(devices="always", devices_detail="xid", devices_interval=0.5)
    stage.collect()
    driver.says("xid=79", "xid.serial=1")
    until(lambda: stage.points(XIDS))


@on_gpu
def energy(stage: Stage, gpu: FakeGpu) -> Any:
    """Of an inference of more than a second; and cycles, of the driver's clock."""
    driver = FakeDriver(_library()[1], stage.folder)
    driver.load(stage.patch)
    driver.says("field.83=1000000")
    _known_to_torch(stage)
    stage.instrument(devices="never")
    made = working(lm(), gpu)
    made.generate(IDS, max_new_tokens=1)
    until(lambda: "nvmlDeviceGetTotalEnergyConsumption" in driver.calls())
    stage.forget()  # of the board, which is looked at from now on, that one may have nothing
    made.register_forward_hook(lambda *_: sleep(0.8))
    return made.generate(IDS, max_new_tokens=2)


GROUP["driver, one board"] = partial(_driver, (), {})
GROUP["driver, two boards"] = partial(_driver, ("count=2",), {})
GROUP["driver, slow details"] = partial(_driver, (), {"devices_detail": "slow"})
GROUP["driver, profiling"] = partial(_driver, (), {"devices_detail": "gpm"})
GROUP["driver, no board"] = partial(_driver, ("count=0",), {})
GROUP["driver, that cannot begin"] = partial(_driver, ("nvmlInitWithFlags.ret=9",), {})
GROUP["driver, lost board"] = partial(_driver, ("dev0.ret=15",), {})
GROUP["driver, in parts"] = partial(
    _driver, ("dev0.mig=1", "dev0.mig.max=7", "dev0.mig.2=MIG-1", "dev0.mig.2.gi=5"), {}
)
