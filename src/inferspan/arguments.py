"""What a program passes to its blocks: numbers, links, a parent. Imported where that is more than a plain number.

A value that cannot be meant is left out, with one warning at the program's line, and nothing is raised.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, get_current_span, set_span_in_context

from inferspan import faults

_PLACES = "contexts or spans of OpenTelemetry"


def whole(where: str, given: Any) -> int | None:
    """The number from 0 on that it is; ``None`` if it is none, or would have to be waited for."""
    try:
        count = int(given) if getattr(getattr(given, "device", None), "type", "cpu") == "cpu" else -1
        if count >= 0 and count == given:
            return count
    except Exception:  # noqa: BLE001 - an object of the program's
        pass
    _refuse(where, "a whole number from 0 on", given)
    return None


def links(given: Any) -> tuple[Link, ...]:
    """Links to each of them; to what is no trace there is none."""
    found = []
    try:
        for each in (given,) if given is None or isinstance(given, (Context, Span, SpanContext, Link)) else given:
            context = _span_context(each)
            if context is None and each is not None:
                _refuse("links=", _PLACES, each)
            elif context is not None and context.is_valid:
                found.append(each if isinstance(each, Link) else Link(context))
    except Exception:  # noqa: BLE001 - an object of the program's
        _refuse("links=", f"a list of {_PLACES}", given)
    return tuple(found)


def parent(given: Any) -> Context | None:
    """The context with it as its span."""
    if given is None or isinstance(given, Context):
        return given
    try:
        context = _span_context(given)
    except Exception:  # noqa: BLE001 - an object of the program's
        context = None
    if context is None:
        _refuse("parent=", _PLACES, given)
        return None
    return set_span_in_context(given if isinstance(given, Span) else NonRecordingSpan(context))


def _span_context(given: Any) -> SpanContext | None:
    if isinstance(given, Context):
        given = get_current_span(given)
    if isinstance(given, Link):
        return given.context
    if isinstance(given, Span):
        return given.get_span_context()
    return given if isinstance(given, SpanContext) else None


def _refuse(where: str, wanted: str, given: Any) -> None:
    shown = given if given.__class__ in (int, float) else type(given).__name__  # a text may be a prompt
    faults.warn_once(f"block {where}", f"{where} of an inference takes {wanted}, not {shown}: it is left out")
