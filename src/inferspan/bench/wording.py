"""Figures and outcomes in words, the same in the terminal and in the report."""

from __future__ import annotations

from inferspan.bench.comparison import Comparison, Verdict
from inferspan.bench.results import Configuration, Failure
from inferspan.bench.statistics import Estimate, Scaling

MIB = 1 << 20


def scales(scaling: Scaling) -> str:
    """What the batch size does, in a sentence."""
    least, most = scaling.batch_sizes[0], scaling.batch_sizes[-1]
    gain = scaling.efficiency[-1] * most / least
    text = f"batch {most} gives {gain:.2f} times the items/s of batch {least} (efficiency {scaling.efficiency[-1]:.0%})"
    text += f"; the knee is at batch {scaling.knee}"
    if scaling.saturated is not None:
        text += f", saturated from {scaling.saturated} on"
    if len(scaling.uneven) > len(scaling.batch_sizes) / 2:
        return text + "; latency is on no line"
    for size, off in scaling.uneven.items():
        text += f"; batch {size} takes {abs(off):.0%} {'more' if off > 0 else 'less'} than the line of the others"
    return text


def at_length(length: int | None) -> str:
    """To follow a name."""
    return "" if length is None else f" at {length} tokens"


def outcome(configuration: Configuration) -> str:
    """In a word or two; empty where all went well."""
    if configuration.failure is not None:
        return "out of memory" if configuration.failure.out_of_memory else "failed"
    if configuration.partial:
        return "(partial)"
    return "" if configuration.warmup is None or configuration.warmup.steady else "(not steady)"


def reason(failure: Failure) -> str:
    """The first line of what was said."""
    lines = failure.message.strip().splitlines()
    said = lines[0] if lines else failure.type
    return said if failure.type in ("TargetError", "WorkloadError") else f"{failure.type}: {said}"


def quantity(value: float | None, unit: str) -> str:
    """With a unit for people, from the unit of the specification: ``s``, ``1/s``, ``By``, ``1``."""
    if value is None:
        return ""
    if unit == "s":
        return f"{milliseconds(value)} ms" if value < 2 else f"{number(value)} s"
    if unit == "By":
        return f"{mebibytes(value)} MiB"
    return f"{value:.1%}" if unit == "1" else f"{number(value)} {unit.replace('1/', '/')}"


def change(found: Estimate | None) -> str:
    """In percent, with its interval."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:+.1%}"
    return f"{found.value:+.1%} [{found.low * 100:+.0f}..{found.high * 100:+.0f}]"


def verdict(found: Verdict, took_turns: bool) -> str:
    """Of one figure: of two targets that took turns neither is the older one, so nothing has regressed."""
    if took_turns:
        return {Verdict.REGRESSION: "worse", Verdict.IMPROVEMENT: "better"}.get(found, found.value)
    return found.value


def conclusion(comparison: Comparison) -> tuple[Verdict, str]:
    """Of a whole comparison, and in a sentence."""
    least, count = f"{comparison.threshold:.0%} or more", len(comparison.regressions)
    if comparison.took_turns:
        unclear = f"; {len(comparison.unclear)} unclear" if comparison.unclear else ""
        better = sum(row.verdict is Verdict.IMPROVEMENT for row in comparison.rows)
        return (
            Verdict.UNCHANGED,
            f"Of {len(comparison.rows)} figures {better} better, {count} worse by {least}{unclear}",
        )
    if count:
        return Verdict.REGRESSION, f"{count} regression{'s' if count > 1 else ''} of {least}"
    if comparison.unclear:
        unclear = f"{len(comparison.unclear)} of {len(comparison.rows)} figures are unclear, more requests would show"
        return Verdict.UNCLEAR, f"No regression of {least} found, but {unclear}"
    return Verdict.IMPROVEMENT, f"No regression of {least}"


def milliseconds(seconds: float) -> str:
    return number(seconds * 1e3)


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / MIB:,.0f}"
