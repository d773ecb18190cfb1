"""The instruments of devices, process and host: each callback gives its part of one snapshot.

Instruments belong to their meter for good, so the callbacks look up whose snapshot it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Observation

from inferspan import semconv
from inferspan.core import rank

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

    from inferspan.config import Settings
    from inferspan.devices.sampler import Sampler


def create(meter: Meter, settings: Settings, current: Callable[[], Sampler | None]) -> None:
    """Make the instruments that the settings ask for."""
    if settings.devices == "never":
        return
    sources = {"device", "host", *settings.devices_detail, *(["process"] if settings.process_stats else [])}
    for metric in semconv.METRICS.values():
        if metric.source in sources:
            make = getattr(meter, f"create_{metric.instrument}".replace("updowncounter", "up_down_counter"))
            make(metric.name, [partial(_observe, current, metric.name)], metric.unit, metric.brief)


def _observe(current: Callable[[], Sampler | None], name: str, options: CallbackOptions) -> Iterable[Observation]:
    sampler = current()
    snapshot = None if sampler is None else sampler.snapshot()
    # each process reports its own CPU and memory; a device or the host is reported by whichever of them it falls to
    place = rank.attributes() if semconv.METRICS[name].source == "process" else {}
    points = [] if snapshot is None else snapshot.points.get(name, ())
    return [Observation(value, {**attributes, **place}) for value, attributes in points]
