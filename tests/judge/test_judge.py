"""The judge on a hundred programs, always the same ones, and on code that counts wrongly, which it must notice.

More programs, and others: ``python -m judge --programs 1000 --seed 7``."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from inferspan.core.record import Counts, Inference
from inferspan.core.steps import Generation
from inferspan.emit import metrics, spans
from judge.claims import Trace, false_claims
from judge.judging import FAMILIES, Void, judge
from judge.observe import Truth
from judge.program import Program, draw, parse, shrink

PROGRAMS = {"generate": 45, "call": 25, "tokenizer": 15, "pipeline": 12, "batching": 3}
SAID = {"generate": 0.9, "call": 0.9, "tokenizer": 1.0, "pipeline": 0.5, "batching": 1.0}
"""Share of the counts that must be there. What some pipelines give their model is nested too deep to be looked at."""


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """A manager of continuous batching that stops collects garbage; without the modules and classes, that is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def programs(family: str) -> list[Program]:
    random = Random(f"{family} of the suite")
    return [draw(random, {family: FAMILIES[family]}) for _ in range(PROGRAMS[family])]


@pytest.mark.parametrize("family", PROGRAMS)
def test_what_is_said_of_random_programs_is_true(family: str) -> None:
    tally: Counter[str] = Counter()
    wrong, void = {}, []
    for program in programs(family):
        try:
            claims = judge(program, tally)
        except Void as reason:
            void.append(f"{program}: {reason}")
        else:
            wrong.update({str(program): claims} if claims else {})
    assert wrong == {}
    assert len(void) <= 0.05 * PROGRAMS[family], void
    # Saying nothing is never false, so it is looked at whether enough is said.
    for field in ("input_tokens", "output_tokens", "rows", "finish"):
        said = tally[f"{field} exact"]
        assert said >= SAID[family] * (said + tally[f"{field} absent"] + tally[f"{field} bound"]), (field, tally)


# -- the judge itself --------------------------------------------------------------------------------------------------


def _batch(change: Callable[[Any], None]) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = Inference.add_batch

        def add_batch(self: Any, phase: Any, batch: Any) -> None:
            change(batch)
            original(self, phase, batch)

        patch.setattr(Inference, "add_batch", add_batch)

    return mutate


def _padding_counts(batch: Any) -> None:
    batch.tokens = batch.positions


def _a_row_too_many(batch: Any) -> None:
    batch.rows += 1


def _one_token_more(patch: pytest.MonkeyPatch) -> None:
    original = Counts.add_output
    patch.setattr(Counts, "add_output", lambda self, tokens, exact: original(self, tokens + 1, exact))


def _late_by_a_step(patch: pytest.MonkeyPatch) -> None:
    original, seen = Generation.tick, set()

    def tick(self: Any, unfinished: bool = True) -> None:
        if self in seen:
            original(self, unfinished)
        seen.add(self)

    patch.setattr(Generation, "tick", tick)


def _another_name(patch: pytest.MonkeyPatch) -> None:
    original = Inference.begin
    patch.setattr(Inference, "begin", lambda self, name: original(self, {"forward": "infer"}.get(name, name)))


def _attribute(name: str, change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = spans.root_attributes

        def root_attributes(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            if name in found:
                found[name] = change(found[name])
            return found

        patch.setattr(spans, "root_attributes", root_attributes)

    return mutate


def _points_twice(patch: pytest.MonkeyPatch) -> None:
    original = metrics.Points._add
    patch.setattr(metrics.Points, "_add", lambda self, name, value, *rest: original(self, name, value + value, *rest))


RAGGED = {"family": "generate", "rows": "2 ragged"}
ENDING = {"family": "generate", "rows": "2", "eos": "int"}

MUTANTS = [
    pytest.param(_batch(_padding_counts), RAGGED, "gen_ai.usage.input_tokens", id="padding counts as tokens"),
    pytest.param(
        _attribute("inferspan.padding.ratio", lambda ratio: 1 - ratio), RAGGED, "inferspan.padding.ratio", id="padding"
    ),
    pytest.param(_batch(_a_row_too_many), RAGGED, "inferspan.batch.size", id="a row too many"),
    pytest.param(_one_token_more, ENDING, "gen_ai.usage.output_tokens", id="one token more"),
    pytest.param(_late_by_a_step, {"family": "generate"}, "inferspan.time_to_first_token", id="late by a step"),
    pytest.param(_late_by_a_step, {"family": "generate"}, "inferspan.decode.steps", id="a step too few"),
    pytest.param(_another_name, {"family": "generate"}, "phases", id="another name of a phase"),
    pytest.param(
        _attribute("gen_ai.response.finish_reasons", lambda reasons: reasons[::-1]),
        ENDING,
        "gen_ai.response.finish_reasons",
        id="finish reasons of other rows",
    ),
    pytest.param(
        _attribute("inferspan.flops.count", lambda flops: flops * 1.02), RAGGED, "inferspan.flops.count", id="FLOPs"
    ),
    pytest.param(
        _attribute("gen_ai.request.temperature", lambda _: 1.0),
        {"family": "generate", "mode": "sample"},
        "gen_ai.request.temperature",
        id="a setting's default",
    ),
    pytest.param(
        _attribute("inferspan.time_to_first_token", lambda seconds: seconds / 2),
        {"family": "generate"},
        "inferspan.time_to_first_token",
        id="a first token before the forward",
    ),
    pytest.param(_points_twice, RAGGED, "gen_ai.client.token.usage of input", id="points that spans do not say"),
]


@pytest.mark.parametrize(("mutate", "program", "about"), MUTANTS)
def test_code_that_counts_wrongly_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], program: dict[str, Any], about: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = parse(json.dumps(program), FAMILIES)
    assert judge(parsed) == []
    mutate(monkeypatch)
    assert about in {claim.about for claim in judge(parsed)}


@pytest.mark.parametrize(
    ("attributes", "wrong"),
    [
        pytest.param({}, [], id="absent"),
        pytest.param({"gen_ai.usage.input_tokens": 6}, [], id="exact"),
        pytest.param({"gen_ai.usage.input_tokens": 7}, ["gen_ai.usage.input_tokens"], id="too many"),
        pytest.param(
            {"gen_ai.usage.input_tokens": 7, "inferspan.usage.input_tokens.exact": False}, [], id="an upper bound"
        ),
        pytest.param(
            {"gen_ai.usage.input_tokens": 5, "inferspan.usage.input_tokens.exact": False},
            ["gen_ai.usage.input_tokens (bound)"],
            id="a bound on the wrong side",
        ),
        pytest.param({"gen_ai.usage.output_tokens": 1}, ["gen_ai.usage.output_tokens"], id="of what is not there"),
    ],
)
def test_a_claim_is_exact_or_a_bound_or_absent(attributes: dict[str, Any], wrong: list[str]) -> None:
    context = SimpleNamespace(span_id=1)
    root: Any = SimpleNamespace(name="x", context=context, parent=None, start_time=0, end_time=9, attributes=attributes)
    found = false_claims(Trace(root, [root]), Truth(input_tokens=6, positions=8), [], Counter())
    assert [claim.about for claim in found] == wrong


def test_a_program_is_made_as_plain_as_it_can_be() -> None:
    odd = {"family": "generate", "model": "gpt2", "rows": "2 ragged", "mask": "bool", "dict": True}
    program = parse(json.dumps(odd), FAMILIES)
    least = shrink(program, lambda trial: trial.choices["mask"] == "bool" and trial.choices["rows"] != "1")
    assert str(least) == '{"family": "generate", "rows": "2 ragged", "mask": "bool"}'
    assert parse(str(least), FAMILIES) == least
