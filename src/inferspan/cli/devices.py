"""``inferspan devices``: what the device metrics would report now, as a table, live, or as JSON.

All devices of the machine are shown, whoever reports them and whatever ``CUDA_VISIBLE_DEVICES`` says.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from inferspan import config, semconv
from inferspan.cli import CommandError, require
from inferspan.devices import choice
from inferspan.devices import reader as r
from inferspan.devices.reader import Device, Reading, Sample
from inferspan.devices.sampler import Sampler, Snapshot

_DRIVER_S = 30.0
"""The first reading may have to wake the boards."""
_GIB = 1 << 30
_ID_LENGTH = 12
"""Enough for CUDA_VISIBLE_DEVICES, which takes prefixes."""
_HEAD = ("", "device", "busy", "memory", "power", "temperature", "SM clock", "throttled by", "PCIe", "id")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="every reading, with the name and unit of its metric")
    shape.add_argument(
        "--watch", metavar="SECONDS", nargs="?", type=float, const=1.0, help="live, read anew every second (or so many)"
    )
    parser.add_argument("--detail", metavar="LIST", default=None, help="read also: " + ", ".join(config.DEVICE_DETAILS))


def run(options: argparse.Namespace) -> int:
    keywords = {} if options.detail is None else {"devices_detail": options.detail}
    if options.watch is not None:
        require("devices --watch", "agent", "rich")
        keywords["devices_interval"] = str(options.watch)
    try:
        settings = config.load(keywords)
    except ValueError as error:
        raise CommandError(str(error)) from None
    sampler = choice.sampler(settings, "always", deadline_s=_DRIVER_S)
    try:
        if options.watch is not None:
            return _watch(sampler, options.watch)
        snapshot = _read(sampler)
        print(json.dumps(as_json(snapshot), indent=2) if options.json else as_text(snapshot))
    finally:
        sampler.stop()
    return 0


def as_text(snapshot: Snapshot) -> str:
    """The table, and the host under it."""
    rows = [_HEAD, *(_row(device, sample) for device, sample in snapshot.samples)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(rows) == 1:
        lines = ["No GPU: there is no driver here that answers for one."]
    return "\n".join([*lines, "", _host(snapshot.host)]).rstrip()


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Every reading, under the name and in the unit of its metric."""
    return {
        "devices": [
            {
                "id": device.id,
                "index": device.index,
                "name": device.name,
                "parent": device.parent or None,
                "attributes": dict(device.facts),
                "readings": _readings(sample),
            }
            for device, sample in snapshot.samples
        ],
        "host": _readings(snapshot.host),
    }


def _read(sampler: Sampler) -> Snapshot:
    snapshot = sampler.snapshot()
    if snapshot is None:
        raise CommandError(f"the driver has not answered within {_DRIVER_S:g} s")
    return snapshot


def _watch(sampler: Sampler, seconds: float) -> int:
    from rich.live import Live
    from rich.text import Text

    try:
        with Live(Text(as_text(_read(sampler))), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(seconds)
                live.update(Text(as_text(_read(sampler)), no_wrap=True), refresh=True)
    except KeyboardInterrupt:
        return 0


def _row(device: Device, sample: Sample) -> tuple[str, ...]:
    reasons = [
        str(reading.attributes[0][1])
        for reading, value in sample.items()
        if reading.metric == semconv.CLOCK_HELD and value
    ]
    if sample.get(r.FAILED):
        reasons = ["not there any more"]
    return (
        f"  {device.index}" if device.parent else str(device.index),
        device.name,
        _known(sample, "{:.0%}", r.BUSY),
        _known(sample, "{:.1f} of {:.1f} GiB", r.MEMORY_USED, r.MEMORY_LIMIT, unit=_GIB),
        _known(sample, "{:.0f} of {:.0f} W", r.POWER, r.POWER_LIMIT) or _known(sample, "{:.0f} W", r.POWER),
        _known(sample, "{:.0f} °C", r.TEMPERATURE),
        _known(sample, "{:.0f} MHz", r.SM_CLOCK, unit=1e6),
        ", ".join(reasons),
        _known(sample, "gen {:.0f} x{:.0f}", r.PCIE_GENERATION, r.PCIE_WIDTH),
        device.id[:_ID_LENGTH],
    )


def _known(sample: Sample, form: str, *readings: Reading, unit: float = 1) -> str:
    """The readings in their form; nothing where one of them is absent."""
    values = [sample.get(reading) for reading in readings]
    return "" if None in values else form.format(*(value / unit for value in values if value is not None))


def _host(sample: Sample) -> str:
    memory = _known(
        sample,
        "memory {:.1f} of {:.1f} GiB",
        r.of(semconv.SYSTEM_MEMORY, semconv.MEMORY_STATE, "used"),
        Reading(semconv.SYSTEM_MEMORY_LIMIT),
        unit=_GIB,
    )
    idle = sample.get(r.of(semconv.SYSTEM_CPU, semconv.CPU_MODE, "idle"))
    cpu = "" if idle is None else f"CPU {1 - idle:.0%}"
    return "host: " + ", ".join(filter(None, (cpu, memory))) if memory or cpu else ""


def _readings(sample: Sample) -> list[dict[str, Any]]:
    return [
        {
            "metric": reading.metric,
            "attributes": dict(reading.attributes),
            "unit": semconv.METRICS[reading.metric].unit,
            "value": value,
        }
        for reading, value in sample.items()
    ]
