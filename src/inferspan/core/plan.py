"""What is decided once for a call site, and looked up in each call: names, frozen attributes, the probes that apply.

A call site is an owner (a pipeline, a model, a session) and an operation. Its plan holds as long as the settings and
what is known of its model are the same objects: a cast, a move, an adapter or a quantisation makes another
:class:`~inferspan.core.model.ModelInfo`, and so another plan. Owners are referred to weakly.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferspan import faults, semconv
from inferspan.core.probe import Brackets, CallSite, Probe, Row

if TYPE_CHECKING:
    from inferspan.config import Settings
    from inferspan.core.model import ModelInfo

_NAMED_MAX = 256


class Probes:
    """The table of probes under one set of settings. A probe is loaded when it first applies somewhere."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows
        self._loaded: dict[str, Probe] = {}

    def prepare(self, site: CallSite, *, on_device: bool) -> tuple[Probe, ...]:
        """Those that apply to the call site, in the order of the table."""
        rows = (row for row in self._rows if row.on_device is on_device)
        return tuple(filter(None, (self._prepare(row, site) for row in rows)))

    @faults.guarded("probes.prepare")
    def _prepare(self, row: Row, site: CallSite) -> Probe | None:
        if not row.is_wanted(site):
            return None
        if row.name not in self._loaded:
            self._loaded[row.name] = row.load()
        return self._loaded[row.name].prepare(site)

    def loaded(self) -> list[Probe]:
        """All that have applied so far, in the order of the table."""
        return [self._loaded[row.name] for row in self._rows if row.name in self._loaded]

    def close(self) -> None:
        """Release what they hold."""
        for probe in self.loaded():
            try:
                probe.close()
            except Exception:  # noqa: BLE001 - the others still hold something
                faults.note("probes.close")


class Plan:
    """One call site. ``asked`` is what a sampler sees of a root span, ``attributes`` what stands on every root,
    ``source`` the integration that made it, ``phase_names`` how that calls its phases, if it does so always,
    ``devices`` where the model works on an input by the device of that. ``owner`` is what a call is of, if that is not
    the model."""

    def __init__(
        self,
        probes: Probes,
        settings: Settings,
        operation: str,
        info: ModelInfo | None,
        *,
        name: str | None = None,
        model: Any = None,
        source: str = "",
    ) -> None:
        self.settings = settings
        self.operation = operation
        self.info = info
        self.name = name or (operation if info is None else f"{operation} {info.name}")
        self.asked = {semconv.OPERATION_NAME: operation} if info is None else info.attributes_for(operation)
        self.attributes: Mapping[str, Any] = {}
        self.source = source
        self.phase_names: tuple[str, ...] | None = None
        self.devices: dict[str | None, str | None] = {}
        self._probes = probes
        self.model = self.owner = _weakly(model)
        found = probes.prepare(CallSite(settings, model, info, None), on_device=False)
        self.inference_probes = tuple(probe for probe in found if probe.brackets is Brackets.INFERENCE)
        self.beginning = tuple(probe for probe in self.inference_probes if probe.begins)
        self.phase_probes = tuple(probe for probe in found if probe.brackets is Brackets.PHASE)
        self._forward_probes = tuple(probe for probe in found if probe.brackets is Brackets.FORWARD)
        self.by_device: dict[str | None, tuple[tuple[Probe, ...], tuple[Probe, ...]]] = {}

    def prepare_on(self, device: str | None) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
        """The probes of a forward on this device, and those of the inference that begin with the first such forward.
        They stand in ``by_device`` from then on."""
        probes: tuple[Probe, ...] = ()
        if device is not None and device != "cpu":
            site = CallSite(self.settings, self.model(), self.info, device)
            probes = self._probes.prepare(site, on_device=True)
        forward = tuple(probe for probe in probes if probe.brackets is Brackets.FORWARD)
        later = tuple(probe for probe in probes if probe.brackets is Brackets.INFERENCE)
        found = (*forward, *self._forward_probes), later
        # a device that nothing has used yet may be in use at the next call
        if probes or device in (None, "cpu"):
            self.by_device[device] = found
        return found


class Plans:
    """The plans of all call sites, by the identity of their owners."""

    def __init__(self) -> None:
        self.by_owner: dict[int, dict[Any, Plan]] = {}
        self._owners: dict[int, weakref.ref[Any]] = {}
        self.named: dict[Any, Plan] = {}  # call sites that are no objects, by what names them

    def keep(self, owner: Any, key: Any, plan: Plan) -> Plan:
        """Remember it, as long as its owner lives."""
        place = id(owner)
        if place not in self._owners:

            def forget(_: Any) -> None:
                self._owners.pop(place, None)
                self.by_owner.pop(place, None)

            try:
                self._owners[place] = weakref.ref(owner, forget)
            except TypeError:  # cannot be referred to weakly: it is planned anew in each call
                return plan
        self.by_owner.setdefault(place, {})[key] = plan
        return plan

    def keep_named(self, key: Any, plan: Plan) -> Plan:
        """Remember the plan of a call site that is no object, unless there are too many of them."""
        if len(self.named) < _NAMED_MAX:
            self.named[key] = plan
        return plan

    def forget(self, owner: Any) -> None:
        """Plan anew at the next call of this owner."""
        self.by_owner.pop(id(owner), None)

    def clear(self) -> None:
        """Plan everything anew."""
        self.by_owner.clear()
        self.named.clear()


def _weakly(model: Any) -> Any:
    try:
        return weakref.ref(model)
    except TypeError:
        return lambda: model
