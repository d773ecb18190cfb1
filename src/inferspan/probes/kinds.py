"""What torch offers of a kind of device: how to make an event on it, its current stream, what its allocator counts.

No kind is known by its name but for what it does otherwise. The module of the kind comes first (``torch.cuda``,
``torch.npu``: what ``torch.get_device_module`` gives), then what torch has for all kinds (``torch.Event`` and, since
2.6, ``torch.accelerator``). What neither has, or what raises that it is not supported, is absent.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

_HOSTS = ("cpu", "meta")
_WAITING = ("mps",)
"""Kinds whose ``elapsed_time`` waits for all that is queued on the device, even where both events are done."""
_NOT_OFFERED = re.compile(r"support|not implemented|not a DeviceAllocator|dummy base class", re.IGNORECASE)
_ALL = "all"


class Memory(NamedTuple):
    """One reading of an allocator, in bytes and counts since the process began; ``None`` is what it does not count.

    ``peak`` is the highest ``allocated`` since the program last reset it, ``handed_out`` the sum of all allocations,
    ``inactive`` what lies in blocks that are split and can be neither used whole nor given back, ``retries`` how often
    the cache was emptied to satisfy a request.
    """

    allocated: int
    reserved: int | None = None
    peak: int | None = None
    handed_out: int | None = None
    inactive: int | None = None
    retries: int | None = None
    failures: int | None = None


def module_of(kind: str) -> Any:
    """Torch's module of this kind; ``None`` for the host, and where nobody has registered one."""
    return None if kind in _HOSTS else getattr(sys.modules.get("torch"), kind, None)


def is_initialized(module: Any) -> bool:
    """Whether the program uses it, in this process: a forked child must not touch its parent's context."""
    initialized = getattr(module, "is_initialized", None)
    forked = getattr(module, "_is_in_bad_fork", None)  # torch itself asks the module of each kind for it
    return (initialized is None or bool(initialized())) and (forked is None or not forked())


def event_maker(kind: str, index: int, module: Any) -> Callable[[], Any] | None:
    """What makes an event that times; ``None`` where there is none, or none that can be read without waiting."""
    if kind in _WAITING:
        return None
    own = getattr(module, "Event", None)
    if own is not None:
        return partial(own, enable_timing=True)
    general = getattr(sys.modules.get("torch"), "Event", None)
    return None if general is None else partial(general, device=f"{kind}:{index}", enable_timing=True)


def stream_getter(kind: str, module: Any) -> Callable[[int], Any] | None:
    """What gives the current stream of a device, by its index."""
    found = getattr(module, "current_stream", None) or getattr(_general(kind), "current_stream", None)
    return found if callable(found) else None


def capture_check(module: Any) -> Callable[[], bool] | None:
    """What says whether the current stream is being captured; ``None`` where the kind has no such function."""
    found: Callable[[], bool] | None = getattr(module, "is_current_stream_capturing", None)
    try:
        if found is not None:
            found()
    except Exception as error:  # noqa: BLE001
        return None if is_not_offered(error) else found  # torch has the function in builds without graphs, too
    return found


def memory_readers(kind: str, module: Any) -> Iterator[Callable[[int], Memory | None]]:
    """The ways to read an allocator, the one that says most first. None of them resets anything."""
    for owner, name in (
        (module, "memory_stats_as_nested_dict"),  # spares torch the flattening, which costs more than the reading
        (module, "memory_stats"),
        (_general(kind), "memory_stats"),
    ):
        statistics = getattr(owner, name, None)
        if statistics is not None:
            yield partial(_of_statistics, statistics)
    if hasattr(module, "memory_allocated"):
        yield partial(_of_numbers, module)
    if hasattr(module, "current_allocated_memory"):
        yield lambda index: Memory(int(module.current_allocated_memory()), int(module.driver_allocated_memory()))


def is_not_offered(error: Exception) -> bool:
    """Whether it says that this kind of device has no such thing, and nothing of the device's state."""
    return isinstance(error, (NotImplementedError, AttributeError, TypeError)) or (
        _NOT_OFFERED.search(str(error)) is not None
    )


def _general(kind: str) -> Any:
    """``torch.accelerator``, where it speaks of this kind: it knows one at a time."""
    general = getattr(sys.modules.get("torch"), "accelerator", None)
    current = None if general is None else general.current_accelerator()
    return general if current is not None and current.type == kind else None


def _of_statistics(read: Callable[[int], Any], index: int) -> Memory | None:
    stats = read(index)
    if not isinstance(stats, Mapping):
        return None
    allocated = _number(stats, "allocated_bytes", _ALL, "current")
    peak = _number(stats, "allocated_bytes", _ALL, "peak")
    handed_out = _number(stats, "allocated_bytes", _ALL, "allocated")
    if allocated is None or not (allocated or peak or handed_out):
        return None  # the input is on the device, so something was allocated: it is not counted here
    return Memory(
        allocated,
        _number(stats, "reserved_bytes", _ALL, "current") or None,
        peak or None,
        handed_out or None,  # cudaMallocAsync, for one, leaves all but current and peak at zero
        _inactive(stats),
        _number(stats, "num_alloc_retries"),
        _number(stats, "num_ooms"),
    )


def _inactive(stats: Mapping[str, Any]) -> int | None:
    """``None`` where it never was anything but zero: such an allocator does not split blocks, or does not count."""
    name = "inactive_split_bytes"
    was_counted = _number(stats, name, _ALL, "allocated") or _number(stats, name, _ALL, "peak")
    return _number(stats, name, _ALL, "current") if was_counted else None


def _of_numbers(module: Any, index: int) -> Memory | None:
    allocated, reserved, peak = (
        int(read(index)) if read is not None else 0
        for read in (
            getattr(module, name, None) for name in ("memory_allocated", "memory_reserved", "max_memory_allocated")
        )
    )
    return Memory(allocated, reserved or None, peak or None) if allocated or peak else None


def _number(stats: Mapping[str, Any], *path: str) -> int | None:
    """One of the statistics, whether they are flat (``allocated_bytes.all.current``) or nested."""
    found: Any = stats.get(".".join(path))
    if found is None:
        found = stats
        for word in path:
            found = found.get(word) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) else None
