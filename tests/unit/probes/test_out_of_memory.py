"""What the errors of torch 2.4 and 2.15 say, in their own words."""

from __future__ import annotations

import pytest

from inferspan import semconv
from inferspan.core.probe import Report
from inferspan.probes.kinds import Memory
from inferspan.probes.memory import MemoryUse
from inferspan.probes.memory_errors import OutOfMemory, out_of_memory
from inferspan.probes.out_of_memory import OutOfMemoryProbe
from support import records

CUDA_2_4 = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 5.50 GiB is "
    "free. Process 1 has 134.30 GiB memory in use. Of the allocated memory 133.00 GiB is allocated by PyTorch, and "
    "512.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "40000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
MPS = (
    "MPS backend out of memory (MPS allocated: 17.90 GB, other allocations: 384.00 KB, max allowed: 18.13 GB). Tried "
    "to allocate 300.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit."
)


NPU = (
    "NPU out of memory. Tried to allocate 260.00 MiB (NPU 0; 28.50 GiB total capacity; 10.24 GiB already allocated; "
    "10.24 GiB current active; 149.50 MiB free; 10.28 GiB reserved in total by PyTorch) If reserved memory is >> "
    "allocated memory try setting max_split_size_mb to avoid fragmentation."
)
XPU = (
    "XPU out of memory. Tried to allocate 192.00 MiB. GPU 3 has a total capacity of 31.89 GiB of which 13.25 GiB is "
    "free. Of the allocated memory 10.43 GiB is allocated by PyTorch"
)
HPU = "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::939524096 (896)MB"
OPENREG = "Failed to allocate 4096 bytes on openreg device 0. Allocated: 128 bytes, Reserved: 128 bytes"


class OutOfMemoryError(RuntimeError):
    """As ``torch.OutOfMemoryError``: a RuntimeError, by that name in every version."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError(CUDA_2_4), OutOfMemory(20 << 30, int(5.5 * 2**30), False)),
        (OutOfMemoryError("something new"), OutOfMemory(None, None, False)),
        (RuntimeError(CPU), OutOfMemory(40_000_000_000_000, None, True)),
        (RuntimeError(MPS), OutOfMemory(300 << 20, None, False)),
        (RuntimeError(NPU), OutOfMemory(260 << 20, int(149.5 * 2**20), False)),
        (OutOfMemoryError(XPU), OutOfMemory(192 << 20, int(13.25 * 2**30), False)),
        (RuntimeError(HPU), OutOfMemory(939524096, None, False)),
        (RuntimeError(OPENREG), OutOfMemory(4096, None, False)),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), OutOfMemory(None, None, False)),
        (RuntimeError("CUDA driver error: out of memory"), OutOfMemory(None, None, False)),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
         OutOfMemory(None, None, False)),
        (RuntimeError("the worker ran out of memory"), None),
        (RuntimeError("Failed to allocate a port"), None),
        (MemoryError(), OutOfMemory(None, None, True)),
        (RuntimeError("shapes do not match"), None),
        (ValueError(CUDA_2_4), None),
    ],
    ids=[
        "cuda", "unknown words", "cpu", "mps", "npu", "xpu", "hpu", "openreg", "runtime", "driver", "cublas",
        "program's words", "another allocation", "python", "another error", "another type",
    ],
)  # fmt: skip
def test_what_the_error_says(error: BaseException, expected: OutOfMemory | None) -> None:
    assert out_of_memory(error) == expected


def test_the_words_of_the_installed_torch() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    found = out_of_memory(caught.value)
    assert found is not None
    assert found == OutOfMemory(4 * 10**16, None, True)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert out_of_memory(torch.OutOfMemoryError(CUDA_2_4)) == OutOfMemory(20 << 30, int(5.5 * 2**30), False)


def test_an_error_that_cannot_be_written() -> None:
    class Silent(RuntimeError):
        def __str__(self) -> str:
            raise ValueError

    assert out_of_memory(Silent()) is None


def failures(mark: OutOfMemory | None, before: int | None = None, after: int | None = None) -> float:
    """How many allocations failed, as the counter has it."""
    report = Report()
    if before is not None and after is not None:
        memory = report.results["memory"] = MemoryUse("cuda:0", Memory(1, failures=before))
        memory.after = Memory(1, failures=after)
    OutOfMemoryProbe().report(records.ended(records.inference()), mark, report)
    return sum(point.value for point in report.points)


def test_failed_allocations_count_once() -> None:
    error = OutOfMemory(1, 1, False)
    assert failures(None) == 0
    assert failures(None, 3, 5) == 2, "the program caught two"
    assert failures(error, 3, 5) == 2, "and ended by the second"
    assert failures(error, 3, 3) == 1, "of the host, which has no counter"


def test_event_has_what_was_asked_for_and_what_was_held() -> None:
    report = Report(results={"device": "cuda:0"})
    memory = report.results["memory"] = MemoryUse("cuda:0", Memory(1, failures=0))
    memory.after = Memory(70, 100, inactive=25, failures=1)
    OutOfMemoryProbe().report(records.ended(records.inference()), OutOfMemory(30, 5, False), report)
    (event,) = report.events
    assert (event.name, event.at_ns, event.attributes) == (
        semconv.OUT_OF_MEMORY_EVENT,
        100 * records.MS,
        {
            semconv.OOM_REQUESTED: 30,
            semconv.OOM_FREE: 5,
            semconv.MEMORY_AFTER: 70,
            semconv.MEMORY_HELD: 100,
            semconv.MEMORY_FRAGMENTATION: 0.25,
        },
    )
    assert [(point.metric, point.value, point.attributes, point.of_operation) for point in report.points] == [
        (semconv.OUT_OF_MEMORY, 1, {semconv.DEVICE: "cuda:0"}, False)
    ]


def test_the_hosts_memory_is_not_the_devices() -> None:
    """The program caught one failure on the device, and ended by one of the host."""
    report = Report(results={"device": "npu:1"})
    memory = report.results["memory"] = MemoryUse("npu:1", Memory(1, failures=3))
    memory.after = Memory(100, 1000, failures=4)
    OutOfMemoryProbe().report(records.ended(records.inference()), OutOfMemory(7, None, True), report)
    assert [(point.value, point.attributes) for point in report.points] == [
        (1, {semconv.DEVICE: "npu:1"}),
        (1, {semconv.DEVICE: "cpu"}),
    ]
    (event,) = report.events
    assert {name: value for name, value in event.attributes.items() if value is not None} == {semconv.OOM_REQUESTED: 7}


def test_an_error_is_kept_only_if_it_is_one_of_memory() -> None:
    probe = OutOfMemoryProbe()
    assert probe.failed(records.inference(), MemoryError()) == OutOfMemory(None, None, True)
    assert probe.failed(records.inference(), ValueError()) is None
    assert probe.failed(records.inference(), KeyboardInterrupt()) is None
