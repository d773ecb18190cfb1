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
from functools import partial
from types import CodeType, ModuleType
from typing import Any

from inferspan import faults, semconv
from inferspan.hooks.patches import Patches
from inferspan.inference import scope
from inferspan.inference.model import device_of
from inferspan.inference.record import Inference, Phase
from inferspan.measure import tokens

_EVAL_FRAME = "torch._dynamo.eval_frame"


def _install(module: ModuleType, patches: Patches) -> None:
    base = module.PreTrainedModel
    torch = sys.modules["torch"]
    is_compiling = torch.compiler.is_compiling

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return super(base, self).__call__(*args, **kwargs)
        active = scope.ACTIVE.get()
        if type(active) is Phase:
            if active.works is None or active.in_model or active.generation is not None:
                return super(base, self).__call__(*args, **kwargs)
            return _run_in_phase(active, super(base, self).__call__, self, args, kwargs)
        if not _infers(self, torch):
            return super(base, self).__call__(*args, **kwargs)
        # super() is asked anew at each call: torch.fx and others replace nn.Module.__call__ for a while
        return _run(active, super(base, self).__call__, self, args, kwargs)

    _hidden.append(__call__.__code__)
    _hide_from_compiler()
    __call__.__qualname__ = f"{base.__name__}.__call__"
    patches.define(base, "__call__", __call__)


_hidden: list[CodeType] = []


def _hide_from_compiler() -> None:
    """Have Dynamo begin with the model's own frame, as it does without us: torch 2.4's export names the modules by
    the first frame that it sees, and all models would share the limit of recompilations that a frame has. Where ours
    is called by compiled code it is traced through all the same."""
    torch = sys.modules["torch"]
    # in C++ until torch 2.6; from 2.7 on in Python, and there once the program compiles
    places = (getattr(torch._C, "_dynamo", None) and torch._C._dynamo.eval_frame, sys.modules.get(_EVAL_FRAME))
    for skip_code in filter(None, (getattr(place, "skip_code", None) for place in places)):
        for code in _hidden:
            skip_code(code)


def _install_compiled(module: ModuleType, patches: Patches) -> None:
    _hide_from_compiler()
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
            if modeling is None or not isinstance(model, modeling.PreTrainedModel) or not _infers(model, torch):
                return original(self, *args, **kwargs)
            call = partial(original, self)
            if type(active) is Phase:
                if active.works is None or active.in_model or active.generation is not None:
                    return call(*args, **kwargs)
                return _run_in_phase(active, call, model, args, kwargs)
            return _run(active, call, model, args, kwargs)

        return __call__

    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(optimized, self).__call__(*args, **kwargs)

    patches.wrap(optimized, "__call__", make)
    patches.define(optimized, "__call__", make(inherited))  # older torch (2.4) has none of its own


MODULES = {
    "transformers.modeling_utils": _install,
    _EVAL_FRAME: _install_compiled,
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
        phase = active.inference.begin(semconv.FORWARD)  # of an inference() block
        _note_call(phase, phase.set, model, args, kwargs)
        return scope.run_phase(phase, function, args, kwargs)
    inference = _open(model, args, kwargs)
    if inference is None:
        return function(*args, **kwargs)
    return scope.run(inference, function, args, kwargs, inside=inference.whole)


def _run_in_phase(
    phase: Phase, function: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A call inside a phase that somebody else has opened: a pipeline's forward."""
    scope.note_work(phase, model, args, kwargs)
    phase.in_model = True
    try:
        return function(*args, **kwargs)
    finally:
        phase.in_model = False


def _open(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    try:
        inference = scope.open_inference(semconv.FORWARD, scope.model_facts(model), name=semconv.FORWARD, model=model)
        if inference is not None:
            inference.single_span = True
            inference.whole = Phase(semconv.FORWARD, inference, inference.start_ns)
            _note_call(inference.whole, inference.set, model, args, kwargs)
        return inference
    except Exception:  # noqa: BLE001
        faults.note("models.open")
        return None


def _note_call(
    phase: Phase, put: Callable[[str, Any], None], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    inference = phase.inference
    if inference is None:
        return
    try:
        batch = tokens.read_batch(kwargs)
        if batch is None and args:
            batch = tokens.read_tensor(args[0])
        if batch is not None:
            inference.add_batch(batch)
            put(semconv.BATCH_SIZE, batch.rows)
            put(semconv.SEQUENCE_LENGTH, batch.length)
            inference.set(semconv.DEVICE, batch.device)
        scope.measure(phase, device_of(model, None if batch is None else batch.device))
        scope.note_work(phase, model, args, kwargs)
        phase.in_model = True
    except Exception:  # noqa: BLE001
        faults.note("models.batch")
