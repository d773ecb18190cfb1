"""Real models whose work a stand-in GPU accounts for: each forward takes it 10 ms, and it allocates what the test says.

What only a real one can show is in tests/gpu.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import pipeline

import inferspan
from inferspan import faults, semconv
from inferspan.emit import worker
from inferspan.integrations.patching import is_ours
from inferspan.probes import accelerator
from support import tiny
from support.fakedevice import FakeGpu, install, obeyed
from support.fakenvml import until
from support.recorder import Recorder

IDS = torch.tensor([[10, 20, 30, 40], [50, 60, 70, 80]])
STEP_S = 0.01


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    faults.forget()
    gpu = FakeGpu()
    install(gpu, monkeypatch, as_host=True)
    yield gpu
    assert obeyed(gpu)


@pytest.fixture
def on_gpu(gpu: FakeGpu, bare_recorder: Recorder) -> Iterator[Recorder]:
    bare_recorder.instrument()
    yield bare_recorder
    assert not faults.counts()


def working(model: Any, gpu: FakeGpu, *, finishes: bool = True) -> Any:
    """The model, whose every forward keeps the GPU busy for a step; the loop of a generation waits for it."""

    def work(*_: Any) -> None:
        gpu.work(STEP_S)
        if finishes:
            gpu.finish()

    model.register_forward_hook(work)
    return model


def measured(recorder: Recorder, name: str) -> dict[str, Any]:
    """The span's attributes about the device, rounded."""
    kept = ("inferspan.gpu.", "inferspan.memory.", "inferspan.out_of_memory.")
    return {
        key.removeprefix("inferspan."): round(value, 6) if isinstance(value, float) else value
        for key, value in recorder.attributes(name).items()
        if key.startswith(kept) and key != semconv.GPU_BUSY_SHARE
    }


# -- any kind ----------------------------------------------------------------------------------------------------

THIRD_PARTY = """
import torch
from inferspan.integrations.torch.describe import TorchDescriber
from support import mlp
from support.fakedevice import FakeGpu, obeyed
from support.recorder import Recorder

gpu = FakeGpu("Third party")
torch.utils.rename_privateuse1_backend("third")
torch._register_device_module("third", gpu)
assert torch.get_device_module("third:1") is gpu
TorchDescriber.device_of = lambda self, model, of_input: "third:1"  # there is no such device to put a tensor on

recorder = Recorder()
recorder.instrument(measure=("gpu_time", "memory"))
model = mlp.seeded()
model.register_forward_hook(lambda *_: (gpu.work(0.25), gpu.finish(), gpu.allocate(500)) and None)
gpu.allocate(1000)
model(torch.ones(1, 8))
found = recorder.span("forward").attributes
kept = ("inferspan.gpu.time", "inferspan.gpu.pending", "inferspan.memory.")
print({key[10:]: found[key] for key in found if key.startswith(kept)})
assert obeyed(gpu)
recorder.close()
"""


def test_a_third_partys_device_is_measured_like_any() -> None:
    """Registered by torch's own means, as a backend in a package of its own is."""
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", path + THIRD_PARTY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {
        "gpu.time": 0.25,
        "gpu.pending": False,
        "memory.before": 1000,
        "memory.after": 1500,
        "memory.allocated": 500,
        "memory.peak": 1500,
        "memory.activations": 500,
        "memory.reserved": 1 << 30,
        "memory.fragmentation": 0.0,
    }


# -- time --------------------------------------------------------------------------------------------------------


def test_model_called_directly(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = working(tiny.classifier(), gpu)
    gpu.allocate(1000)
    model(IDS)
    assert measured(on_gpu, "forward") == {
        "gpu.time": STEP_S,
        "gpu.pending": False,
        "memory.before": 1000,
        "memory.after": 1000,
        "memory.allocated": 0,
        "memory.peak": 1000,
        "memory.activations": 0,
        "memory.reserved": 1 << 30,
        "memory.fragmentation": 0.0,
    }
    assert on_gpu.attributes("forward")["inferspan.device"] == "cpu"  # where the ids of this test really are


def test_a_device_that_lags_behind_the_host_is_said_to_be_the_slower_one(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = working(tiny.classifier(), gpu, finishes=False)
    model(IDS)
    assert on_gpu.exporter.get_finished_spans() == (), "told before the device was done"
    gpu.finish()
    found = measured(on_gpu, "forward")
    assert (found["gpu.time"], found["gpu.pending"]) == (STEP_S, True)


def test_generate(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = working(tiny.causal_lm(), gpu)
    model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
    times = {name: measured(on_gpu, name)["gpu.time"] for name in ("text_completion", "forward", "prefill", "decode")}
    assert times == {
        "text_completion": 5 * STEP_S,
        "forward": 5 * STEP_S,
        "prefill": STEP_S,
        "decode": 4 * STEP_S,
    }


def test_pipeline_of_text_generation(gpu: FakeGpu, on_gpu: Recorder) -> None:
    pipe = pipeline("text-generation", model=working(tiny.causal_lm(), gpu), tokenizer=tiny.text_tokenizer())
    on_gpu.clear()
    pipe("hello world", max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert measured(on_gpu, "prefill")["gpu.time"] == STEP_S
    assert measured(on_gpu, "decode")["gpu.time"] == 2 * STEP_S
    assert measured(on_gpu, "forward")["gpu.time"] == 3 * STEP_S
    root = on_gpu.attributes("text_completion")
    assert root[semconv.GPU_TIME] == pytest.approx(3 * STEP_S)
    assert 0 < root[semconv.GPU_BUSY_SHARE] <= 1
    assert "gpu.time" not in measured(on_gpu, "tokenize")


def test_a_long_stream_counts_all_its_forwards(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=4)
    pipe = pipeline("text-classification", model=working(tiny.classifier(), gpu), tokenizer=tiny.word_tokenizer())
    for _ in pipe(text for text in ["hello world"] * 30):
        pass
    root = bare_recorder.attributes("text-classification")
    assert root[semconv.GPU_TIME] == pytest.approx(30 * STEP_S)
    assert root[semconv.CHILDREN_DROPPED] > 30
    device = accelerator.of("cuda:0")
    assert device is not None
    assert len(device._pending) <= 1, "stopwatches are held"


def test_no_gpu_time_without_asking_for_it(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(measure={"memory"})
    gpu.allocate(10)
    working(tiny.classifier(), gpu)(IDS)
    found = measured(bare_recorder, "forward")
    assert "gpu.time" not in found
    assert found["memory.after"] == 10
    assert semconv.FLOPS not in bare_recorder.attributes("forward", without=set())


def test_nothing_is_measured_where_nothing_is_wanted(gpu: FakeGpu, bare_recorder: Recorder) -> None:
    bare_recorder.instrument(measure=())
    gpu.allocate(10)
    working(tiny.classifier(), gpu)(IDS)
    assert measured(bare_recorder, "forward") == {}


def test_a_forward_inside_a_capture_is_not_touched(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = tiny.classifier()
    gpu.capturing = True  # an event recorded or queried now fails the test
    model(IDS)
    gpu.capturing = False
    assert "gpu.time" not in measured(on_gpu, "forward")


def test_a_device_that_never_answers_costs_its_time_only(
    gpu: FakeGpu, on_gpu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_DEVICE_TIMEOUT_NS", 50_000_000)
    working(tiny.classifier(), gpu, finishes=False)(IDS)
    found = measured(on_gpu, "forward")
    assert found["gpu.pending"] is True
    assert "gpu.time" not in found
    assert "memory.after" not in found, "nothing was allocated, so the allocator counts nothing"


def test_flushing_from_many_threads_while_the_device_works(
    gpu: FakeGpu, on_gpu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = working(tiny.classifier(), gpu, finishes=False)
    model(IDS)
    drain, draining = worker.Worker.drain, []

    def noted(self: worker.Worker, timeout_s: float) -> bool:
        draining.append(timeout_s)
        return drain(self, timeout_s)

    monkeypatch.setattr(worker.Worker, "drain", noted)
    threads = [threading.Thread(target=inferspan.force_flush) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(draining) == 3)
    asked = gpu.queries
    until(lambda: gpu.queries > asked)  # and the device is not done
    gpu.finish()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert measured(on_gpu, "forward")["gpu.time"] == STEP_S


# -- captures of the program -------------------------------------------------------------------------------------


def test_the_programs_captures_keep_our_readers_away(
    gpu: FakeGpu, on_gpu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned_away, keep_out = threading.Event(), accelerator.captures.keep_out

    def kept_out() -> bool:
        allowed = keep_out()
        if not allowed:
            turned_away.set()
        return allowed

    model = working(tiny.classifier(), gpu, finishes=False)
    model(IDS)
    assert is_ours(torch.cuda.CUDAGraph.capture_begin)  # without CUDA no graph can be made: test_graphs has the rest
    assert is_ours(torch.cuda.CUDAGraph.capture_end)
    accelerator.captures.begin("a graph")
    gpu.capturing = True  # a query now fails the test
    gpu.finish()
    turned_away.clear()
    monkeypatch.setattr(accelerator.captures, "keep_out", kept_out)
    assert turned_away.wait(10), "our reader has not come round"
    assert on_gpu.exporter.get_finished_spans() == (), "read during a capture"
    gpu.capturing = False
    accelerator.captures.end("a graph")
    assert measured(on_gpu, "forward")["gpu.time"] == STEP_S


# -- memory and running out of it --------------------------------------------------------------------------------


def test_memory_of_a_forward(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = tiny.classifier()
    gpu.allocate(1_000)

    def need(*_: Any) -> None:
        gpu.allocate(5_000)
        gpu.free(4_000)

    model.register_forward_hook(need)
    model(IDS)
    found = measured(on_gpu, "forward")
    assert (found["memory.before"], found["memory.after"], found["memory.peak"]) == (1_000, 2_000, 6_000)
    assert found["memory.activations"] == 5_000
    assert gpu.peak == 6_000, "the program's own peak was left alone"
    # of a gauge the SDK 1.39 gives a point only in the first collection after it was set
    after = on_gpu.points(semconv.MEMORY_AFTERWARDS)
    assert [(point.attributes[semconv.DEVICE], point.value) for point in after] == [("cuda:0", 2_000)]
    assert on_gpu.counts(semconv.MEMORY_PEAKS, semconv.DEVICE) == {"cuda:0": 1}


def test_inferences_at_once_share_their_memory_and_say_so(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = tiny.classifier()
    gpu.allocate(1)
    meet = threading.Barrier(2)

    def wait(*_: Any) -> None:
        meet.wait(10)

    model.register_forward_pre_hook(wait)
    threads = [threading.Thread(target=model, args=(IDS,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    on_gpu.tracer_provider.force_flush()
    assert [span.attributes[semconv.MEMORY_SHARED] for span in on_gpu.spans()] == [True, True]


def test_out_of_memory(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = tiny.classifier()
    gpu.allocate(3 << 30)
    gpu.reserved, gpu.inactive = 8 << 30, 2 << 30
    message = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 5.00 GiB "
        "is free."
    )
    error = torch.OutOfMemoryError(message)

    def fail(*_: Any) -> None:
        raise error

    model.register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        model(IDS)
    assert caught.value is error
    span = on_gpu.span("forward")
    (event,) = [event for event in span.events if event.name == semconv.OUT_OF_MEMORY_EVENT]
    assert dict(event.attributes or {}) == {
        "inferspan.out_of_memory.requested": 20 << 30,
        "inferspan.out_of_memory.free": 5 << 30,
        "inferspan.memory.after": 3 << 30,
        "inferspan.memory.reserved": 8 << 30,
        "inferspan.memory.fragmentation": 0.25,
    }
    attributes = span.attributes or {}
    assert (attributes["inferspan.batch.size"], attributes["inferspan.sequence.length"]) == (2, 4)
    assert attributes["error.type"] == "torch.OutOfMemoryError"
    assert on_gpu.counts(semconv.OUT_OF_MEMORY, semconv.DEVICE) == {"cuda:0": 1}


def test_out_of_memory_that_the_program_handles_is_counted_and_no_error(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = tiny.classifier()
    gpu.allocate(1)

    def fail(*_: Any) -> None:
        gpu.failures += 1

    model.register_forward_hook(fail)
    model(IDS)
    assert on_gpu.span("forward").status.is_unset
    assert on_gpu.counts(semconv.OUT_OF_MEMORY, semconv.DEVICE) == {"cuda:0": 1}


def test_out_of_host_memory_for_real(bare_recorder: Recorder) -> None:
    bare_recorder.instrument()
    model = tiny.classifier()
    model.register_forward_hook(lambda *_: torch.empty(10**16))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        model(IDS)
    (event,) = [e for e in bare_recorder.span("forward").events if e.name == semconv.OUT_OF_MEMORY_EVENT]
    assert dict(event.attributes or {}) == {"inferspan.out_of_memory.requested": 4 * 10**16}
    assert bare_recorder.counts(semconv.OUT_OF_MEMORY, semconv.DEVICE) == {"cpu": 1}


# -- the device fails --------------------------------------------------------------------------------------------


def test_a_lost_device_hurts_nobody(gpu: FakeGpu, on_gpu: Recorder) -> None:
    model = tiny.classifier()
    expected = model(IDS).logits
    gpu.error = RuntimeError("CUDA error: device lost")
    with pytest.warns(inferspan.InferspanWarning, match="cuda:0 gave an error"):
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)
    on_gpu.tracer_provider.force_flush()
    assert len(on_gpu.spans()) == 3


# -- a real GPU is never waited for ------------------------------------------------------------------------------


def test_the_worker_goes_on_with_what_follows_when_the_first_is_given_up(
    gpu: FakeGpu, on_gpu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_DEVICE_TIMEOUT_NS", 200_000_000)
    stuck = working(tiny.classifier(), gpu, finishes=False)
    stuck(IDS)
    free = tiny.classifier()
    free(IDS)
    until(lambda: len(on_gpu.exporter.get_finished_spans()) == 2)  # by the thread alone
