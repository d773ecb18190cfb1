"""Results as one HTML page that needs nothing else: no network, no other file.

The page is a template with automatic escaping; the plots' data goes into it as JSON in which no character can end the
script, and scripts without the page's own nonce do not run. The first result is the baseline of the others.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from inferspan.bench import plots, wording
from inferspan.bench.comparison import Comparison, against, compare
from inferspan.bench.differences import MATTERS
from inferspan.bench.figures import Figures, figures_of
from inferspan.bench.plots import COLORS, Line, Plot
from inferspan.bench.results import Configuration, Result, Scalar, Target
from inferspan.bench.statistics import Estimate, Scaling, Summary, scaling
from inferspan.bench.timeline_plot import timeline

__all__ = ["render"]

_TEMPLATE = "report.html.jinja"


@dataclass(slots=True)
class _Run:
    name: str
    result: Result
    colors: dict[str, str] = field(default_factory=dict)
    """By label of the target."""


@dataclass(slots=True)
class _Drawing:
    """A plot and what stands above it."""

    title: str
    plot: Plot
    remarks: list[str] = field(default_factory=list)


def render(results: Sequence[tuple[str, Result]], *, threshold: float) -> str:
    """The page of these results, each with the name of its file. ``threshold`` is a share, 0.15 for 15 %."""
    runs = [_Run(name, result) for name, result in results]
    lines = _lines(runs)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8"))
    sections = [(title, drawings) for title, drawings in _sections(runs, lines) if drawings]
    drawn = [drawing for _, drawings in sections for drawing in drawings]
    return template.render(
        nonce=secrets.token_urlsafe(16),
        plotly=get_plotlyjs(),
        runs=[_about(run) for run in runs],
        comparisons=[_verdicts(each) for each in _comparisons(runs, threshold)],
        sections=[
            (title, [(drawn.index(each), each.title, each.remarks) for each in found]) for title, found in sections
        ],
        plots=[drawing.plot for drawing in drawn],
        columns=_columns(lines),
        environment=_environment(runs),
        heads=[run.name for run in runs],
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Names for files, each once: as short as distinguishes them."""
    for parts in range(1, 20):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]


def _lines(runs: Sequence[_Run]) -> list[Line]:
    """Every target at every length, with a colour and a name that no other has."""
    targets = [(run, target) for run in runs for target in run.result.targets]
    labels = [target.label for _, target in targets]
    found = []
    for place, (run, target) in enumerate(targets):
        color = run.colors[target.label] = COLORS[place % len(COLORS)]
        name = target.label if labels.count(target.label) == 1 else f"{target.label} ({run.name})"
        lengths = dict.fromkeys(configuration.input_tokens for configuration in target.configurations)
        for length in lengths:
            points = [
                (configuration, figures_of(run.result, configuration))
                for configuration in sorted(target.configurations, key=lambda each: each.batch_size)
                if configuration.input_tokens == length
            ]
            found.append(Line(name, color, run.result, target, length, points))
    return found


def _sections(runs: Sequence[_Run], lines: Sequence[Line]) -> list[tuple[str, list[_Drawing]]]:
    sweep, spread, stacks = [], [], []
    for length in dict.fromkeys(line.input_tokens for line in lines):
        here = [line for line in lines if line.input_tokens == length and any(len(c.samples) for c, _ in line.points)]
        if not here:
            continue
        at = wording.at_length(length)
        remarks = [f"{line.name}: {wording.scales(found)}." for line in here if (found := _scaling(line)) is not None]
        sweep.append(_Drawing(f"Throughput{at}", plots.throughput(here), remarks))
        sweep.append(_Drawing(f"Latency of a request{at}", plots.latency(here)))
        tokens = plots.tokens(here)
        if tokens is not None:
            sweep.append(_Drawing(f"Time to first token, and between tokens{at}", tokens))
        spread.append(_Drawing(f"All requests{at}", plots.distribution(here)))
        for line in here:
            stack = plots.phases(line)
            if stack is not None:
                stacks.append(_Drawing(f"{line.name}{at}", stack))
    times = [_Drawing(run.name, timeline(run.result, run.colors)) for run in runs if run.result.timeline.stages]
    return [
        ("Batch size", sweep),
        ("Distribution of latency", spread),
        ("Where the time goes", stacks),
        ("The run over time", times),
    ]


def _scaling(line: Line) -> Scaling | None:
    points = [
        (configuration.batch_size, figures.items_per_s.value, figures.times_s["latency"].p50.value)
        for configuration, figures in line.points
        if figures.items_per_s is not None
    ]
    return scaling(points)


# -- tables ------------------------------------------------------------------------------------------------------------


def _about(run: _Run) -> dict[str, Any]:
    result = run.result
    workload = result.workload
    asked = "closed loop" if workload.rate is None else f"open loop, {workload.rate:g} requests/s"
    asked += f", {workload.concurrency} at once" if workload.concurrency > 1 else ""
    return {
        "name": run.name,
        "created": result.created,
        "inferspan": result.inferspan,
        "command": shlex.join(result.command),
        "asked": asked + (", streamed" if workload.stream else "") + f", seed {workload.seed}",
        "partial": result.partial,
        "notes": result.notes,
        "targets": [_about_target(run, target) for target in result.targets],
    }


def _about_target(run: _Run, target: Target) -> dict[str, Any]:
    facts = {
        "kind": f"{target.kind} {target.task or ''}".strip(),
        **{
            name: target.model.get(name)
            for name in ("class", "dtype", "quantization", "attention", "compile", "device")
        },
        "loaded in": wording.quantity(target.load_s, "s"),
        "first call": wording.quantity(target.cold.latency_s[0], "s") if target.cold.latency_s else None,
        "at rest": wording.quantity(target.idle.resident_bytes, "By") if target.idle else None,
    }
    failures = [] if target.failure is None else [wording.reason(target.failure)]
    for configuration in target.configurations:
        if configuration.failure is not None:
            where = f"batch {configuration.batch_size}{wording.at_length(configuration.input_tokens)}"
            failures.append(f"{where}: {wording.reason(configuration.failure)}")
    known = {name: value for name, value in facts.items() if value}
    return {"label": target.label, "color": run.colors[target.label], "facts": known, "failures": failures}


def _comparisons(runs: Sequence[_Run], threshold: float) -> list[Comparison]:
    """Targets that took turns in one run; then each further run with the first, whatever differs."""
    found = [comparison for run in runs for comparison in against(run.result, threshold=threshold)]
    for run in runs[1:]:
        comparison = compare(runs[0].result, run.result, threshold=threshold, force=True)
        comparison.baseline, comparison.candidate = runs[0].name, run.name
        found.append(comparison)
    return found


def _verdicts(comparison: Comparison) -> dict[str, Any]:
    verdict, conclusion = wording.conclusion(comparison)
    several = len({row.target for row in comparison.rows}) > 1
    rows = []
    place = ""
    for row in comparison.rows:
        where = f"{row.target}, {row.configuration}" if several else row.configuration
        rows.append(
            {
                "where": "" if where == place else where,
                "figure": row.figure,
                "baseline": wording.quantity(row.baseline, row.unit),
                "candidate": wording.quantity(row.candidate, row.unit),
                "change": wording.change(row.change),
                "p": "" if row.p_value is None else "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}",
                "mark": row.verdict.value,
                "verdict": wording.verdict(row.verdict, comparison.took_turns),
                "reason": row.reason,
            }
        )
        place = where
    return {
        "title": f"{comparison.candidate} against {comparison.baseline}",
        "mark": verdict.value,
        "conclusion": conclusion,
        "heads": (comparison.baseline, comparison.candidate) if comparison.took_turns else ("baseline", "here"),
        "refusing": [str(each) for each in comparison.differences if each.refuses],
        "differing": [str(each) for each in comparison.differences if not each.refuses],
        "notes": comparison.notes,
        "rows": rows,
    }


_Cell = Callable[[Configuration, Figures], str]


def _columns(lines: Sequence[Line]) -> dict[str, list[str]]:
    """The table of all figures, column by column, without those in which nothing is known."""
    cells: dict[str, _Cell] = {
        "batch": lambda c, f: str(c.batch_size),
        "tokens in": lambda c, f: "" if c.input_tokens is None else str(c.input_tokens),
        "out": lambda c, f: "" if c.output_tokens is None else str(c.output_tokens),
        "requests": lambda c, f: str(len(c.samples)),
        "outcome": lambda c, f: " ".join(
            [wording.outcome(c), *(f"{count} {kind}" for kind, count in c.errors.items())]
        ).strip(),
        "mean, ms": lambda c, f: _interval(f.times_s.get("latency"), "mean"),
        "± sd": lambda c, f: _interval(f.times_s.get("latency"), "deviation"),
        "P50": lambda c, f: _interval(f.times_s.get("latency"), "p50"),
        "P90": lambda c, f: _interval(f.times_s.get("latency"), "p90"),
        "P95": lambda c, f: _interval(f.times_s.get("latency"), "p95"),
        "P99": lambda c, f: _interval(f.times_s.get("latency"), "p99"),
        "first token P50": lambda c, f: _interval(f.times_s.get("time_to_first_token"), "p50"),
        "P95 ": lambda c, f: _interval(f.times_s.get("time_to_first_token"), "p95"),
        "between tokens P50": lambda c, f: _interval(f.times_s.get("inter_token"), "p50"),
        "requests/s": lambda c, f: _estimate(f.requests_per_s),
        "items/s": lambda c, f: _estimate(f.items_per_s),
        "tokens/s in": lambda c, f: wording.number(f.input_tokens_per_s),
        "tokens/s out": lambda c, f: wording.number(f.output_tokens_per_s),
        "CPU": lambda c, f: wording.share(f.cpu_share),
        "GPU": lambda c, f: wording.share(f.gpu_share),
        "GFLOP/s": lambda c, f: wording.number(None if f.flops_per_s is None else f.flops_per_s / 1e9),
        "MFU": lambda c, f: wording.share(f.flops_utilization),
        "resident peak, MiB": lambda c, f: wording.mebibytes(f.resident_peak_bytes),
        "device peak, MiB": lambda c, f: wording.mebibytes(f.device_peak_bytes),
        "after": lambda c, f: wording.mebibytes(f.device_bytes),
        "fragmented": lambda c, f: wording.share(f.fragmentation),
        "J/request": lambda c, f: wording.number(f.energy_per_request_j),
        "J/token": lambda c, f: wording.number(f.energy_per_output_token_j),
    }
    found = {"": [line.name for line in lines for _ in line.points]}
    for name, cell in cells.items():
        column = [cell(configuration, figures) for line in lines for configuration, figures in line.points]
        if any(column):
            found[name] = column
    return found


def _interval(summary: Summary | None, name: str) -> str:
    return "" if summary is None else _estimate(getattr(summary, name), 1e3)


def _estimate(estimate: Estimate | None, factor: float = 1.0) -> str:
    if estimate is None:
        return ""
    shown = estimate.times(factor)
    text = wording.number(shown.value)
    if shown.low is not None and shown.high is not None:
        text += f" [{wording.number(shown.low)}..{wording.number(shown.high)}]"
    return text


def _environment(runs: Sequence[_Run]) -> list[tuple[str, list[tuple[str, list[str], bool, bool]]]]:
    """For each group its rows: field, a value for each run, whether they differ, whether that matters."""
    groups: dict[str, list[dict[str, Scalar]]] = {
        "machine": [run.result.environment.machine for run in runs],
        **_devices(runs),
        "versions": [dict(run.result.environment.versions) for run in runs],
        "settings": [run.result.environment.settings for run in runs],
        "workload": [_workload(run.result) for run in runs],
    }
    for place in range(max(len(run.result.targets) for run in runs)):
        here = [run.result.targets[place : place + 1] for run in runs]
        groups[f"model {place + 1}" if place else "model"] = [
            {"label": found[0].label, "name": found[0].name, **found[0].model} if found else {} for found in here
        ]
    return [(name, rows) for name, columns in groups.items() if (rows := _laid_side_by_side(name, columns))]


def _laid_side_by_side(group: str, columns: list[dict[str, Scalar]]) -> list[tuple[str, list[str], bool, bool]]:
    group = group.split()[0]
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = ["" if column.get(name) is None else _said(name, column[name]) for column in columns]
        matters = MATTERS.get(f"{group}.{name}", MATTERS.get(f"{group}.*")) is not None
        differs = len(set(values)) > 1
        rows.append((name, values, differs, differs and matters))
    return rows


def _devices(runs: Sequence[_Run]) -> dict[str, list[dict[str, Scalar]]]:
    count = max(len(run.result.environment.devices) for run in runs)
    return {
        f"devices {place}": [
            run.result.environment.devices[place] if place < len(run.result.environment.devices) else {} for run in runs
        ]
        for place in range(count)
    }


def _workload(result: Result) -> dict[str, Scalar]:
    workload = result.workload
    found: dict[str, Scalar] = {}
    for name in workload.__slots__:
        value = getattr(workload, name)
        found[name] = ", ".join(map(str, value)) or None if isinstance(value, list) else value
    return found


def _said(name: str, value: Scalar) -> str:
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return wording.quantity(value, "By")
    return "yes" if value is True else "no" if value is False else str(value)
