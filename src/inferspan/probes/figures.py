"""What one inference did to its device and to memory: from the marks in its record to numbers.

All of it runs on the background worker, when the device is done.

A :class:`Part` is one of its phases, by the name of its span: time on the device, FLOPs, bytes read. Parts of one name
add up to the inference's. What is not known of one part is not known of the sum, except for FLOPs, which then are a
lower bound and not exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from inferspan import semconv
from inferspan.probes.flops import peaks, walk

if TYPE_CHECKING:
    from inferspan.core.record import Inference, Phase
    from inferspan.probes.accelerator import Memory
    from inferspan.probes.energy import Energy, EnergySampler
    from inferspan.probes.leaks import Leak


@dataclass(slots=True)
class Part:
    """``gpu_s`` in seconds; ``read_bytes`` what decoding must read of the device's memory. ``None``: not known."""

    gpu_s: float | None = None
    flops: int | None = None
    exact: bool = True
    read_bytes: int | None = None

    def add(self, other: Part) -> None:
        self.gpu_s = None if self.gpu_s is None or other.gpu_s is None else self.gpu_s + other.gpu_s
        self.exact = self.exact and other.exact and (self.flops is None) == (other.flops is None)
        if other.flops is not None:
            self.flops = (self.flops or 0) + other.flops
        if self.read_bytes is not None:
            self.read_bytes = None if other.read_bytes is None else self.read_bytes + other.read_bytes


class Growth(NamedTuple):
    """What the trend test says of the memory on one device: bytes that each inference of the model leaves behind, 0
    without a trend; ``leak`` where it is to be told now."""

    device: str
    bytes_per_inference: float
    leak: Leak | None


@dataclass(slots=True)
class Figures:
    """All that is known of one inference beyond its record."""

    phases: list[dict[str, Part]] = field(default_factory=list)
    """Of each phase that has a span, in order."""
    totals: dict[str, Part] = field(default_factory=dict)
    """Sums over all phases, by the name of their span."""
    kv_bytes: int | None = None
    peak: tuple[int | None, int] | None = None
    """Upper and lower bound of the allocator's peak; equal where it is exact."""
    energy: Energy | None = None
    clock_hz: float | None = None
    growths: list[Growth] = field(default_factory=list)

    @property
    def gpu_s(self) -> float | None:
        """Time on the device in all forwards."""
        part = self.totals.get(semconv.FORWARD)
        return None if part is None else part.gpu_s

    @property
    def flops(self) -> Part | None:
        """The part with the FLOPs of all forwards."""
        part = self.totals.get(semconv.FORWARD)
        return None if part is None or part.flops is None else part


def figures_of(inference: Inference, meter: EnergySampler | None) -> Figures:
    """The numbers of a finished inference."""
    inference.read_rest()
    figures = Figures(totals=inference.totals)
    for phase in inference.phases:
        parts = parts_of(phase)
        figures.phases.append(parts)
        add_parts(figures.totals, parts)
    if inference.whole is not None:
        add_parts(figures.totals, parts_of(inference.whole))
    for phase in (*inference.phases, *([] if inference.whole is None else [inference.whole])):
        figures.kv_bytes = _kv_bytes(phase) or figures.kv_bytes
    if inference.memory_before is not None and inference.memory_after is not None:
        figures.peak = _peak(inference.memory_before, inference.memory_after)
    accelerator, end_ns = inference.accelerator, inference.end_ns
    if meter is not None and accelerator is not None and accelerator.kind == "cuda" and end_ns is not None:
        figures.energy = meter.energy(accelerator.index, inference.start_ns, end_ns)
        figures.clock_hz = meter.sm_clock_hz(accelerator.index, inference.start_ns, end_ns)
    return figures


def is_ready(inference: Inference, meter: EnergySampler | None) -> bool:
    """Whether the device has done what the inference gave it, so that its numbers can be read. Never waits."""
    whole, accelerator, end_ns = inference.whole, inference.accelerator, inference.end_ns
    if accelerator is None or end_ns is None:
        return True
    # the latest first: while it is not done, nobody need ask for the others
    phases = (*([] if whole is None else [whole]), *reversed(inference.phases), *inference.unread)
    if not all(phase.timer is None or phase.timer.is_ready() for phase in phases):
        return False
    return meter is None or accelerator.kind != "cuda" or meter.is_ready(accelerator.index, inference.start_ns, end_ns)


def parts_of(phase: Phase) -> dict[str, Part]:
    """The phase itself, and prefill and decode where it generated."""
    laps = [] if phase.timer is None else phase.timer.laps()
    if not phase.is_measured:
        return {}
    whole = Part(gpu_s=sum(laps) if laps else None)
    parts = {phase.name: whole}
    generation = phase.generation
    if generation is None:
        for inventory, work in phase.shapes or ():
            found = inventory.forward(work)
            whole.flops, whole.exact = (whole.flops or 0) + found.count, whole.exact and found.exact
        return parts
    prefill, decode = parts[semconv.PREFILL], parts[semconv.DECODE] = Part(), Part()
    if generation.first_token_ns is None:
        prefill.gpu_s = whole.gpu_s
    elif len(laps) == 2:
        prefill.gpu_s, decode.gpu_s = laps
    counted = generation.flops()
    if counted is not None:
        for part, found in ((prefill, counted[0]), (decode, counted[1])):
            part.flops, part.exact = found
            whole.flops, whole.exact = (whole.flops or 0) + found.count, whole.exact and found.exact
        decode.read_bytes = generation.read_bytes()
    return parts


def add_parts(totals: dict[str, Part], parts: dict[str, Part]) -> None:
    """Add the parts of one more phase to the sums."""
    for name, part in parts.items():
        known = totals.get(name)
        if known is None:
            totals[name] = Part(part.gpu_s, part.flops, part.exact, part.read_bytes)
        else:
            known.add(part)


def utilization(inference: Inference, part: Part) -> float | None:
    """MFU: FLOPs over what the device could have done in the time, at most; ``None`` where one is not known."""
    model, accelerator = inference.model, inference.accelerator
    if model is None or accelerator is None or not part.gpu_s or not part.flops or model.devices != 1:
        return None
    peak = peaks.peak(accelerator.device_name, model.dtype or "", accelerator.rounds_float32())
    return None if peak is None else part.flops / (part.gpu_s * peak)


def bandwidth_utilization(inference: Inference, part: Part) -> float | None:
    """The same for the bytes that decoding reads."""
    model, accelerator = inference.model, inference.accelerator
    if model is None or accelerator is None or not part.gpu_s or not part.read_bytes or model.devices != 1:
        return None
    bandwidth = peaks.bandwidth(accelerator.device_name)
    return None if bandwidth is None else part.read_bytes / (part.gpu_s * bandwidth)


def part_attributes(inference: Inference, name: str, part: Part) -> dict[str, Any]:
    """Attributes of a phase's span."""
    found = {
        semconv.GPU_TIME: part.gpu_s,
        semconv.FLOPS: part.flops,
        semconv.FLOPS_EXACT: None if part.exact or part.flops is None else False,
        semconv.FLOPS_UTILIZATION: utilization(inference, part),
    }
    if name == semconv.DECODE:
        found[semconv.BANDWIDTH_UTILIZATION] = bandwidth_utilization(inference, part)
    return {key: value for key, value in found.items() if value is not None}


def attributes_of(inference: Inference, figures: Figures) -> dict[str, Any]:
    """Attributes of the root span. What is not known is ``None``."""
    found: dict[str, Any] = {}
    part = figures.flops
    if part is not None:
        found[semconv.FLOPS] = part.flops
        found[semconv.FLOPS_METHOD] = walk.METHOD
        found[semconv.FLOPS_EXACT] = None if part.exact else False
        found[semconv.FLOPS_UTILIZATION] = utilization(inference, part)
    found[semconv.KV_CACHE_SIZE] = figures.kv_bytes
    if inference.accelerator is None:
        return found
    gpu_s, end_ns = figures.gpu_s, inference.end_ns
    if gpu_s is not None and end_ns is not None:
        found[semconv.GPU_TIME] = gpu_s
        found[semconv.GPU_BUSY_SHARE] = min(1.0, gpu_s / ((end_ns - inference.start_ns) * 1e-9 or gpu_s or 1.0))
        if figures.clock_hz is not None:
            found[semconv.GPU_CYCLES] = round(gpu_s * figures.clock_hz)
            found[semconv.GPU_CYCLES_SOURCE] = "sm_clock"
    if figures.energy is not None:
        found[semconv.ENERGY_CONSUMPTION] = figures.energy.joules
        found[semconv.ENERGY_METHOD] = "board_counter_shared" if figures.energy.is_shared else "board_counter"
    before, after = inference.memory_before, inference.memory_after
    if before is not None and after is not None:
        found.update(_memory_attributes(before, after, inference, figures))
    return found


def _memory_attributes(before: Memory, after: Memory, inference: Inference, figures: Figures) -> dict[str, Any]:
    upper, least = figures.peak or (None, 0)
    exact = upper == least
    found: dict[str, Any] = {
        semconv.MEMORY_BEFORE: before.allocated,
        semconv.MEMORY_AFTER: after.allocated,
        semconv.MEMORY_ALLOCATED: _grown(before.handed_out, after.handed_out),
        semconv.MEMORY_HELD: after.reserved,
        semconv.MEMORY_RETRIES: _grown(before.retries, after.retries) or None,
        semconv.MEMORY_FRAGMENTATION: fragmentation(after),
        semconv.MEMORY_SHARED: None if inference.is_alone else True,
    }
    if figures.peak is not None:
        found[semconv.MEMORY_PEAK] = upper
        found[semconv.MEMORY_PEAK_EXACT] = None if exact else False
        found[semconv.MEMORY_PEAK_LEAST] = None if exact else least
        if exact and inference.is_alone and (inference.model is None or inference.model.devices == 1):
            found[semconv.MEMORY_ACTIVATIONS] = max(0, least - before.allocated - (figures.kv_bytes or 0))
    return found


def fragmentation(memory: Memory) -> float | None:
    """Share of the reserved bytes that can be neither used whole nor given back."""
    if not memory.reserved or memory.inactive is None:
        return None
    return memory.inactive / memory.reserved


def failed_allocations(inference: Inference) -> int:
    """Allocations that the device could not satisfy during the inference, whether it ended by them or not."""
    before, after = inference.memory_before, inference.memory_after
    counted = None if before is None or after is None else _grown(before.failures, after.failures)
    return max(counted or 0, int(inference.out_of_memory is not None))


def _grown(before: int | None, after: int | None) -> int | None:
    """Difference of a counter; ``None`` where the program set it back meanwhile."""
    return None if before is None or after is None or after < before else after - before


def _peak(before: Memory, after: Memory) -> tuple[int | None, int] | None:
    if before.peak is None or after.peak is None:
        return None
    least = max(before.allocated, after.allocated)
    if after.peak > before.peak:
        return after.peak, after.peak  # raised in between, so it was reached in between
    if after.peak < before.peak:
        return None, max(least, after.peak)  # set back by the program: before that it may have been higher
    handed_out = _grown(before.handed_out, after.handed_out)
    upper = before.peak if handed_out is None else min(before.peak, before.allocated + handed_out)
    return max(upper, least), least


def _kv_bytes(phase: Phase) -> int | None:
    return None if phase.generation is None else phase.generation.kv_bytes()
