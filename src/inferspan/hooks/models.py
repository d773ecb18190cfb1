"""Models called directly: ``model(**inputs)`` outside of any pipeline or ``generate()`` is one ``forward`` span.

``PreTrainedModel`` gets a ``__call__`` of its own, a plain function whose first statement steps aside while torch
compiles: torch.compile (``fullgraph=True`` too), export, jit.trace, deepcopy and pickle then see the same as without
it. It costs 0.6 µs on the root and 0.5 on a model inside another one; modules below pay nothing. The
compiled form ``torch.compile(model)`` is called through ``OptimizedModule``, which is wrapped likewise.

An inference is what does not train: a model in training mode with gradients enabled makes no span.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.hooks.patches import Patches
from inferspan.inference import scope
from inferspan.inference.record import Inference, Phase
from inferspan.measure import tokens


def _install(module: ModuleType, patches: Patches) -> None:
    base = module.PreTrainedModel
    torch = sys.modules["torch"]
    is_compiling = torch.compiler.is_compiling

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return super(base, self).__call__(*args, **kwargs)
        active = scope.ACTIVE.get()
        if (active is not None and active.is_phase) or not _infers(self, torch):
            return super(base, self).__call__(*args, **kwargs)
        # super() is asked anew at each call: torch.fx and others replace nn.Module.__call__ for a while
        return _run(active, super(base, self).__call__, self, args, kwargs)

    _hide_from_compiler(__call__, torch)
    __call__.__qualname__ = f"{base.__name__}.__call__"
    patches.define(base, "__call__", __call__)


def _hide_from_compiler(function: Any, torch: Any) -> None:
    """Have Dynamo begin with the model's own frame, as it does without us: torch 2.4's export names the modules by
    the first frame that it sees. Where ours is called by compiled code it is traced through all the same."""
    skip_code = getattr(getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None), "skip_code", None)
    if skip_code is not None:
        skip_code(function.__code__)


def _install_compiled(module: ModuleType, patches: Patches) -> None:
    torch = sys.modules["torch"]
    optimized = module.OptimizedModule
    is_compiling = torch.compiler.is_compiling

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return original(self, *args, **kwargs)
            if getattr(getattr(self, "dynamo_ctx", None), "export", False):  # torch 2.4's export calls to trace
                return scope.run_muted(original, (self, *args), kwargs)
            active = scope.ACTIVE.get()
            model = getattr(self, "_orig_mod", None)
            modeling = sys.modules.get("transformers.modeling_utils")
            if (
                (active is not None and active.is_phase)
                or modeling is None
                or not isinstance(model, modeling.PreTrainedModel)
                or not _infers(model, torch)
            ):
                return original(self, *args, **kwargs)
            return _run(active, lambda *a, **k: original(self, *a, **k), model, args, kwargs)

        return __call__

    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(optimized, self).__call__(*args, **kwargs)

    patches.wrap(optimized, "__call__", make)
    patches.define(optimized, "__call__", make(inherited))  # older torch (2.4) has none of its own


MODULES = {
    "transformers.modeling_utils": _install,
    "torch._dynamo.eval_frame": _install_compiled,
}


def _infers(model: Any, torch: Any) -> bool:
    """Whether this call is an inference to record: not training, not being traced, not a DataParallel replica."""
    return (
        scope.may_open()
        and not (model.training and torch.is_grad_enabled())
        and not getattr(model, "_is_replica", False)
        and torch._C._get_tracing_state() is None
    )


def _run(
    active: Inference | Phase | None,
    function: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if active is not None and active.inference is not None:
        return _run_in(active.inference, function, args, kwargs)
    inference = _open(model, args, kwargs)
    if inference is None:
        return function(*args, **kwargs)
    return scope.run(inference, function, args, kwargs, inside=Phase(semconv.FORWARD, inference, 0))


def _run_in(inference: Inference, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward that is a phase of an ``inference()`` block."""
    phase = inference.begin(semconv.FORWARD)
    _note_batch(inference, phase.set, args, kwargs)
    return scope.run_phase(phase, function, args, kwargs)


def _open(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    try:
        inference = scope.open_inference(semconv.FORWARD, scope.model_facts(model), name=semconv.FORWARD, model=model)
        if inference is not None:
            inference.single_span = True
            _note_batch(inference, inference.set, args, kwargs)
        return inference
    except Exception:  # noqa: BLE001
        faults.note("models.open")
        return None


def _note_batch(
    inference: Inference, put: Callable[[str, Any], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        batch = tokens.read_batch(kwargs)
        if batch is None and args:
            batch = tokens.read_tensor(args[0])
        if batch is not None:
            inference.add_batch(batch)
            put(semconv.BATCH_SIZE, batch.rows)
            put(semconv.SEQUENCE_LENGTH, batch.length)
            inference.set(semconv.DEVICE, batch.device)
    except Exception:  # noqa: BLE001
        faults.note("models.batch")
