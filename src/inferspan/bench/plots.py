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
from inferspan.bench.results import Configuration, Result, Samples, Target
from inferspan.bench.statistics import Estimate, known

__all__ = ["Line", "distribution", "latency", "phases", "throughput", "tokens"]

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
_BOX_MAX = 500
LOGARITHMIC = {"type": "log", "dtick": "D2", "tickformat": ",~g"}
"""An axis with a mark at 1, 2 and 5 of each power of ten."""


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
    return plot_of(traces, x=_batch_axis(lines), y={"title": {"text": "items/s"}, "rangemode": "tozero"})


def latency(lines: Sequence[Line]) -> Plot:
    """P50 and P95 of the whole latency against the batch size."""
    traces = []
    for line in lines:
        summaries = [(c.batch_size, f.times_s.get("latency")) for c, f in line.points]
        for label, dash in (("p50", "solid"), ("p95", "dot")):
            points = [(size, getattr(found, label)) for size, found in summaries if found is not None]
            traces.append(_against_batch(line, f"{line.name}, {label.upper()}", points, 1e3, "%{y:.4g} ms", dash))
    return plot_of(traces, x=_batch_axis(lines), y={"title": {"text": "ms"}, "rangemode": "tozero"})


def tokens(lines: Sequence[Line]) -> Plot | None:
    """Time to the first token and between tokens; ``None`` where nothing was generated."""
    traces = []
    for line in lines:
        for name, label, dash in (("time_to_first_token", "first", "solid"), ("inter_token", "between", "dot")):
            points = [(c.batch_size, f.times_s[name].p50) for c, f in line.points if name in f.times_s]
            if points:
                traces.append(_against_batch(line, f"{line.name}, {label}", points, 1e3, "%{y:.4g} ms", dash))
    return plot_of(traces, x=_batch_axis(lines), y={"title": {"text": "ms, P50"}, **LOGARITHMIC}) if traces else None


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
                    "name": html.escape(line.name),
                    "x": x,
                    "y": y,
                    "marker": {"color": line.color, "size": 3},
                    "line": {"width": 1.5},
                    "boxpoints": "outliers",
                    "hovertemplate": "%{y:.4g} ms<extra></extra>",
                }
            )
    x_axis = {"title": {"text": "batch size"}, "type": "category"}
    plot = plot_of(traces, x=x_axis, y={"title": {"text": "ms"}, **LOGARITHMIC})
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
            "name": html.escape(name),
            "x": list(stacks),
            "y": [stack.get(name, 0) * 1e3 for stack in stacks.values()],
            "marker": {"color": _PHASE_COLORS.get(name, COLORS[place % len(COLORS)])},
            "hovertemplate": "%{y:.4g} ms",
        }
        for place, name in enumerate(names)
    ]
    x = {"title": {"text": "batch size"}, "type": "category"}
    plot = plot_of(traces, x=x, y={"title": {"text": "ms, mean"}})
    plot["layout"].update(barmode="stack", hovermode="x unified")
    return plot


# -- parts of plots ----------------------------------------------------------------------------------------------------


def plot_of(traces: Sequence[Plot], x: Plot, y: Plot) -> Plot:
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
        "name": html.escape(name),
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
        "hovertemplate": f"batch %{{x}}: {hover}<extra>{html.escape(name)}</extra>",
    }


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
