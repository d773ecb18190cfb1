"""What one ``generate()`` really uses, however that was set.

An argument goes before a configuration that is passed, that before the model's own, that before transformers' defaults;
the details differ by version, task and class. So what they come to is not worked out again here: transformers hands the
configuration in force and the stopping criteria made of it to its decoding loop, and right before that they are read
(``GenerationMixin._get_stopping_criteria``, from 4.57 to 5.23). Only what is needed before is looked up in the order
above (:func:`look_up`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from inferspan import semconv
from inferspan.integrations.outputs import Ends, Verdicts
from inferspan.integrations.tensors import ids_of

_PROPOSING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
_CRITERIA = "transformers.generation.stopping_criteria"
# Those that end all rows, or leave a trace in the ids. "Confidence" is of draft models.
_PLAIN = frozenset(f"{name}Criteria" for name in ("MaxLength", "MaxTime", "EosToken", "Confidence"))

_RECORDED = {
    "max_new_tokens": (semconv.MAX_TOKENS, int),
    "temperature": (semconv.TEMPERATURE, float),
    "top_p": (semconv.TOP_P, float),
    "top_k": (semconv.TOP_K, int),
    "min_p": (semconv.MIN_P, float),
    "do_sample": (semconv.DO_SAMPLE, bool),
    "num_beams": (semconv.NUM_BEAMS, int),
    "num_return_sequences": (semconv.CHOICE_COUNT, int),
    "repetition_penalty": (semconv.REPETITION_PENALTY, float),
    "cache_implementation": (semconv.CACHE_IMPLEMENTATION, str),
}
_ACCEPTED: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool, int), str: (str,)}

_default_configs: dict[type, Any] = {}


def recorded_settings(given: Mapping[str, Any], bases: tuple[Any, ...] = ()) -> dict[str, Any]:
    """What was set for this call as attributes: its arguments, and what was set in a configuration passed with it."""
    found = {}
    config = given.get("generation_config")
    for name, (attribute, kind) in _RECORDED.items():
        value = given[name] if name in given else set_in(config, name, bases)
        if isinstance(value, _ACCEPTED[kind]):
            found[attribute] = kind(value)
    if found.get(semconv.CHOICE_COUNT) == 1:
        del found[semconv.CHOICE_COUNT]
    return found


def set_in(config: Any, name: str, bases: tuple[Any, ...] = ()) -> Any:
    """What somebody has set in a configuration; 4.57 fills in the rest with defaults. ``bases`` are those that it was
    made of, if it is nobody's."""
    if config is None:
        return None
    default = _default_configs.get(type(config))
    if default is None:
        default = _default_configs[type(config)] = type(config)()
    value = getattr(config, name, None)
    return None if any(value == getattr(base, name, None) for base in (default, *bases)) else value


def look_up(name: str, model: Any, given: Mapping[str, Any]) -> Any:
    """A setting, before transformers has put them together."""
    if name in given:
        return given[name]
    value = getattr(given.get("generation_config"), name, None)
    return getattr(getattr(model, "generation_config", None), name, None) if value is None else value


def is_assisted(model: Any, given: Mapping[str, Any]) -> bool:
    """Whether a draft model or prompt look-up proposes tokens."""
    return any(look_up(name, model, given) is not None for name in _PROPOSING)


def pad_id_of(model: Any, given: Mapping[str, Any]) -> int | None:
    """What transformers takes for padding where no mask says so: an id that does not end a sequence, too."""
    pad_id = next(iter(ids_of(look_up("pad_token_id", model, given))), None)
    return None if pad_id in ids_of(look_up("eos_token_id", model, given)) else pad_id


class Loop:
    """One call of the general ``generate()``: its arguments by name, and once transformers has put the settings
    together (:meth:`begin`) what its decoding loop uses. ``steps`` had the generation taken before it."""

    config: Any = None
    criteria: Any = None
    verdicts: Verdicts | None = None

    def __init__(self, model: Any, given: Mapping[str, Any], steps: int) -> None:
        self.model = model
        self.given = given
        self.steps = steps

    def begin(self, config: Any, criteria: Any) -> None:
        """The loop is about to begin. ``criteria`` is a list of transformers'."""
        self.config, self.criteria = config, criteria
        if self._stops_otherwise() and (self.setting("num_beams") or 1) == 1:
            self.verdicts = Verdicts()

    def setting(self, name: str) -> Any:
        """What is in force."""
        return look_up(name, self.model, self.given) if self.config is None else getattr(self.config, name, None)

    def ends(self, prompt: int) -> Ends:
        """How its rows ended, of which ``prompt`` positions are not generated."""
        end_ids, new, is_known = ids_of(self.setting("eos_token_id")), self.setting("max_new_tokens"), True
        limit = new if isinstance(new, int) else None
        by_kind = {type(criterion).__name__: criterion for criterion in self.criteria or ()}
        if self.criteria is not None:
            ending, longest = by_kind.get("EosTokenCriteria"), by_kind.get("MaxLengthCriteria")
            end_ids = () if ending is None else ids_of(ending.eos_token_id) or end_ids
            is_known = ending is None or bool(end_ids)
            limit = None if longest is None else int(longest.max_length) - prompt
        timed = by_kind.get("MaxTimeCriteria")
        if timed is not None and time.time() - timed.initial_timestamp > timed.max_time:
            limit = None  # that cuts off as a limit does
        pad_ids = ids_of(self.setting("pad_token_id")) or end_ids
        pad_id = pad_ids[0] if pad_ids and self._stops_otherwise() else None
        return Ends(frozenset(end_ids), limit, pad_id, self.verdicts, is_known)

    def _stops_otherwise(self) -> bool:
        """Whether a row may end by something that the ids do not show."""
        if self.criteria is None:
            return any(self.setting(name) is not None for name in ("stop_strings", "stopping_criteria"))
        kinds = map(type, self.criteria)
        return any(kind.__module__ != _CRITERIA or kind.__name__ not in _PLAIN for kind in kinds)
