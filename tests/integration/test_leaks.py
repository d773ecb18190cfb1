"""A real program that leaks, and the same one that does not: the resident set of a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inferspan import semconv
from inferspan.core import current
from inferspan.probes.leaks import LeaksProbe
from support.fakedevice import FakeGpu, install
from support.recorder import Recorder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")

PROGRAM = """
import json, sys, warnings
import torch
from support import tiny
from support.recorder import Recorder

recorder = Recorder()
recorder.instrument()
warnings.simplefilter("always")
torch.set_num_threads(1)
torch.manual_seed(0)
model, ids = tiny.classifier(), torch.randint(5, 60, (4, 16))
leaks, kept = sys.argv[1] == "leaks", []
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    for number in range(1200):
        out = model(ids, output_hidden_states=True)
        if leaks:
            kept.append((out.hidden_states, torch.ones(128 << 10, dtype=torch.uint8)))  # 128 KiB more
        if number % 50 == 0:
            recorder.tracer_provider.force_flush()
events = [e for span in recorder.spans() for e in span.events if e.name == "inferspan.memory.leak"]
points = recorder.points("inferspan.memory.growth")
print(json.dumps({
    "events": [dict(event.attributes) for event in events],
    "warnings": [str(w.message) for w in caught if w.category.__name__ == "InferspanWarning"],
    "growth": [[dict(point.attributes), point.value] for point in points],
}))
"""


def run(kind: str) -> dict[str, list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "tests:" + ":".join(sys.path))


def test_a_loop_that_leaks_is_told_once() -> None:
    found = run("leaks")
    (event,) = found["events"]
    assert isinstance(event, dict)
    assert event[semconv.DEVICE] == "cpu"
    assert event[semconv.GROWTH] == pytest.approx(160 << 10, rel=0.5)
    assert event[semconv.GROWN] >= 16 << 20
    (warning,) = found["warnings"]
    assert str(warning).startswith("memory of this process grows by ")
    assert "BertForSequenceClassification" in str(warning)
    ((attributes, growth),) = found["growth"]  # type: ignore[misc]
    assert attributes == {semconv.REQUEST_MODEL: "BertForSequenceClassification", semconv.DEVICE: "cpu"}
    assert growth == pytest.approx(160 << 10, rel=0.5)


def test_the_same_loop_without_the_leak_is_not() -> None:
    found = run("clean")
    assert found["events"] == found["warnings"] == []
    assert [growth for _, growth in found["growth"]] == [0.0]  # type: ignore[misc]


def test_a_leak_on_the_device(monkeypatch: pytest.MonkeyPatch, bare_recorder: Recorder) -> None:
    import torch

    from support import tiny

    gpu = FakeGpu()
    install(gpu, monkeypatch, as_host=True)
    bare_recorder.instrument()
    model = tiny.classifier()

    def leak(*_: object) -> None:
        gpu.allocate(3 << 20)
        gpu.free((3 << 20) - 4096)
        gpu.finish()

    model.register_forward_hook(leak)

    def infer() -> None:
        for _ in range(700):
            model(torch.tensor([[5, 6]]))
        bare_recorder.tracer_provider.force_flush()

    with pytest.warns(UserWarning, match="memory on cuda:0 grows by 4 KiB with each inference of Bert"):
        infer()
    events = [e for span in bare_recorder.spans() for e in span.events if e.name == semconv.LEAK_EVENT]
    assert [dict(event.attributes or {})[semconv.DEVICE] for event in events] == ["cuda:0"]


def test_a_load_begins_the_trend_anew(recorder: Recorder, tmp_path: Path) -> None:
    import torch

    from support import tiny

    model = tiny.classifier()
    model.save_pretrained(tmp_path)
    for _ in range(240):
        model(torch.tensor([[5, 6]]))
    recorder.tracer_provider.force_flush()
    (leaks,) = [probe._leaks for probe in current.state.probes.loaded() if isinstance(probe, LeaksProbe)]
    assert leaks.growth(("BertForSequenceClassification", "cpu")) == 0.0
    type(model).from_pretrained(tmp_path)
    recorder.tracer_provider.force_flush()
    assert leaks.keys() == [], "what a model takes is no growth"
