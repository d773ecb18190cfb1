"""A result in the terminal: what was measured, in a few tables that fit in 100 columns, and what to make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inferspan.bench import wording
from inferspan.bench.comparison import Comparison, Verdict
from inferspan.bench.figures import Figures, figures_of, scaling_of
from inferspan.bench.results import Configuration, Result, Target
from inferspan.bench.statistics import Estimate, Summary

_SHOWN = {"latency": "whole", "time_to_first_token": "first token", "inter_token": "between tokens"}
_STYLES = {
    Verdict.REGRESSION: "red",
    Verdict.IMPROVEMENT: "green",
    Verdict.UNCHANGED: "",
    Verdict.UNCLEAR: "yellow",
}
_HIDDEN = ("gpu", "cpu")

_Row = tuple[Target, Configuration, Figures]


def show(console: Console, result: Result) -> None:
    """Print it all."""
    for target in result.targets:
        console.print(_about(_key(result, target), target), soft_wrap=True)
    rows = [
        (target, configuration, figures_of(result, configuration))
        for target in result.targets
        for configuration in target.configurations
    ]
    rows.sort(key=lambda row: (row[1].input_tokens or 0, row[1].batch_size))
    if rows:
        for title, table in (
            ("Latency in ms, of a request with its whole batch; mean with 95 % interval", _latencies(result, rows)),
            ("Throughput, use of the machine, memory in MiB", _rates(result, rows)),
            ("Where the time goes: median in ms (prefill and decode are in forward)", _phases(result, rows)),
        ):
            if table is not None:
                console.print()
                console.print(title, style="bold")
                console.print(table)
    for remark in _remarks(result, rows):
        console.print(remark)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print what differs, and the verdict in the last line."""
    took_turns = comparison.took_turns
    heads = ("B", "A") if took_turns else ("baseline", "here")
    console.print()
    console.print(f"{comparison.candidate} against {comparison.baseline}", style="bold")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "figure", *heads, "change", "p", "verdict"):
        table.add_column(name, justify="right" if name in (*heads, "change", "p") else "left")
    place = ""
    for row in comparison.rows:
        name = (
            row.configuration
            if len({each.target for each in comparison.rows}) < 2
            else f"{row.target}, {row.configuration}"
        )
        table.add_row(
            name if name != place else "",
            row.figure,
            wording.quantity(row.baseline, row.unit),
            wording.quantity(row.candidate, row.unit),
            wording.change(row.change),
            "" if row.p_value is None else "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}",
            Text(
                " · ".join(filter(None, (wording.verdict(row.verdict, took_turns), row.reason))), _STYLES[row.verdict]
            ),
        )
        place = name
    console.print(table)
    for difference in comparison.differences:
        console.print(f"differs: {difference}", style="yellow")
    for note in (*comparison.notes, *(f"baseline: {note}" for note in comparison.baseline_notes)):
        console.print(note, style="yellow")
    verdict, conclusion = wording.conclusion(comparison)
    console.print(conclusion, style=f"bold {_STYLES[verdict]}".strip())


def _key(result: Result, target: Target) -> str:
    """A letter that stands for the target where there are several."""
    return "" if len(result.targets) < 2 else chr(ord("A") + result.targets.index(target))


def _about(key: str, target: Target) -> Text:
    """The target in a line: what it is, how long it took to load and to answer first."""
    model = target.model
    facts = [str(model[name]) for name in ("class", "dtype", "quantization", "attention", "device") if model.get(name)]
    if model.get("compile"):
        facts.append(f"compile {model['compile']}")
    parts = [" ".join([target.kind, target.task or ""]).strip(), *facts]
    parameters = model.get("parameters")
    if isinstance(parameters, int):
        parts.append(f"{parameters / 1e6:.3g} M parameters")
    text = Text(f"{key}  {target.label}".strip(), "bold").append(
        "  " + " · ".join(part for part in parts if part), "not bold"
    )
    if target.load_s is not None:
        text.append(f"\n  loaded in {target.load_s:.2f} s", "dim not bold")
    if target.cold.latency_s:
        text.append(f", first call {wording.milliseconds(target.cold.latency_s[0])} ms", "dim not bold")
    if target.idle is not None and target.idle.resident_bytes is not None:
        text.append(f", at rest {target.idle.resident_bytes / wording.MIB:.0f} MiB resident", "dim not bold")
    if target.failure is not None:
        text.append(f"\n  failed: {wording.reason(target.failure)}", "red not bold")
    return text


def _latencies(result: Result, rows: Sequence[_Row]) -> Table:
    table = _table(result, rows)
    for name in ("", "requests", "mean", "± sd", "P50", "P90", "P95", "P99"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in rows:
        shown = [(title, row[2].times_s[name]) for name, title in _SHOWN.items() if name in row[2].times_s]
        if not shown:
            table.add_row(*_heads(result, row), wording.outcome(row[1]))
        for number, (title, summary) in enumerate(shown):
            heads = _heads(result, row) if not number else [""] * len(_heads(result, row))
            mark = f"{title} {wording.outcome(row[1])}".strip() if not number else title
            table.add_row(*heads, mark, str(summary.count), *_times(summary))
        if len(shown) > 1:
            table.add_section()
    return table


def _rates(result: Result, rows: Sequence[_Row]) -> Table | None:
    columns: dict[str, Callable[[Figures], str]] = {
        "requests/s": lambda f: _estimate(f.requests_per_s),
        "items/s": lambda f: _estimate(f.items_per_s),
        "tokens/s in": lambda f: wording.number(f.input_tokens_per_s),
        "out": lambda f: wording.number(f.output_tokens_per_s),
        "CPU": lambda f: wording.share(f.cpu_share),
        "GPU": lambda f: wording.share(f.gpu_share),
        "GFLOP/s": lambda f: wording.number(None if f.flops_per_s is None else f.flops_per_s / 1e9),
        "MFU": lambda f: wording.share(f.flops_utilization),
        "resident": lambda f: wording.mebibytes(f.resident_peak_bytes),
        "GPU peak": lambda f: wording.mebibytes(f.device_peak_bytes),
        "after": lambda f: wording.mebibytes(f.device_bytes),
        "fragm.": lambda f: wording.share(f.fragmentation),
        "J/request": lambda f: wording.number(f.energy_per_request_j),
        "J/token": lambda f: wording.number(f.energy_per_output_token_j),
    }
    if all(row[1].batch_size == 1 for row in rows):
        del columns["items/s"]  # the same as requests
    return _known_columns(result, rows, columns)


def _phases(result: Result, rows: Sequence[_Row]) -> Table | None:
    names: dict[str, None] = {}
    for _, _, figures in rows:
        names.update(dict.fromkeys(name for name in figures.times_s if name not in _SHOWN))
    columns = {
        {"gpu": "GPU time", "cpu": "CPU time"}.get(name, name): _median(name)
        for name in sorted(names, key=lambda name: (name in _HIDDEN, list(names).index(name)))
    }
    return _known_columns(result, rows, columns)


def _known_columns(result: Result, rows: Sequence[_Row], columns: dict[str, Callable[[Figures], str]]) -> Table | None:
    """A table of those columns in which something is known."""
    usable = {name: cell for name, cell in columns.items() if any(cell(figures) for *_, figures in rows)}
    if not usable:
        return None
    table = _table(result, rows)
    for name in usable:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_heads(result, row), *(cell(row[2]) for cell in usable.values()))
    return table


def _remarks(result: Result, rows: Sequence[_Row]) -> list[Text]:
    found = []
    for target in result.targets:
        for length, scaling in scaling_of(target).items():
            found.append(Text(f"{target.label}{wording.at_length(length)}: {wording.scales(scaling)}"))
    for target, configuration, _ in rows:
        name = f"{target.label}, batch {configuration.batch_size}"
        if configuration.failure is not None:
            found.append(Text(f"{name}: {wording.reason(configuration.failure)}", "red"))
        found.extend(Text(f"{name}: {count} times {kind}", "red") for kind, count in configuration.errors.items())
    found.extend(Text(note, "yellow") for note in result.notes)
    if result.partial:
        found.append(Text("Partial: the run was interrupted, and this is what was measured until then.", "bold yellow"))
    return found


def _table(result: Result, rows: Sequence[_Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if len(result.targets) > 1:
        table.add_column("")
    table.add_column("batch", justify="right")
    if any(configuration.input_tokens is not None for _, configuration, _ in rows):
        table.add_column("tokens", justify="right")
    return table


def _heads(result: Result, row: _Row) -> list[str]:
    target, configuration, _ = row
    key = _key(result, target)
    heads = [key] if key else []
    heads.append(str(configuration.batch_size))
    if result.workload.input_tokens:
        heads.append(str(configuration.input_tokens or ""))
    return heads


def _times(summary: Summary) -> tuple[str, ...]:
    mean = wording.milliseconds(summary.mean.value)
    if summary.mean.low is not None and summary.mean.high is not None:
        mean += f" [{wording.milliseconds(summary.mean.low)}..{wording.milliseconds(summary.mean.high)}]"
    deviation = "" if summary.deviation is None else wording.milliseconds(summary.deviation.value)
    return (
        mean,
        deviation,
        *(wording.milliseconds(e.value) for e in (summary.p50, summary.p90, summary.p95, summary.p99)),
    )


def _median(name: str) -> Callable[[Figures], str]:
    return lambda figures: wording.milliseconds(figures.times_s[name].p50.value) if name in figures.times_s else ""


def _estimate(estimate: Estimate | None) -> str:
    return "" if estimate is None else wording.number(estimate.value)
