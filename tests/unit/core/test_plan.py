"""Plans: made once for a call site, found again, renewed when what they were made of has changed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import inferspan
from inferspan import faults
from inferspan.config import Settings
from inferspan.core import current
from inferspan.core.model import ModelInfo, Witness
from inferspan.core.plan import Plan, Plans, Probes
from inferspan.core.probe import Brackets, CallSite, Probe, Row
from support import records
from support.recorder import Recorder

SETTINGS = Settings()


class Owner:
    """A pipeline, a model, a session."""


class Unhashable(Owner):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")


class Slotted:
    """Cannot be referred to weakly."""

    __slots__ = ()


def make(info: ModelInfo | None = None, settings: Settings = SETTINGS, model: Any = None) -> Plan:
    return Plan(Probes(()), settings, "chat", info, model=model)


class Found(NamedTuple):
    """Looks plans up as a call does: in :func:`inferspan.core.current.plan`."""

    plans: Plans
    monkeypatch: pytest.MonkeyPatch

    def find(
        self, owner: Any, key: str, settings: Settings = SETTINGS, info: ModelInfo | None = None, model: Any = None
    ) -> Plan | None:
        """The plan that is kept and holds; ``None`` where another one would be made."""
        self.monkeypatch.setattr(current.state, "settings", settings)
        made = []

        def make_anew(*asked: Any) -> Plan:
            made.append(asked)
            return make(info, settings, model)

        before = {place: dict(of_owner) for place, of_owner in self.plans.by_owner.items()}
        found = current.plan(owner, key, make_anew, model)
        if not made:
            return found
        assert made == [(owner, key, model)]
        self.plans.by_owner.clear()  # it was to be asked, not to be made
        self.plans.by_owner.update(before)
        return None


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Found:
    """Plans that are the ones in force."""
    plans = Plans()
    monkeypatch.setattr(current.state, "plans", plans)
    return Found(plans, monkeypatch)


# Looked up


def test_plan_is_found_again_by_its_owner_and_key(kept: Found) -> None:
    owner, model, info = Owner(), Owner(), ModelInfo("me/model")
    plan = kept.plans.keep(owner, "chat", make(info, model=model))

    assert kept.find(owner, "chat", SETTINGS, info, model) is plan
    assert kept.find(owner, "embeddings", SETTINGS, info, model) is None
    assert kept.find(Owner(), "chat", SETTINGS, info, model) is None


def test_plan_holds_no_more_under_other_settings_or_for_another_model(kept: Found) -> None:
    owner, model, info = Owner(), Owner(), ModelInfo("me/model")
    plan = kept.plans.keep(owner, "chat", make(info, model=model))

    assert kept.find(owner, "chat", Settings(), info, model) is None
    assert kept.find(owner, "chat", SETTINGS, info, Owner()) is None
    assert kept.find(owner, "chat", SETTINGS, None) is None
    assert kept.find(owner, "chat", SETTINGS, info, model) is plan
    info.is_stale = True
    assert kept.find(owner, "chat", SETTINGS, info.renewed(), model) is None


def test_plan_without_a_model_is_not_that_of_a_model(kept: Found) -> None:
    owner = Owner()
    plan = kept.plans.keep(owner, "chat", make())

    assert kept.find(owner, "chat", SETTINGS, None) is plan
    assert kept.find(owner, "chat", SETTINGS, ModelInfo("me/model"), Owner()) is None


def test_plan_that_is_made_anew_takes_the_place_of_the_old(kept: Found) -> None:
    owner, model, info = Owner(), Owner(), ModelInfo("me/model")
    kept.plans.keep(owner, "chat", make(info, model=model))
    renewed = info.renewed()
    plan = kept.plans.keep(owner, "chat", make(renewed, model=model))

    assert kept.find(owner, "chat", SETTINGS, renewed, model) is plan
    assert len(kept.plans.by_owner[id(owner)]) == 1


def test_plans_of_an_owner_go_with_it() -> None:
    plans, owner = Plans(), Owner()
    plans.keep(owner, "chat", make())
    plans.keep(owner, "embeddings", make())
    del owner
    gc.collect()

    assert (plans.by_owner, plans._owners) == ({}, {})


def test_plans_of_owners_that_come_and_go_are_never_anothers(kept: Found) -> None:
    """The identity of what is gone is used again."""
    for number in range(1000):
        owner = Owner()
        assert kept.find(owner, "chat", SETTINGS, None) is None, number
        kept.plans.keep(owner, "chat", make())
    del owner
    gc.collect()

    assert kept.plans.by_owner == {}


def test_owner_without_a_hash_has_plans(kept: Found) -> None:
    owner = Unhashable()
    plan = kept.plans.keep(owner, "chat", make())

    assert kept.find(owner, "chat", SETTINGS, None) is plan


def test_owner_without_weak_references_is_planned_anew_in_each_call(kept: Found) -> None:
    owner, plan = Slotted(), make()

    assert kept.plans.keep(owner, "chat", plan) is plan
    assert kept.find(owner, "chat", SETTINGS, None) is None
    assert (kept.plans.by_owner, kept.plans._owners) == ({}, {})


def test_owner_that_is_forgotten_is_planned_anew_and_kept_again(kept: Found) -> None:
    owner = Owner()
    kept.plans.keep(owner, "chat", make())
    kept.plans.forget(owner)
    assert kept.find(owner, "chat", SETTINGS, None) is None
    plan = kept.plans.keep(owner, "chat", make())

    assert kept.find(owner, "chat", SETTINGS, None) is plan
    kept.plans.forget(Owner())  # of which nothing is known


def test_plans_are_all_forgotten_at_once(kept: Found) -> None:
    owner = Owner()
    kept.plans.keep(owner, "chat", make())
    kept.plans.keep_named("answer", make())
    kept.plans.clear()

    assert (kept.find(owner, "chat", SETTINGS, None), kept.plans.named) == (None, {})


def test_plans_of_what_is_no_object_are_bounded() -> None:
    plans = Plans()
    kept = [plans.keep_named(number, make()) for number in range(1000)]

    assert (len(kept), len(plans.named)) == (1000, 256)
    assert plans.named[255] is kept[255]


# What is decided


def test_plan_has_a_name_and_what_a_sampler_sees() -> None:
    info = ModelInfo("me/model", "huggingface")

    assert make(info).name == "chat me/model"
    assert make(info).asked is info.attributes_for("chat")
    assert make().name == "chat"
    assert make().asked == {"gen_ai.operation.name": "chat"}
    assert Plan(Probes(()), SETTINGS, "chat", info, name="mine").name == "mine"


def test_plan_does_not_keep_its_model_alive() -> None:
    model = Owner()
    plan = Plan(Probes(()), SETTINGS, "chat", None, model=model)
    assert plan.model() is model
    del model
    gc.collect()

    assert plan.model() is None
    assert Plan(Probes(()), SETTINGS, "chat", None, model=5).model() == 5, "what cannot be referred to weakly"


class Noting(Probe):
    """Remembers the sites that it was asked about."""

    def __init__(self, name: str, brackets: Brackets, applies: Callable[[CallSite], bool] = lambda site: True) -> None:
        self.name = name
        self.brackets = brackets
        self.sites: list[CallSite] = []
        self.is_closed = False
        self._applies = applies

    def prepare(self, site: CallSite) -> Noting | None:
        self.sites.append(site)
        return self if self._applies(site) else None

    def close(self) -> None:
        self.is_closed = True


def prepared(plan: Plan, device: str | None) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """As :func:`inferspan.core.current.begin_forward` asks."""
    return plan.by_device.get(device) or plan.prepare_on(device)


class Beginning(Noting):
    def begin(self, record: Any, model: Any) -> int:
        return 1


def test_plan_has_apart_what_begins_with_the_inference() -> None:
    begins, silent = Beginning("begins", Brackets.INFERENCE), Noting("silent", Brackets.INFERENCE)
    plan = records.plan(probes=Probes((records.row(silent), records.row(begins))))

    assert (plan.inference_probes, plan.beginning) == ((silent, begins), (begins,))


def test_plan_has_the_probes_that_apply_by_what_they_enclose() -> None:
    of_inference, of_phase = Noting("inference", Brackets.INFERENCE), Noting("phase", Brackets.PHASE)
    of_forward, absent = Noting("forward", Brackets.FORWARD), Noting("no", Brackets.INFERENCE, lambda site: False)
    table = Probes(tuple(records.row(probe) for probe in (of_inference, absent, of_phase, of_forward)))
    plan = records.plan(probes=table)

    assert (plan.inference_probes, plan.phase_probes) == ((of_inference,), (of_phase,))
    assert prepared(plan, "cpu") == prepared(plan, None) == ((of_forward,), ())
    assert len(of_forward.sites) == 1, "asked once for a plan"


def test_probes_of_a_device_are_asked_at_the_first_forward_on_it() -> None:
    of_forward = Noting("time", Brackets.FORWARD, lambda site: site.device == "cuda:0")
    later = Noting("memory", Brackets.INFERENCE, lambda site: site.device == "cuda:0")
    host = Noting("flops", Brackets.FORWARD)
    rows = (records.row(of_forward, on_device=True), records.row(host), records.row(later, on_device=True))
    model = Owner()
    plan = Plan(Probes(rows), SETTINGS, "chat", None, model=model)
    assert prepared(plan, "cpu") == ((host,), ())
    assert (of_forward.sites, later.sites) == ([], []), "a call on the CPU runs no line of them"

    for _ in range(3):
        assert prepared(plan, "cuda:0") == ((of_forward, host), (later,))
    assert of_forward.sites == [CallSite(SETTINGS, model, None, "cuda:0")]
    # nothing applies there yet, so that it is asked again
    for _ in range(3):
        assert prepared(plan, "cuda:1") == ((host,), ())
    assert len(of_forward.sites) == 4


def test_probe_is_loaded_when_it_first_applies_and_once() -> None:
    loaded = []

    def load() -> Probe:
        loaded.append(1)
        return Noting("asked", Brackets.INFERENCE)

    table = Probes((Row("asked", lambda site: bool(site.settings.layers), load),))
    records.plan(probes=table)
    assert (loaded, table.loaded()) == ([], [])
    for _ in range(2):
        records.plan(probes=table, layers="transformer")

    assert loaded == [1]
    (probe,) = table.loaded()
    table.close()
    assert isinstance(probe, Noting)
    assert probe.is_closed


def fail(*args: Any) -> Any:
    raise RuntimeError("of the probe")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(Row("broken", lambda site: True, fail), id="load"),
        pytest.param(records.row(Noting("broken", Brackets.INFERENCE, fail)), id="prepare"),
        pytest.param(Row("broken", fail, lambda: Noting("broken", Brackets.INFERENCE)), id="is_wanted"),
    ],
)
def test_probe_that_fails_when_it_is_planned_loses_only_itself(broken: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    before, after = Noting("before", Brackets.INFERENCE), Noting("after", Brackets.INFERENCE)
    plan = records.plan(probes=Probes((records.row(before), broken, records.row(after))))

    assert plan.inference_probes == (before, after)
    assert faults.counts() == {"probes.prepare": 1}


def test_probe_that_fails_to_close_keeps_none_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    before, broken, after = (Noting(name, Brackets.INFERENCE) for name in ("before", "broken", "after"))
    broken.close = fail  # type: ignore[method-assign]
    records.table(before, broken, after).close()

    assert (before.is_closed, after.is_closed) == (True, True)
    assert sum(faults.counts().values()) == 1


# In force


def plan_chat(owner: Any, key: Any, model: Any) -> Plan:
    return current.make_plan("chat", model=model)


class Seen:
    has_changed = False

    def adapter(self) -> str | None:
        return None

    def look(self) -> bool:
        return self.has_changed


class Model:
    """Says itself whether it has changed."""

    def __init__(self) -> None:
        self.witness = Seen()


@pytest.fixture
def describer(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instrumented, and models are read by their witness."""

    def witness(self: Any, model: Any) -> Witness | None:
        return getattr(model, "witness", None)

    monkeypatch.setattr(type(current.state.describer), "witness", witness)


@pytest.mark.usefixtures("describer")
def test_plan_of_a_model_is_the_same_until_the_model_changes() -> None:
    owner, model = Owner(), Model()

    def plan() -> Plan | None:
        return current.plan(owner, "chat", plan_chat, model)

    first = plan()
    assert first is not None
    assert plan() is first
    model.witness.has_changed = True
    model.witness = Seen()
    second = plan()

    assert second is not first
    assert plan() is second


@pytest.mark.usefixtures("describer")
def test_plan_is_made_anew_when_its_model_was_renamed_or_forgotten() -> None:
    owner, model = Owner(), Model()

    def plan() -> Plan:
        found = current.plan(owner, "chat", plan_chat, model)
        assert found is not None
        return found

    assert plan() is plan()
    assert current.state.describer is not None
    current.state.models.rename(model, "mine", current.state.describer)
    renamed = plan()
    assert renamed.name == "chat mine"
    assert plan() is renamed
    current.state.models.forget(model)

    assert plan().name == "chat Model"


@pytest.mark.usefixtures("describer")
def test_plan_has_attributes_that_are_asked_for_once() -> None:
    asked, owner = [], Owner()

    def make_with_attributes(owner: Any, key: Any, model: Any) -> Plan:
        asked.append((owner, key, model))
        plan = current.make_plan("chat", source="tests")
        plan.attributes = {"a": 1}
        return plan

    plans = [current.plan(owner, "chat", make_with_attributes) for _ in range(3)]

    assert asked == [(owner, "chat", None)]
    assert len(asked) == 1
    assert plans[0] is not None
    assert (plans[0].attributes, plans[0].source, plans[1]) == ({"a": 1}, "tests", plans[0])


def test_plans_do_not_outlive_the_settings(bare_recorder: Recorder) -> None:
    owner = Owner()
    assert current.plan(owner, "chat", plan_chat) is None, "not instrumented"
    bare_recorder.instrument()
    first = current.plan(owner, "chat", plan_chat)
    assert first is not None
    inferspan.uninstrument()
    assert current.plan(owner, "chat", plan_chat) is None
    bare_recorder.instrument(children_max=3)
    second = current.plan(owner, "chat", plan_chat)

    assert second is not None
    assert (second is first, second.settings.children_max) == (False, 3)


def test_probe_that_fails_when_it_is_planned_leaves_the_inference_alone(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    probes = current.state.probes
    broken = Row("broken", lambda site: True, fail)
    monkeypatch.setattr(probes, "_rows", (broken, *probes._rows))
    with inferspan.inference("answer") as block, block.phase("think"):
        pass

    assert recorder.trees() == [("answer", "think")]
    assert recorder.attributes("answer")["inferspan.process.cpu_time"] is ...
    assert faults.counts() == {"probes.prepare": 1}
    monkeypatch.setattr(faults, "_counts", {})
