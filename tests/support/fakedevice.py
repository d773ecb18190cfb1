"""A GPU of the tests: a stand-in for ``torch.cuda`` under the real :mod:`inferspan.probes.accelerator`.

It has what the library asks torch for: events on a stream, whether that is being captured, the allocator's counters.
Time on it passes only by :meth:`FakeGpu.work`, is done by :meth:`FakeGpu.finish`, and what the library must not do
(wait for the device, query during a capture, record in one) raises, and fails the test by :func:`obeyed`.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from inferspan.integrations.torch.describe import TorchDescriber
from inferspan.probes import accelerator
from inferspan.probes.captures import Captures


class FakeEvent:
    """As ``torch.cuda.Event``: bound to a device when first recorded, readable when the device has come past it."""

    made = 0

    def __init__(self, gpu: FakeGpu, enable_timing: bool) -> None:
        assert enable_timing
        FakeEvent.made += 1
        self.gpu = gpu
        self.index: int | None = None
        self.at_s: float | None = None

    def record(self, stream: tuple[str, int]) -> None:
        self.gpu.fail_if_told()
        self.gpu.forbid(self.gpu.capturing, "recorded inside the capture of a graph")
        self.gpu.forbid(self.index not in (None, stream[1]), "recorded on another device than before")
        self.index = stream[1]
        self.at_s = self.gpu.queued_s

    def query(self) -> bool:
        self.gpu.fail_if_told()
        self.gpu.queries += 1
        self.gpu.forbid(self.gpu.capturing, "a query during a capture ruins it")
        return self.at_s is None or self.gpu.done_s >= self.at_s

    def elapsed_time(self, end: FakeEvent) -> float:
        self.gpu.forbid(self.index != end.index, "events of two devices")
        self.gpu.forbid(not (self.query() and end.query()), "not recorded, or not done")
        assert self.at_s is not None
        assert end.at_s is not None
        return (end.at_s - self.at_s) * 1e3

    def synchronize(self) -> None:
        self.gpu.forbid(True, "it waited for the device")


class FakeGpu:
    """The module: what ``torch.cuda`` is to the library. All devices share one clock and one allocator."""

    def __init__(self, name: str = "NVIDIA H100 80GB HBM3") -> None:
        self.name = name
        self.initialized = True
        self.capturing = False
        self.error: Exception | None = None
        self.queued_s = self.done_s = 0.0
        self.queries = 0
        self.allocated = self.peak = self.handed_out = 0
        self.reserved = 1 << 30
        self.inactive = 0
        self.retries = self.failures = 0
        self.counts_memory = True
        self.violations: list[str] = []

    # -- what a test does to it

    def work(self, seconds: float) -> None:
        """Queue some work."""
        self.queued_s += seconds

    def finish(self) -> None:
        """All that was queued is done."""
        self.done_s = self.queued_s

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.handed_out += size
        self.peak = max(self.peak, self.allocated)

    def free(self, size: int) -> None:
        self.allocated -= size

    def reset_peak(self) -> None:
        """What ``torch.cuda.reset_peak_memory_stats()`` does, for the program's own use."""
        self.peak = self.allocated

    def forbid(self, broken: bool, rule: str) -> None:
        """Raises, and remembers it: the library takes what a driver raises for an error of the driver."""
        if broken:
            self.violations.append(rule)
            raise AssertionError(rule)

    def fail_if_told(self) -> None:
        if self.error is not None:
            raise self.error

    # -- what the library asks

    def is_initialized(self) -> bool:
        return self.initialized

    def current_device(self) -> int:
        return 0

    def current_stream(self, index: int) -> tuple[str, int]:
        return ("stream", index)

    def is_current_stream_capturing(self) -> bool:
        self.fail_if_told()
        return self.capturing

    def get_device_name(self, index: int) -> str:
        return self.name

    def Event(self, *, enable_timing: bool) -> FakeEvent:
        return FakeEvent(self, enable_timing)

    def memory_stats_as_nested_dict(self, index: int) -> dict[str, Any]:
        self.fail_if_told()
        counted = self.counts_memory
        return {
            "allocated_bytes": {
                "all": {
                    "current": self.allocated * counted,
                    "peak": self.peak * counted,
                    "allocated": self.handed_out * counted,
                }
            },
            "reserved_bytes": {"all": {"current": self.reserved * counted}},
            "inactive_split_bytes": {"all": {"current": self.inactive * counted, "allocated": self.reserved * counted}},
            "num_alloc_retries": self.retries,
            "num_ooms": self.failures,
        }

    def synchronize(self, *args: Any) -> None:
        self.forbid(True, "it waited for the device, or changed its counters")

    reset_peak_memory_stats = reset_accumulated_memory_stats = empty_cache = mem_get_info = synchronize


class FakeTorch:
    """What of torch the accelerator looks at: the module of one kind, and what it has for all kinds (``general``)."""

    def __init__(self, gpu: Any, kind: str = "cuda", **general: Any) -> None:
        self.__dict__.update({kind: gpu}, **general)


class FakeGeneral:
    """What ``torch.accelerator`` is to the library: it knows one kind."""

    def __init__(self, gpu: FakeGpu, kind: str) -> None:
        self.gpu = gpu
        self.kind = kind

    def current_accelerator(self) -> SimpleNamespace:
        return SimpleNamespace(type=self.kind)

    def current_stream(self, index: int) -> tuple[str, int]:
        return self.gpu.current_stream(index)

    def memory_stats(self, index: int) -> dict[str, Any]:
        return flat(self.gpu.memory_stats_as_nested_dict(index))


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """As torch flattens its statistics: ``allocated_bytes.all.current``."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found


def obeyed(gpu: FakeGpu) -> bool:
    """Whether no rule was broken on it."""
    assert gpu.violations == []
    return True


def install(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, *, as_host: bool = False, kind: str = "cuda", **general: Any
) -> None:
    """Have the library find it as ``torch.<kind>``. ``as_host``: real models that run on the CPU count as running on
    it. ``general``: what torch has beside it."""
    monkeypatch.setattr(accelerator, "_known", {})
    monkeypatch.setattr(accelerator, "captures", Captures())
    if as_host:
        monkeypatch.setattr(accelerator, "of", accelerator.of)  # to be put back
        monkeypatch.setattr(TorchDescriber, "device_of", TorchDescriber.device_of)
        stand_in(gpu)
    else:
        monkeypatch.setitem(sys.modules, "torch", FakeTorch(gpu, kind, **general))  # type: ignore[arg-type]


def stand_in(gpu: FakeGpu) -> None:
    """Have real models that run on the CPU count as running on it, for good."""
    device = accelerator.Accelerator("cuda", 0, gpu)
    accelerator.of = lambda name: device if name in ("cpu", "cuda:0") else None
    TorchDescriber.device_of = lambda self, model, of_input: "cuda:0" if of_input == "cpu" else of_input
