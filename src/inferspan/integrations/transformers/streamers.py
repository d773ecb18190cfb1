"""Where a streamer comes from: what it is given to belongs there, if that runs in a thread that has no context.

``Thread(target=model.generate)`` is how transformers streams, and a thread starts without the context of whoever starts
it; the streamer is what goes along. So one that is handed to a thread (:mod:`.handover`) carries where that was begun,
whatever its class. Any other carries where it was made: each class of streamers is patched when it is made, so that
those of a program's own need not call ``super().__init__()``. That mark stays behind when a streamer is pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from inferspan import faults
from inferspan.core import current
from inferspan.core.record import Inference
from inferspan.integrations.patching import Patches, subclasses

_MARK = "_inferspan_origin"


class Origin:
    """What was current where a streamer was made, or handed to a thread."""

    def __init__(self, context: Context, active: current.Active | None) -> None:
        self.context = context
        self.active = active
        self.is_used = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def inference(self) -> Inference | None:
        """The inference() block that is still open there."""
        return None if self.active is None else current.open_here(self.active)


handed: ContextVar[tuple[Origin, frozenset[int]] | None] = ContextVar("inferspan_handed", default=None)
"""Where this thread, or what runs in it, was begun, and the streamers that it was given."""


def install(module: ModuleType, patches: Patches) -> None:
    base = module.BaseStreamer

    def __init_subclass__(cls: type, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs)
        if current.settings() is not None:
            patches.wrap(cls, "__init__", _init)

    patches.define(base, "__init_subclass__", __init_subclass__, classmethod)
    patches.define(base, "__init__", _init(lambda self, *args, **kwargs: super(base, self).__init__(*args, **kwargs)))
    for cls in subclasses(base):
        patches.wrap(cls, "__init__", _init)


@faults.guarded("streamers.origin")
def origin_of(streamer: Any) -> Origin | None:
    """Where a streamer comes from, if nothing is current where it is used."""
    if streamer is None or current.here() is not None or get_current_span().get_span_context().is_valid:
        return None
    begun = handed.get()
    if begun is not None and id(streamer) in begun[1]:
        return begun[0]
    try:
        origin = object.__getattribute__(streamer, _MARK)  # a class of the program's own may refuse, or invent
    except AttributeError:
        return None
    if not isinstance(origin, Origin):
        return None
    was_used, origin.is_used = origin.is_used, True
    # kept for another request, of which it knows nothing
    return None if was_used and not get_current_span(origin.context).is_recording() else origin


def origin_here() -> Origin | None:
    """What is current here, if anything is."""
    if current.open_here() is None and not get_current_span().get_span_context().is_valid:
        return None
    return Origin(otel_context.get_current(), current.entered_last())


def run_in(inference: Inference, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``function`` as a part of an inference() block that is open elsewhere."""
    entered = current.enter(inference)
    try:
        return function(*args, **kwargs)
    finally:
        current.leave(entered)


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if current.settings() is not None:
            _note(self)

    return __init__


@faults.guarded("streamers.note")
def _note(streamer: Any) -> None:
    origin = origin_here()
    if origin is not None:
        object.__setattr__(streamer, _MARK, origin)
