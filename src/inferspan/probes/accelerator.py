"""GPUs and their like through torch: time on them and what their allocator holds, behind the few functions we need.

Any kind of device that torch has a module for; what of it can be read :mod:`inferspan.probes.kinds` finds out, and what
cannot is ``None``.

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
from typing import Any

from inferspan import faults
from inferspan.probes import kinds
from inferspan.probes.captures import captures
from inferspan.probes.kinds import Memory


class Accelerator:
    """One device. Made by :func:`of` only, which looks whether torch has initialised it."""

    def __init__(self, kind: str, index: int, torch_module: Any) -> None:
        self.kind = kind
        self.index = index
        self._torch = torch_module
        self._events: deque[Any] = deque()
        self._pending: weakref.WeakSet[Timer] = weakref.WeakSet()
        self._new_event = kinds.event_maker(kind, index, torch_module)
        self._stream = kinds.stream_getter(kind, torch_module)
        self._is_capturing = kinds.capture_check(torch_module)
        self._memory_readers = list(kinds.memory_readers(kind, torch_module))
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
        if self._new_event is None or len(self._pending) >= pending_timers_max:
            return None
        timer = Timer(self)
        if not timer.lap():
            return None
        self._pending.add(timer)
        return timer

    def memory(self) -> Memory | None:
        """What the allocator reports; ``None`` where it does not."""
        for read in self._memory_readers:
            try:
                found = read(self.index)
            except Exception as error:  # noqa: BLE001 - the driver's errors have no type of their own on torch 2.4
                if not kinds.is_not_offered(error):
                    self._failed(error)
                    return None
                self._memory_readers = [other for other in self._memory_readers if other is not read]
                continue
            if found is not None:
                self._memory_readers = [read]  # two readings are compared: both are of the same one
                return found
        return None

    def record(self) -> Any:
        """An event, recorded on the device's current stream; ``None`` while that is captured, or after an error."""
        if self._new_event is None:
            return None
        try:
            stream = None if self._stream is None else self._stream(self.index)
            is_capturing = self._is_capturing or getattr(stream, "is_capturing", None)
            if is_capturing is not None and is_capturing():
                return None
            if stream is None and self._torch.current_device() != self.index:
                return None  # without a stream it is recorded on that of the current device
            try:
                event = self._events.popleft()
            except IndexError:
                event = self._new_event()
            event.record(*(() if stream is None else (stream,)))
            return event
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            return None

    def give_back(self, events: list[Any]) -> None:
        """Events that are not needed any more."""
        self._events.extend(events)

    def is_done(self, event: Any) -> bool | None:
        """Whether the device has come past the event; ``None`` where it cannot be asked now."""
        if self._new_event is None or not captures.keep_out():
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
        if self._new_event is None or not captures.keep_out():
            return None
        try:
            return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]
        except Exception as error:  # noqa: BLE001
            self._failed(error)
            return None
        finally:
            captures.let_in()

    @property
    def has_time(self) -> bool:
        """Whether there is time to be read of this device, now or later."""
        return self._new_event is not None

    def _failed(self, error: Exception) -> None:
        self._new_event = None
        if kinds.is_not_offered(error):
            faults.logger.debug("inferspan: time on %s cannot be read (%s)", self.device, error)
            return
        # An error of the device stays with its context: what the program does next meets it too.
        self._memory_readers = []
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
            or not self._accelerator.has_time
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
    kind, _, index = device.partition(":")
    module = kinds.module_of(kind)
    if module is None or not kinds.is_initialized(module):
        return None
    if not index:
        index = str(module.current_device() if hasattr(module, "current_device") else 0)  # "cuda" is the current one
        device = f"{kind}:{index}"
    known = _known.get(device)
    if known is None:
        known = _known.setdefault(device, Accelerator(kind, int(index), module))
    return known
