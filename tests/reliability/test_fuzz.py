"""Random sequences of inferences, nested, concurrent, raising, cancelled, abandoned, forked and flushed.

What comes out is compared with a simple model (``support.programs``): every trace is well formed, every inference is
exported once or counted as dropped, and the points of the metrics say the same as the spans. In a run of the suite the
examples are always the same; ``FUZZ_EXAMPLES=5000`` tries so many new ones.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanProcessor

import inferspan
from inferspan import semconv
from support import programs, wellformed
from support.programs import CANCELLED, ERRORS, Body, Model, Program, Trace
from support.recorder import Recorder
from support.wellformed import Span, span_of

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


# -- programs ----------------------------------------------------------------------------------------------------------

errors = st.sampled_from(sorted(ERRORS))
items = st.one_of(st.none(), st.none(), st.none(), st.tuples(st.sampled_from(programs.PHASES), errors))
singles = st.tuples(st.just("pipeline"), st.tuples(items), st.just(True))
lists = st.tuples(st.just("pipeline"), st.lists(items, min_size=2, max_size=5), st.just(False))
takes = st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 4))
opens = st.tuples(st.just("open"), st.integers(0, 2), st.lists(items, min_size=1, max_size=5))
drops = st.tuples(st.just("drop"), st.integers(0, 2))
generations = st.tuples(st.just("generate"), st.integers(1, 4), st.none() | st.integers(0, 3), errors)
calls = st.tuples(st.just("module"), st.none() | errors)
tokenizations = st.just(("tokenize",))
rest = st.sampled_from([("flush",), ("collect",)])
anywhere = st.one_of(singles, lists, takes, generations, calls, tokenizations, rest)
raising = st.tuples(st.just("raise"), errors)


def _without_generations(body: Body) -> list[Any]:
    """A ``generate()`` in a phase of the program's own is told as part of it, which the model does not know."""
    return [
        (*step[:-1], _without_generations(step[-1])) if step[0] in ("phase", "block", "catch") else step
        for step in body
        if step[0] != "generate"
    ]


def _nested(body: Any) -> Any:
    bodies = st.lists(body, max_size=4)
    return st.one_of(
        st.tuples(st.just("phase"), st.sampled_from("ab"), bodies.map(_without_generations)),
        st.tuples(st.just("block"), bodies),
        st.tuples(st.just("catch"), bodies),
    )


inner = st.recursive(st.one_of(anywhere, raising), _nested, max_leaves=8)
tasks = st.tuples(
    st.just("tasks"),
    st.lists(
        st.tuples(
            st.integers(1, 4), st.none() | st.integers(0, 3), st.sampled_from(["support.programs.Planned", CANCELLED])
        ),
        min_size=1,
        max_size=4,
    ),
)
together = st.tuples(st.just("together"), st.integers(1, 4))
blocks = st.tuples(st.just("block"), st.lists(inner, max_size=6))
alone = st.one_of(anywhere, opens, opens, drops, blocks, blocks, tasks, together)
forks = st.tuples(st.just("fork"), st.lists(alone, max_size=4))
forks_inside = st.tuples(st.just("block"), st.tuples(inner, forks, inner))
threads = st.tuples(
    st.just("threads"), st.lists(st.lists(st.one_of(alone, alone, forks), max_size=5), min_size=1, max_size=3)
)
steps = st.one_of(alone, alone, alone, alone, threads, forks, forks_inside, st.just(("reinstrument",)))
whole = st.lists(steps, min_size=1, max_size=8)


# -- what came out -----------------------------------------------------------------------------------------------------


class _Looks(SpanProcessor):
    """Has an eye for spans that start, so that ours go through the tracer."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # that of the older SDKs says neither yes nor no
        return True


def traces_of(recorder: Recorder) -> list[list[Span]]:
    """The spans of each inference, or of a phase that belongs to none. A block inside another one is an inference below
    it, which is looked at apart."""
    spans = {span.span_id: span for span in map(span_of, recorder.spans())}
    found: dict[Any, list[Span]] = {}
    for span in spans.values():
        root = span
        while root.parent_id in spans and semconv.OPERATION_NAME not in root.attributes:
            root = spans[root.parent_id]
        found.setdefault(root.span_id, []).append(span._replace(parent_id=None) if root is span else span)
    return list(found.values())


def text_of(trace: list[Span]) -> str:
    """As ``Trace.text`` has it; what is malformed says so."""
    wrong = wellformed.problems(trace, concurrent=any(span.name == "together" for span in trace))
    if wrong:
        return f"MALFORMED {wrong}"
    (root,) = (span for span in trace if span.parent_id is None)
    told = dict(root.attributes)
    dropped, error = told.get(semconv.CHILDREN_DROPPED, 0), told.get(semconv.ERROR_TYPE)
    facts = [
        *(["cancelled"] if told.get(semconv.CANCELLED) else []),
        *([f"!{error}"] if error else []),
        *([f"items={told[semconv.ITEMS]}"] if semconv.ITEMS in told else []),
        *([f"in={told[semconv.INPUT_TOKENS]}"] if semconv.INPUT_TOKENS in told else []),
        *([f"out={told[semconv.OUTPUT_TOKENS]}"] if semconv.OUTPUT_TOKENS in told else []),
        *(["abandoned"] if told.get(semconv.ABANDONED) else []),
        *([f"dropped={dropped}"] if dropped else []),
    ]
    return " ".join([root.name.split()[0], f"[{' '.join(_below(trace, root))}]", *facts])


def _below(trace: list[Span], above: Span) -> Iterator[str]:
    for span in trace:  # by start
        if span.parent_id == above.span_id:
            calls, error = span.attributes.get(semconv.PHASE_CALLS, 1), span.attributes.get(semconv.ERROR_TYPE)
            parts = " ".join(_below(trace, span))
            yield "".join(
                (
                    f"{span.name}*{calls}" if calls > 1 else span.name,
                    f"!{error}" if error else "",
                    f"({parts})" if parts else "",
                )
            )


def points_of(recorder: Recorder) -> dict[str, Any]:
    """What the metrics say, as far as the model knows it."""
    return {
        "inferences": recorder.counts(semconv.OPERATION_DURATION, semconv.ERROR_TYPE),
        "errors": recorder.counts(semconv.ERRORS, semconv.ERROR_TYPE),
        "phases": recorder.counts(semconv.PHASE_DURATION, semconv.PHASE_NAME),
        "tokens": {point.attributes[semconv.TOKEN_TYPE]: point.sum for point in _summed(recorder, semconv.TOKEN_USAGE)},
        "dropped": recorder.counts(semconv.DROPPED, semconv.DROP_REASON),
    }


def _summed(recorder: Recorder, name: str) -> list[Any]:
    found: dict[str, Any] = {}
    for point in recorder.points(name):
        kind = point.attributes[semconv.TOKEN_TYPE]
        if kind in found:
            found[kind] = type("Sum", (), {"attributes": point.attributes, "sum": found[kind].sum + point.sum})
        else:
            found[kind] = point
    return list(found.values())


def points_expected(traces: list[Trace], children_max: int) -> dict[str, Any]:
    inferences = [trace for trace in traces if not trace.is_lone]
    failures = Counter(None if trace.error == CANCELLED else trace.error for trace in inferences)
    phases: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for trace in traces:
        names = {trace.name} if trace.is_lone or trace.is_single else set()
        for phase in trace.phases:
            names.add(phase.name)
            names.update(part.partition("!")[0] for part in phase.below)
        phases.update(names)
        tokens.update({"input": trace.input_tokens, "output": trace.output_tokens})
    over = sum(max(0, len(trace.phases) - children_max) for trace in inferences)
    return {
        "inferences": dict(failures),
        "errors": {error: number for error, number in failures.items() if error},
        "phases": dict(phases),
        "tokens": {kind: number for kind, number in tokens.items() if number},
        "dropped": {"children_max": over} if over else {},
    }


# -- the test ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def module_by_hand() -> Iterator[None]:
    """It lasts over ``uninstrument()``."""
    handle = inferspan.instrument_module(programs.models()[2])
    yield
    handle.remove()


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Threads take turns a hundred times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def run(body: Body, *, through_tracer: bool, **options: Any) -> tuple[Recorder, Program, Model]:
    recorder = Recorder()
    if through_tracer:
        recorder.tracer_provider.add_span_processor(_Looks())

    def instrument() -> None:
        recorder.instrument(process_stats=False, **options)

    def reinstrument() -> None:
        inferspan.uninstrument()
        instrument()

    def told() -> list[str]:  # in a child, which forgets what its parent has exported
        return sorted(text_of(trace) for trace in traces_of(recorder))

    instrument()
    try:
        program = Program(told, reinstrument, recorder.exporter.clear)
        program.top(body)
        assert inferspan.force_flush(programs.LIMIT_S)
    finally:
        recorder.close()
    model = Model()
    model.top(body)
    return recorder, program, model


@settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(body=whole, children_max=st.sampled_from([64, 64, 3, 0]), through_tracer=st.booleans())
def test_whatever_a_program_does_is_exported_once_and_complete(
    body: Body, children_max: int, through_tracer: bool
) -> None:
    recorder, program, model = run(body, through_tracer=through_tracer, children_max=children_max)

    found = sorted(text_of(trace) for trace in traces_of(recorder))
    assert program.bad == []
    assert found == sorted(trace.text(children_max) for trace in model.traces)
    assert sorted(program.children) == sorted(
        sorted(trace.text(children_max) for trace in traces) for traces in model.children
    )
    assert points_of(recorder) == points_expected(model.traces, children_max)
