"""Time and memory of single layers, summed over their calls in one inference.

A :class:`Layers` has a :class:`Layer` for each layer that was called, and in it the parts that were told apart. What
a generation of ten thousand steps leaves is one of each, not one for each step.

Host time is from the call to its return: where a GPU works that is the time to launch, and includes what recording the
parts costs. GPU time is between two events on the current stream of the layer's device; it is known of all calls or of
none. Events wait to be read, never the calling thread: the oldest are asked from time to time whether they are done.
Memory is read around the layer's first call in the inference, which for a generation is its prompt.

This is no profiler: kernels are not told apart, and what runs compiled or as one operator has no layers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any, NamedTuple

from inferspan import faults
from inferspan.probes import accelerator
from inferspan.probes.accelerator import Accelerator, Memory, Timer

WHOLE, ATTENTION, MLP = "", "attention", "mlp"
_UNREAD_MAX = 64


class Slot(NamedTuple):
    """What a module is to its model (its identity): a layer, by its name, or a part of one."""

    model: int
    layer: str
    part: str


class Sum:
    """Calls of one module, or of several that are one part, added up. ``gpu_s`` is ``None`` where it is not known."""

    __slots__ = ("accelerator", "calls", "gpu_s", "host_ns")

    def __init__(self, on: Accelerator | None) -> None:
        self.accelerator = on
        self.calls = 0
        self.host_ns = 0
        self.gpu_s: float | None = None if on is None else 0.0


class Layer:
    """One layer. ``start_ns`` is of its first call, as are ``before`` and ``after``, ``end_ns`` of its last."""

    __slots__ = ("after", "before", "end_ns", "error", "name", "start_ns", "sums")

    def __init__(self, name: str) -> None:
        self.name = name
        self.start_ns = 0
        self.end_ns = 0
        self.error: type[BaseException] | None = None
        self.before: Memory | None = None
        self.after: Memory | None = None
        self.sums: dict[str, Sum] = {}

    @property
    def whole(self) -> Sum | None:
        """The layer itself; ``None`` where only parts of it were called."""
        return self.sums.get(WHOLE)


class Layers:
    """The layers of one inference. ``slots`` are by the identity of their modules; ``phases`` counts the forwards in
    which they were recorded, ``is_told`` is for whoever tells them."""

    def __init__(self, pending_timers_max: int, *, with_memory: bool) -> None:
        self.slots: dict[int, Slot] = {}
        self.phases = 0
        self.is_told = False
        self._pending_timers_max = pending_timers_max
        self._with_memory = with_memory
        self._layers: dict[tuple[int, str], Layer] = {}
        self._unread: deque[tuple[Sum, Timer]] = deque()
        self._ask_at = _UNREAD_MAX
        self._lock = threading.Lock()  # the threads of one inference() block may call one model

    def add(self, slots: Mapping[int, Slot]) -> None:
        """Record these, too, in one forward more."""
        self.slots.update(slots)
        self.phases += 1

    def run(self, slot: Slot, module: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a module, through ``function``."""
        begun = None
        try:
            begun = self._begin(slot, module)
        except Exception:  # noqa: BLE001
            faults.note("layers.call")
        error: BaseException | None = None
        start_ns = perf_counter_ns()
        try:
            return function(*args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if begun is not None:
                self._end(*begun, start_ns, perf_counter_ns(), error)

    def finished(self) -> list[Layer]:
        """All layers that were called, in the order of their first call. What is not known by now stays unknown."""
        with self._lock:
            while self._unread:
                _read(*self._unread.popleft())
            return sorted((layer for layer in self._layers.values() if layer.whole), key=lambda layer: layer.start_ns)

    def _begin(self, slot: Slot, module: Any) -> tuple[Layer, Sum, Timer | None]:
        with self._lock:
            layer = self._layers.get(slot[:2])
            if layer is None:
                layer = self._layers[slot[:2]] = Layer(slot.layer)
            found = layer.sums.get(slot.part)
            if found is None:
                found = layer.sums[slot.part] = Sum(_accelerator_of(module))
                if self._with_memory and found.accelerator is not None and slot.part == WHOLE:
                    layer.before = found.accelerator.memory()
        timer = None
        if self._pending_timers_max and found.accelerator is not None and found.gpu_s is not None:
            timer = found.accelerator.timer(self._pending_timers_max)
        return layer, found, timer

    def _end(
        self,
        layer: Layer,
        found: Sum,
        timer: Timer | None,
        start_ns: int,
        end_ns: int,
        error: BaseException | None,
    ) -> None:
        try:
            with self._lock:
                if timer is None or not timer.lap():
                    found.gpu_s = None
                else:
                    self._unread.append((found, timer))
                    self._read_some()
                if found is layer.whole:
                    if not found.calls:
                        layer.start_ns = start_ns
                        if layer.before is not None and found.accelerator is not None:
                            layer.after = found.accelerator.memory()
                    layer.end_ns = end_ns
                    layer.error = error if error is None else type(error)
                found.calls += 1
                found.host_ns += end_ns - start_ns
        except Exception:  # noqa: BLE001
            faults.note("layers.end")

    def _read_some(self) -> None:
        # A decoding loop waits for the device once a step, so what was recorded a step ago is done.
        if len(self._unread) < self._ask_at:
            return
        while self._unread and self._unread[0][1].is_ready():
            _read(*self._unread.popleft())
        self._ask_at = len(self._unread) + _UNREAD_MAX


def _read(found: Sum, timer: Timer) -> None:
    laps = timer.laps()
    found.gpu_s = found.gpu_s + laps[0] if laps and found.gpu_s is not None else None


def _accelerator_of(module: Any) -> Accelerator | None:
    """The device that its weights are on: a model may be spread over several."""
    weight = next(module.parameters(), None)
    return None if weight is None else accelerator.of(str(weight.device))
