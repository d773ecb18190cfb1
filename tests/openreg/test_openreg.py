"""What is measured on a device that nobody here wrote, beside what torch itself says of the same work.

Inferspan has no name for it, and its module no ``Event`` and no statistics: all goes by what torch has for every kind.
Skipped without ``INFERSPAN_OPENREG`` (``conftest.py``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferspan import faults, semconv
from inferspan.probes import accelerator
from inferspan.probes.kinds import Memory
from support.recorder import Recorder

DEVICE = "openreg:0"
FLOAT32 = 1e-6  # torch gives milliseconds as float32


@pytest.fixture
def traced(openreg: Any, bare_recorder: Recorder) -> Any:
    bare_recorder.instrument(process_stats=False)
    yield bare_recorder
    assert not faults.counts()


def event(openreg: Any, device: str = DEVICE) -> Any:
    """One of torch's own, recorded now."""
    made = openreg.Event(device, enable_timing=True)
    made.record(openreg.accelerator.current_stream(device))
    return made


def seconds(start: Any, end: Any) -> float:
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def timed(openreg: Any, run: Callable[[Any], Any], device: str = DEVICE) -> tuple[Any, list[Any], list[Any]]:
    """A module whose forward does this between two events of torch's, and these around its whole call."""
    inner, outer = [], []

    class Timed(openreg.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = openreg.nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            inner.append(event(openreg, device))
            result = run(self.linear(x))
            inner.append(event(openreg, device))
            return result

    model = Timed().to(device).eval()

    def call(x: Any) -> Any:
        outer.append(event(openreg, device))
        result = model(x)
        outer.append(event(openreg, device))
        return result

    return call, inner, outer


def device_facts(recorder: Recorder, name: str) -> dict[str, Any]:
    """All of the span's attributes about the device."""
    kept = ("inferspan.gpu.", "inferspan.memory.", "inferspan.out_of_memory.", "inferspan.device")
    found = recorder.span(name).attributes or {}
    return {key.removeprefix("inferspan."): value for key, value in found.items() if key.startswith(kept)}


# -- which device ----------------------------------------------------------------------------------------------------


def test_no_context_is_made(openreg_folder: Path) -> None:
    """A program that has registered it and works on the CPU has not initialised it with Inferspan either."""
    program = """
import torch, torch_openreg, inferspan
from inferspan.probes import accelerator
inferspan.instrument()
with inferspan.inference("work"):
    torch.nn.Linear(2, 2).eval()(torch.ones(1, 2))
assert accelerator.of("openreg:0") is None
inferspan.uninstrument()
print(torch.accelerator.current_accelerator(), torch.openreg.is_initialized())
"""
    path = [str(openreg_folder), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=False,
        env={"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
    )
    assert (done.stdout, done.returncode) == ("openreg False\n", 0), done.stderr


def test_each_of_its_devices_is_one(openreg: Any) -> None:
    first, second = accelerator.of("openreg:0"), accelerator.of("openreg:1")
    assert first is not None
    assert second is not None
    assert [(on.device, on.kind, on.index, on.device_name) for on in (first, second)] == [
        ("openreg:0", "openreg", 0, ""),
        ("openreg:1", "openreg", 1, ""),
    ]
    assert accelerator.of("openreg") is first, "the current one"


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["openreg:0", "openreg:1"])
def test_time_is_what_torchs_own_events_enclose(openreg: Any, traced: Recorder, device: str) -> None:
    call, inner, outer = timed(openreg, lambda x: (x @ x.T).softmax(-1), device)
    call(openreg.ones(64, 8, device=device))
    ours = device_facts(traced, "forward")["gpu.time"]
    assert seconds(*inner) - FLOAT32 <= ours <= seconds(*outer) + FLOAT32
    assert ours > 0


def test_time_is_of_the_stream_that_is_current(openreg: Any, gate: Any, traced: Recorder) -> None:
    """The one that was current before stands still, and stays so."""
    gate.close()
    stream = openreg.Stream(DEVICE)
    call, inner, outer = timed(openreg, lambda x: x + 1)
    with stream:
        call(openreg.ones(64, 8, device=DEVICE))
    ours = device_facts(traced, "forward")["gpu.time"]
    assert seconds(*inner) - FLOAT32 <= ours <= seconds(*outer) + FLOAT32


def test_nothing_waits_for_the_device(openreg: Any, gate: Any, traced: Recorder) -> None:
    """Its stream stands still until the call has returned and its span was asked for: what waited would hang here."""

    def run(x: Any) -> Any:
        gate.close()
        return x + 1

    call, inner, outer = timed(openreg, run)
    call(openreg.ones(64, 8, device=DEVICE))
    for begun in (inner[0], outer[0]):
        begun.synchronize()
    assert [inner[1].query(), outer[1].query()] == [False, False]
    assert traced.exporter.get_finished_spans() == (), "told before the device was done"
    gate.open()
    found = device_facts(traced, "forward")
    assert found["gpu.pending"] is True
    assert seconds(*inner) - FLOAT32 <= found["gpu.time"] <= seconds(*outer) + FLOAT32


def test_generation_is_divided_at_its_first_token(openreg: Any, traced: Recorder) -> None:
    from support import tiny

    model = tiny.causal_lm().to(DEVICE)
    ids = openreg.tensor([[10, 20, 30, 40], [50, 60, 70, 80]]).to(DEVICE)
    start = event(openreg)
    model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    whole = seconds(start, event(openreg))
    parts = {name: device_facts(traced, name)["gpu.time"] for name in ("forward", "prefill", "decode")}
    assert parts["prefill"] + parts["decode"] == pytest.approx(parts["forward"], abs=FLOAT32)
    assert min(parts.values()) > 0
    assert parts["forward"] <= whole + FLOAT32
    root = traced.attributes("text_completion")
    assert root[semconv.GPU_TIME] == parts["forward"]
    assert root[semconv.DEVICE] == DEVICE
    assert root[semconv.OUTPUT_TOKENS] == 10


def test_layers_are_timed(openreg: Any, bare_recorder: Recorder) -> None:
    from support import tiny

    bare_recorder.instrument(layers="transformer")
    model = tiny.classifier().to(DEVICE)
    with openreg.no_grad():
        model(openreg.tensor([[10, 20, 30, 40]]).to(DEVICE))
    layers = [dict(span.attributes or {}) for span in bare_recorder.spans() if span.name.startswith("layer ")]
    whole = device_facts(bare_recorder, "forward")["gpu.time"]
    assert len(layers) == model.config.num_hidden_layers
    assert 0 < sum(layer[semconv.GPU_TIME] for layer in layers) <= whole + FLOAT32
    for layer in layers:
        parts = layer[semconv.LAYER_ATTENTION_GPU_TIME] + layer[semconv.LAYER_MLP_GPU_TIME]
        assert 0 < parts <= layer[semconv.GPU_TIME] + FLOAT32
        assert layer[semconv.MEMORY_ALLOCATED] > 0


# -- memory ----------------------------------------------------------------------------------------------------------


def statistics(openreg: Any) -> dict[str, int]:
    """What torch says of the allocator now."""
    found = openreg.accelerator.memory_stats(0)
    return {name: found[f"allocated_bytes.all.{name}"] for name in ("current", "peak", "allocated")} | {
        "reserved": found["reserved_bytes.all.current"]
    }


def test_reading_is_what_torch_says(openreg: Any) -> None:
    kept = openreg.ones(1024, device=DEVICE)
    on, now = accelerator.of(DEVICE), statistics(openreg)
    assert on is not None
    assert on.memory() == Memory(now["current"], now["reserved"], now["peak"], now["allocated"], None, 0, 0)
    del kept


def test_memory_of_an_inference_is_exact_where_it_raised_the_peak(openreg: Any, traced: Recorder) -> None:
    x = openreg.ones(256, 1024, device=DEVICE)
    size = x.numel() * 4

    class Copying(openreg.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return openreg.empty_like(openreg.empty(3, *x.shape, device=DEVICE)[0])

    openreg.accelerator.reset_peak_memory_stats(0)
    before = statistics(openreg)
    result = Copying().eval()(x)
    after = statistics(openreg)
    assert after["current"] - before["current"] == size, "it keeps one"
    assert after["peak"] - before["current"] == 4 * size, "it had three more of them"
    found = device_facts(traced, "forward")
    assert {name: found[name] for name in found if name.startswith(("memory", "device"))} == {
        "device": DEVICE,
        "memory.before": before["current"],
        "memory.after": after["current"],
        "memory.allocated": 4 * size,
        "memory.reserved": after["reserved"],
        "memory.peak": before["current"] + 4 * size,
        "memory.activations": 4 * size,
    }
    del result


def test_peak_is_a_bound_where_an_earlier_one_was_higher(openreg: Any, traced: Recorder) -> None:
    from support import mlp

    model, x = mlp.seeded().to(DEVICE).eval(), openreg.ones(2, 8, device=DEVICE)
    earlier = openreg.empty(1 << 20, device=DEVICE)
    del earlier
    before = statistics(openreg)
    with openreg.no_grad():
        result = model(x)
    after = statistics(openreg)
    found = device_facts(traced, "forward")
    assert before["peak"] == after["peak"], "not ours to reset"
    assert found["memory.peak_exact"] is False
    assert found["memory.peak"] == before["current"] + after["allocated"] - before["allocated"]
    assert found["memory.peak_least"] == max(before["current"], after["current"])
    assert not {"memory.activations", "memory.fragmentation", "memory.retries"} & set(found)
    del result


def test_allocation_that_fails_is_out_of_memory(openreg: Any, traced: Recorder) -> None:
    wanted = 10**15

    class Greedy(openreg.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return openreg.empty(wanted, dtype=openreg.uint8, device=DEVICE)

    x = openreg.ones(4, device=DEVICE)
    before = statistics(openreg)
    with pytest.raises(RuntimeError, match="Failed to allocate"):
        Greedy().eval()(x)
    (found,) = [each for each in traced.span("forward").events if each.name == semconv.OUT_OF_MEMORY_EVENT]
    assert dict(found.attributes or {}) == {
        "inferspan.out_of_memory.requested": wanted,
        "inferspan.memory.after": before["current"],
        "inferspan.memory.reserved": before["reserved"],
    }
