"""Sums over the parts of forwards, and probes that fail: each loses what is its own."""

from __future__ import annotations

from typing import Any

import pytest

from inferspan import faults
from inferspan.core import probe as probe_module
from inferspan.core.probe import Probe, Report, Values, add_up, is_ready, parts_of
from inferspan.core.record import Inference, Phase
from inferspan.core.steps import Generation
from support import records


class Counter(Probe):
    """Its mark is a number. A sum with what is not known is negative."""

    def __init__(self, name: str = "counter") -> None:
        self.name = name
        self.seen: list[str] = []

    def begin(self, record: Any, model: Any) -> Any:
        self.seen.append("begin")
        return 1

    def end(self, record: Any, mark: Any) -> None:
        self.seen.append("end")

    def is_ready(self, record: Any, mark: Any) -> bool:
        return bool(mark)

    def value(self, phase: Phase, part: str, mark: Any) -> Any:
        return None if part == "prefill" else mark

    def add(self, one: Any, other: Any) -> Any:
        return -1 if one is None or other is None else one + other


class Failing(Counter):
    """Raises in the methods named."""

    def __init__(self, *methods: str) -> None:
        super().__init__("failing")
        for method in methods:
            setattr(self, method, self._fail)

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("of the probe")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are counted, as in a program."""
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    monkeypatch.setattr(faults, "_reported", {})


def forward(*marks: tuple[Probe, Any], generates: bool = False) -> Phase:
    made = records.phase(None, "forward")
    made.is_forward, made.marks = True, list(marks)
    if generates:
        made.generation = Generation()
    return made


# What is known of a phase


def test_parts_of_what_is_no_forward_are_none() -> None:
    phase = forward((Counter(), 1))
    phase.is_forward = False

    assert parts_of(phase) == {}


def test_parts_of_a_forward_are_itself() -> None:
    assert parts_of(forward((Counter(), 3), (Counter("other"), 4))) == {"forward": {"counter": 3, "other": 4}}


def test_parts_of_a_generation_are_prefill_and_decode_too() -> None:
    assert parts_of(forward((Counter(), 3), generates=True)) == {
        "forward": {"counter": 3},
        "prefill": {"counter": None},
        "decode": {"counter": 3},
    }


def test_parts_of_a_forward_that_nothing_was_noted_of_are_there_and_empty() -> None:
    phase = forward()
    assert parts_of(phase) == {"forward": {}}
    phase.marks = None

    assert parts_of(phase) == {"forward": {}}


# Sums


def sums(*parts: dict[str, Values], of: tuple[Probe, ...] = (Counter(),)) -> dict[str, Values]:
    totals: dict[str, Values] = {}
    for part in parts:
        add_up(totals, part, of)
    return totals


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param([{"forward": {"counter": 3}}], {"forward": {"counter": 3}}, id="one"),
        pytest.param([{"forward": {"counter": 3}}, {"forward": {"counter": 4}}], {"forward": {"counter": 7}}, id="two"),
        pytest.param(
            [{"forward": {"counter": 3}}, {"forward": {}}], {"forward": {"counter": -1}}, id="missing in the second"
        ),
        pytest.param(
            [{"forward": {}}, {"forward": {"counter": 3}}], {"forward": {"counter": -1}}, id="missing in the first"
        ),
        pytest.param(
            [{"forward": {"counter": None}}, {"forward": {"counter": 3}}],
            {"forward": {"counter": -1}},
            id="not known in the first",
        ),
        pytest.param([{"forward": {}}, {"forward": {}}], {"forward": {}}, id="in neither"),
        pytest.param(
            [{"forward": {"counter": 1}}, {"forward": {"counter": 2}, "decode": {"counter": 2}}],
            {"forward": {"counter": 3}, "decode": {"counter": 2}},
            id="a part that only one has",
        ),
    ],
)
def test_sum_is_what_the_probe_makes_of_it(parts: list[dict[str, Values]], expected: dict[str, Values]) -> None:
    assert sums(*parts) == expected


def test_sum_of_several_probes_is_each_ones_own() -> None:
    both = Counter(), Counter("other")

    assert sums({"forward": {"counter": 1}}, {"forward": {"counter": 2, "other": 5}}, of=both) == {
        "forward": {"counter": 3, "other": -1}
    }


def test_sum_leaves_what_it_was_made_of_as_it_was() -> None:
    first, second = {"forward": {"counter": 3}}, {"forward": {"counter": 4}}
    totals = sums(first, second)
    totals["forward"]["counter"] = 0

    assert (first, second) == ({"forward": {"counter": 3}}, {"forward": {"counter": 4}})


def test_value_of_a_probe_that_is_not_in_the_table_any_more_stays_as_it_is() -> None:
    assert sums({"forward": {"gone": 3}}, {"forward": {"gone": 4}}) == {"forward": {"gone": 3}}


# Readiness


def test_record_is_ready_when_all_marks_are() -> None:
    record = records.inference()
    first, second = (Counter(), 1), (Counter("other"), 0)

    assert is_ready(record, None) is True
    assert is_ready(record, []) is True
    assert is_ready(record, [first]) is True
    assert is_ready(record, [first, second]) is False


# Probes that fail


@pytest.mark.usefixtures("counted")
def test_probe_that_fails_at_the_beginning_loses_only_itself() -> None:
    before, after = Counter("before"), Counter("after")
    marks: list[tuple[Probe, Any]] = []
    probe_module.begin(records.inference(), marks, (before, Failing("begin"), after), None)

    assert marks == [(before, 1), (after, 1)]
    assert faults.counts() == {"probes.begin": 1}


@pytest.mark.usefixtures("counted")
def test_probe_that_fails_at_the_end_loses_only_itself() -> None:
    before, after = Counter("before"), Counter("after")
    probe_module.end(records.inference(), [(before, 1), (Failing("end"), 1), (after, 1)])

    assert (before.seen, after.seen) == (["end"], ["end"])
    assert faults.counts() == {"probes.end": 1}


@pytest.mark.usefixtures("counted")
def test_probe_that_fails_to_give_a_value_loses_only_itself() -> None:
    assert parts_of(forward((Failing("value"), 1), (Counter(), 3))) == {"forward": {"failing": None, "counter": 3}}
    assert sum(faults.counts().values()) == 1


@pytest.mark.usefixtures("counted")
def test_probe_that_fails_to_add_loses_only_itself() -> None:
    both = Failing("add"), Counter()
    values = {"failing": 1, "counter": 3}

    assert sums({"forward": values}, {"forward": values}, of=both) == {"forward": {"failing": None, "counter": 6}}
    assert sum(faults.counts().values()) == 1


# A probe that does nothing


def test_probe_that_writes_nothing_down_does_nothing() -> None:
    class Silent(Probe):
        name = "silent"

    silent, report = Silent(), Report()
    record: Inference = records.inference()
    phase = forward((silent, 1))
    assert silent.prepare(probe_module.CallSite(record.plan.settings, None, None, None)) is silent
    assert silent.begin(record, None) is None
    silent.end(record, 1)
    assert silent.failed(record, ValueError()) is None
    silent.model_called(phase, 1, None, (), {})
    silent.generation_begins(phase, 1)
    silent.decoding_begins(phase, 1, probe_module.DecodingLoop(None, (), {}, True, True))
    assert silent.is_ready(record, 1) is True
    assert (silent.value(phase, "forward", 1), silent.add(1, 2)) == (None, None)
    assert silent.describe(record, "forward", {}) == {}
    silent.report(record, 1, report)
    silent.close()

    assert report == Report()
