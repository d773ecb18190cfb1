"""The program's OpenTelemetry providers: finding them, whenever they are set, and draining before they close.

Providers may be passed, set before or set after ``instrument()``; whichever is in force is looked up at each use and
bound when it is new. Spans and points that were still on their way when the program flushes or shuts its provider
down would be lost, so a processor of ours stands first in the tracer provider and drains before the others flush;
for metrics the callback of an observable instrument does the same, since it runs before the reader collects.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Mapping

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from inferspan import semconv
from inferspan.emit.fastpath import begin_anew, processors_of, put_first, take_out, writer_of
from inferspan.emit.ids import IndependentIdGenerator
from inferspan.emit.writer import TracerWriter
from inferspan.version import __version__

SCOPE = "inferspan"
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
        *,
        has_fast_path: bool = True,
    ) -> None:
        self._given_tracer_provider = tracer_provider
        self._given_meter_provider = meter_provider
        self._given_logger_provider = logger_provider
        self._drain_first = _DrainFirst(drain, timeout_s)
        self._at_exit = at_exit
        self._has_fast_path = has_fast_path
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
        if self._is_released:  # of a record that was being emitted
            return self._writer
        provider = self._given_tracer_provider or trace.get_tracer_provider()
        meter_provider = self._given_meter_provider or metrics.get_meter_provider()
        if meter_provider is not self._seen_meter_provider:
            self._seen_meter_provider = meter_provider
            self._run_last_registered()
        if (
            provider is not self._tracer_provider
            or (len(sys.modules) != self._modules_seen and self._has_new_version())
            or processors_of(provider) is not self._processors
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
        """In a forked child: let go of what is the parent's."""
        begin_anew(self._meter_provider, SCOPE)

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
        take_out(self._tracer_provider, self._drain_first)
        self._tracer_provider = self._meter_provider = self._seen_meter_provider = self._logger_provider = None

    def _has_new_version(self) -> bool:
        # To import a library changes how many modules there are; to look that up is all that each root costs.
        self._modules_seen = len(sys.modules)
        return len(self._versions) < len(_version_attributes) and len(_versions()) > len(self._versions)

    def _bind_tracer(self, provider: trace.TracerProvider, versions: dict[str, str]) -> None:
        if provider is not self._tracer_provider:
            put_first(provider, self._drain_first)
            self._run_last_registered()
        tracer = provider.get_tracer(SCOPE, __version__, semconv.SCHEMA_URL, versions)
        # The SDK's default generator draws ids from the random module that the program seeds: the program's own
        # numbers would change with us, and trace ids repeat. On our tracer alone it is another one.
        if type(getattr(tracer, "id_generator", None)) is RandomIdGenerator:
            tracer.id_generator = self._ids  # type: ignore[attr-defined]
        self._processors = processors_of(provider)
        self._writer = writer_of(tracer, is_allowed=self._has_fast_path)
        self._tracer_provider, self._versions = provider, versions

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


def _versions() -> dict[str, str]:
    """Of what is imported by now; torch's own is no plain string, and slow to compare."""
    found = {
        name: getattr(sys.modules.get(module), "__version__", None) for name, module in _version_attributes.items()
    }
    return {name: str(version) for name, version in found.items() if version is not None}
