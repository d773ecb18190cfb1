"""One file for each measure: whether it applies, what it notes on the calling thread, and what becomes of it.

:data:`TABLE` has a row for each, in the order in which they report: what one needs of another comes after it. A measure
is imported by ``instrument()`` if the settings want it; with ``on_device`` when a forward first runs on something else
than the CPU.

Nothing here imports torch or transformers, waits for a device, or raises: what cannot be read is absent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from inferspan.config import HOST_ALLOCATIONS
from inferspan.core.probe import CallSite, Probe, Row
from inferspan.forks import import_module

_CHOOSER = ".".join((*__name__.split(".")[:-1], "integrations", "torch", "layers"))


def _of(module: str, kind: str) -> Callable[[], Probe]:
    def load() -> Probe:
        made: Probe = getattr(import_module(f"{__name__}.{module}"), kind)()
        return made

    return load


def _measured(name: str) -> Callable[[CallSite], bool]:
    return lambda site: name in site.settings.measure


def _has_layers(site: CallSite) -> bool:
    chooser = sys.modules.get(_CHOOSER)  # instrument_module() loads it
    return bool(site.settings.layers) or (chooser is not None and chooser.is_chosen(site.model))


TABLE: tuple[Row, ...] = (
    Row("process", lambda site: site.settings.process_stats, _of("process", "ProcessProbe")),
    Row("device_time", _measured("gpu_time"), _of("device_time", "DeviceTimeProbe"), on_device=True),
    Row("flops", _measured("flops"), _of("flops", "FlopsProbe")),
    Row("memory", _measured("memory"), _of("memory", "MemoryProbe"), on_device=True),
    Row("out_of_memory", lambda site: True, _of("out_of_memory", "OutOfMemoryProbe")),
    Row("energy", _measured("energy"), _of("energy", "EnergyProbe"), on_device=True),
    Row("leaks", _measured("leaks"), _of("leaks", "LeaksProbe")),
    Row("compiles", _measured("compiles"), _of("compiles", "CompilesProbe")),
    Row("layers", _has_layers, _of("layers", "LayersProbe")),
    Row("host_allocations", _measured(HOST_ALLOCATIONS), _of("host_allocations", "HostAllocationsProbe")),
)
