"""What the spans claim, held against the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from judge.observe import Clock, Truth

FLOPS_TOLERANCE = 0.01
"""Rotary angles are not counted (docs/flops.md)."""
CLOCKS_NS = 200_000
"""How far the wall clock may be from a span's time, which is read once and then goes by a monotonic clock."""


class Claim(NamedTuple):
    """A claim that is false."""

    about: str
    said: Any
    true: Any

    def __str__(self) -> str:
        return f"{self.about}: said {self.said}, true is {self.true}"


class Trace:
    """One root and what is below it."""

    def __init__(self, root: ReadableSpan, spans: Iterable[ReadableSpan]) -> None:
        self.root = root
        self.below: dict[int, list[ReadableSpan]] = {}
        for span in sorted(spans, key=lambda span: (span.start_time, -span.end_time)):
            if span.parent is not None:
                self.below.setdefault(span.parent.span_id, []).append(span)

    def get(self, name: str) -> Any:
        return self.root.attributes.get(name)

    def children(self, span: ReadableSpan) -> list[ReadableSpan]:
        return self.below.get(span.context.span_id, [])

    def all(self, span: ReadableSpan | None = None) -> list[ReadableSpan]:
        span = span or self.root
        return [span, *(each for child in self.children(span) for each in self.all(child))]

    def tree(self, span: ReadableSpan | None = None) -> Any:
        span = span or self.root
        below = [
            self.tree(child)
            for child in self.children(span)
            for _ in range(child.attributes.get("inferspan.phase.calls", 1))  # calls in a row share a span
        ]
        return (span.name, *below) if below else span.name

    def calls(self) -> dict[str, int]:
        """How many calls the root's phases stand for."""
        found: Counter[str] = Counter()
        for child in self.children(self.root):
            found[child.name] += child.attributes.get("inferspan.phase.calls", 1)
        return dict(found)


def false_claims(trace: Trace, truth: Truth, clocks: Iterable[Clock], tally: Counter[str]) -> list[Claim]:
    """Every claim of one trace that is false. ``tally`` counts what was claimed at all."""
    wrong = [
        *_counts(trace, truth, tally),
        *_equal(trace, truth),
        *_finish(trace, truth, tally),
        *_flops(trace, truth, tally),
        *_times(trace),
    ]
    for clock in clocks:
        wrong += _clock(trace, truth, clock)
    return wrong


# -- counts ------------------------------------------------------------------------------------------------------------


def _counts(trace: Trace, truth: Truth, tally: Counter[str]) -> Iterable[Claim]:
    rows = (
        ("input_tokens", "gen_ai.usage.input_tokens", "inferspan.usage.input_tokens.exact"),
        ("output_tokens", "gen_ai.usage.output_tokens", "inferspan.usage.output_tokens.exact"),
        ("rows", "inferspan.batch.size", ""),
        ("length", "inferspan.sequence.length", ""),
        ("items", "inferspan.items", ""),
        ("cache_bytes", "inferspan.kv_cache.size", ""),
    )
    for field, name, marker in rows:
        if field in truth.unknown:
            continue
        true, said, is_exact = getattr(truth, field), trace.get(name), trace.get(marker) is not False
        if true is not None:
            tally[f"{field} {'absent' if said is None else 'exact' if is_exact else 'bound'}"] += 1
        if said is None:
            continue
        if true is None or (is_exact and said != true) or said < true:
            yield Claim(name if is_exact else f"{name} (bound)", said, true)
    if "input_tokens" not in truth.unknown:
        said = trace.get("inferspan.padding.ratio")
        padded = None
        if truth.positions:
            padded = (truth.positions - truth.input_tokens) / truth.positions
            tally[f"padding {'absent' if said is None else 'exact'}"] += bool(padded)
        if said is not None and (padded is None or abs(said - padded) > 1e-9):
            yield Claim("inferspan.padding.ratio", said, padded)


def _equal(trace: Trace, truth: Truth) -> Iterable[Claim]:
    if "tree" not in truth.unknown and truth.tree is not None and trace.tree() != truth.tree:
        yield Claim("phases", trace.tree(), truth.tree)
    if truth.calls is not None and trace.calls() != truth.calls:
        yield Claim("calls of phases", trace.calls(), truth.calls)
    if truth.steps is not None and "steps" not in truth.unknown:
        said = [span.attributes.get("inferspan.decode.steps", 0) for span in trace.all() if span.name == "decode"]
        if said and sum(said) != truth.steps - len(said):
            yield Claim("inferspan.decode.steps", sum(said), truth.steps - len(said))
    for name, true in truth.settings.items():
        said = trace.get(name)
        if said is not None and true is not ... and said != true:
            yield Claim(name, said, true)


def _finish(trace: Trace, truth: Truth, tally: Counter[str]) -> Iterable[Claim]:
    said = trace.get("gen_ai.response.finish_reasons")
    if "finish" in truth.unknown:
        return
    if truth.finish is not None:
        tally[f"finish {'absent' if said is None else 'exact'}"] += 1
    if said is None:
        return
    allowed = (truth.finish or [])[:64]
    if len(said) != len(allowed) or any(reason not in may for reason, may in zip(said, allowed, strict=True)):
        yield Claim("gen_ai.response.finish_reasons", said, truth.finish)


def _flops(trace: Trace, truth: Truth, tally: Counter[str]) -> Iterable[Claim]:
    said, is_exact = trace.get("inferspan.flops.count"), trace.get("inferspan.flops.exact") is not False
    if truth.flops is None or "flops" in truth.unknown:
        return
    tally[f"flops {'absent' if said is None else 'exact' if is_exact else 'assumed'}"] += 1
    if said is not None and is_exact and abs(said - truth.flops) > FLOPS_TOLERANCE * truth.flops:
        yield Claim("inferspan.flops.count", said, truth.flops)


# -- time --------------------------------------------------------------------------------------------------------------


def _times(trace: Trace) -> Iterable[Claim]:
    for span in trace.all():
        before = span.start_time
        for child in trace.children(span):
            if not before <= child.start_time <= child.end_time <= span.end_time:
                yield Claim(
                    "time order", (span.name, child.name, child.start_time - before), "children in order, inside"
                )
            before = child.end_time
    first = _first_token(trace)
    prefill = next((span for span in trace.all() if span.name == "prefill"), None)
    if prefill is not None and first is not None and abs(prefill.end_time - first) > CLOCKS_NS:
        yield Claim("end of prefill", prefill.end_time - first, "ns after the first token")


def _first_token(trace: Trace) -> int | None:
    """When the first token is said to have come, by the wall clock."""
    said = trace.get("inferspan.time_to_first_token")
    return None if said is None else trace.root.start_time + round(said * 1e9)


def _clock(trace: Trace, truth: Truth, clock: Clock) -> Iterable[Claim]:
    """What the program saw itself. A streamer gets the prompt, the first token when it is there (just before the loop
    asks whether to go on), and the next one not before that. A model's calls lie in the phases that they belong to."""
    first = _first_token(trace)
    if clock.puts and first is None:
        yield Claim("inferspan.time_to_first_token", None, "tokens were streamed")
    elif clock.puts and first is not None:
        of_tokens = clock.puts[1:]
        if first < of_tokens[0] - CLOCKS_NS or (len(of_tokens) > 1 and first > of_tokens[1] + CLOCKS_NS):
            yield Claim(
                "inferspan.time_to_first_token", first - of_tokens[0], "ns after the first put, before the next"
            )
    for _, ended in clock.calls[:1]:
        if first is not None and ended > first + CLOCKS_NS:
            yield Claim("inferspan.time_to_first_token", first - ended, "ns after the first forward")
    if first is not None and 1 < len(clock.calls) == truth.steps and first > clock.calls[1][0] + CLOCKS_NS:
        yield Claim("inferspan.time_to_first_token", first - clock.calls[1][0], "ns before the second forward")
    if clock.calls and not (
        trace.root.start_time - CLOCKS_NS <= clock.calls[0][0] and clock.calls[-1][1] <= trace.root.end_time + CLOCKS_NS
    ):
        yield Claim("time of the root", (trace.root.start_time, trace.root.end_time), "around its model's calls")
