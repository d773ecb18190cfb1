"""The program's OpenTelemetry providers: finding them, whenever they are set, and draining before they close.

Providers may be passed, set before or set after ``instrument()``; whichever is in force is looked up at each use and
bound when it is new. Spans and points that were still on their way when the program flushes or shuts its provider
down would be lost, so a processor of ours stands first in the tracer provider and drains before the others flush;
for metrics the callback of an observable instrument does the same, since it runs before the reader collects.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from inferspan import semconv
from inferspan.emit.ids import IndependentIdGenerator
from inferspan.emit.writer import TracerWriter, writer_of
from inferspan.version import __version__

SCOPE = "inferspan"
_LOCKS: dict[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock)}
_version_attributes: dict[str, str] = {}


def put_versions_on_scope(attributes: Mapping[str, str]) -> None:
    """Have our scope carry the version of each of these modules that is imported, by the name of the attribute."""
    _version_attributes.update(attributes)


class Providers:
    """The providers of one ``instrument()``; ``None`` means the global one."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
        logger_provider: _logs.LoggerProvider | None,
        drain: Callable[[float], bool],
        at_exit: Callable[[], None],
        timeout_s: float = 30.0,
    ) -> None:
        self._given_tracer_provider = tracer_provider
        self._given_meter_provider = meter_provider
        self._given_logger_provider = logger_provider
        self._drain_first = _DrainFirst(drain, timeout_s)
        self._at_exit = at_exit
        self._ids = IndependentIdGenerator()
        self._tracer_provider: trace.TracerProvider | None = None
        self._meter_provider: metrics.MeterProvider | None = None
        self._seen_meter_provider: metrics.MeterProvider | None = None
        self._logger_provider: _logs.LoggerProvider | None = None
        self._writer = TracerWriter(trace.NoOpTracer())
        self._processors: object = None
        self._versions: dict[str, str] = {}
        self._modules_seen = 0
        self._is_released = False

    def writer(self) -> TracerWriter:
        """What writes our spans, of the provider in force now. Also notices a new meter provider, for the sake of the
        exit."""
        if self._is_released:  # of a record that was being told
            return self._writer
        provider = self._given_tracer_provider or trace.get_tracer_provider()
        meter_provider = self._given_meter_provider or metrics.get_meter_provider()
        if meter_provider is not self._seen_meter_provider:
            self._seen_meter_provider = meter_provider
            self._run_last_registered()
        if (
            provider is not self._tracer_provider
            or self._has_new_version()
            or _processors(provider) is not self._processors
        ):
            self._bind_tracer(provider, _versions())
        return self._writer

    def new_meter(self) -> metrics.Meter | None:
        """Our meter if the meter provider is another than at the last call, else ``None``."""
        provider = self._given_meter_provider or metrics.get_meter_provider()
        if provider is self._meter_provider or self._is_released:
            return None
        self._meter_provider = provider
        return provider.get_meter(SCOPE, __version__, semconv.SCHEMA_URL)

    def begin_anew(self) -> None:
        """In a forked child: all sums of ours, which are those of its parent and would be exported twice; and the locks
        under which another thread of the parent's may have been collecting or exporting, and which stay held here.
        Those of spans and loggers the SDK renews itself."""
        consumer = getattr(self._meter_provider, "_measurement_consumer", None)
        storages = getattr(consumer, "_reader_storages", {})
        for storage in storages.values():
            matches = getattr(storage, "_instrument_view_instrument_matches", {})
            for instrument in list(matches):
                if instrument.instrumentation_scope.name == SCOPE:
                    del matches[instrument]
        for owner in (consumer, *storages, *storages.values()):
            for name in ("_lock", "_export_lock"):
                lock = getattr(owner, name, None)
                if type(lock) in _LOCKS:
                    setattr(owner, name, _LOCKS[type(lock)]())

    def logger(self) -> _logs.Logger:
        """Our logger, for events."""
        provider = self._given_logger_provider or _logs.get_logger_provider()
        if provider is not self._logger_provider:
            self._logger_provider = provider
            self._run_last_registered()
        return provider.get_logger(SCOPE, __version__, semconv.SCHEMA_URL)

    def flush(self, timeout_s: float) -> bool:
        """Have the providers flush, where they can."""
        done = True
        for provider in (
            self._given_tracer_provider or trace.get_tracer_provider(),
            self._given_meter_provider or metrics.get_meter_provider(),
            self._given_logger_provider or _logs.get_logger_provider(),
        ):
            force_flush = getattr(provider, "force_flush", None)
            try:
                if force_flush is not None and force_flush(int(timeout_s * 1000)) is False:
                    done = False
            except Exception:  # noqa: BLE001 - what a reader or exporter of the program's raises
                done = False
        return done

    def release(self) -> None:
        """Take our processor out again and forget the providers."""
        self._is_released = True
        atexit.unregister(self._at_exit)
        provider: Any = self._tracer_provider
        processors = _processors(provider)
        if isinstance(getattr(provider, "_active_span_processor", None), ConcurrentMultiSpanProcessor):
            self._drain_first.step_back(provider._active_span_processor)
        elif isinstance(processors, tuple):
            others = tuple(processor for processor in processors if processor is not self._drain_first)
            provider._active_span_processor._span_processors = others
        self._tracer_provider = self._meter_provider = self._seen_meter_provider = self._logger_provider = None

    def _has_new_version(self) -> bool:
        # asked at every root, so in constant time: to import a library changes how many modules there are
        if len(sys.modules) == self._modules_seen or len(self._versions) == len(_version_attributes):
            return False
        self._modules_seen = len(sys.modules)
        return len(_versions()) > len(self._versions)

    def _bind_tracer(self, provider: trace.TracerProvider, versions: dict[str, str]) -> None:
        if provider is not self._tracer_provider:
            self._put_first(provider)
            self._run_last_registered()
        tracer = provider.get_tracer(SCOPE, __version__, semconv.SCHEMA_URL, versions)
        # The SDK's default generator draws ids from the random module that the program seeds: the program's own
        # numbers would change with us, and trace ids repeat. On our tracer alone it is another one.
        if type(getattr(tracer, "id_generator", None)) is RandomIdGenerator:
            tracer.id_generator = self._ids  # type: ignore[attr-defined]
        self._processors = _processors(provider)
        self._writer, self._tracer_provider, self._versions = writer_of(tracer), provider, versions

    def _put_first(self, provider: trace.TracerProvider) -> None:
        processors = _processors(provider)
        group = getattr(provider, "_active_span_processor", None)
        if isinstance(group, ConcurrentMultiSpanProcessor):
            self._drain_first.stand_before(group)
        elif isinstance(processors, tuple):
            if self._drain_first not in processors:
                sdk: Any = provider
                sdk._active_span_processor._span_processors = (self._drain_first, *processors)
        elif hasattr(provider, "add_span_processor"):
            provider.add_span_processor(self._drain_first)

    def _run_last_registered(self) -> None:
        # Exit handlers run in reverse order: ours must come before the one that this provider has registered.
        atexit.unregister(self._at_exit)
        if not self._is_released:
            atexit.register(self._at_exit)


class _DrainFirst(SpanProcessor):
    """Empties our queue before the provider's other processors flush or shut down."""

    def __init__(self, drain: Callable[[float], bool], timeout_s: float) -> None:
        self._drain = drain
        self._timeout_s = timeout_s

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._drain(timeout_millis / 1000)

    def shutdown(self) -> None:
        self._drain(self._timeout_s)

    def stand_before(self, group: ConcurrentMultiSpanProcessor) -> None:
        """In front of processors that flush all at once: as one of them we would come too late, and where they have one
        thread, wait for ourselves."""

        def force_flush(timeout_millis: int = 30000) -> bool:
            drained = self.force_flush(timeout_millis)
            return type(group).force_flush(group, timeout_millis) and drained

        def shutdown() -> None:
            self.shutdown()
            type(group).shutdown(group)

        vars(group).update(force_flush=force_flush, shutdown=shutdown)

    def step_back(self, group: ConcurrentMultiSpanProcessor) -> None:
        """Undo :meth:`stand_before`."""
        for name in ("force_flush", "shutdown"):
            vars(group).pop(name, None)


def _processors(provider: object) -> object:
    """The provider's span processors: a tuple, replaced when one is added; ``None`` where it has none."""
    return getattr(getattr(provider, "_active_span_processor", None), "_span_processors", None)


def _versions() -> dict[str, str]:
    """Of what is imported by now; torch's own is no plain string, and slow to compare."""
    found = {
        name: getattr(sys.modules.get(module), "__version__", None) for name, module in _version_attributes.items()
    }
    return {name: str(version) for name, version in found.items() if version is not None}
