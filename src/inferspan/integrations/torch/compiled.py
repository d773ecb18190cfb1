"""What ``torch.compile`` gives back, seen from outside: ``torch.compile(model)``, and a compiled function around one.

``OptimizedModule`` is called before any compiled code, so it is wrapped like a model. A compiled function stays the
very object that torch made: Dynamo has a list of what to do around each call of it, and ours is added there.
``model.compile()`` and a compiled ``forward`` are called through the model's own ``__call__``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, FrameType, ModuleType
from typing import Any

from inferspan import faults
from inferspan.core import current
from inferspan.integrations.patching import Patches
from inferspan.integrations.torch import calls
from inferspan.integrations.torch.calls import hide_from_compiler, is_root, unwrap_model

_RUNNERS = ("compile_wrapper", "_fn")
_UP_MAX = 3


def install(module: ModuleType, patches: Patches) -> None:
    hide_from_compiler()
    optimized = module.OptimizedModule
    is_compiling = sys.modules["torch"].compiler.is_compiling

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return original(self, *args, **kwargs)
            if getattr(getattr(self, "dynamo_ctx", None), "export", False):  # torch 2.4's export calls to trace
                return current.run_suppressed(original, (self, *args), kwargs)
            model = unwrap_model(self)
            if not is_root(model):
                return original(self, *args, **kwargs)
            return calls.call(partial(original, self), model, args, kwargs, every=True)

        return __call__

    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(optimized, self).__call__(*args, **kwargs)

    patches.wrap(optimized, "__call__", make)
    patches.define(optimized, "__call__", make(inherited))  # older torch (2.4) has none of its own
    patches.wrap(module.OptimizeContext.__mro__[1], "__call__", _compile)


# -- compiled functions ------------------------------------------------------------------------------------------------


def _compile(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, fn: Any) -> Any:
        result = original(self, fn)
        try:
            if type(self).__name__ == "OptimizeContext" and hasattr(fn, "__code__") and not self.export:
                self.enter_exit_hooks.append(partial(_enter, fn))
        except Exception:  # noqa: BLE001 - a torch that does without the list: its compiled functions are not seen
            faults.note("compiled.function")
        return result

    return __call__


def _nothing() -> None:
    pass


def _enter(fn: Any) -> Callable[[], None]:
    """A compiled function is about to run: open an inference if there is a model in it. What is returned ends it."""
    try:
        if current.settings() is None or current.here() is not None:
            return _nothing
        args, kwargs = _arguments(sys._getframe(1))
        model = next(filter(is_root, map(unwrap_model, _within(fn, args))), None)
        inference = None if model is None else calls.begin(model, args, kwargs)
        if inference is None:
            return _nothing
        return partial(_exit, inference, current.enter(inference, inference.self_phase), sys.exc_info()[1])
    except Exception:  # noqa: BLE001
        faults.note("compiled.enter")
        return _nothing


def _exit(inference: Any, entered: current.Active, handled: BaseException | None) -> None:
    error = sys.exc_info()[1]  # torch calls this in its `finally`
    current.leave(entered)
    current.close(inference, None if error is handled else error)


def _arguments(frame: FrameType | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the compiled function was called with, which torch keeps to itself."""
    for _ in range(_UP_MAX):  # a comprehension has a frame of its own until Python 3.12
        if frame is None:
            break
        if frame.f_code.co_name in _RUNNERS:
            found = frame.f_locals
            return found.get("args", ()), found.get("kwargs", {})
        frame = frame.f_back
    return (), {}


def _within(fn: Any, args: tuple[Any, ...]) -> Iterator[Any]:
    """Objects that a function can name: its arguments, what it is bound to and holds, its cells and globals."""
    yield from args
    owner = getattr(fn, "__self__", None)
    if owner is not None:
        yield owner
        yield from list(getattr(owner, "__dict__", {}).values())
    empty = CellType()
    yield from (cell.cell_contents for cell in fn.__closure__ or () if cell != empty)
    names = fn.__globals__
    yield from (names[name] for name in fn.__code__.co_names if name in names)
