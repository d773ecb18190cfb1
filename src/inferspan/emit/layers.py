"""From the layers of an inference to a span each, and to metric points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.errors import name_of
from inferspan.probes.layers import ATTENTION, MLP, Layer, Layers, Sum

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from inferspan.emit.writer import TracerWriter

_NS = 1e-9
_REST = "rest"
_TIMES = {
    ATTENTION: (semconv.LAYER_ATTENTION_TIME, semconv.LAYER_ATTENTION_GPU_TIME),
    MLP: (semconv.LAYER_MLP_TIME, semconv.LAYER_MLP_GPU_TIME),
}


def tell_layers(writer: TracerWriter, layers: Layers, offset_ns: int, context: Context | None) -> None:
    """One span for each layer."""
    layers.is_told = True
    for layer in layers.finished():
        error = None if layer.error is None else name_of(layer.error)
        start_ns, end_ns = layer.start_ns + offset_ns, layer.end_ns + offset_ns
        writer.write(f"layer {layer.name}", context, _attributes(layer), start_ns, end_ns, error)


def layer_points(layers: Layers) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Name of the metric, value and attributes of each point."""
    for layer in layers.finished():
        attributes = {semconv.LAYER_NAME: layer.name}
        whole = layer.whole
        assert whole is not None
        yield semconv.LAYER_CALLS, whole.calls, attributes
        parts = {part: layer.sums[part] for part in _TIMES if part in layer.sums}
        host = {part: found.host_ns * _NS for part, found in parts.items()}
        yield from _points(semconv.LAYER_TIME, attributes, host, whole.host_ns * _NS)
        gpu = {part: found.gpu_s for part, found in parts.items() if found.gpu_s is not None}
        if whole.gpu_s is not None and len(gpu) == len(parts):
            yield from _points(semconv.LAYER_GPU_TIME, attributes, gpu, whole.gpu_s)


def _points(
    metric: str, attributes: dict[str, str], parts: dict[str, float], whole: float
) -> Iterator[tuple[str, float, dict[str, str]]]:
    for part, seconds in {**parts, _REST: max(0.0, whole - sum(parts.values()))}.items():
        yield metric, seconds, {**attributes, semconv.LAYER_PART: part}


def _attributes(layer: Layer) -> dict[str, Any]:
    whole = layer.whole or Sum(None)
    found: dict[str, Any] = {semconv.LAYER_NAME: layer.name, semconv.GPU_TIME: whole.gpu_s}
    if whole.calls > 1:
        found[semconv.PHASE_CALLS] = whole.calls
        found[semconv.PHASE_TIME] = whole.host_ns * _NS
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
