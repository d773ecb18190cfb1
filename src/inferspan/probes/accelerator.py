"""GPUs and their like through torch: time on them and what their allocator holds, behind the few functions we need.

CUDA and ROCm (``torch.cuda``) and XPU (``torch.xpu``) time with events; MPS has events too, but reading them waits
for the device, so there only memory is read. What torch does not offer is ``None``.

Nothing here waits for a device, makes a context on one, or allocates there. Events are recorded on the current stream
of the device, never inside the capture of a graph, and read later by ``query()``. A query by any thread while a
stream is captured in CUDA's default mode ruins that capture: :data:`captures` knows what is being captured, and keeps
the readers away (pytorch#148594 is the same for NCCL's watchdog).
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from itertools import pairwise
from typing import Any, NamedTuple

from inferspan import faults
from inferspan.probes.captures import captures

_TIMED = ("cuda", "xpu")
_KINDS = (*_TIMED, "mps")


class Memory(NamedTuple):
    """One reading of an allocator, in bytes and counts since the process began.

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


class Accelerator:
    """One device. Made by :func:`of` only, which looks whether torch has initialised it."""

    def __init__(self, kind: str, index: int, torch_module: Any) -> None:
        self.kind = kind
        self.index = index
        self._torch = torch_module
        self._events: deque[Any] = deque()
        self._pending: weakref.WeakSet[Timer] = weakref.WeakSet()
        self._broken = kind not in _TIMED
        self._device_name: str | None = None

    @property
    def device(self) -> str:
        """As torch writes it: ``cuda:0``."""
        return f"{self.kind}:{self.index}"

    @property
    def device_name(self) -> str:
        """Name of the board, as its driver gives it; empty where it does not."""
        if self._device_name is None:
            try:
                self._device_name = str(self._torch.get_device_name(self.index))
            except Exception:  # noqa: BLE001 - a device that is lost, or a kind that has no names
                self._device_name = ""
        return self._device_name

    @staticmethod
    def rounds_float32() -> bool:
        """Whether the program lets torch round float32 operands of products to TF32."""
        precision = getattr(sys.modules.get("torch"), "get_float32_matmul_precision", None)
        return precision is not None and precision() != "highest"

    def timer(self, pending_timers_max: int) -> Timer | None:
        """A timer that is running, or ``None`` where time on the device cannot be had (now)."""
        if self._broken or len(self._pending) >= pending_timers_max:
            return None
        timer = Timer(self)
        if not timer.lap():
            return None
        self._pending.add(timer)
        return timer

    def memory(self) -> Memory | None:
        """What the allocator reports; ``None`` where it does not (``cudaMallocAsync`` counts nothing)."""
        try:
            if self.kind == "mps":
                return Memory(int(self._torch.current_allocated_memory()), int(self._torch.driver_allocated_memory()))
            read = getattr(self._torch, "memory_stats_as_nested_dict", None)  # XPU has it since torch 2.6
            stats = None if read is None else read(self.index)
            if not stats:
                return None
            allocated = stats["allocated_bytes"]["all"]
            if not allocated["allocated"]:
                return None
            return Memory(
                allocated["current"],
                stats["reserved_bytes"]["all"]["current"],
                allocated["peak"],
                allocated["allocated"],
                stats["inactive_split_bytes"]["all"]["current"] if "inactive_split_bytes" in stats else None,
                stats.get("num_alloc_retries"),
                stats.get("num_ooms"),
            )
        except Exception as error:  # noqa: BLE001 - the driver's errors have no type of their own on torch 2.4
            self._failed(error)
            return None

    def record(self) -> Any:
        """An event, recorded on the device's current stream; ``None`` while that is captured, or after an error."""
        try:
            if self.kind == "cuda" and self._torch.is_current_stream_capturing():
                return None
            try:
                event = self._events.popleft()
            except IndexError:
                event = self._torch.Event(enable_timing=True)
            event.record(self._torch.current_stream(self.index))
            return event
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            return None

    def give_back(self, events: list[Any]) -> None:
        """Events that are not needed any more."""
        self._events.extend(events)

    def is_done(self, event: Any) -> bool | None:
        """Whether the device has come past the event; ``None`` where it cannot be asked now."""
        if self._broken or not captures.keep_out():
            return None
        try:
            return bool(event.query())
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            return None
        finally:
            captures.let_in()

    def seconds(self, events: list[Any]) -> list[float] | None:
        """Time between each two events that follow each other, the last of which is done."""
        if self._broken or not captures.keep_out():
            return None
        try:
            return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            return None
        finally:
            captures.let_in()

    @property
    def is_broken(self) -> bool:
        """Whether the driver has given an error: nothing will be read of this device any more."""
        return self._broken

    def _failed(self, error: Exception) -> None:
        # An error of the device stays with its context: what the program does next meets it too.
        self._broken = True
        faults.warn_once(
            f"accelerator {self.device}",
            f"{self.device} gave an error ({type(error).__name__}) when its time or memory was read: "
            "they are absent from now on",
        )


class Timer:
    """Time on a device between laps. Recorded on the thread that works with the device, read later on another."""

    __slots__ = ("__weakref__", "_accelerator", "_events", "_seconds", "is_pending")

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._events: list[Any] = []
        self._seconds: list[float] | None = None
        self.is_pending: bool | None = None

    def lap(self) -> bool:
        """Note that the device's stream is to come past here."""
        event = self._accelerator.record()
        if event is not None:
            self._events.append(event)
        return event is not None

    def stop(self) -> None:
        """The last lap. ``is_pending`` then says whether the device still had work to do."""
        if self.lap():
            done = self._accelerator.is_done(self._events[-1])
            self.is_pending = None if done is None else not done

    def is_ready(self) -> bool:
        """Whether :meth:`laps` has its answer, or never will. Never waits."""
        return (
            self._seconds is not None
            or len(self._events) < 2
            or self._accelerator.is_broken
            or bool(self._accelerator.is_done(self._events[-1]))
        )

    def laps(self) -> list[float]:
        """Seconds between the laps; empty where they are not known. It answers once the device is done, and for good:
        what is not ready when it is called stays unknown."""
        if self._seconds is None:
            if len(self._events) > 1 and self.is_ready():
                self._seconds = self._accelerator.seconds(self._events)
                self._accelerator.give_back(self._events)
            # one that is not done must not be recorded anew while it may still be read: it is left to torch
            self._events = []
            self._seconds = self._seconds or []
        return self._seconds


_known: dict[str, Accelerator] = {}


def of(device: str | None) -> Accelerator | None:
    """The accelerator behind a device as torch writes it; ``None`` for the host, and where nothing has used it yet."""
    if not device or device == "cpu":
        return None
    known = _known.get(device)
    kind, _, index = device.partition(":")
    if known is None and kind not in _KINDS:
        return None
    module = getattr(sys.modules.get("torch"), kind, None)
    # false in a forked child, too, where the parent's context must not be touched
    if module is None or not getattr(module, "is_initialized", _always)():
        return None
    if not index and kind != "mps":
        device = f"{kind}:{module.current_device()}"  # "cuda" is whichever is current
        known = _known.get(device)
    if known is None:
        known = _known.setdefault(device, Accelerator(kind, int(device.partition(":")[2] or 0), module))
    return known


def _always() -> bool:
    return True
