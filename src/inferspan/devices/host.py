"""CPU and memory of the process and the host, through psutil, under the names of the conventions.

Beside a GPU that is busy all the time they show whether it is fed by a CPU that is, too. Where
opentelemetry-instrumentation-system-metrics runs, it has these series already, and nothing is reported here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

from inferspan import semconv
from inferspan.devices.reader import Reading, Sample, of

_MODES = {"irq": "interrupt", "softirq": "interrupt", "guest": "", "guest_nice": ""}
"""psutil's names of CPU times where the conventions have others; guest is contained in user."""


class Host:
    """Shares of CPU time are means since the last reading."""

    def __init__(self, process: bool = True) -> None:
        self._with_process = process
        self._pid: int | None = None
        self._before: dict[str, float] = {}

    def read(self, with_system: bool) -> Sample:
        """The process's figures, and the host's if asked for."""
        import psutil

        if _reported_by_another():
            return {}
        self._process = psutil.Process()
        if self._pid != self._process.pid:
            self._pid, self._before = self._process.pid, {}
            self._read_at = monotonic()
        elapsed_s, self._read_at = monotonic() - self._read_at, monotonic()
        sample: Sample = {}
        if self._with_process:
            sample.update(self._process_sample(elapsed_s))
        if with_system:
            sample.update(self._system_sample(psutil))
        return sample

    def _process_sample(self, elapsed_s: float) -> Iterator[tuple[Reading, float]]:
        times = self._process.cpu_times()
        affinity = getattr(self._process, "cpu_affinity", None)
        cpus = len(affinity()) if affinity is not None else None
        yield Reading(semconv.PROCESS_RESIDENT), self._process.memory_info().rss
        for mode in ("user", "system"):
            seconds = getattr(times, mode)
            yield of(semconv.PROCESS_CPU_TIME, semconv.CPU_MODE, mode), seconds
            spent = self._since(f"process {mode}", seconds)
            if spent is not None and cpus and elapsed_s > 0:
                yield of(semconv.PROCESS_CPU, semconv.CPU_MODE, mode), spent / elapsed_s / cpus

    def _system_sample(self, psutil: Any) -> Iterator[tuple[Reading, float]]:
        spent: dict[str, float] = {}
        for name, seconds in psutil.cpu_times()._asdict().items():
            mode = _MODES.get(name, name)
            since = self._since(name, seconds)
            if mode and since is not None:
                spent[mode] = spent.get(mode, 0.0) + max(0.0, since)
        total = sum(spent.values())
        for mode, seconds in spent.items():
            if total > 0:
                yield of(semconv.SYSTEM_CPU, semconv.CPU_MODE, mode), seconds / total
        memory = psutil.virtual_memory()
        yield Reading(semconv.SYSTEM_MEMORY_LIMIT), memory.total
        for state in ("used", "free", "buffers", "cached"):
            value = getattr(memory, state, None)
            if value is not None:
                yield of(semconv.SYSTEM_MEMORY, semconv.MEMORY_STATE, state), value

    def _since(self, name: str, seconds: float) -> float | None:
        before, self._before[name] = self._before.get(name), seconds
        return None if before is None else seconds - before


def _reported_by_another() -> bool:
    module = sys.modules.get("opentelemetry.instrumentation.system_metrics")
    instrumentor = getattr(module, "SystemMetricsInstrumentor", None)
    return instrumentor is not None and bool(instrumentor().is_instrumented_by_opentelemetry)
