"""The call of a model as an inference: the wrapped ``__call__`` that classes get, and what it does with the call.

A class keeps all that it is, and gets one plain function more (:func:`wrap_call`). Its first statement steps aside
while torch compiles, its second for instances that nobody tracks: a submodule of the same class pays a fifth of a
microsecond. What is tracked are instances, in a table of ours that refers to them weakly, so nothing is written into a
model, and copies, pickles and compilers see it as it was.

An inference is what does not train: a model in training mode with gradients enabled makes no span, nor does anything
inside it. Nothing is opened inside compiled code either: there Dynamo would compile our own frames. What is compiled
is seen from outside (:mod:`inferspan.integrations.torch.compiled`).
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

from inferspan import faults, semconv
from inferspan.core import current
from inferspan.core.plan import Plan
from inferspan.core.record import Inference, Phase
from inferspan.integrations.arguments import by_name
from inferspan.integrations.patching import Patches, is_ours
from inferspan.integrations.tensors import ids_of, read_call
from inferspan.integrations.torch.describe import is_replica

EVAL_FRAME = "torch._dynamo.eval_frame"
_EVERY = "_inferspan_every"
# classes that run a model, and what they call it
_RUNS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "DeepSpeedEngine": "module",
}

_tracked: dict[int, weakref.ref[Any]] = {}
_roots: set[int] = set()


# -- which modules, which classes ------------------------------------------------------------------------------------


def track(module: Any) -> None:
    """Have the wrapped ``__call__`` of this instance's class record it."""
    key = id(module)
    if key not in _tracked:

        def forget(_: Any) -> None:
            _tracked.pop(key, None)
            _roots.discard(key)

        _tracked[key] = weakref.ref(module, forget)


def track_root(module: Any, patches: Patches) -> None:
    """Make each call of this instance from outside of any inference one."""
    track(module)
    _roots.add(id(module))
    wrap_call(type(module), patches)


def untrack_root(module: Any) -> None:
    """Undo :func:`track_root`, but for the class's ``__call__``, which others may need."""
    _roots.discard(id(module))


def forget() -> None:
    """Track nothing any more."""
    _tracked.clear()
    _roots.clear()


def roots() -> Iterator[Any]:
    """The instances that are tracked as models of their own."""
    return filter(None, (_tracked[key]() for key in list(_roots) if key in _tracked))


def unwrap_model(module: Any) -> Any:
    """The model itself, of what runs it: compiled, on several devices, in several processes."""
    name = next((_RUNS[base.__name__] for base in type(module).__mro__ if base.__name__ in _RUNS), "")
    model = getattr(module, name, None) if name else None
    return module if model is None else unwrap_model(model)


def is_root(model: Any) -> bool:
    """Whether a call of this instance, from outside of any inference, is one."""
    return id(model) in _roots or bool(getattr(_call_of(type(model)), _EVERY, False))


def wrap_call(cls: Any, patches: Patches, *, every: bool = False) -> None:
    """Give a class the wrapped ``__call__``, unless it or a base has it. ``every``: all of its instances are models."""
    if is_ours(_call_of(cls)) and not every:
        return
    patches.wrap(cls, "__call__", lambda original: _prepare(_around(original, every), cls, every))
    patches.define(cls, "__call__", _prepare(_before(cls, every), cls, every))


# The two are spelled out, since a call of ours would take as long as all of it, and be compiled where it may not.


def _around(original: Callable[..., Any], every: bool) -> Callable[..., Any]:
    """In place of a ``__call__`` that the class has itself."""
    is_compiling, in_compiled_code, innermost = _asked()
    modules = sys.modules

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not (every or id(self) in _tracked):
            return original(self, *args, **kwargs)
        if (
            (active := innermost()) is not None
            and (phase := active.phase) is not None
            and phase.modules is None
            and (
                phase.in_model
                or ((steps := phase.generation) is not None and steps.end_ns is None and id(self) in steps.forwards)
            )
            and active.ident == get_ident()
            and "greenlet" not in modules
        ):
            if phase.generation and phase.generation.end_ns is None:
                phase.generation.forwards[id(self)] += 1
            return original(self, *args, **kwargs)
        if in_compiled_code():
            return original(self, *args, **kwargs)
        return call(partial(original, self), self, args, kwargs, every)

    return __call__


def _before(cls: Any, every: bool) -> Callable[..., Any]:
    """The class's own, where it inherits one: ``super()`` is asked anew at each call, since torch.fx and others replace
    ``nn.Module.__call__`` for a while."""
    is_compiling, in_compiled_code, innermost = _asked()
    modules = sys.modules

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not (every or id(self) in _tracked):
            return super(cls, self).__call__(*args, **kwargs)
        if (
            (active := innermost()) is not None
            and (phase := active.phase) is not None
            and phase.modules is None
            and (
                phase.in_model
                or ((steps := phase.generation) is not None and steps.end_ns is None and id(self) in steps.forwards)
            )
            and active.ident == get_ident()
            and "greenlet" not in modules
        ):
            if phase.generation and phase.generation.end_ns is None:
                phase.generation.forwards[id(self)] += 1
            return super(cls, self).__call__(*args, **kwargs)
        if in_compiled_code():
            return super(cls, self).__call__(*args, **kwargs)
        return call(super(cls, self).__call__, self, args, kwargs, every)

    return __call__


def _asked() -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], current.Active | None]]:
    torch = sys.modules["torch"]
    return torch.compiler.is_dynamo_compiling, _in_compiled_code(torch), current.innermost


def _call_of(cls: type) -> Any:
    return next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)


def _prepare(function: Any, cls: type, every: bool) -> Any:
    functools.update_wrapper(function, _call_of(cls))  # its name, by which a bound method is pickled; its signature
    function.__module__, function.__qualname__ = cls.__module__, f"{cls.__qualname__}.__call__"
    setattr(function, _EVERY, every)
    hide_from_compiler(function.__code__)
    return function


# -- compilers --------------------------------------------------------------------------------------------------------

_hidden: set[CodeType] = set()


def hide_from_compiler(*codes: CodeType) -> None:
    """Have Dynamo begin with the model's own frame, as it does without us: torch 2.4's export names the modules by
    the first frame that it sees, and all models would share the limit of recompilations that a frame has. Where ours
    is called by compiled code it is traced through all the same."""
    torch = sys.modules["torch"]
    _hidden.update(codes)
    # in C++ until torch 2.6; from 2.7 on in Python, and there once the program compiles
    places = (getattr(torch._C, "_dynamo", None) and torch._C._dynamo.eval_frame, sys.modules.get(EVAL_FRAME))
    for skip_code in filter(None, (getattr(place, "skip_code", None) for place in places)):
        for code in codes or _hidden:
            skip_code(code)


def _in_compiled_code(torch: Any) -> Callable[[], Any]:
    """What says whether Dynamo looks at each frame that begins here."""
    frames = torch._C._dynamo.eval_frame
    asked: Callable[[], Any] | None = getattr(frames, "get_eval_frame_callback", None)
    if asked is not None:
        return asked
    set_callback = frames.set_eval_frame  # torch 2.4 only says what it replaces

    def callback() -> Any:
        found = set_callback(None)
        set_callback(found)
        return found

    hide_from_compiler(callback.__code__)
    return callback


# -- the call ----------------------------------------------------------------------------------------------------------


def call(
    function: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], every: bool = False
) -> Any:
    """One call of a tracked module, through ``function``: an inference, a part of one, or nothing to us."""
    active = current.here()
    phase = None if active is None else active.phase
    if phase is not None:
        modules = phase.modules
        slot = None if modules is None else modules.slots.get(id(model))
        if slot is not None:
            return modules.run(slot, model, function, args, kwargs)
        generation = phase.generation
        if generation is not None:  # the first call of this model in it, or one that records layers
            if id(model) not in generation.forwards:
                current.model_called(phase, model, args, _named(model, args, kwargs) if args else kwargs)
            generation.forwards[id(model)] += 1
        if not phase.is_forward or phase.in_model or generation is not None:
            return function(*args, **kwargs)
        # inside a phase that somebody else has opened: a pipeline's forward
        current.model_called(phase, model, args, _named(model, args, kwargs) if args else kwargs)
        phase.in_model = True
        try:
            return function(*args, **kwargs)
        finally:
            phase.in_model = False
    if not (every or id(model) in _roots) or not _may_record() or is_replica(model):
        return function(*args, **kwargs)
    if _trains(model):
        return current.run_suppressed(function, args, kwargs)
    return _run(None if active is None else active.inference, function, model, args, kwargs)


def begin(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    """The same where there is no function to call, only a begin and an end: the inference, if this is to be one."""
    if current.here() is not None or not _may_record() or _trains(model):
        return None
    return _open(model, args, kwargs)


def _may_record() -> bool:
    """Whether anything may be recorded here: not while a program is traced."""
    torch = sys.modules["torch"]
    return current.may_open() and not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None


def _trains(model: Any) -> bool:
    """Whether the call belongs to a training step: with gradients, of a model in training mode or inside one."""
    if not sys.modules["torch"].is_grad_enabled():
        return False
    is_exported = "train" in getattr(model, "__dict__", ())  # a program whose mode is fixed, whatever its flag says
    return (not is_exported and bool(getattr(model, "training", False))) or _in_training(model)


def _in_training(part: Any) -> bool:
    # A part that was put in eval() by itself (a frozen backbone), in a model that trains. Most programs that infer
    # switch gradients off, and never come here. Only frames of torch's are looked into: until Python 3.13 that keeps
    # what a frame's variables refer to alive as long as the frame, and the program's may mean to drop a tensor.
    code = sys.modules["torch"].nn.Module._wrapped_call_impl.__code__
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is code:
            owner = frame.f_locals["self"]
            if unwrap_model(owner) is not part and getattr(owner, "training", False):
                return True
        frame = frame.f_back
    return False


def _run(
    inference: Inference | None,
    function: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if inference is not None:
        phase = inference.begin(semconv.FORWARD)  # of an inference() block
        _note_call(phase, model, args, kwargs)
        return current.run_phase(phase, function, args, kwargs)
    inference = _open(model, args, kwargs)
    if inference is None:
        return function(*args, **kwargs)
    return current.run(inference, function, args, kwargs, inside=inference.self_phase)


def _make_plan(model: Any, operation: str, _: Any) -> Plan:
    return current.make_plan(operation, model=model, name=operation)


@faults.guarded("forwards.open")
def _open(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inference | None:
    plan = current.plan(model, semconv.FORWARD, _make_plan, model)
    inference = current.open_inference(plan, model=model)
    if inference is not None:
        inference.self_phase = Phase(semconv.FORWARD, inference, inference.start_ns)
        inference.phases.newest = None  # it has no span of its own
        _note_call(inference.self_phase, model, args, kwargs)
    return inference


@faults.guarded("forwards.batch")
def _note_call(phase: Phase, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inference = phase.inference
    if inference is None:
        return
    named, has_ids = _named(model, args, kwargs) if args else kwargs, current.model_info(model).provider is not None
    pad_id = _pad_id(model) if has_ids and named.get("attention_mask") is None else None
    batch = read_call(args, named, has_ids=has_ids, pad_id=pad_id)
    if batch is not None:
        inference.add_batch(phase, batch)
        inference.device = batch.device or inference.device
    current.begin_forward(phase, model, None if batch is None else batch.device, phase.start_ns)
    current.model_called(phase, model, args, named)
    phase.in_model = True


def _named(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names that the model gives them."""
    model = unwrap_model(model)
    named = by_name(getattr(type(model), "forward", None), args, kwargs)
    if len(named) == len(kwargs) and hasattr(model, "get_base_model"):  # PEFT's, which passes on what it gets
        return by_name(type(model.get_base_model()).forward, args, kwargs)
    return named


def _pad_id(model: Any) -> int | None:
    """The id of padding, where it is nothing else, too."""
    config = getattr(model, "config", None)
    pad_id, *others = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos", "bos"))
    return pad_id if isinstance(pad_id, int) and pad_id not in ids_of(others) else None
