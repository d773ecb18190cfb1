"""What torch compiled during an inference: how long it took, and why it had to, as torch itself reports it.

Slowness is never taken for a compilation. The one source is the ``CompilationMetrics`` that Dynamo makes at the end of
every frame it compiles, in the thread that compiled (:mod:`inferspan.integrations.torch.compilation` receives them).

A first run of compiled code that benchmarks kernels (Triton), or that makes CUDA graph trees ready, is reported
likewise from torch 2.7 on. No event reports cuDNN's own benchmarks, nor code that an ahead-of-time package brought.
"""

from __future__ import annotations

import os.path
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.probe import Event, Point, Probe, Report
from inferspan.probes.recompile_reason import UNKNOWN, redact

if TYPE_CHECKING:
    from inferspan.core.record import Inference

_KEPT_MAX = 64
_RECOMPILES_MAX = 8


@dataclass(frozen=True, slots=True)
class Compile:
    """One compilation of one frame, or what its compiled code did once when it first ran. Times in seconds.

    Attributes:
        function: name of the frame; ``None`` where torch does not report it (the limit of recompilations, the first
            run).
        location: its file, without the directory, and first line.
        start_ns: ``perf_counter_ns`` when it began.
        seconds: how long it took, the benchmarks among it. Waiting for another thread's compilation is not in it.
        reason: ``None`` for a first compilation, else which guard failed, redacted.
        error: type of what ended it without code.
    """

    function: str | None
    location: str | None
    start_ns: int
    seconds: float
    reason: str | None = None
    error: str | None = None


class Compiles:
    """Those of one inference: the first of them in ``kept``, the time of all in ``seconds``. ``count`` are the frames
    that got code, ``recompiles`` those among them that had code before."""

    __slots__ = ("count", "kept", "recompiles", "seconds")

    def __init__(self) -> None:
        self.kept: list[Compile] = []
        self.count = 0
        self.recompiles = 0
        self.seconds = 0.0

    def add(self, compiled: Compile) -> None:
        if compiled.function is not None and compiled.error is None:
            self.count += 1
            self.recompiles += compiled.reason is not None
        self.seconds += compiled.seconds
        if len(self.kept) < _KEPT_MAX:
            self.kept.append(compiled)


def read(metrics: Any, guard_failures: Mapping[Any, Sequence[str]]) -> Compile:
    """One ``torch._dynamo.utils.CompilationMetrics`` of torch 2.4 or newer, at the moment that it is made.

    Args:
        metrics: fields that this version does not have are taken as unknown.
        guard_failures: Dynamo's own, by code object: the reasons, where the metrics do not have them (before 2.7).
    """
    runtime = getattr(metrics, "is_runtime", False)
    if runtime:  # began when the first of several was over, so when is not known
        seconds = (metrics.duration_us or 0) / 1e6
    else:
        start_us = getattr(metrics, "start_time_us", None)
        seconds = max(time.time() - (metrics.start_time if start_us is None else start_us / 1e6), 0.0)
    reason = getattr(metrics, "recompile_reason", None) or _reason_before_2_7(metrics, guard_failures)
    file = metrics.co_filename
    # torch 2.4: "<class 'torch._dynamo.exc.Unsupported'>"
    error = None if metrics.fail_type is None else metrics.fail_type.rstrip("'>").rpartition(".")[2]
    return Compile(
        function=metrics.co_name,
        location=None if file is None else f"{os.path.basename(file)}:{metrics.co_firstlineno}",
        start_ns=time.perf_counter_ns() - int(seconds * 1e9),
        seconds=seconds,
        reason=None if reason is None else redact(reason),
        error=error,
    )


def _reason_before_2_7(metrics: Any, guard_failures: Mapping[Any, Sequence[str]]) -> str | None:
    if not getattr(metrics, "cache_size", None):  # entries of this frame for the same module: none at first
        return None
    frame = (metrics.co_name, metrics.co_filename, metrics.co_firstlineno)
    for code, reasons in reversed(list(guard_failures.items())):
        if (code.co_name, code.co_filename, code.co_firstlineno) == frame:
            # one of each cache entry, the newest first
            newest = len(reasons) - metrics.accumulated_cache_size
            return reasons[newest] if newest >= 0 else UNKNOWN
    return UNKNOWN


class CompilesProbe(Probe):
    """Time and number of compilations of each inference, and an event for each that had to be made anew."""

    name = "compiles"

    @staticmethod
    def note(inference: Inference, compiled: Compile) -> None:
        """Something was compiled during the inference, by the thread that calls this."""
        probe = next((probe for probe in inference.plan.inference_probes if isinstance(probe, CompilesProbe)), None)
        if probe is None:
            return
        with inference.phases.lock:  # of the threads of one inference() block each may compile
            compiles = inference.mark_of(probe.name)
            if compiles is None:
                compiles = Compiles()
                inference.marks.append((probe, compiles))
            compiles.add(compiled)

    def report(self, inference: Inference, mark: Compiles | None, report: Report) -> None:
        if mark is None:
            return
        report.attributes[semconv.COMPILE_COUNT] = mark.count
        report.attributes[semconv.COMPILE_TIME] = mark.seconds
        report.points.append(Point(semconv.COMPILE_DURATION, mark.seconds))
        report.points.append(Point(semconv.RECOMPILES, mark.recompiles))
        recompiled = [compiled for compiled in mark.kept if compiled.reason is not None]
        for compiled in recompiled[:_RECOMPILES_MAX]:
            attributes = {
                semconv.COMPILE_FUNCTION: compiled.function,
                semconv.COMPILE_LOCATION: compiled.location,
                semconv.COMPILE_REASON: compiled.reason,
                semconv.COMPILE_TIME: compiled.seconds,
                semconv.ERROR_TYPE: compiled.error,
            }
            report.events.append(Event(semconv.RECOMPILE_EVENT, attributes, compiled.start_ns))
