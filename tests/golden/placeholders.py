"""What differs from run to run, and what stands in the text for it.

Everything else is written as it is. The names are those that were recorded; ``RENAMES`` is applied to them, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from golden.renames import RENAMES

TIME, BYTES = "<time>", "<bytes>"

_ATTRIBUTES = {
    "gen_ai.response.time_to_first_chunk": TIME,
    "inferspan.busy_time": TIME,
    "inferspan.compile.time": TIME,
    "inferspan.energy.consumption": "<joules>",
    "inferspan.energy.method": "<method>",  # by samples: on a busy machine one alone may look like two
    "inferspan.gpu.busy_share": "<ratio>",
    "inferspan.host.allocated": BYTES,
    "inferspan.layer.attention.time": TIME,
    "inferspan.layer.mlp.time": TIME,
    "inferspan.load.time": TIME,
    "inferspan.phase.time": TIME,
    "inferspan.process.cpu_time": TIME,
    "inferspan.process.memory_before": BYTES,
    "inferspan.process.memory_usage": BYTES,
    "inferspan.time_per_output_token": TIME,
    "inferspan.time_to_first_token": TIME,
    "inferspan.torch.version": "<version>",
    "inferspan.transformers.version": "<version>",
}
_LEFT_OUT = {"inferspan.host.peak"}
"""There only where no earlier phase was higher, which differs."""
_STACK, _LOCATION, _REASON = "exception.stacktrace", "inferspan.compile.location", "inferspan.compile.reason"

_METRICS = {
    "inferspan.energy.consumption": "<joules>",
    "inferspan.energy.per_output_token": "<joules>",
    "inferspan.overhead.queue.max": "<count>",
    "inferspan.overhead.devices.calls": "<count>",
    "process.cpu.utilization": "<ratio>",
    "process.memory.usage": BYTES,
    "system.cpu.utilization": "<ratio>",
    "system.memory.usage": BYTES,
    "system.memory.limit": BYTES,
}
_EXACT = {
    "hw.energy",
    "inferspan.device.clock.held_time",
    "inferspan.gpu.time",
    "inferspan.layer.gpu.time",
}
"""In seconds, but of a device whose clock the scenario sets."""
_ON_HOST = {"inferspan.memory.growth"}
"""In bytes: those of the process differ, those of the scenario's device do not."""


def _now(name: str) -> str:
    return RENAMES.get(name, name)


ATTRIBUTES = {_now(name): shown for name, shown in _ATTRIBUTES.items()}
LEFT_OUT = {_now(name) for name in _LEFT_OUT}
METRICS = {_now(name): shown for name, shown in _METRICS.items()}
EXACT = {_now(name) for name in _EXACT}
ON_HOST = {_now(name) for name in _ON_HOST}


def attribute(name: str, value: Any) -> str:
    """The value of an attribute, or what stands for it."""
    if name in ATTRIBUTES:
        return ATTRIBUTES[name]
    if name == _now(_STACK):
        # of all its frames the last one: the others are where the libraries and we happen to be
        functions = re.findall(r", in (\S+)$", value, re.MULTILINE)
        return f"<frames, the last in {functions[-1]}>"
    if name == _now(_LOCATION):
        return literal(re.sub(r":\d+$", ":<line>", value))
    if name == _now(_REASON):
        return literal(re.sub(r"\d{7,}", "<id>", re.sub(r"0x[0-9a-f]+", "<address>", value)))
    return literal(value)


def of_metric(name: str, unit: str, attributes: Mapping[str, Any]) -> str | None:
    """What stands for the values of a metric's point; ``None`` where they are the same in each run."""
    if name in METRICS:
        return METRICS[name]
    if name in ON_HOST and "cpu" in attributes.values():
        return BYTES
    return TIME if unit == "s" and name not in EXACT else None


def literal(value: Any) -> str:
    """A value of an attribute or a point, as it is."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}" if value != int(value) or abs(value) > 1e15 else f"{value:.1f}"
    return repr(value)


def sentence(text: str) -> str:
    """A warning, without the time that it speaks of."""
    return re.sub(r"\([\d.]+ (s|min|h)\)", "(<time>)", text)
