"""The sink of all records: starts the live root spans, queues what is finished, and tells it to the providers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry import _logs, metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from inferspan import devices, faults, forks, semconv
from inferspan.core import current, rank
from inferspan.core.record import Inference, StandalonePhase
from inferspan.core.worker import Worker
from inferspan.devices import instruments as device_instruments
from inferspan.devices.nvml import Nvml
from inferspan.emit.metrics import Points
from inferspan.emit.providers import Providers
from inferspan.emit.spans import content_attributes, emit_standalone, start_root, tell_inference
from inferspan.probes import figures
from inferspan.probes.energy import EnergySampler
from inferspan.probes.figures import Figures, Growth
from inferspan.probes.leaks import ALLOCATOR, RESIDENT, Leaks

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from inferspan.config import Settings
    from inferspan.devices.sampler import Sampler

_COLLECT_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Spent:
    hooks_ns: int = 0
    worker_ns: int = 0


_current: Pipeline | None = None
_spent_before = _Spent()  # by reporters that are closed: a counter never goes back


class Pipeline:
    """One ``instrument()``'s way from records to telemetry. Implements :class:`inferspan.core.current.Sink`."""

    def __init__(
        self,
        settings: Settings,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        logger_provider: _logs.LoggerProvider | None = None,
    ) -> None:
        global _current
        self.settings = settings
        self._worker = Worker(self._tell, settings.queue_max, self._is_ready, self._tell_dropped)
        self._providers = Providers(
            tracer_provider,
            meter_provider,
            logger_provider,
            self._worker.drain,
            self._at_exit,
            settings.flush_timeout,
        )
        self.sampler = devices.sampler(settings)
        self._meter = EnergySampler(Nvml()) if "energy" in settings.measure else None
        self._leaks = Leaks() if "leaks" in settings.measure else None
        self._leaks_pid = os.getpid()
        self._hooks_ns = 0
        self._points: Points | None = None
        self._over_children_max = 0
        self._dropped_told = self._dropped()
        _current = self
        # Found here, a provider that is set already runs its exit handler after ours, whatever happens first.
        self._providers.writer()
        self._bind_meter()
        if settings.content_in_events:
            self._providers.logger()
        forks.register(after_in_child=self._after_fork_in_child)

    def start_root(self, inference: Inference, context: Context) -> Span:
        self._worker.ensure_running()
        return start_root(self._providers.writer(), inference, context)

    def begin_on_device(self, inference: Inference) -> None:
        accelerator = inference.accelerator
        if self._meter is not None and accelerator is not None and accelerator.kind == "cuda":
            self._meter.begin(accelerator.index)

    def submit(self, record: Inference | StandalonePhase) -> None:
        if isinstance(record, Inference):
            self._over_children_max += record.phases_dropped
            accelerator = record.accelerator
            if self._meter is not None and accelerator is not None and accelerator.kind == "cuda":
                self._meter.end(accelerator.index)
        self._worker.submit(record)
        if isinstance(record, StandalonePhase):
            self._worker.ensure_running()
            self._providers.writer()  # which notices new providers, as the start of a root does

    def flush(self, timeout_s: float) -> bool:
        """Tell everything finished, and have the providers flush: at most ``timeout_s`` for each."""

        def flush() -> bool:
            drained = self._worker.drain(timeout_s)
            return self._providers.flush(timeout_s) and drained

        # a span processor that flushes from inside on_end holds what the other thread would wait for
        return flush() if self._worker.tells_here() else _in_time(flush, 2 * timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Tell everything finished to the providers."""
        return self._worker.drain(timeout_s)

    def observed(self) -> dict[str, float]:
        """What is true now, by the name of its metric."""
        return {
            semconv.ACTIVE_INFERENCES: current.open_count(),
            semconv.OVERHEAD_HOOKS: (_spent_before.hooks_ns + self._hooks_ns) * 1e-9,
            semconv.OVERHEAD_WORKER: (_spent_before.worker_ns + self._worker.busy_ns) * 1e-9,
            semconv.OVERHEAD_QUEUE: self._worker.most_waiting,
        }

    def leave_process(self) -> None:
        if self._worker.is_used():
            self.flush(self.settings.flush_timeout)

    def close(self) -> None:
        """Tell everything finished, and stop."""
        global _current
        self._stop()
        self._providers.release()
        self.sampler.stop()
        if self._meter is not None:
            self._meter.stop()
        _spent_before.hooks_ns += self._hooks_ns
        _spent_before.worker_ns += self._worker.busy_ns
        self._hooks_ns = self._worker.busy_ns = 0
        if _current is self:
            _current = None

    def _at_exit(self) -> None:
        current.abandon_open()
        self._stop()

    def _stop(self) -> None:
        def stop() -> bool:
            self._worker.stop(self.settings.flush_timeout)
            return True

        _in_time(stop, self.settings.flush_timeout)

    def _bind_meter(self) -> None:
        if self.settings.metrics:
            meter = self._providers.new_meter()
            if meter is not None:
                self._points = Points(meter, self.settings, partial(partial, _observe))
                device_instruments.create(meter, self.settings, _current_sampler)

    def _is_ready(self, record: Inference | StandalonePhase) -> bool:
        return isinstance(record, StandalonePhase) or figures.is_ready(record, self._meter)

    def _tell(self, record: Inference | StandalonePhase) -> None:
        found = None if isinstance(record, StandalonePhase) else self._figures(record)
        self._hooks_ns += 0 if isinstance(record, StandalonePhase) else record.hooks_ns
        # the points first: their exemplars need nothing of the spans, and a span processor may raise
        self._tell_points(record, found)
        writer = self._providers.writer()
        if isinstance(record, StandalonePhase):
            emit_standalone(writer, record)
            return
        if self.settings.content_in_events:
            self._tell_event(record)
        tell_inference(writer, record, found or Figures(), self.settings)

    def _figures(self, inference: Inference) -> Figures | None:
        try:
            found = figures.figures_of(inference, self._meter)
            found.growths = [] if self._leaks is None else list(self._look_for_leaks(self._leaks, inference))
            return found
        except Exception:  # noqa: BLE001
            faults.note("telemetry.figures")
            return None

    def _look_for_leaks(self, leaks: Leaks, inference: Inference) -> Iterable[Growth]:
        if inference.operation == semconv.LOAD_OPERATION or self._leaks_pid != os.getpid():
            self._leaks_pid = os.getpid()
            leaks.restart()  # what a model takes is no growth; a forked child has memory of its own
            return
        name = inference.operation if inference.model is None else inference.model.name
        readings = [("cpu", inference.memory_bytes, RESIDENT)]
        if inference.accelerator is not None and inference.memory_after is not None:
            readings.append((inference.accelerator.device, inference.memory_after.allocated, ALLOCATOR))
        for device, held, noise in readings:
            key = (name, device)
            shape = (inference.rows_max, inference.length_max)
            leak = leaks.add(key, held, noise, at_ns=inference.end_ns or 0, shape=shape, others=inference.open_after)
            growth = leaks.growth(key)
            if leak is not None:
                # once for each memory: a leak anywhere in the process shows at every model that runs meanwhile
                faults.warn_once(f"leak {device}", leak.sentence(name, None if device == "cpu" else device))
            if growth is not None:
                yield Growth(device, growth, leak)

    def _tell_points(self, record: Inference | StandalonePhase, found: Figures | None) -> None:
        try:
            self._bind_meter()
            points = self._points
            if points is None:
                return
            if isinstance(record, StandalonePhase):
                points.emit_standalone(record)
            else:
                points.tell_inference(record, found or Figures())
        except Exception:  # noqa: BLE001 - a user's view or exemplar filter
            faults.note("telemetry.metrics")

    def _tell_dropped(self) -> None:
        points = self._points
        if points is None:
            return
        for reason, count in self._dropped().items():
            told = self._dropped_told[reason]
            if count > told:
                points.count_dropped(count - told, reason)
                self._dropped_told[reason] = count

    def _dropped(self) -> dict[str, int]:
        return {
            "queue_full": self._worker.children_dropped,
            "children_max": self._over_children_max,
            "fault": sum(faults.counts().values()),
        }

    def _after_fork_in_child(self) -> None:
        # The parent tells its own counts and points.
        self._dropped_told = self._dropped()
        self._hooks_ns = _spent_before.hooks_ns = _spent_before.worker_ns = 0
        self._providers.begin_anew()
        if self._points is not None:
            self._points.forget()

    def _tell_event(self, inference: Inference) -> None:
        try:
            attributes = content_attributes(inference, self.settings)
            if attributes and inference.end_ns is not None:
                facts = {semconv.OPERATION_NAME: inference.operation}
                if inference.model is not None:
                    facts = dict(inference.model.attributes_for(inference.operation))
                self._providers.logger().emit(
                    _logs.LogRecord(
                        timestamp=inference.end_ns + inference.unix_offset_ns,
                        context=inference.context,
                        event_name=semconv.DETAILS_EVENT,
                        attributes={**facts, **attributes},
                    )
                )
        except Exception:  # noqa: BLE001 - a user's log processor
            faults.note("telemetry.events")


def _in_time(function: Callable[[], bool], timeout_s: float) -> bool:
    """What ``function`` gives, or false where that takes longer: a span processor may block for as long as it likes."""
    given: list[bool] = []
    thread = threading.Thread(target=lambda: given.append(function()), name="inferspan-flush", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads, or the interpreter is ending
        return function()
    thread.join(timeout_s)
    return given == [True]


def _observe(name: str, options: CallbackOptions) -> Iterable[Observation]:
    """What is looked at when a reader collects. What is finished is told first.

    Instruments belong to their meter for good (they cannot be taken back), so this looks the reporter up.
    """
    reporter = _current
    if reporter is None:
        return
    if name == semconv.ACTIVE_INFERENCES:  # which is asked first: once a collection
        reporter.drain(min(_COLLECT_TIMEOUT_S, reporter.settings.flush_timeout))
    yield Observation(reporter.observed()[name], rank.attributes())


def _current_sampler() -> Sampler | None:
    """The sampler behind the observable instruments of devices, which also belong to the meter for good."""
    return None if _current is None else _current.sampler
