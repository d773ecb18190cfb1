"""The way of every record: the queue, the probes' report, metric points and spans, each once and in this order.

The pipeline starts the live root spans, takes what is finished, and is what flushing, exit and forks act on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry import _logs, metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from inferspan import faults, forks, semconv
from inferspan.core import process, rank
from inferspan.core.probe import Probe, Report, add_up, is_ready, parts_of
from inferspan.core.record import Inference, Overflow, Phase, StandalonePhase
from inferspan.core.state import state
from inferspan.devices import instruments
from inferspan.emit.metrics import Points
from inferspan.emit.providers import Providers
from inferspan.emit.spans import emit_inference, emit_standalone
from inferspan.emit.worker import Record, Worker

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from inferspan.config import Settings
    from inferspan.core.plan import Probes
    from inferspan.devices.sampler import Sampler

_COLLECT_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Process:
    """What outlives a pipeline: observable instruments belong to their meter for good, so their callbacks look up whose
    numbers they give; and counters never go back, so those of pipelines that are closed count on."""

    pipeline: Pipeline | None = None
    hooks_ns: int = 0
    worker_ns: int = 0


_process = _Process()


class Pipeline:
    """One ``instrument()``'s way from records to telemetry. Implements :class:`inferspan.core.current.Sink`."""

    def __init__(
        self,
        settings: Settings,
        probes: Probes,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        logger_provider: _logs.LoggerProvider | None = None,
        may_be_killed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self._may_be_killed = may_be_killed
        self._flushing: threading.Thread | None = None
        self._probes = probes
        self._worker = Worker(self._emit, settings.queue_max, self._is_ready, self._emit_dropped, self._at_rest)
        self._providers = Providers(
            tracer_provider,
            meter_provider,
            logger_provider,
            self._worker.drain,
            self._at_exit,
            settings.flush_timeout,
            has_fast_path=settings.fast_path,
        )
        self._sampler: Sampler | None = None
        self._hooks_ns = 0
        self._points: Points | None = None
        self._over_children_max = 0
        self._dropped_reported = self._dropped()
        _process.pipeline = self
        # Found here, a provider that is set already runs its exit handler after ours, whatever happens first.
        self._providers.writer()
        self._bind_meter()
        if settings.content_in_events:
            self._providers.logger()
        forks.register(after_in_child=self._after_fork_in_child)

    # -- the calling threads

    def start_root(self, inference: Inference, context: Context) -> Span:
        """The live root span, with what a sampler may want to see."""
        self._worker.ensure_running()
        plan, start_ns = inference.plan, inference.start_ns + inference.unix_offset_ns
        return self._providers.writer().start(plan.name, context, plan.asked, start_ns, inference.links)

    def submit(self, record: Inference | Overflow) -> None:
        if isinstance(record, Inference):
            self._over_children_max += record.phases.dropped
        self._worker.submit(record)

    def submit_standalone(self, record: StandalonePhase) -> None:
        self._worker.submit(record)
        self._worker.ensure_running()
        self._providers.writer()  # which notices new providers, as the start of a root does

    def flush(self, timeout_s: float) -> bool:
        """Emit everything finished, and have the providers flush: at most ``timeout_s`` for each."""

        def flush() -> bool:
            drained = self._worker.drain(timeout_s)
            return self._providers.flush(timeout_s) and drained

        # a span processor that flushes from inside on_end holds what the other thread would wait for
        return flush() if self._worker.emits_here() else _in_time(flush, 2 * timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Emit everything finished."""
        return self._worker.drain(timeout_s)

    def observed(self) -> dict[str, float]:
        """What is true now, by the name of its metric."""
        return {
            semconv.ACTIVE_INFERENCES: len(state.open),
            semconv.OVERHEAD_HOOKS: (_process.hooks_ns + self._hooks_ns) * 1e-9,
            semconv.OVERHEAD_WORKER: (_process.worker_ns + self._worker.busy_ns) * 1e-9,
            semconv.OVERHEAD_QUEUE: self._worker.most_waiting,
        }

    def sampler(self) -> Sampler | None:
        """What reads devices, host and process; not imported before somebody collects, nor where nobody reports."""
        if self._sampler is None and self.settings.devices != "never":
            self._sampler = forks.import_module("inferspan.devices.choice").sampler(self.settings)
        return self._sampler

    def leave_process(self) -> None:
        if self._worker.is_used():
            self.flush(self.settings.flush_timeout)

    def close(self) -> None:
        """Emit everything finished, and stop."""
        self._stop()
        self._providers.release()
        if self._sampler is not None:
            self._sampler.stop()
        self._probes.close()
        _process.hooks_ns += self._hooks_ns
        _process.worker_ns += self._worker.busy_ns
        self._hooks_ns = self._worker.busy_ns = 0
        if _process.pipeline is self:
            _process.pipeline = None

    def _at_exit(self) -> None:
        process.abandon_open()
        self._stop()

    def _stop(self) -> None:
        def stop() -> bool:
            self._worker.stop(self.settings.flush_timeout)
            return True

        _in_time(stop, self.settings.flush_timeout)

    # -- the background worker

    def _is_ready(self, record: Record) -> bool:
        if isinstance(record, StandalonePhase):
            return True
        if isinstance(record, Overflow):
            return all(is_ready(phase, phase.marks) for phase in record.phases)
        # the latest first: while it is not done, nobody need ask for the others
        phases = (record.self_phase, *reversed(record.phases.kept), *record.phases.overflow)
        return all(phase is None or is_ready(phase, phase.marks) for phase in phases) and is_ready(record, record.marks)

    @faults.guarded("telemetry.rest", default=True)
    def _at_rest(self) -> bool:
        """Nothing has finished for a while. Where nobody may say goodbye to this process, what there is leaves now."""
        mode, running = self.settings.flush_at_rest, self._flushing
        if mode == "never" or (mode == "auto" and not self._may_be_killed()):
            return True
        if state.open or (running is not None and running.is_alive()):  # an exporter that waits for its collector
            return False
        # on a thread of its own: it takes as long as the collector likes, and the queue must not wait for that
        flush = partial(self._providers.flush, self.settings.flush_timeout)
        self._flushing = threading.Thread(target=flush, name="inferspan-flush", daemon=True)
        self._flushing.start()
        return True

    def _emit(self, record: Record) -> None:
        if isinstance(record, Overflow):
            self._add_overflow(record.inference, record.phases)
            return
        # the points first: their exemplars need nothing of the spans, and a span processor may raise
        if isinstance(record, StandalonePhase):
            self._emit_points(record, None)
            emit_standalone(self._providers.writer(), record)
            return
        report = self._report(record)
        self._hooks_ns += record.hooks_ns
        self._emit_points(record, report)
        if self.settings.content_in_events:
            self._emit_content(record)
        emit_inference(self._providers.writer(), record, report, self._probes.loaded())

    def _report(self, inference: Inference) -> Report:
        """What the probes make of their marks, each phase's values once."""
        report, phases, probes = Report(), inference.phases, self._probes.loaded()
        try:
            self._add_overflow(inference, phases.overflow)
            phases.overflow = []
            report.totals = {part: dict(values) for part, values in phases.sums.items()}
            report.parts = [parts_of(phase) for phase in phases.kept]
            whole = [] if inference.self_phase is None else [parts_of(inference.self_phase)]
            for parts in (*report.parts, *whole):
                add_up(report.totals, parts, probes)
            if phases.is_incomplete:  # with values that are not known
                add_up(report.totals, {part: {} for part in report.totals}, probes)
        except Exception:  # noqa: BLE001
            faults.note("telemetry.figures")
        for probe in probes:
            self._ask(probe, inference, report)
        return report

    @staticmethod
    @faults.guarded("telemetry.probe")
    def _ask(probe: Probe, inference: Inference, report: Report) -> None:
        probe.report(inference, inference.mark_of(probe.name), report)

    @faults.guarded("telemetry.figures")
    def _add_overflow(self, inference: Inference, phases: list[Phase]) -> None:
        for phase in phases:
            add_up(inference.phases.sums, parts_of(phase), self._probes.loaded())

    def _bind_meter(self) -> None:
        if self.settings.metrics:
            meter = self._providers.new_meter()
            if meter is not None:
                self._points = Points(meter, self.settings, partial(partial, _observe))
                instruments.create(meter, self.settings, _current_sampler)

    @faults.guarded("telemetry.metrics")  # a user's view or exemplar filter
    def _emit_points(self, record: Inference | StandalonePhase, report: Report | None) -> None:
        self._bind_meter()
        if self._points is None:
            return
        if isinstance(record, StandalonePhase):
            self._points.emit_standalone(record)
        else:
            self._points.emit_inference(record, report or Report())

    def _emit_dropped(self) -> None:
        points = self._points
        if points is None:
            return
        for reason, count in self._dropped().items():
            reported = self._dropped_reported[reason]
            if count > reported:
                points.count_dropped(count - reported, reason)
                self._dropped_reported[reason] = count

    def _dropped(self) -> dict[str, int]:
        return {
            "queue_full": self._worker.children_dropped,
            "children_max": self._over_children_max,
            "fault": sum(faults.counts().values()),
        }

    def _after_fork_in_child(self) -> None:
        # The parent emits its own counts and points.
        self._dropped_reported = self._dropped()
        self._hooks_ns = _process.hooks_ns = _process.worker_ns = 0
        self._providers.begin_anew()
        if self._points is not None:
            self._points.forget()

    @faults.guarded("telemetry.events")  # a user's log processor
    def _emit_content(self, inference: Inference) -> None:
        attributes = forks.import_module("inferspan.emit.content").content_attributes(inference, self.settings)
        if attributes and inference.end_ns is not None:
            self._providers.logger().emit(
                _logs.LogRecord(
                    timestamp=inference.end_ns + inference.unix_offset_ns,
                    context=inference.context,
                    event_name=semconv.DETAILS_EVENT,
                    attributes={**inference.plan.asked, **attributes},
                )
            )


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
    """What is looked at when a reader collects. What is finished is emitted first."""
    pipeline = _process.pipeline
    if pipeline is None:
        return
    if name == semconv.ACTIVE_INFERENCES:  # which is asked first: once a collection
        pipeline.drain(min(_COLLECT_TIMEOUT_S, pipeline.settings.flush_timeout))
    yield Observation(pipeline.observed()[name], rank.attributes())


def _current_sampler() -> Sampler | None:
    return None if _process.pipeline is None else _process.pipeline.sampler()
