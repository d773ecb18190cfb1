"""Where a streamer was made: what it is given to belongs there, if that runs in a thread that has no context.

``Thread(target=model.generate)`` is how transformers streams, and a thread starts without the context of whoever starts
it; the streamer is what goes along. Each class of streamers is patched when it is made, so that those of a program's
own need not call ``super().__init__()``. The mark stays behind when the streamer is pickled or copied.
"""

from __future__ import annotations

from collections.abc import Callable
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


def install(module: ModuleType, patches: Patches) -> None:
    base = module.BaseStreamer

    def __init_subclass__(cls: type, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs)
        if current.settings() is not None:
            patches.wrap(cls, "__init__", _init)

    patches.define(base, "__init_subclass__", __init_subclass__, classmethod)
    for cls in subclasses(base):
        patches.wrap(cls, "__init__", _init)


class Origin:
    """The context in which a streamer was made, and the inference that was open there."""

    __slots__ = ("context", "inference")

    def __init__(self, context: Context, inference: Inference | None) -> None:
        self.context = context
        self.inference = inference

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def origin_of(streamer: Any) -> Origin | None:
    """Where a streamer was made, if nothing is current where it is used."""
    if streamer is None or current.here() is not None or get_current_span().get_span_context().is_valid:
        return None
    origin = getattr(streamer, _MARK, None)
    return origin if isinstance(origin, Origin) else None


def open_inference_of(streamer: Any) -> Inference | None:
    """The inference in which a streamer was made, if that is still open and nothing is current where it is used."""
    origin = origin_of(streamer)
    inference = None if origin is None else origin.inference
    return None if inference is None or inference.end_ns is not None else inference


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if current.settings() is not None:
            _note(self)

    return __init__


@faults.guarded("streamers.origin")  # a class of the program's own may refuse attributes
def _note(streamer: Any) -> None:
    inference = current.open_here()
    if inference is not None or get_current_span().get_span_context().is_valid:
        setattr(streamer, _MARK, Origin(otel_context.get_current(), inference))
