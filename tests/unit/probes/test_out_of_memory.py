"""What the errors of torch 2.4 and 2.15 say, in their own words."""

from __future__ import annotations

import pytest

from inferspan.probes.out_of_memory import OutOfMemory, out_of_memory

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


class OutOfMemoryError(RuntimeError):
    """As ``torch.OutOfMemoryError``: a RuntimeError, by that name in every version."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError(CUDA_2_4), OutOfMemory(20 << 30, int(5.5 * 2**30), False)),
        (OutOfMemoryError("something new"), OutOfMemory(None, None, False)),
        (RuntimeError(CPU), OutOfMemory(40_000_000_000_000, None, True)),
        (RuntimeError(MPS), OutOfMemory(300 << 20, None, False)),
        (MemoryError(), OutOfMemory(None, None, True)),
        (RuntimeError("shapes do not match"), None),
        (ValueError(CUDA_2_4), None),
    ],
    ids=["cuda", "unknown words", "cpu", "mps", "python", "another error", "another type"],
)
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
