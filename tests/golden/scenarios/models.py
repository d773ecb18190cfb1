"""Models called directly and plain torch modules: in ``eval()``, by class, by hand, scripted, exported, in parallel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import inferspan
from golden.outcome import raised
from golden.scenarios.parts import IDS, MASK, ONE, ROWS, Net, called
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("models")


class Wrapper(nn.Module):
    """A module of one's own around a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny.classifier()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids).logits


class Calls(Net):
    """Brings a ``__call__`` of its own."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) * 2


class Distilled(Net):
    """Trains, and asks a frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        return (super().forward(x) - target).square().sum()


def _embed(model: Any) -> Any:
    return called(model, inputs_embeds=model.get_input_embeddings()(IDS).detach())


def _train(model: Any) -> str:
    model.train()
    model(ROWS).sum().backward()
    return "trained"


def _scripted(model: nn.Module) -> Any:
    return torch.jit.script(model)


def _traced(model: nn.Module) -> Any:
    with torch.no_grad():
        return torch.jit.trace(model, (ROWS,), check_trace=False)


def _twice(model: Any) -> Any:
    return [called(model, IDS), called(model, ONE)]


# What is called, made while instrumented, and how.
_CALLS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "classifier": (tiny.classifier, lambda m: called(m, IDS)),
    "classifier, masked": (tiny.classifier, lambda m: called(m, input_ids=IDS, attention_mask=MASK)),
    "classifier, cold and warm": (tiny.classifier, _twice),
    "classifier, with gradients": (tiny.classifier, lambda m: m(IDS)),
    "classifier, training": (tiny.classifier, lambda m: m.train()(IDS)),
    "classifier, as a tuple": (tiny.classifier, lambda m: called(m, IDS, return_dict=False)),
    "embedder": (tiny.embedder, lambda m: called(m, IDS)),
    "causal lm": (tiny.causal_lm, lambda m: called(m, IDS)),
    "causal lm, labels": (tiny.causal_lm, lambda m: called(m, IDS, labels=IDS)),
    "causal lm, embeddings": (tiny.causal_lm, _embed),
    "causal lm, its inner model": (tiny.causal_lm, lambda m: called(m.model, IDS)),
    "encoder-decoder": (tiny.seq2seq_lm, lambda m: called(m, IDS, decoder_input_ids=ONE.repeat(2, 1))),
    "encoder alone": (tiny.seq2seq_lm, lambda m: called(m.get_encoder(), IDS)),
    "classifier, error": (tiny.classifier, lambda m: raised(lambda: called(m, torch.tensor([[100_000]])))),
    "net": (lambda: Net().eval(), lambda m: called(m, ROWS)),
    "net, cold and warm": (lambda: Net().eval(), lambda m: [called(m, ROWS), called(m, ROWS[:1])]),
    "net, not in eval": (Net, lambda m: called(m, ROWS)),
    "net, error": (lambda: Net().eval(), lambda m: raised(lambda: called(m, torch.ones(2, 3)))),
    "net, training": (lambda: Net().eval(), _train),
    "net, with a call of its own": (lambda: Calls().eval(), lambda m: called(m, ROWS)),
    "net, by keyword": (lambda: Net().eval(), lambda m: called(m, x=ROWS)),
    "sequential": (lambda: nn.Sequential(Net(), nn.Linear(4, 4)).eval(), lambda m: called(m, ROWS)),
    "embedding of whole numbers": (lambda: nn.Sequential(nn.Embedding(100, 4)).eval(), lambda m: called(m, IDS)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval(),
        lambda m: called(m, torch.ones(2, 3, 8, 8)),
    ),
    "torch's own transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False).eval(),
        lambda m: called(m, torch.ones(3, 2, 16)),
    ),
    "around a transformer": (lambda: Wrapper().eval(), lambda m: called(m, IDS)),
    "distilled": (lambda: Distilled().eval().train(), lambda m: (m.teacher.eval(), m(ROWS).backward())[1]),
    "frozen normalization": (lambda: nn.BatchNorm1d(4).eval(), lambda m: called(m, ROWS)),
    "scripted": (lambda: _scripted(Net().eval()), lambda m: called(m, ROWS)),
    "traced": (lambda: _traced(Net().eval()), lambda m: called(m, ROWS)),
    "frozen": (lambda: torch.jit.freeze(_scripted(Net().eval())), lambda m: called(m, ROWS)),
    "symbolic": (lambda: torch.fx.symbolic_trace(Net()).eval(), lambda m: called(m, ROWS)),
    "exported": (lambda: torch.export.export(Net().eval(), (ROWS,)).module(), lambda m: called(m, ROWS)),
    "data parallel": (lambda: nn.DataParallel(Net()).eval(), lambda m: called(m, ROWS)),
    "data parallel around eval": (lambda: nn.DataParallel(Net().eval()), lambda m: called(m, ROWS)),
    "data parallel classifier": (lambda: nn.DataParallel(tiny.classifier()), lambda m: called(m, IDS)),
}


def _call(make: Callable[[], Any], call: Callable[[Any], Any], stage: Stage) -> Any:
    stage.instrument()
    model = make()
    stage.forget()  # tracing runs the model
    return call(model)


GROUP.update({name: partial(_call, make, call) for name, (make, call) in _CALLS.items()})


def _with_modules(modules: Any, stage: Stage) -> Any:
    stage.instrument(modules=modules)
    return [called(Net(), ROWS), called(Net().eval(), ROWS)]


_MODULES = {"class": "Net", "qualified": f"{Net.__module__}.Net", "another": "Later", "none": (), "eval": "eval"}
GROUP.update({f"modules, {name}": partial(_with_modules, modules) for name, modules in _MODULES.items()})


@GROUP
def by_hand(stage: Stage) -> Any:
    stage.instrument()
    model = Net()
    with inferspan.instrument_module(model, name="ranker"):
        inside = called(model, ROWS)
        model(ROWS)  # trains
    return [inside, called(model, ROWS)]


@GROUP
def by_hand_before_instrument(stage: Stage) -> Any:
    model = Net()
    handle = inferspan.instrument_module(model)
    stage.instrument(hooks=())
    found = called(model, ROWS)
    handle.remove()
    return [found, called(model, ROWS)]


@GROUP
def by_hand_refused(stage: Stage) -> Any:
    stage.instrument()
    refused = [raised(lambda: inferspan.instrument_module("Net"))]
    return [*refused, *(raised(lambda n=n: inferspan.instrument_module(Net(), layers=n)) for n in (0, True, 1.5))]


@GROUP
def under_spans_of_the_program(stage: Stage) -> Any:
    stage.instrument()
    model = tiny.classifier()
    with stage.tracer.start_as_current_span("one"):
        first = called(model, IDS)
    with stage.tracer.start_as_current_span("two"):
        return [first, called(model, ONE)]


@GROUP
def hook_opens_a_span(stage: Stage) -> Any:
    """What the program opens in a forward is below it."""
    stage.instrument()
    model = tiny.classifier()

    def hook(*_: Any) -> None:
        with stage.tracer.start_as_current_span("mine"):
            pass

    model.bert.encoder.register_forward_hook(hook)
    return called(model, IDS)


@GROUP
def model_calls_another(stage: Stage) -> Any:
    """One inside the other is part of it."""
    stage.instrument()
    outer, inner = tiny.classifier(), Net().eval()
    outer.register_forward_hook(lambda *_: (inner(ROWS), None)[1])
    return called(outer, IDS)


@GROUP
def named_and_quantized(stage: Stage) -> Any:
    """A model with a Hub id is called that."""
    stage.instrument()
    model = tiny.classifier()
    model.config._name_or_path = "org/reader"
    model.config.quantization_config = {"quant_method": "none of the real ones"}
    return called(model, IDS)
