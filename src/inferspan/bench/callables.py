"""Any callable, and torch modules, made by a function of the user's."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import inferspan
from inferspan.bench.results import Scalar
from inferspan.bench.specification import Specification, Target, TargetError
from inferspan.bench.workload import WORDS, WorkloadError, texts

__all__ = ["load"]

_FORWARD = "forward"
"""What Inferspan calls the operation of a model that is called directly."""


def load(specification: Specification) -> Target:
    """What ``function()`` of ``module:function`` returns. The module is looked for in the current folder as well.

    Raises:
        TargetError: it returns something else than a callable. The user's module raises what it likes.
    """
    module_name, _, function = specification.name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    made: Any = importlib.import_module(module_name)
    for part in function.split("."):
        made = getattr(made, part)
    made = made()
    inputs = None
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
    if not callable(made) or not (inputs is None or callable(inputs)):
        raise TargetError(
            f"{specification.name}() gave {type(made).__name__}, and should give a callable, or a module and a "
            "function that makes its inputs"
        )
    return _Callable(specification, made, inputs, function)


class _Callable:
    """Anything: ``call(batch)`` with a list of requests, ``call()``, or a module with what makes its inputs."""

    kind = "callable"
    task: str | None = None
    generates = False

    def __init__(self, specification: Specification, call: Any, inputs: Any, name: str) -> None:
        torch = sys.modules.get("torch")
        self._is_module = torch is not None and isinstance(call, torch.nn.Module)
        if self._is_module:
            self._prepare(torch, call, specification)
        if self._is_module and inputs is None:
            raise TargetError(
                f"{specification.name}() gave a torch module alone: nobody knows its inputs. Return a tuple of it and "
                "of inputs(batch_size, length), which gives a tensor, a tuple or a dict"
            )
        self._call, self._inputs, self._name = call, inputs, name
        self._takes_batch = not self._is_module and bool(inspect.signature(call).parameters)
        self.model: dict[str, Scalar] = self._module_facts(call) if self._is_module else {}

    @staticmethod
    def _prepare(torch: Any, module: Any, specification: Specification) -> None:
        if specification.quantize or specification.attention or specification.revision or specification.task:
            raise TargetError("a callable takes dtype, device and compile, nothing else: do the rest where it is made")
        module.eval()
        if specification.dtype or specification.device:
            dtype = getattr(torch, specification.dtype) if specification.dtype else None
            module.to(device=specification.device, dtype=dtype)
        if specification.compile:
            module.compile(mode=specification.compile)

    @staticmethod
    def _module_facts(module: Any) -> dict[str, Scalar]:
        parameters = list(module.parameters())
        facts: dict[str, Scalar] = {"class": type(module).__name__, "parameters": sum(p.numel() for p in parameters)}
        if parameters:
            facts["dtype"] = str(parameters[0].dtype).removeprefix("torch.")
            facts["device"] = str(parameters[0].device)
        facts["size_bytes"] = sum(p.numel() * p.element_size() for p in parameters)
        return facts

    def requests(self, input_tokens: int | None, output_tokens: int | None, count: int, seed: int) -> Sequence[Any]:
        if self._is_module or not self._takes_batch:
            return [None]
        return texts(lambda text: len(text.split()), WORDS, input_tokens or 16, count, seed)

    def caller(self, input_tokens: int | None, output_tokens: int | None, stream: bool) -> Callable[[list[Any]], Any]:
        if stream:
            raise WorkloadError("--stream is for models that generate")
        call = self._call

        if self._is_module:
            return self._module_caller(call, input_tokens)
        name, takes_batch = self._name, self._takes_batch

        def run(batch: list[Any]) -> Any:
            if not takes_batch and len(batch) > 1:
                raise WorkloadError(f"{name}() takes no requests, so there is nothing to make batches of")
            with inferspan.inference(name):
                return call(batch) if takes_batch else call()

        return run

    def _module_caller(self, module: Any, length: int | None) -> Callable[[list[Any]], Any]:
        import torch

        made: dict[int, Any] = {}

        def run(batch: list[Any]) -> Any:
            inputs = made.get(len(batch))
            if inputs is None:
                inputs = made[len(batch)] = self._inputs(len(batch), length)
            with torch.inference_mode(), inferspan.inference(_FORWARD, model=module):
                if isinstance(inputs, Mapping):
                    return module(**inputs)
                return module(*inputs) if isinstance(inputs, tuple) else module(inputs)

        return run
