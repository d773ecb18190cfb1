"""The report's plot of a run over time: memory, use, power, and each request, behind them the run's stages."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferspan.bench.plots import COLORS, LOGARITHMIC, Plot, plot_of
from inferspan.bench.results import Result, Stage, Target
from inferspan.bench.statistics import known

__all__ = ["timeline"]

_STAGE_COLORS = {
    "idle": "#94a3b8",
    "load": "#8b5cf6",
    "cold": "#e11d48",
    "warmup": "#ca8a04",
    "measure": "#10b981",
    "cooldown": "#94a3b8",
}
_POINTS_MAX = 3000
_MIB = 1 << 20


def timeline(result: Result, colors: dict[str, str]) -> Plot:
    """The run as it went: memory, use, power, and each request's latency, over the stages. Colours by label."""
    rows = _series(result, colors)
    traces = []
    layout: dict[str, Any] = {
        "grid": {"rows": len(rows), "columns": 1, "pattern": "coupled"},
        "xaxis": {"title": {"text": "s since the run began"}, "rangemode": "tozero"},
        "shapes": _stages(result.timeline.stages),
        "hovermode": "x",
        "height": 130 + 150 * len(rows),
    }
    for number, (unit, found) in enumerate(rows, 1):
        axis = "" if number == 1 else str(number)
        layout[f"yaxis{axis}"] = {
            "title": {"text": unit},
            **(LOGARITHMIC if unit == "ms" else {"rangemode": "tozero"}),
        }
        traces += [{**trace, "xaxis": "x", "yaxis": f"y{axis}"} for trace in found]
    plot = plot_of(traces, x=layout["xaxis"], y={})
    del plot["layout"]["yaxis"]
    plot["layout"].update(layout)
    return plot


def _series(result: Result, colors: dict[str, str]) -> list[tuple[str, list[Plot]]]:
    """The rows, one below the other: a unit and its series, without those of which nothing is known."""
    line = result.timeline
    rows: list[tuple[str, list[Plot]]] = [
        (
            "MiB",
            [
                _over_time(line.offset_s, line.resident_bytes, 1 / _MIB, "resident", COLORS[0]),
                _over_time(line.offset_s, line.device_bytes, 1 / _MIB, "device, allocated", COLORS[1]),
                _over_time(line.offset_s, line.device_reserved_bytes, 1 / _MIB, "device, reserved", COLORS[3]),
            ],
        ),
        (
            "%",
            [
                _over_time(line.offset_s, line.cpu_share, 100, "CPU", COLORS[6]),
                _over_time(line.offset_s, line.gpu_utilization, 100, "GPU", COLORS[4]),
            ],
        ),
        ("W", [_over_time(line.offset_s, line.power_w, 1, "power", COLORS[5])]),
        ("ms", [_requests(target, colors[target.label]) for target in result.targets]),
    ]
    return [(unit, found) for unit, traces in rows if (found := [trace for trace in traces if trace["y"]])]


def _over_time(offset_s: Sequence[float], values: Sequence[float | None], factor: float, name: str, color: str) -> Plot:
    step = -(-len(values) // _POINTS_MAX) or 1
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(offset_s[: len(values) : step]),
        "y": [None if value is None else value * factor for value in values[::step]],
        "line": {"color": color, "width": 1.5},
        "hovertemplate": "%{y:.4g}",
    }


def _requests(target: Target, color: str) -> Plot:
    """Each request where it began; of very many some, and always the slowest ones."""
    series = [configuration.samples for configuration in target.configurations]
    start = np.concatenate([known(samples.start_s) for samples in series]) if series else np.zeros(0)
    value = np.concatenate([known(samples.latency_s) for samples in series]) if series else np.zeros(0)
    shown = np.arange(len(value))
    if len(value) > _POINTS_MAX:
        slowest = np.argsort(value)[-_POINTS_MAX // 10 :]
        shown = np.union1d(np.linspace(0, len(value) - 1, _POINTS_MAX).astype(int), slowest)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(f"latency, {target.label}"),
        "x": start[shown].tolist() if len(start) == len(value) else [],
        "y": (value[shown] * 1e3).tolist() if len(start) == len(value) else [],
        "marker": {"color": color, "size": 3},
        "hovertemplate": "%{y:.4g} ms",
    }


def _stages(stages: Sequence[Stage]) -> list[Plot]:
    """Bands behind all rows, neighbours of one name as one, each name once in the legend."""
    bands: list[tuple[str, float, float]] = []
    for stage in stages:
        if bands and bands[-1][0] == stage.name:
            bands[-1] = (stage.name, bands[-1][1], stage.end_s)
        else:
            bands.append((stage.name, stage.start_s, stage.end_s))
    named: set[str] = set()
    shapes = []
    for name, start, end in bands:
        shapes.append(
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": start,
                "x1": end,
                "y0": 0,
                "y1": 1,
                "line": {"width": 0},
                "fillcolor": _STAGE_COLORS.get(name, "#94a3b8"),
                "opacity": 0.16,
                "layer": "below",
                "name": html.escape(name),
                "legendgroup": name,
                "showlegend": name not in named,
            }
        )
        named.add(name)
    return shapes
