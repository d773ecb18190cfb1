"""``torch.compile``: what is compiled in an inference, and why it is compiled anew."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._dynamo
import transformers

from golden.outcome import raised
from golden.scenarios.parts import IDS, ONE, ROWS, Net, called, lm
from golden.stage import Group, Stage
from support import tiny

GROUP = Group("compiled")


def _alone(scenario: Callable[[Stage], Any], stage: Stage) -> Any:
    torch._dynamo.reset()
    stage.patch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True)  # of errors on purpose
    try:
        return scenario(stage)
    finally:
        torch._dynamo.reset()


def compiling(function: Callable[[Stage], Any]) -> Callable[[Stage], Any]:
    """Adds the scenario; nothing is compiled before it, or left behind."""
    GROUP[function.__name__] = partial(_alone, function)
    return function


@compiling
def model(stage: Stage) -> Any:
    """The second call compiles nothing, the third one, longer, anew."""
    stage.instrument()
    compiled = torch.compile(tiny.classifier(return_dict=False), backend="eager", dynamic=False)
    longer = torch.ones(1, 6, dtype=torch.long)
    return [called(compiled, input_ids=ids) for ids in (ONE, ONE, longer)]


@compiling
def module(stage: Stage) -> Any:
    stage.instrument()
    compiled = torch.compile(Net().eval(), backend="eager", fullgraph=True, dynamic=False)
    return [called(compiled, rows) for rows in (ROWS, ROWS, torch.ones(3, 4))]


@compiling
def module_in_place(stage: Stage) -> Any:
    stage.instrument()
    made = Net().eval()
    made.compile(backend="eager")
    return [called(made, ROWS), called(made, ROWS)]


@compiling
def function_with_a_model(stage: Stage) -> Any:
    stage.instrument()
    made = Net().eval()
    compiled = torch.compile(lambda x: made(x) * 2, backend="eager")
    return [called(compiled, ROWS), called(compiled, ROWS.double()[:, :4].float())]


@compiling
def function_without_a_model(stage: Stage) -> Any:
    stage.instrument()
    return called(torch.compile(lambda x: x * 2, backend="eager"), ROWS)


@compiling
def function_that_raises(stage: Stage) -> Any:
    stage.instrument()
    made = Net().eval()
    compiled = torch.compile(lambda x: made(x), backend="eager", dynamic=False)
    called(compiled, ROWS)
    return raised(lambda: called(compiled, torch.ones(2, 3))).split()[:2]


@compiling
def backend_that_fails(stage: Stage) -> Any:
    stage.instrument()

    def failing(graph: Any, inputs: Any) -> Any:
        raise ValueError("secret words")

    return raised(lambda: called(torch.compile(Net().eval(), backend=failing), ROWS)).split()[:2]


@compiling
def graph_break(stage: Stage) -> Any:
    stage.instrument()
    made = Net().eval()

    def broken(x: Any) -> Any:
        x = made(x)
        torch._dynamo.graph_break()
        return made(x)

    compiled = torch.compile(broken, backend="eager")
    return [called(compiled, ROWS), called(compiled, ROWS)]


@compiling
def prompt_in_a_guard(stage: Stage) -> Any:
    """It is content, and not told."""
    stage.instrument()
    made = Net().eval()

    def chat(x: Any, prompt: str) -> Any:
        return made(x) * 2 if prompt == "SECRET" else made(x)

    compiled = torch.compile(chat, backend="eager")
    return [called(compiled, ROWS, "SECRET"), called(compiled, ROWS, "other SECRET")]


@compiling
def generate_with_a_static_cache(stage: Stage) -> Any:
    stage.instrument()
    config = transformers.CompileConfig(backend="eager", mode=None, fullgraph=False)
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config, "disable_compile": False}
    return lm(num_hidden_layers=1).generate(IDS, max_new_tokens=4, **options)


@compiling
def not_to_be_measured(stage: Stage) -> Any:
    stage.instrument(measure="flops")
    return called(torch.compile(Net().eval(), backend="eager"), ROWS)


@compiling
def with_layers(stage: Stage) -> Any:
    stage.instrument(layers="transformer")
    made = tiny.classifier(return_dict=False)
    called(made, IDS)
    return called(torch.compile(made, backend="eager"), IDS)
