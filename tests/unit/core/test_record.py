"""The record itself: where its times lie, which phases it keeps, and what becomes of those beyond the bound."""

from __future__ import annotations

import threading
from itertools import chain
from typing import Any

import pytest

import inferspan
from inferspan import instrumentor
from inferspan.core import current, record
from inferspan.core.batch import Batch
from inferspan.core.probe import Brackets, Probe, Report, begin
from inferspan.core.record import Inference, Overflow, Phase
from support import records
from support.recorder import Recorder


def test_offset_to_the_wall_clock_is_read_again_where_another_thread_ran_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = 10**9
    ticks = iter([0, second, 2 * second, 2 * second + 100])  # a second lies between the first pair
    walls = iter([1000 + second, 1000 + 2 * second])
    monkeypatch.setattr(record, "perf_counter_ns", lambda: next(ticks))
    monkeypatch.setattr(record, "time_ns", lambda: next(walls))

    assert record.unix_offset_ns() == 1000


# Phases


def forward(of: Inference, name: str = "forward") -> Phase:
    made = of.begin(name)
    made.is_forward = True
    of.end(made)
    return made


def test_phases_of_one_name_are_one_record_unless_one_is_a_forward() -> None:
    of = records.inference()
    for name in ("a", "a", "b", "a"):
        of.end(of.begin(name))
    assert [(phase.name, phase.calls) for phase in of.phases.kept] == [("a", 2), ("b", 1), ("a", 1)]
    assert of.phases.kept[0].busy_ns <= of.phases.totals_ns["a"]
    for _ in range(2):
        forward(of)

    assert [(phase.name, phase.calls) for phase in of.phases.kept[3:]] == [("forward", 1), ("forward", 1)]


def test_phase_ends_once() -> None:
    of = records.inference()
    phase = of.begin("a")
    of.end(phase)
    total = of.phases.totals_ns["a"]
    of.end(phase)

    assert (phase.calls, of.phases.totals_ns["a"], len(of.phases.kept)) == (1, total, 1)


def test_phase_that_is_discarded_never_was() -> None:
    of = records.inference()
    phase = of.begin("a")
    phase.discard()
    of.end(phase)

    assert (of.phases.kept, of.phases.totals_ns) == ([], {})


def test_phase_that_ends_after_its_inference_is_left_out() -> None:
    of = records.inference()
    phase = of.begin("a")
    of.phases.is_closed = True
    of.end(phase)

    assert (of.phases.kept, of.phases.totals_ns) == ([], {})


@pytest.mark.parametrize("children_max", [0, 1, 3])
def test_phases_beyond_the_bound_are_counted_and_in_the_sums(children_max: int) -> None:
    of = records.inference(children_max=children_max)
    for number in range(5):
        of.end(of.begin(f"phase{number}"))

    assert [phase.name for phase in of.phases.kept] == [f"phase{number}" for number in range(children_max)]
    assert of.phases.dropped == 5 - children_max
    assert list(of.phases.totals_ns) == [f"phase{number}" for number in range(5)]
    assert of.phases.overflow == [], "what is no forward has no values"


def test_forwards_beyond_the_bound_are_handed_over_in_portions_and_none_twice() -> None:
    handed: list[list[Phase]] = []
    of = records.inference(hand_over=handed.append, children_max=1)
    made = [forward(of) for _ in range(1 + 64 * 3 + 10)]

    assert [len(portion) for portion in handed] == [64, 64, 64]
    assert [*of.phases.kept, *chain(*handed), *of.phases.overflow] == made
    assert of.phases.dropped == 64 * 3 + 10


def test_record_of_a_portion_ends_with_its_last_phase() -> None:
    of = records.inference()
    made = [forward(of) for _ in range(3)]
    portion = Overflow(of, made)

    assert (portion.inference, portion.phases, portion.end_ns) == (of, made, made[-1].end_ns)


def test_phases_that_a_full_queue_drops_are_still_added_up() -> None:
    of = records.inference()
    made = [forward(of) for _ in range(2)]
    of.end(of.begin("tokenize"))

    assert of.phases.drop() == 3
    assert (of.phases.kept, of.phases.overflow, of.phases.dropped) == ([], made, 3)


# Values of forwards: never on the calling thread


class Ones(Probe):
    """One for each forward; remembers who asked."""

    name = "ones"
    brackets = Brackets.FORWARD

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def begin(self, record: Any, model: Any) -> int:
        return 1

    def value(self, phase: Phase, part: str, mark: int) -> int:
        self.asked.append((threading.current_thread().name, id(phase)))
        return mark

    def add(self, one: int | None, other: int | None) -> int:
        return (one or 0) + (other or 0)

    def report(self, inference: Inference, mark: Any, report: Report) -> None:
        report.attributes["ones"] = report.totals.get("forward", {}).get("ones")


@pytest.fixture
def ones(monkeypatch: pytest.MonkeyPatch) -> Ones:
    """In the table of what is instrumented next."""
    probe = Ones()
    monkeypatch.setattr(instrumentor, "TABLE", (*instrumentor.TABLE, records.row(probe)))
    return probe


@pytest.mark.parametrize("children_max", [0, 1, 64])
def test_values_are_asked_for_once_each_and_never_by_the_calling_thread(
    bare_recorder: Recorder, ones: Ones, children_max: int
) -> None:
    bare_recorder.instrument(children_max=children_max)
    made = []
    with inferspan.inference("answer"):
        inference = current.open_here()
        assert inference is not None
        for _ in range(500):
            phase = inference.begin("forward")
            current.begin_forward(phase, object(), "cpu", 0)
            inference.end(phase)
            made.append(id(phase))
            assert threading.current_thread().name not in {name for name, _ in ones.asked}
    inferspan.force_flush()

    assert {name for name, _ in ones.asked} <= {"inferspan-worker", "inferspan-flush"}
    assert [asked for _, asked in ones.asked if asked in made] == [asked for _, asked in ones.asked]
    assert len(ones.asked) == 500
    assert bare_recorder.attributes("answer")["ones"] == 500


@pytest.mark.usefixtures("ones")
def test_values_of_concurrent_inferences_are_added_to_their_own(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(children_max=1)

    def infer(count: int) -> None:
        with inferspan.inference(f"answer{count}"):
            inference = current.open_here()
            assert inference is not None
            for _ in range(count):
                phase = inference.begin("forward")
                current.begin_forward(phase, object(), "cpu", 0)
                inference.end(phase)

    counts = [1, 64, 65, 130, 300]
    threads = [threading.Thread(target=infer, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [bare_recorder.attributes(f"answer{count}")["ones"] for count in counts] == counts


def test_summing_twice_does_not_double() -> None:
    probe = Ones()
    pipeline = records.pipeline(records.table(probe))
    of = records.inference(
        hand_over=lambda phases: pipeline._emit(Overflow(of, phases)), of=records.plan(children_max=3)
    )
    for _ in range(100):
        phase = of.begin("forward")
        phase.is_forward = True
        phase.marks = []
        begin(phase, phase.marks, (probe,), None)
        of.end(phase)
    of.end_ns = of.start_ns + 1

    assert pipeline._report(of).totals == {"forward": {"ones": 100}}
    assert pipeline._report(of).totals == {"forward": {"ones": 100}}


# Counts


def test_counts_of_batches_keep_the_first_and_add_up_all() -> None:
    of = records.inference(children_max=2)
    for rows in (2, 4, 3):
        of.add_batch(None, Batch(rows=rows, length=5, tokens=4 * rows, positions=5 * rows))

    counts = of.counts
    assert (counts.rows, counts.rows_max, counts.length_max) == ((2, 4), 4, 5)
    assert (counts.input_tokens, counts.input_exact) == (36, True)
    assert (counts.positions, counts.padded, counts.padding) == (45, 9, (pytest.approx(0.2),) * 2)


def test_count_that_is_a_bound_once_stays_one() -> None:
    of = records.inference()
    of.add_batch(None, Batch(rows=1, length=5, tokens=5, exact=False, positions=5))
    of.add_batch(None, Batch(rows=1, length=5, tokens=5, positions=5))
    counts = of.counts
    counts.add_output(3, False)
    counts.add_output(3, True)

    assert (counts.input_tokens, counts.input_exact, counts.positions) == (10, False, 5)
    assert (counts.output_tokens, counts.output_exact) == (6, False)


def test_batch_is_on_the_span_of_its_phase_unless_that_is_the_inference_itself() -> None:
    of = records.inference()
    phase, own = of.begin("forward"), of.begin("forward")
    of.self_phase = own
    for each in (phase, own):
        of.add_batch(each, Batch(rows=2, length=5))

    assert (phase.attributes, own.attributes) == ({"inferspan.batch.size": 2, "inferspan.sequence.length": 5}, None)


# Closed once


def test_inference_is_claimed_once() -> None:
    of = records.inference()

    assert [of.claim() for _ in range(3)] == [True, False, False]
