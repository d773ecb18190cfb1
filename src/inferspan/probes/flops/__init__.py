"""FLOPs, cache and memory traffic of forwards: a model's matrix products, listed once, and the shapes of each call.

:mod:`~inferspan.probes.flops.walk` lists the products of a model, :mod:`~inferspan.probes.flops.inventory` adds up what
a call with given shapes computes, :mod:`~inferspan.probes.flops.peaks` knows what devices can do at most. Here is what
the calling thread notes of a forward, and what becomes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from inferspan import semconv
from inferspan.core import current
from inferspan.core.probe import Brackets, DecodingLoop, Point, Probe, Report, Values
from inferspan.core.steps import DECODE, PREFILL
from inferspan.integrations.torch.describe import dtype_of
from inferspan.probes.flops import peaks, walk
from inferspan.probes.flops.shapes import read_shapes

if TYPE_CHECKING:
    from inferspan.core.model import ModelInfo
    from inferspan.core.record import Inference, Phase
    from inferspan.core.steps import Generation
    from inferspan.probes.device_time import DeviceTime
    from inferspan.probes.flops.inventory import CallShapes, Flops, Inventory


class FlopCount(NamedTuple):
    """FLOPs of one part, ``None`` where they are not known; ``is_exact`` false where the count is a bound or a part.
    ``read_bytes``: what decoding must read of the device's memory."""

    flops: int | None
    is_exact: bool = True
    read_bytes: int | None = None


class Decoded:
    """What a decoding loop runs on. ``given`` are the shapes of what ``generate()`` was given, ``first`` those of its
    first forward; ``is_whole``: nothing but this model is known to run, and nothing ran before."""

    first: CallShapes | None = None

    def __init__(self, loop: DecodingLoop, inventory: Inventory, given: CallShapes | None, is_whole: bool) -> None:
        self.model = id(loop.model)
        self.is_even, self.is_plain = loop.is_even, loop.is_plain
        self.inventory, self.given, self.is_whole = inventory, given, is_whole

    def flops(self, generation: Generation) -> tuple[Flops, Flops] | None:
        """Of prefill and decode; ``None`` where they are not known, as of several loops after each other."""
        if generation.loops != 1 or not generation.steps or not self.is_even or self.first is None:
            return None
        prefill, decode = self.inventory.generation(self.first, generation.steps, self.given)
        if self.is_plain and self.is_whole and self._is_alone(generation):
            return prefill, decode
        return prefill._replace(exact=False), decode._replace(exact=False)

    def kv_bytes(self, generation: Generation) -> int | None:
        """Keys and values at the end of the loop; ``None`` where others may have been made."""
        return self._cache_bytes(generation, generation.steps - 1) if self._is_alone(generation) else None

    def read_bytes(self, generation: Generation) -> int | None:
        """What the steps after the first token read at least of weights and cache."""
        cache = self._cache_bytes(generation, generation.steps // 2)
        if cache is None or self.inventory.weight_bytes is None:
            return None
        return (generation.steps - 1) * (self.inventory.weight_bytes + cache)

    def _cache_bytes(self, generation: Generation, more: int) -> int | None:
        """Bytes in the cache ``more`` steps after the first."""
        first, tokens = self.first, self._tokens(generation, more)
        if first is None or tokens is None:
            return None
        return self.inventory.kv_bytes(first.rows, tokens, first.slides, first.source_length or 0)

    def _tokens(self, generation: Generation, more: int) -> int | None:
        """Positions in the cache ``more`` steps after the first."""
        first = self.first
        if generation.loops != 1 or not self.is_even or first is None or not first.cached or first.past is None:
            return None
        length = first.decoder_length if self.inventory.encoder is not None else first.length
        return first.past + (length or 1) + more

    def _is_alone(self, generation: Generation) -> bool:
        """Whether the model ran once in each step, and no other model did."""
        steps = generation.steps
        return (
            not generation.has_nested
            and generation.forwards.get(self.model) == steps
            and all(key in self.inventory.modules and calls <= steps for key, calls in generation.forwards.items())
        )


class ForwardShapes:
    """What the models of one forward were called with, and what its decoding loop runs on."""

    calls: tuple[tuple[Inventory, CallShapes], ...] = ()
    decoded: Decoded | None = None


def inventory_of(model: Any, info: ModelInfo) -> Inventory | None:
    """The model's matrix products, listed when first asked for."""
    if "inventory" not in info.facts:
        inventory = info.facts["inventory"] = walk.take_inventory(model)
        info.dtype = dtype_of(model)
        spread = getattr(model, "hf_device_map", None)
        places = len(set(spread.values())) if isinstance(spread, dict) else 1
        info.devices = max(places, 1 if inventory is None else inventory.shards)
    found: Inventory | None = info.facts["inventory"]
    return found


class FlopsProbe(Probe):
    """Counts in closed form, from shapes alone."""

    name = "flops"
    brackets = Brackets.FORWARD

    def begin(self, record: Phase, model: Any) -> ForwardShapes:
        return ForwardShapes()

    def model_called(
        self, phase: Phase, mark: ForwardShapes, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if phase.generation is not None:  # one that the closed form of its loop counts, or nobody does
            decoded = mark.decoded
            if decoded is not None and decoded.first is None and decoded.model == id(model):
                decoded.first = read_shapes(args, kwargs, decoded.inventory.parameters)
                # an encoder runs before; a tower that does so hides how many of its positions go on
                decoded.is_whole &= decoded.inventory.encoder is not None or not phase.generation.forwards
            return
        plan = phase.inference.plan if phase.inference is not None else None
        info = plan.info if plan is not None and plan.model() is model else None
        if info is None:
            info = current.model_info(model)
        inventory = info.facts["inventory"] if "inventory" in info.facts else inventory_of(model, info)
        shapes = None if inventory is None else read_shapes(args, kwargs, inventory.parameters)
        if inventory is not None and shapes is not None:
            mark.calls = (*mark.calls, (inventory, shapes))

    def decoding_begins(self, phase: Phase, mark: ForwardShapes, loop: DecodingLoop) -> None:
        if phase.generation is None or phase.inference is None:
            return
        info = current.model_info(loop.model)
        inventory = inventory_of(loop.model, info)
        if inventory is None:
            return
        # of images and audio the language model is only a part; Whisper looks for the language before
        ran_before = phase.generation.forwards.pop(id(loop.model), 0)
        is_whole = not ran_before and phase.inference.info in (None, info)
        has_side = inventory.encoder is not None or inventory.tower is not None
        given = read_shapes(loop.args, loop.kwargs) if has_side else None
        mark.decoded = Decoded(loop, inventory, given, is_whole)

    def value(self, phase: Phase, part: str, mark: ForwardShapes) -> FlopCount:
        generation, called = phase.generation, [inventory.forward(shapes) for inventory, shapes in mark.calls]
        if generation is None:
            return _sum(called)
        counted = None if mark.decoded is None else mark.decoded.flops(generation)
        if counted is None or mark.decoded is None:
            return FlopCount(None)
        if part == PREFILL:
            return FlopCount(*counted[0])
        if part == DECODE:
            return FlopCount(*counted[1], mark.decoded.read_bytes(generation))
        return _sum([*called, *counted])

    def add(self, one: FlopCount | None, other: FlopCount | None) -> FlopCount:
        one, other = one or FlopCount(None), other or FlopCount(None)
        is_exact = one.is_exact and other.is_exact and (one.flops is None) == (other.flops is None)
        flops = None if one.flops is None and other.flops is None else (one.flops or 0) + (other.flops or 0)
        both_read = one.read_bytes is not None and other.read_bytes is not None
        return FlopCount(flops, is_exact, (one.read_bytes or 0) + (other.read_bytes or 0) if both_read else None)

    def describe(self, inference: Inference, part: str, values: Values) -> dict[str, Any]:
        value: FlopCount | None = values.get(self.name)
        if value is None or value.flops is None:
            return {}
        found = {
            semconv.FLOPS: value.flops,
            semconv.FLOPS_EXACT: None if value.is_exact else False,
            semconv.FLOPS_UTILIZATION: _utilization(inference, value, values.get("device_time")),
        }
        if part == DECODE:
            found[semconv.BANDWIDTH_UTILIZATION] = _bandwidth_used(inference, value, values.get("device_time"))
        return found

    def report(self, inference: Inference, mark: None, report: Report) -> None:
        total: FlopCount | None = report.totals.get(semconv.FORWARD, {}).get(self.name)
        if total is not None and total.flops is not None:
            report.attributes.update(self.describe(inference, semconv.FORWARD, report.totals[semconv.FORWARD]))
            report.attributes[semconv.FLOPS_METHOD] = walk.METHOD
        for part, values in report.totals.items():
            value: FlopCount | None = values.get(self.name)
            if value is None or value.flops is None:
                continue
            of_part = {semconv.PHASE_NAME: part}
            report.points.append(Point(semconv.FLOPS_DONE, value.flops, of_part))
            used = _utilization(inference, value, values.get("device_time"))
            if used is not None:
                report.points.append(Point(semconv.FLOPS_UTILIZATIONS, used, of_part))
        self._report_cache(inference, report)

    def _report_cache(self, inference: Inference, report: Report) -> None:
        kv_bytes = None
        for phase in (*inference.phases.kept, inference.self_phase):
            if phase is not None and phase.generation is not None:
                noted: ForwardShapes | None = phase.mark_of(self.name)
                if noted is not None and noted.decoded is not None:
                    kv_bytes = noted.decoded.kv_bytes(phase.generation) or kv_bytes
        if kv_bytes is not None:
            report.results["kv_cache"] = kv_bytes
            report.attributes[semconv.KV_CACHE_SIZE] = kv_bytes
            report.points.append(Point(semconv.KV_CACHE_SIZES, kv_bytes))


def _sum(counted: list[Flops]) -> FlopCount:
    if not counted:
        return FlopCount(None)
    return FlopCount(sum(flops.count for flops in counted), all(flops.exact for flops in counted))


def _utilization(inference: Inference, value: FlopCount, time: DeviceTime | None) -> float | None:
    """MFU: FLOPs over what the device could have done in the time, at most; ``None`` where one is not known."""
    info = inference.info
    if info is None or info.devices != 1 or time is None or time.on is None or not time.seconds or not value.flops:
        return None
    peak = peaks.peak(time.on.device_name, info.dtype or "", time.on.rounds_float32())
    return None if peak is None else value.flops / (time.seconds * peak)


def _bandwidth_used(inference: Inference, value: FlopCount, time: DeviceTime | None) -> float | None:
    """The same for the bytes that decoding reads."""
    info, read_bytes = inference.info, value.read_bytes
    if info is None or info.devices != 1 or time is None or time.on is None or not time.seconds or not read_bytes:
        return None
    bandwidth = peaks.bandwidth(time.on.device_name)
    return None if bandwidth is None else read_bytes / (time.seconds * bandwidth)
