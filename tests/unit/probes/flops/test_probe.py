"""FLOPs of the parts of an inference, on records made by hand: what adds up, and what a device could have done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inferspan import semconv
from inferspan.core import current
from inferspan.core.model import ModelInfo
from inferspan.core.probe import DecodingLoop, Report, add_up
from inferspan.core.record import Inference
from inferspan.core.steps import Generation
from inferspan.probes.accelerator import Accelerator
from inferspan.probes.device_time import DeviceTime, DeviceTimeProbe
from inferspan.probes.flops import FlopCount, FlopsProbe
from support import records
from support.fakedevice import FakeGpu
from support.records import present

PROBE = FlopsProbe()


def inference(dtype: str = "bfloat16", devices: int = 1) -> Inference:
    info = ModelInfo("me/model")
    info.dtype, info.devices = dtype, devices
    return records.inference("chat", info)


def on(name: str) -> Accelerator:
    return Accelerator("cuda", 0, FakeGpu(name))


def described(record: Inference, part: str, name: str, seconds: float, **counted: Any) -> dict[str, Any]:
    """What both probes say of one part."""
    values = {"flops": FlopCount(**{"flops": None, **counted}), "device_time": DeviceTime(seconds, on(name))}
    found = {**DeviceTimeProbe().describe(record, part, values), **PROBE.describe(record, part, values)}
    return {name: value for name, value in found.items() if value is not None}


# -- utilisation -----------------------------------------------------------------------------------------------------


def test_utilization_against_the_dense_peak() -> None:
    found = described(inference(), "forward", "NVIDIA H100 80GB HBM3", 0.5, flops=int(989.4e12 / 4))
    assert found[semconv.FLOPS_UTILIZATION] == pytest.approx(0.5, rel=1e-3)


def test_bandwidth_of_decoding() -> None:
    counted = {"flops": 1, "read_bytes": int(3.352e12 / 2)}
    record = inference()
    found = described(record, "decode", "NVIDIA H100 80GB HBM3", 1.0, **counted)
    assert found[semconv.BANDWIDTH_UTILIZATION] == pytest.approx(0.5, rel=1e-3)
    assert semconv.BANDWIDTH_UTILIZATION not in described(record, "prefill", "NVIDIA H100 80GB HBM3", 1.0, **counted)


@pytest.mark.parametrize(
    ("name", "dtype", "devices"),
    [("NVIDIA Unknown 9000", "bfloat16", 1), ("NVIDIA H100 80GB HBM3", "bfloat16", 2), ("NVIDIA T4", "bfloat16", 1)],
    ids=["no such row", "several devices", "the device has no such units"],
)
def test_no_utilization_where_the_peak_is_not_known(name: str, dtype: str, devices: int) -> None:
    found = described(inference(dtype, devices), "forward", name, 0.5, flops=10**12)
    assert found == {semconv.GPU_TIME: 0.5, semconv.FLOPS: 10**12}


# -- sums ------------------------------------------------------------------------------------------------------------


def test_flops_that_are_missing_in_one_part_make_a_lower_bound() -> None:
    totals: dict[str, dict[str, Any]] = {}
    for count in (FlopCount(100), FlopCount(None), FlopCount(100)):
        add_up(totals, {"forward": {"flops": count}}, [PROBE])
    assert totals["forward"]["flops"].flops == 200
    assert totals["forward"]["flops"].is_exact is False


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (FlopCount(1), FlopCount(2), FlopCount(3)),
        (FlopCount(None), FlopCount(None), FlopCount(None)),
        (FlopCount(1), None, FlopCount(1, False)),
        (None, FlopCount(1), FlopCount(1, False)),
        (FlopCount(1, False), FlopCount(2), FlopCount(3, False)),
        (FlopCount(1, True, 5), FlopCount(2, True, 6), FlopCount(3, True, 11)),
        (FlopCount(1, True, 5), FlopCount(2), FlopCount(3)),
        (FlopCount(1), FlopCount(2, True, 6), FlopCount(3)),
    ],
)
def test_sum_of_two(one: FlopCount | None, other: FlopCount | None, expected: FlopCount) -> None:
    assert PROBE.add(one, other) == expected


def test_a_cpu_has_flops_and_nothing_else() -> None:
    report = Report(totals={"forward": {"flops": FlopCount(100)}})
    PROBE.report(inference(), None, report)
    assert present(report.attributes) == {"flops.count": 100, "flops.method": "linear_inventory"}
    assert [(point.metric, point.value, point.attributes) for point in report.points] == [
        (semconv.FLOPS_DONE, 100, {"inferspan.phase": "forward"})
    ]


def test_a_lower_bound_says_so() -> None:
    report = Report(totals={"forward": {"flops": FlopCount(100, False)}})
    PROBE.report(inference(), None, report)
    assert present(report.attributes) == {
        "flops.count": 100,
        "flops.exact": False,
        "flops.method": "linear_inventory",
    }


# -- what a forward notes ---------------------------------------------------------------------------------------------


@pytest.fixture
def described_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from inferspan.integrations.torch.describe import TorchDescriber

    monkeypatch.setattr(current.state, "describer", TorchDescriber())


@pytest.mark.usefixtures("described_by_torch")
def test_models_called_in_a_forward_add_up() -> None:
    model = nn.Linear(4, 8).eval()
    record = inference()
    phase = record.begin("forward")
    mark = PROBE.begin(phase, model)
    assert PROBE.value(phase, "forward", mark) == FlopCount(None)
    for rows in (2, 3):
        PROBE.model_called(phase, mark, model, (torch.ones(rows, 4),), {})
    assert PROBE.value(phase, "forward", mark).flops == 2 * (2 + 3) * 4 * 8


@pytest.mark.usefixtures("described_by_torch")
def test_generation_of_which_no_loop_was_seen_has_none() -> None:
    record = inference()
    phase = record.begin("forward")
    mark = PROBE.begin(phase, None)
    phase.generation = Generation()
    for part in phase.parts():
        assert PROBE.value(phase, part, mark) == FlopCount(None)
    loop = DecodingLoop(object(), (), {}, True, True)
    PROBE.decoding_begins(phase, mark, loop)  # no module: it has no inventory
    assert mark.decoded is None
