"""What stands beside a bar: text made of a span's attributes, and nothing where an attribute is absent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from inferspan import semconv
from inferspan.exporters.pending import Node
from inferspan.exporters.terminal import Glyphs, Terminal

_MEASUREMENT_MAX = 60


def measurements_of(node: Node, terminal: Terminal) -> Iterator[str]:
    """What people look for beside a bar, the most wanted first."""
    attributes = node.attributes
    if is_failed(node):
        yield f"error {terminal.clean(attributes.get(semconv.ERROR_TYPE, ''), _MEASUREMENT_MAX)}".rstrip()
    model = attributes.get(semconv.REQUEST_MODEL)
    if model is not None and str(model) not in node.name:
        yield terminal.clean(model, _MEASUREMENT_MAX)
    yield from _tokens(attributes, terminal.glyphs)
    yield from _rates(node)
    first_token = number(attributes, semconv.TIME_TO_FIRST_TOKEN)
    if first_token is not None:
        yield f"first token {time_text(first_token, terminal)}"
    yield from _device_and_memory(node, terminal)
    for name, text in _COUNTS.items():
        count = number(attributes, name)
        if count is not None and count != 1:
            yield text.format(f"{count:.0f}")
    for name in (semconv.PHASE_TIME, semconv.BUSY_TIME):
        seconds = number(attributes, name)
        if seconds is not None:
            yield f"busy {time_text(seconds, terminal)}"
    for name, word in _FLAGS.items():
        if attributes.get(name) is True:
            yield word


_COUNTS = {
    semconv.BATCH_SIZE: "batch {}",
    semconv.ITEMS: "{} items",
    semconv.PHASE_CALLS: "{} calls",
    semconv.CHILDREN_DROPPED: "{} children dropped",
}
LAYER_PARTS = {
    "attention on GPU": semconv.LAYER_ATTENTION_GPU_TIME,
    "MLP on GPU": semconv.LAYER_MLP_GPU_TIME,
    "attention": semconv.LAYER_ATTENTION_TIME,
    "MLP": semconv.LAYER_MLP_TIME,
}
_FLAGS = {semconv.COLD: "cold", semconv.ABANDONED: "abandoned", semconv.CANCELLED: "cancelled"}


def _tokens(attributes: Mapping[str, Any], glyphs: Glyphs) -> Iterator[str]:
    read = _count(attributes, semconv.INPUT_TOKENS, semconv.INPUT_TOKENS_EXACT, glyphs)
    written = _count(attributes, semconv.OUTPUT_TOKENS, semconv.OUTPUT_TOKENS_EXACT, glyphs)
    if read and written:
        yield f"{read} {glyphs.arrow} {written} tokens"
    elif read or written:
        yield f"{read} tokens in" if read else f"{written} tokens out"


def _rates(node: Node) -> Iterator[str]:
    """Tokens for each sequence, as measured; steps, which with assisted decoding are fewer, from the bar."""
    per_token = number(node.attributes, semconv.TIME_PER_OUTPUT_TOKEN)
    if per_token:
        rows = number(node.attributes, semconv.BATCH_SIZE) or 1
        yield f"{1 / per_token:.1f} tok/s" + (" a row" if rows > 1 else "")
    steps = number(node.attributes, semconv.DECODE_STEPS)
    if steps and node.start_ns is not None and node.end_ns is not None and node.end_ns > node.start_ns:
        yield f"{steps / (node.end_ns - node.start_ns) * 1e9:.1f} steps/s"


def _device_and_memory(node: Node, terminal: Terminal) -> Iterator[str]:
    """What it did to the device and to memory. FLOPs as a rate, by the device's time where that is known."""
    attributes = node.attributes
    gpu_s = number(attributes, semconv.GPU_TIME)
    if gpu_s is not None:
        yield f"GPU {time_text(gpu_s, terminal)}"
    for word, name in LAYER_PARTS.items():
        seconds = number(attributes, name)
        if seconds is not None and (gpu_s is None) == (not word.endswith("GPU")):
            yield f"{word.removesuffix(' on GPU')} {time_text(seconds, terminal)}"
    flops = number(attributes, semconv.FLOPS)
    host_s = None if node.start_ns is None or node.end_ns is None else (node.end_ns - node.start_ns) / 1e9
    is_whole = semconv.OPERATION_NAME in attributes and node.children  # tokenization is in its time
    if flops and (gpu_s or host_s) and not is_whole:
        yield f"{_scaled(flops / (gpu_s or host_s or 1), 1000, 'KMGTP')}FLOP/s"
    for name, word in ((semconv.FLOPS_UTILIZATION, "MFU"), (semconv.BANDWIDTH_UTILIZATION, "bandwidth")):
        share = number(attributes, name)
        if share is not None:
            yield f"{word} {share:.0%}"
    peak = number(attributes, semconv.MEMORY_PEAK)
    if peak:
        bound = terminal.glyphs.at_most if attributes.get(semconv.MEMORY_PEAK_EXACT) is False else ""
        yield f"peak {bound}{_scaled(peak, 1024, 'KMGT')}{'' if peak < 1024 else 'i'}B"
    joules = number(attributes, semconv.ENERGY_CONSUMPTION)
    if joules is not None:
        yield f"{joules:.1f} J"
    compile_s = number(attributes, semconv.COMPILE_TIME)
    if compile_s is not None:
        yield f"compiled {time_text(compile_s, terminal)}"


def _scaled(value: float, base: int, prefixes: str) -> str:
    prefix = ""
    for prefix in ("", *prefixes):
        if abs(value) < base or prefix == prefixes[-1]:
            break
        value /= base
    return f"{value:.3g} {prefix}"


def _count(attributes: Mapping[str, Any], name: str, exact: str, glyphs: Glyphs) -> str:
    count = number(attributes, name)
    if count is None:
        return ""
    return f"{glyphs.at_most if attributes.get(exact) is False else ''}{count:.0f}"


def is_failed(node: Node) -> bool:
    return node.failed or semconv.ERROR_TYPE in node.attributes


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """The attribute, if it is one that can be reckoned with: a program may set the same names by itself."""
    value = attributes.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def duration_of(node: Node, terminal: Terminal) -> str:
    if node.start_ns is None or node.end_ns is None:
        return ""
    return time_text((node.end_ns - node.start_ns) / 1e9, terminal)


def time_text(seconds: float, terminal: Terminal) -> str:
    if abs(seconds) < 0.0001:
        return f"{seconds * 1e6:.0f} {terminal.glyphs.micro}s"
    if abs(seconds) < 0.99995:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s"
