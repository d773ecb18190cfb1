"""The report's plots, as plain data for plotly.js: traces and layout, without colours of paper and text.

Those follow the reader's light or dark scheme, and are set by the page. Text that comes from a run is escaped, since
plotly takes some HTML in names.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferspan.bench.figures import PHASES, Figures
from inferspan.bench.results import Configuration, Result, Samples, Stage, Target
from inferspan.bench.statistics import Estimate, known

__all__ = ["Line", "distribution", "latency", "phases", "throughput", "timeline", "tokens"]

Plot = dict[str, Any]

COLORS = ("#3b82f6", "#f97316", "#10b981", "#e11d48", "#a855f7", "#ca8a04", "#06b6d4", "#84cc16")
_PHASE_COLORS = {
    "queue": "#94a3b8",
    "tokenize": "#06b6d4",
    "preprocess": "#0891b2",
    "forward": "#3b82f6",
    "prefill": "#8b5cf6",
    "decode": "#f97316",
    "detokenize": "#10b981",
    "postprocess": "#059669",
    "rest": "#cbd5e1",
}
_STAGE_COLORS = {
    "idle": "#94a3b8",
    "load": "#8b5cf6",
    "cold": "#e11d48",
    "warmup": "#ca8a04",
    "measure": "#10b981",
    "cooldown": "#94a3b8",
}
_POINTS_MAX = 3000
_BOX_MAX = 500
_LOGARITHMIC = {"type": "log", "dtick": "D2", "tickformat": ",~g"}
"""An axis with a mark at 1, 2 and 5 of each power of ten."""
_MIB = 1 << 20


@dataclass(slots=True)
class Line:
    """One target at one length of input, over the batch sizes: in every plot the same name and colour."""

    name: str
    color: str
    result: Result
    target: Target
    input_tokens: int | None
    points: list[tuple[Configuration, Figures]]


def throughput(lines: Sequence[Line]) -> Plot:
    """Items per second against the batch size, with intervals."""
    traces = [
        _against_batch(
            line, line.name, [(c.batch_size, f.items_per_s) for c, f in line.points], 1.0, "%{y:.4g} items/s"
        )
        for line in lines
    ]
    return _plot(traces, x=_batch_axis(lines), y={"title": {"text": "items/s"}, "rangemode": "tozero"})


def latency(lines: Sequence[Line]) -> Plot:
    """P50 and P95 of the whole latency against the batch size."""
    traces = []
    for line in lines:
        summaries = [(c.batch_size, f.times_s.get("latency")) for c, f in line.points]
        for label, dash in (("p50", "solid"), ("p95", "dot")):
            points = [(size, getattr(found, label)) for size, found in summaries if found is not None]
            traces.append(_against_batch(line, f"{line.name}, {label.upper()}", points, 1e3, "%{y:.4g} ms", dash))
    return _plot(traces, x=_batch_axis(lines), y={"title": {"text": "ms"}, "rangemode": "tozero"})


def tokens(lines: Sequence[Line]) -> Plot | None:
    """Time to the first token and between tokens; ``None`` where nothing was generated."""
    traces = []
    for line in lines:
        for name, label, dash in (("time_to_first_token", "first", "solid"), ("inter_token", "between", "dot")):
            points = [(c.batch_size, f.times_s[name].p50) for c, f in line.points if name in f.times_s]
            if points:
                traces.append(_against_batch(line, f"{line.name}, {label}", points, 1e3, "%{y:.4g} ms", dash))
    return _plot(traces, x=_batch_axis(lines), y={"title": {"text": "ms, P50"}, **_LOGARITHMIC}) if traces else None


def distribution(lines: Sequence[Line]) -> Plot:
    """All latencies, a box for each configuration."""
    traces: list[Plot] = []
    for line in lines:
        x: list[str] = []
        y: list[float] = []
        for configuration, _ in line.points:
            values = _thinned(known(configuration.samples.latency_s) * 1e3)
            x += [str(configuration.batch_size)] * len(values)
            y += values
        if y:
            traces.append(
                {
                    "type": "box",
                    "name": _text(line.name),
                    "x": x,
                    "y": y,
                    "marker": {"color": line.color, "size": 3},
                    "line": {"width": 1.5},
                    "boxpoints": "outliers",
                    "hovertemplate": "%{y:.4g} ms<extra></extra>",
                }
            )
    x_axis = {"title": {"text": "batch size"}, "type": "category"}
    plot = _plot(traces, x=x_axis, y={"title": {"text": "ms"}, **_LOGARITHMIC})
    plot["layout"]["boxmode"] = "group"
    return plot


def phases(line: Line) -> Plot | None:
    """Mean time in each phase, stacked up to the mean latency; ``None`` where no phase is known."""
    stacks = {str(c.batch_size): _stack(c.samples) for c, _ in line.points if len(c.samples)}
    if not any(len(stack) > 1 for stack in stacks.values()):
        return None
    names = sorted(dict.fromkeys(name for stack in stacks.values() for name in stack), key=_phase_place)
    traces = [
        {
            "type": "bar",
            "name": _text(name),
            "x": list(stacks),
            "y": [stack.get(name, 0) * 1e3 for stack in stacks.values()],
            "marker": {"color": _PHASE_COLORS.get(name, COLORS[place % len(COLORS)])},
            "hovertemplate": "%{y:.4g} ms",
        }
        for place, name in enumerate(names)
    ]
    x = {"title": {"text": "batch size"}, "type": "category"}
    plot = _plot(traces, x=x, y={"title": {"text": "ms, mean"}})
    plot["layout"].update(barmode="stack", hovermode="x unified")
    return plot


def timeline(result: Result, colors: dict[str, str]) -> Plot:
    """The run as it went: memory, use, power, and each request's latency, over the stages. Colours by label."""
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
    rows = [(unit, found) for unit, traces in rows if (found := [trace for trace in traces if trace["y"]])]
    traces = []
    layout: dict[str, Any] = {
        "grid": {"rows": len(rows), "columns": 1, "pattern": "coupled"},
        "xaxis": {"title": {"text": "s since the run began"}, "rangemode": "tozero"},
        "shapes": _stages(line.stages),
        "hovermode": "x",
        "height": 130 + 150 * len(rows),
    }
    for number, (unit, found) in enumerate(rows, 1):
        axis = "" if number == 1 else str(number)
        layout[f"yaxis{axis}"] = {
            "title": {"text": unit},
            **(_LOGARITHMIC if unit == "ms" else {"rangemode": "tozero"}),
        }
        traces += [{**trace, "xaxis": "x", "yaxis": f"y{axis}"} for trace in found]
    plot = _plot(traces, x=layout["xaxis"], y={})
    del plot["layout"]["yaxis"]
    plot["layout"].update(layout)
    return plot


# -- parts of plots ----------------------------------------------------------------------------------------------------


def _plot(traces: Sequence[Plot], x: Plot, y: Plot) -> Plot:
    return {
        "data": list(traces),
        "layout": {
            "xaxis": x,
            "yaxis": y,
            "height": 380,
            "margin": {"l": 62, "r": 12, "t": 12, "b": 48},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "showlegend": True,
        },
    }


def _batch_axis(lines: Sequence[Line]) -> Plot:
    sizes = sorted({configuration.batch_size for line in lines for configuration, _ in line.points})
    return {
        "title": {"text": "batch size"},
        "type": "log",
        "tickvals": sizes,
        "ticktext": [str(size) for size in sizes],
    }


def _against_batch(
    line: Line,
    name: str,
    points: Iterable[tuple[int, Estimate | None]],
    factor: float,
    hover: str,
    dash: str = "solid",
) -> Plot:
    there = [(size, estimate.times(factor)) for size, estimate in points if estimate is not None]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": _text(name),
        "x": [size for size, _ in there],
        "y": [estimate.value for _, estimate in there],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [
                None if estimate.high is None else max(0.0, estimate.high - estimate.value) for _, estimate in there
            ],
            "arrayminus": [
                None if estimate.low is None else max(0.0, estimate.value - estimate.low) for _, estimate in there
            ],
            "thickness": 1,
            "width": 3,
        },
        "line": {"color": line.color, "dash": dash},
        "marker": {"symbol": "circle" if dash == "solid" else "circle-open"},
        "hovertemplate": f"batch %{{x}}: {hover}<extra>{_text(name)}</extra>",
    }


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
        "name": _text(f"latency, {target.label}"),
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
    told: set[str] = set()
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
                "name": _text(name),
                "legendgroup": name,
                "showlegend": name not in told,
            }
        )
        told.add(name)
    return shapes


def _stack(samples: Samples) -> dict[str, float]:
    """Mean seconds of each phase; ``prefill`` and ``decode`` take the place of their part of ``forward``."""
    count = len(samples)
    means = {name: float(known(rows).sum()) / count for name, rows in samples.phases_s.items() if len(known(rows))}
    inner = means.get("prefill", 0.0) + means.get("decode", 0.0)
    if "forward" in means and inner:
        means["forward"] = max(0.0, means["forward"] - inner)
    rest = float(known(samples.latency_s).mean()) - sum(means.values())
    return {name: mean for name, mean in {**means, "rest": max(0.0, rest)}.items() if mean > 0}


def _phase_place(name: str) -> tuple[int, str]:
    order = (*PHASES, "rest")
    return (order.index(name) if name in order else len(PHASES), name)


def _thinned(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """So many values that have the same distribution."""
    if len(values) > _BOX_MAX:
        values = np.quantile(values, np.linspace(0, 1, _BOX_MAX))
    return [float(value) for value in values]


def _text(text: str) -> str:
    return html.escape(text)
