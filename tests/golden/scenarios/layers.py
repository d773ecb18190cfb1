"""Layers that are recorded apart: which, when, and what of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import IDS, ROWS, THREE, Net, called, classifier, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("layers")


def _classified() -> Any:
    return called(tiny.classifier(), IDS)


def _generated() -> Any:
    return lm().generate(IDS, max_new_tokens=4)


def _encoded_and_decoded() -> Any:
    return tiny.seq2seq_lm(eos_token_id=None).generate(IDS, max_new_tokens=4)


def _with(settings: dict[str, Any], call: Callable[[], Any], stage: Stage) -> Any:
    stage.instrument(**settings)
    return call()


_SETTINGS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "transformer, classifier": ({"layers": "transformer"}, _classified),
    "transformer, generate": ({"layers": "transformer"}, _generated),
    "transformer, encoder-decoder": ({"layers": "transformer"}, _encoded_and_decoded),
    "transformer, beams": ({"layers": "transformer"}, lambda: lm().generate(IDS, max_new_tokens=4, num_beams=2)),
    "transformer, plain module": ({"layers": "transformer"}, lambda: called(Net().eval(), ROWS)),
    "depth 1": ({"layers": 1}, lambda: called(lm(), IDS)),
    "depth 2": ({"layers": "2"}, lambda: called(lm(), IDS)),
    "depth 1, plain module": ({"layers": 1}, lambda: called(Net().eval(), ROWS)),
    "pattern": ({"layers": "*.mlp"}, lambda: called(lm(), IDS)),
    "patterns": ({"layers": "lm_head,model.layers.0"}, lambda: called(lm(), IDS)),
    "pattern of nothing": ({"layers": "decoder.*"}, _classified),
    "no more than one": ({"layers": "transformer", "layers_max": 1}, _classified),
    "without time": ({"layers": "transformer", "measure": ()}, _generated),
    "with few children": ({"layers": "transformer", "children_max": 2}, _generated),
    "without children": ({"layers": "transformer", "children_max": 0}, _generated),
    "with host allocations": ({"layers": "transformer", "measure": "host_allocations"}, _classified),
}
GROUP.update({name: partial(_with, settings, call) for name, (settings, call) in _SETTINGS.items()})


@GROUP
def several_forwards(stage: Stage) -> Any:
    """Summed, under the root."""
    stage.instrument(layers="transformer")
    return classifier()(THREE)


@GROUP
def two_models_in_a_block(stage: Stage) -> Any:
    stage.instrument(layers="transformer")
    models = [tiny.classifier(), tiny.classifier()]  # kept: the layers of one that is gone may be taken for another's
    with inferspan.inference("both"):
        return [called(model, IDS) for model in models]


@GROUP
def one_inference_of_three(stage: Stage) -> Any:
    stage.instrument(layers="transformer", layers_every=3)
    model, other = tiny.classifier(), tiny.classifier()
    return [*(called(model, IDS) for _ in range(4)), called(other, IDS)]


@GROUP
def error_in_a_layer(stage: Stage) -> Any:
    stage.instrument(layers="transformer")
    model = lm()

    def fail(*_: Any) -> None:
        raise MemoryError("secret words")

    model.model.layers[1].mlp.register_forward_hook(fail)
    return raised(lambda: called(model, IDS))


@GROUP
def by_hand(stage: Stage) -> Any:
    stage.instrument()
    model, other = tiny.classifier(), tiny.classifier()
    handle = inferspan.instrument_module(model, layers="transformer")
    found = [called(model, IDS), called(other, IDS)]
    handle.remove()
    return [*found, called(model, IDS)]


@GROUP
def not_sampled(stage: Stage) -> Any:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    stage.provide(sampler=ALWAYS_OFF)
    stage.instrument(layers="transformer")
    return _classified()
