"""One program, run without us and with us, and what is false of what is said of it."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

import inferspan
from judge import batching, calls, claims, generation, pipelines, texts
from judge.claims import Claim, Trace
from judge.observe import Case, Truth, watched
from judge.program import Family, Program
from support.recorder import Recorder

MODULES = (generation.FAMILY, calls.FAMILY, texts.FAMILY, pipelines.FAMILY, batching.FAMILY)
FAMILIES: Mapping[str, Family] = {family.name: family for family in MODULES}

SEED = 5
THREADS = 3


class Void(Exception):
    """The program fails without us: there is nothing to judge."""


def judge(program: Program, tally: Counter[str] | None = None) -> list[Claim]:
    """All that is falsely claimed of a program. Raises :class:`Void` if it does not even run."""
    tally = Counter() if tally is None else tally
    where = program.choices.get("where", "direct")
    times = {"twice": 2, "threads": THREADS}.get(where, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result, truth = _plainly(program)
        case = program.family.make(program.choices)
        recorder = Recorder()
        recorder.instrument()
        try:
            torch.manual_seed(SEED)
            found = RUNNERS[where](case, recorder)
            inferspan.force_flush(60)
            traces = _traces(recorder)
        finally:
            recorder.close()
    wrong = []
    if not all(_alike(case.same(each), case.same(result)) for each in found):
        wrong.append(Claim("the result", "another", "the same as without us"))
    truths = _expected(where, truth, times)
    if len(traces) != len(truths):
        return [*wrong, Claim("inferences", [trace.tree() for trace in traces], len(truths))]
    clocks = [case.clock] if case.clock is not None and times == 1 else []
    if isinstance(truth, list):
        traces.sort(key=lambda trace: trace.get("gen_ai.usage.input_tokens") or 0)
    for trace, true in zip(traces, truths, strict=True):
        wrong += claims.false_claims(trace, true, clocks, tally)
    return [*wrong, *_points(recorder, traces)]


def _plainly(program: Program) -> tuple[Any, Truth | list[Truth]]:
    try:
        case = program.family.make(program.choices)
        torch.manual_seed(SEED)
        case.watch()
        with watched() as seen:
            result = case.run()
        return result, case.truth(result, seen)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers is no Exception
        raise Void(f"{type(error).__name__}: {error}") from error


def _alike(one: Any, other: Any) -> bool:
    """Numbers may differ by what the FLOP counter does: torch takes other kernels under it."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
    return bool(one == other)


# -- where it runs -----------------------------------------------------------------------------------------------------


def _direct(case: Case, recorder: Recorder) -> list[Any]:
    return [case.run()]


def _span(case: Case, recorder: Recorder) -> list[Any]:
    with recorder.tracer.start_as_current_span("app"):
        return [case.run()]


def _block(case: Case, recorder: Recorder) -> list[Any]:
    with inferspan.inference("block"):
        return [case.run()]


def _twice(case: Case, recorder: Recorder) -> list[Any]:
    with inferspan.inference("block"):
        first = case.run()
        torch.manual_seed(SEED)
        return [first, case.run()]


def _thread(case: Case, recorder: Recorder) -> list[Any]:
    return _in_threads(case, recorder, 1)


def _threads(case: Case, recorder: Recorder) -> list[Any]:
    return _in_threads(case, recorder, THREADS)


def _in_threads(case: Case, recorder: Recorder, number: int) -> list[Any]:
    found: list[Any] = []

    def run() -> None:
        with recorder.tracer.start_as_current_span("app"):
            found.append(case.run())

    threads = [threading.Thread(target=run, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


RUNNERS: dict[str, Callable[[Case, Recorder], list[Any]]] = {
    "direct": _direct,
    "span": _span,
    "block": _block,
    "twice": _twice,
    "thread": _thread,
    "threads": _threads,
}


def _expected(where: str, truth: Truth | list[Truth], times: int) -> list[Truth]:
    """What there must be, by where the program ran."""
    if isinstance(truth, list):
        return truth
    if where not in ("block", "twice"):
        return [truth] * times
    return [in_block(truth, times)]


def in_block(truth: Truth, times: int) -> Truth:
    """The same as part of a block, so many times: sums, and the largest batch."""

    def sum_of(value: int | None) -> int | None:
        return None if value is None else value * times

    # what a tokenizer made is on its own span, where it has one
    texts = {"rows", "length"} if truth.phase in ("tokenize", "detokenize") else set()
    phases = truth.tree[1:] if isinstance(truth.tree, tuple) else ()
    if truth.phase:
        phases = ((truth.phase, *phases),) if phases else (truth.phase,)
    return replace(
        truth,
        tree=None if truth.tree is None else ("block", *phases * times),
        input_tokens=sum_of(truth.input_tokens),
        positions=sum_of(truth.positions),
        output_tokens=sum_of(truth.output_tokens),
        finish=None if truth.finish is None else truth.finish * times,
        steps=sum_of(truth.steps),
        flops=sum_of(truth.flops),
        calls=None if truth.calls is None else {name: number * times for name, number in truth.calls.items()},
        unknown=truth.unknown | {"items", "cache_bytes"} | texts,
    )


# -- what was said -----------------------------------------------------------------------------------------------------


def _traces(recorder: Recorder) -> list[Trace]:
    spans = recorder.spans()
    ids = {span.context.span_id for span in spans if span.name != "app"}
    return [
        Trace(span, spans)
        for span in spans
        if span.name != "app" and (span.parent is None or span.parent.span_id not in ids)
    ]


def _points(recorder: Recorder, traces: list[Trace]) -> list[Claim]:
    """The metrics must say what the spans say."""
    wrong = []
    for kind in ("input", "output"):
        of_spans = sum(trace.get(f"gen_ai.usage.{kind}_tokens") or 0 for trace in traces)
        points = recorder.points("gen_ai.client.token.usage")
        of_points = sum(point.sum for point in points if point.attributes["gen_ai.token.type"] == kind)
        if of_points != of_spans:
            wrong.append(Claim(f"gen_ai.client.token.usage of {kind}", of_points, of_spans))
    return wrong
