"""Time and memory of single layers, summed over their calls in one inference.

A :class:`Layers` has a :class:`Layer` for each layer that was called, and in it its parts. What a generation of ten
thousand steps leaves is one of each, not one for each step. Which modules are layers is found by
:mod:`inferspan.integrations.torch.layers`.

Host time is from the call to its return: where a GPU works that is the time to launch, and includes what recording the
parts costs. GPU time is between two events on the current stream of the layer's device; it is known of all calls or of
none. Events wait to be read, never the calling thread: the oldest are asked from time to time whether they are done.
Memory is read around the layer's first call in the inference, which for a generation is its prompt.

This is no profiler: kernels are not distinguished, and what runs compiled or as one operator has no layers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from inferspan import faults, semconv
from inferspan.core.errors import name_of
from inferspan.core.probe import Brackets, ChildSpan, Point, Probe, Report
from inferspan.integrations.torch.layers import ATTENTION, MLP, WHOLE, Slot, plan_of
from inferspan.probes import accelerator
from inferspan.probes.accelerator import Accelerator, Timer
from inferspan.probes.kinds import Memory

if TYPE_CHECKING:
    from inferspan.core.record import Inference, Phase

_UNREAD_MAX = 64
_NS = 1e-9
_REST = "rest"
_TIMES = {
    ATTENTION: (semconv.LAYER_ATTENTION_TIME, semconv.LAYER_ATTENTION_GPU_TIME),
    MLP: (semconv.LAYER_MLP_TIME, semconv.LAYER_MLP_GPU_TIME),
}


class LayerTotals:
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
        self.sums: dict[str, LayerTotals] = {}

    @property
    def total(self) -> LayerTotals | None:
        """The layer itself; ``None`` where only parts of it were called."""
        return self.sums.get(WHOLE)


class Layers:
    """The layers of one inference. ``slots`` are by the identity of their modules; ``phases`` counts the forwards in
    which they were recorded."""

    def __init__(self, pending_timers_max: int, *, with_memory: bool) -> None:
        self.slots: dict[int, Slot] = {}
        self.phases = 0
        self._pending_timers_max = pending_timers_max
        self._with_memory = with_memory
        self._layers: dict[tuple[int, str], Layer] = {}
        self._unread: deque[tuple[LayerTotals, Timer]] = deque()
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
            return sorted((layer for layer in self._layers.values() if layer.total), key=lambda layer: layer.start_ns)

    def _begin(self, slot: Slot, module: Any) -> tuple[Layer, LayerTotals, Timer | None]:
        with self._lock:
            layer = self._layers.get(slot[:2])
            if layer is None:
                layer = self._layers[slot[:2]] = Layer(slot.layer)
            found = layer.sums.get(slot.part)
            if found is None:
                found = layer.sums[slot.part] = LayerTotals(_accelerator_of(module))
                if self._with_memory and found.accelerator is not None and slot.part == WHOLE:
                    layer.before = found.accelerator.memory()
        timer = None
        if self._pending_timers_max and found.accelerator is not None and found.gpu_s is not None:
            timer = found.accelerator.timer(self._pending_timers_max)
        return layer, found, timer

    def _end(
        self,
        layer: Layer,
        found: LayerTotals,
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
                if found is layer.total:
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


def _read(found: LayerTotals, timer: Timer) -> None:
    laps = timer.laps()
    found.gpu_s = found.gpu_s + laps[0] if laps and found.gpu_s is not None else None


def _accelerator_of(module: Any) -> Accelerator | None:
    """The device that its weights are on: a model may be spread over several."""
    weight = next(module.parameters(), None)
    return None if weight is None else accelerator.of(str(weight.device))


class LayersProbe(Probe):
    """Records the layers of a model in one of so many of its inferences, of those whose trace is recorded."""

    name = "layers"
    brackets = Brackets.FORWARD

    def begin(self, record: Phase, model: Any) -> None:
        inference = record.inference
        if inference is None:
            return
        try:
            layers = self._layers_of(inference, model)
        except Exception:  # noqa: BLE001 - a model that cannot be hashed, a metaclass that lets nothing be set
            faults.note("layers.begin")
            return
        if layers is not None:
            record.modules = layers

    def _layers_of(self, inference: Inference, model: Any) -> Layers | None:
        if inference.root is None or not inference.root.is_recording():
            return None
        settings = inference.plan.settings
        plan = plan_of(model, settings)
        if plan is None:
            return None
        mark: Layers | bool | None = inference.mark_of(self.name)
        if mark is None:  # decided once for all forwards of the inference
            mark = plan.takes_next(settings.layers_every)
            if mark:
                # half of the events at most: those of the forward itself come first
                timers_max = settings.gpu_timers_max // 2 if "gpu_time" in settings.measure else 0
                mark = Layers(timers_max, with_memory="memory" in settings.measure)
            inference.marks.append((self, mark))
        if not isinstance(mark, Layers):
            return None
        mark.add(plan.slots)
        return mark

    def report(self, inference: Inference, mark: Layers | bool | None, report: Report) -> None:
        if not isinstance(mark, Layers):
            return
        phases = inference.phases.kept
        below = next((phase for phase in phases if phase.modules is mark), None) if mark.phases == 1 else None
        for layer in mark.finished():
            error = None if layer.error is None else name_of(layer.error)
            name = f"layer {layer.name}"
            report.spans.append(ChildSpan(name, _attributes(layer), layer.start_ns, layer.end_ns, error, below))
            report.points += _points_of(layer)


def _points_of(layer: Layer) -> Iterator[Point]:
    total = layer.total
    if total is None:
        return
    name = {semconv.LAYER_NAME: layer.name}
    yield Point(semconv.LAYER_CALLS, total.calls, name, of_operation=False, has_exemplar=False)
    parts = {part: layer.sums[part] for part in _TIMES if part in layer.sums}
    host = {part: found.host_ns * _NS for part, found in parts.items()}
    yield from _times(semconv.LAYER_TIME, name, host, total.host_ns * _NS)
    gpu = {part: found.gpu_s for part, found in parts.items() if found.gpu_s is not None}
    if total.gpu_s is not None and len(gpu) == len(parts):
        yield from _times(semconv.LAYER_GPU_TIME, name, gpu, total.gpu_s)


def _times(metric: str, name: dict[str, str], parts: dict[str, float], total: float) -> Iterator[Point]:
    for part, seconds in {**parts, _REST: max(0.0, total - sum(parts.values()))}.items():
        attributes = {**name, semconv.LAYER_PART: part}
        yield Point(metric, seconds, attributes, of_operation=False, has_exemplar=False)


def _attributes(layer: Layer) -> dict[str, Any]:
    total = layer.total or LayerTotals(None)
    found: dict[str, Any] = {semconv.LAYER_NAME: layer.name, semconv.GPU_TIME: total.gpu_s}
    if total.calls > 1:
        found[semconv.PHASE_CALLS] = total.calls
        found[semconv.PHASE_TIME] = total.host_ns * _NS
    for part, (time, gpu_time) in _TIMES.items():
        if part in layer.sums:
            found[time] = layer.sums[part].host_ns * _NS
            found[gpu_time] = layer.sums[part].gpu_s
    before, after = layer.before, layer.after
    if before is not None and after is not None:
        found[semconv.LAYER_MEMORY] = after.allocated - before.allocated
        if before.handed_out is not None and after.handed_out is not None and after.handed_out >= before.handed_out:
            found[semconv.MEMORY_ALLOCATED] = after.handed_out - before.handed_out
    return {name: value for name, value in found.items() if value is not None}
