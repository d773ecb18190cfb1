"""How spans are made once all is known of them, through the tracer: the ordinary way, which any provider takes.

:mod:`inferspan.emit.fastpath` has a cheaper one for providers of OpenTelemetry's own SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from inferspan import semconv

if TYPE_CHECKING:
    from opentelemetry.context import Context

Attributes = Mapping[str, Any]

ERROR = Status(StatusCode.ERROR)


class DirectRoot:
    """A root span that was begun to be written directly, and so ends itself, whatever writes by then."""

    def write_end(
        self,
        tracer: Tracer,
        attributes: dict[str, Any],
        events: Sequence[Event],
        status: Status | None,
        end_ns: int,
    ) -> None:
        raise NotImplementedError


class TracerWriter:
    """Spans through the tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start(
        self, name: str, context: Context, attributes: Attributes, start_ns: int, links: Sequence[Link] = ()
    ) -> Span:
        """A root span, live; ``attributes`` are for the sampler too. Times are of the wall clock."""
        return self._tracer.start_span(name, context, SpanKind.INTERNAL, attributes, links, start_ns)

    def end(
        self, root: Span, attributes: dict[str, Any], events: Sequence[Event], status: Status | None, end_ns: int
    ) -> None:
        """The root is over."""
        if isinstance(root, DirectRoot):  # begun while spans were written directly: its own end reaches nobody
            root.write_end(self._tracer, attributes, events, status, end_ns)
            return
        try:
            root.set_attributes(attributes)
            for event in events:
                root.add_event(event.name, event.attributes, event.timestamp)
            if status is not None:
                root.set_status(status)
        finally:
            root.end(end_ns)

    def write(
        self,
        name: str,
        context: Context | None,
        attributes: dict[str, Any],
        start_ns: int,
        end_ns: int,
        error: str | None = None,
        below: Iterable[Callable[[Context], None]] = (),
    ) -> None:
        """A whole span under what is current in ``context``; ``error`` is its ``error.type``, ``below`` write
        spans below it."""
        span = self._tracer.start_span(name, context, SpanKind.INTERNAL, attributes, start_time=start_ns)
        for write in below:
            write(set_span_in_context(span, context))
        if error is not None:
            span.set_attribute(semconv.ERROR_TYPE, error)
            span.set_status(ERROR)
        span.end(end_ns)
