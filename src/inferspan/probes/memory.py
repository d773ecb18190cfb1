"""Memory of the device that an inference runs on: two readings of its allocator, and what follows from them.

The peak is the allocator's own, which is never reset here: where it did not rise in between, it is known within bounds.
Other inferences of the process at the same time are in these numbers, which then say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferspan import semconv
from inferspan.core.probe import CallSite, Point, Probe, Report
from inferspan.probes import accelerator

if TYPE_CHECKING:
    from inferspan.core.record import Inference
    from inferspan.probes.accelerator import Accelerator
    from inferspan.probes.kinds import Memory


class MemoryUse:
    """The readings of one inference, on its first device."""

    __slots__ = ("after", "before", "device")

    def __init__(self, device: str, before: Memory | None) -> None:
        self.device = device
        self.before = before
        self.after: Memory | None = None

    def grown(self, name: str) -> int | None:
        """Difference of a counter; ``None`` where it is not known, or the program set it back meanwhile."""
        before, after = getattr(self.before, name, None), getattr(self.after, name, None)
        return None if before is None or after is None or after < before else after - before

    def failures(self) -> int:
        """Allocations that the device could not satisfy meanwhile, whether the inference ended by them or not."""
        return self.grown("failures") or 0

    def fragmentation(self) -> float | None:
        """Share of the reserved bytes that can be neither used whole nor given back."""
        after = self.after
        if after is None or not after.reserved or after.inactive is None:
            return None
        return after.inactive / after.reserved

    def peak(self) -> tuple[int | None, int] | None:
        """Upper and lower bound of the allocator's peak; equal where it is exact."""
        before, after = self.before, self.after
        if before is None or after is None or before.peak is None or after.peak is None:
            return None
        least = max(before.allocated, after.allocated)
        if after.peak > before.peak:
            return after.peak, after.peak  # raised in between, so it was reached in between
        if after.peak < before.peak:
            return None, max(least, after.peak)  # set back by the program: before that it may have been higher
        handed_out = self.grown("handed_out")
        upper = before.peak if handed_out is None else min(before.peak, before.allocated + handed_out)
        return max(upper, least), least


class MemoryProbe(Probe):
    """Binds to an accelerator whose allocator can be read."""

    name = "memory"

    def __init__(self, on: Accelerator | None = None) -> None:
        self._on = on

    def prepare(self, site: CallSite) -> MemoryProbe | None:
        found = accelerator.of(site.device)
        return None if found is None else MemoryProbe(found)

    def begin(self, record: Inference, model: Any) -> MemoryUse | None:
        return None if self._on is None else MemoryUse(self._on.device, self._on.memory())

    def end(self, record: Inference, mark: MemoryUse) -> None:
        if self._on is not None and mark.before is not None:
            mark.after = self._on.memory()

    def report(self, inference: Inference, mark: MemoryUse | None, report: Report) -> None:
        if mark is None:
            return
        report.results[self.name] = mark
        report.results.setdefault("device", mark.device)
        before, after = mark.before, mark.after
        if before is None or after is None:
            return
        is_alone = inference.overlap.is_alone
        report.attributes.update(
            {
                semconv.MEMORY_BEFORE: before.allocated,
                semconv.MEMORY_AFTER: after.allocated,
                semconv.MEMORY_ALLOCATED: mark.grown("handed_out"),
                semconv.MEMORY_HELD: after.reserved,
                semconv.MEMORY_RETRIES: mark.grown("retries") or None,
                semconv.MEMORY_FRAGMENTATION: mark.fragmentation(),
                semconv.MEMORY_SHARED: None if is_alone else True,
            }
        )
        on_device = {semconv.DEVICE: mark.device}
        report.points.append(
            Point(semconv.MEMORY_AFTERWARDS, after.allocated, on_device, of_operation=False, has_exemplar=False)
        )
        peak = mark.peak()
        if peak is not None:
            self._report_peak(inference, before, peak, on_device, report)

    @staticmethod
    def _report_peak(
        inference: Inference, before: Memory, peak: tuple[int | None, int], on_device: dict[str, str], report: Report
    ) -> None:
        upper, least = peak
        is_exact = upper == least
        report.attributes[semconv.MEMORY_PEAK] = upper
        report.attributes[semconv.MEMORY_PEAK_EXACT] = None if is_exact else False
        report.attributes[semconv.MEMORY_PEAK_LEAST] = None if is_exact else least
        is_alone = inference.overlap.is_alone
        if is_exact and is_alone and (inference.info is None or inference.info.devices == 1):
            cache = report.results.get("kv_cache") or 0
            report.attributes[semconv.MEMORY_ACTIVATIONS] = max(0, least - before.allocated - cache)
        if upper is not None:
            report.points.append(Point(semconv.MEMORY_PEAKS, upper, on_device, of_operation=False))
