"""Whether the memory that is held after each inference goes on growing: a trend test that is slow to accuse.

There is a series for each key (a model on a device), fed with one reading after each inference. Readings are noisy
upwards: results that are still alive, inferences in flight, garbage not yet collected, memory that an allocator keeps.
So only the lowest of each block of readings counts, what was held throughout. Blocks of 8 inferences merge in pairs
into blocks of 16, 32 ... 2,048, and the same test looks at the last 21 blocks of each length: the short ones find a
large leak soon, the long ones a small leak, a rare one, or one under the saw-tooth of the garbage collector.
``docs/leaks.md`` says why each condition is there, how often the test is wrong and how late it is.

This is not an account of who holds the memory: a resident set is that of the whole process, an allocator serves all
models on its device, and a cache that is being filled looks like a leak for as long as it fills evenly.
"""

from __future__ import annotations

import gc
import os
from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from inferspan import faults, semconv
from inferspan.core.probe import Event, Point, Probe, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inferspan.core.record import Inference

_BLOCK = 8
_LEVELS = 9
_STEPS = 20
_PAST_BLOCKS_MIN = 4
_STEP_SHARE_MIN = 0.02
_T_MIN = 5.0
_HALVES_RATIO_MIN = 0.65
_DOUBLINGS_RATIO_MIN = 0.9
_REARM_SHARE = 0.25
_PEAK_BLOCKS = 256
_SHAPE_BITS = 4096
_UNITS = {0: "B", 10: "KiB", 20: "MiB", 30: "GiB"}
_MIDDLE_HALF = ((1 << _STEPS // 2) - 1) << _STEPS // 4


class Noise(NamedTuple):
    """Growth that means nothing: ``floor_bytes`` in any window, ``shape_bytes`` more for each new input shape in it."""

    floor_bytes: int
    shape_bytes: int


RESIDENT = Noise(16 << 20, 512 << 10)
"""For a resident set: a full queue of spans is some 8 MiB (2,048 of 4 KiB, measured), and a shape not met before
leaves compiled kernels and holes in the heap (0.1 to 0.6 MiB each, measured on small models)."""

ALLOCATOR = Noise(1 << 20, 0)
"""For a device's allocator, which counts what is alive and nothing else: room for the tables that a model keeps."""


class Leak(NamedTuple):
    """Memory that grew with each inference, over the window that shows it."""

    bytes_per_inference: float
    grown_bytes: int
    inferences: int
    seconds: float

    def sentence(self, model: str, device: str | None = None) -> str:
        """For a warning; without a ``device`` it speaks of the process."""
        where = "of this process" if device is None else f"on {device}"
        return (
            f"memory {where} grows by {_readable(self.bytes_per_inference)} with each inference of {model}: "
            f"{_readable(self.grown_bytes)} in {self.inferences} inferences ({self.seconds:.0f} s). Something keeps "
            "a result, a cache or a tensor of each."
        )


_Block = tuple[int, int, bool]
"""Of a block of inferences: the lowest reading, the fewest others open, whether garbage was collected meanwhile."""

_longs = partial(array, "q")


@dataclass(slots=True)
class _Window:
    """The last blocks of one length; ``inferences`` is how many lie between the first and the last."""

    inferences: int
    lows: array[int] = field(default_factory=_longs)
    others: array[int] = field(default_factory=_longs)
    fresh: array[int] = field(default_factory=_longs)
    at_ns: array[int] = field(default_factory=_longs)
    collected: int = 0  # a bit for each block, the latest is the lowest
    peak: int = 0
    past_peak: int = 0
    taken: int = 0
    waiting: _Block | None = None

    def add(self, block: _Block, fresh: int, at_ns: int) -> _Block | None:
        """Take a block; gives that of twice the length when a pair is complete."""
        low, others, collected = block
        if len(self.lows) > _STEPS:
            self.peak = max(self.peak, self.lows[0])
            del self.lows[0], self.others[0], self.fresh[0], self.at_ns[0]
        self.taken += 1
        if self.taken % _PEAK_BLOCKS == 0:
            self.past_peak, self.peak = self.peak, 0
        self.lows.append(low)
        self.others.append(others)
        self.fresh.append(fresh)
        self.at_ns.append(at_ns)
        self.collected = (self.collected << 1 | collected) & ((1 << _STEPS) - 1)
        if self.waiting is None:
            self.waiting = block
            return None
        first, self.waiting = self.waiting, None
        return min(low, first[0]), min(others, first[1]), collected or first[2]

    def grown(self) -> int:
        return self.lows[-1] - self.lows[0]

    def leak(self) -> Leak:
        grown = self.grown()
        return Leak(grown / self.inferences, grown, self.inferences, (self.at_ns[-1] - self.at_ns[0]) / 1e9)

    def rises(self, noise: Noise) -> bool:
        """Whether the window by itself looks like a leak."""
        lows, others = self.lows, self.others
        grown = self.grown()
        floor = noise.floor_bytes
        if len(lows) <= _STEPS or grown < floor or lows[-1] - max(self.peak, self.past_peak) < floor:
            return False
        if grown < floor + noise.shape_bytes * (self.fresh[-1] - self.fresh[0]):
            return False
        mean = grown / _STEPS
        steps = [lows[i + 1] - lows[i] for i in range(_STEPS)]
        variance = sum((step - mean) ** 2 for step in steps) / (_STEPS - 1)
        half = _STEPS // 2
        return (
            min(steps) >= mean * _STEP_SHARE_MIN
            and mean * mean * _STEPS >= _T_MIN * _T_MIN * variance
            and lows[-1] - lows[half] >= _HALVES_RATIO_MIN * (lows[half] - lows[0])
            and min(others[half:]) <= min(others[:half])
            and self._outlived_collection()
        )

    def _outlived_collection(self) -> bool:
        # One at either end shows no drop. Without any: garbage in cycles is at least one container an inference, so by
        # then it would have set off a collection.
        return bool(self.collected & _MIDDLE_HALF or self.inferences >= gc.get_threshold()[0] or not gc.isenabled())


@dataclass(slots=True)
class _Series:
    """One key: the block that is being filled, and the windows over those that were."""

    windows: list[_Window] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # the lowest reading of block 1, 2, 4, 8 ...
    seen: bytearray = field(default_factory=lambda: bytearray(_SHAPE_BITS // 8))
    fresh: int = 0
    blocks: int = 0
    readings: int = 0
    low: int = 0
    others: int = 0
    at_ns: int = 0
    collections: int = field(default_factory=lambda: _collections())
    reported: _Window | None = None

    def add(self, held: int, noise: Noise, shape: Hashable, others: int, at_ns: int) -> Leak | None:
        self.at_ns = at_ns
        place, bit = divmod(hash(shape) % _SHAPE_BITS, 8)
        if not self.seen[place] >> bit & 1:
            self.seen[place] |= 1 << bit
            self.fresh += 1
        if not self.readings or held < self.low:
            self.low = held
        if not self.readings or others < self.others:
            self.others = others
        self.readings += 1
        if self.readings < _BLOCK:
            return None
        self.readings = 0
        before, self.collections = self.collections, _collections()
        return self.end_block((self.low, self.others, self.collections != before), noise)

    def end_block(self, block: _Block, noise: Noise) -> Leak | None:
        self.blocks += 1
        if self.blocks & (self.blocks - 1) == 0:
            self.marks.append(block[0])
        found = None
        for level in range(_LEVELS):
            if level == len(self.windows):
                self.windows.append(_Window(_STEPS * _BLOCK << level))
            window = self.windows[level]
            pair = window.add(block, self.fresh, self.at_ns)
            if self.reported is None:
                if found is None and window.rises(noise) and not self._slows_down(window):
                    found = window
            elif self.reported is window and window.grown() < noise.floor_bytes * _REARM_SHARE:
                self.reported = None
            if pair is None:
                break
            block = pair
        if found is None:
            return None
        self.reported = found
        return found.leak()

    def _slows_down(self, window: _Window) -> bool:
        """Whether memory grew faster while the key's age doubled, and doubled again, up to the window's start.

        What fills up or warms up does so ever more slowly; a leak does not tire. One step in the past makes one
        doubling fast, not both. True also where there is not that much of a past.
        """
        blocks = window.inferences // _BLOCK
        past = self.blocks - blocks
        if past < _PAST_BLOCKS_MIN:
            return True
        last = past.bit_length() - 1
        older, old, new = self.marks[last - 2 : last + 1]
        past_rate = min((old - older) / (1 << last - 2), (new - old) / (1 << last - 1))
        return window.grown() / blocks < _DOUBLINGS_RATIO_MIN * past_rate


class Leaks:
    """The series of all keys. Fed by one thread; :meth:`growth` and :meth:`keys` may be called by another.

    A reading takes about 1 µs in the mean (in eight, one does the work of a block); a key takes up to 16 KiB.
    """

    def __init__(self, keys_max: int = 64) -> None:
        self._series: dict[Hashable, _Series] = {}
        self._keys_max = keys_max

    def add(
        self,
        key: Hashable,
        held_bytes: int | None,
        noise: Noise,
        *,
        at_ns: int,
        shape: Hashable = None,
        others: int = 0,
    ) -> Leak | None:
        """Take what was held after an inference; gives a leak once, and again only after the growth has stopped.

        Args:
            key: what the readings belong to, a model on a device. Beyond ``keys_max`` the longest silent one goes.
            held_bytes: the reading; ``None`` where there is none, and nothing happens.
            noise: :data:`RESIDENT` or :data:`ALLOCATOR`, by the kind of reading.
            at_ns: when it was taken, on any clock.
            shape: of the input, for what a new shape may cost.
            others: how many other inferences were open then.
        """
        if held_bytes is None:
            return None
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= self._keys_max:
                del self._series[min(self._series.items(), key=lambda item: item[1].at_ns)[0]]
            series = self._series[key] = _Series()
        return series.add(held_bytes, noise, shape, others, at_ns)

    def growth(self, key: Hashable) -> float | None:
        """Bytes that each inference adds: 0.0 where no leak was found, ``None`` before the first window is full."""
        series = self._series.get(key)
        if series is None or series.blocks < _STEPS + _PAST_BLOCKS_MIN:
            return None
        reported = series.reported
        return 0.0 if reported is None else max(0.0, reported.leak().bytes_per_inference)

    def keys(self) -> list[Hashable]:
        """The keys that have a series."""
        return list(self._series)

    def restart(self) -> None:
        """Begin anew: what was loaded or dropped meanwhile (another model, say) is no growth."""
        self._series.clear()


def _collections() -> int:
    """Garbage collections of this process so far, of all generations."""
    return sum(generation["collections"] for generation in gc.get_stats())


def _readable(size: float) -> str:
    unit = next((unit for unit in (30, 20, 10) if abs(size) >= 1 << unit), 0)
    return f"{size / (1 << unit):.4g} {_UNITS[unit]}"


class LeaksProbe(Probe):
    """Feeds the trend test with what was held after each inference; its readings are those of other measures."""

    name = "leaks"

    def __init__(self) -> None:
        self._leaks = Leaks()
        self._pid = os.getpid()

    def report(self, inference: Inference, mark: None, report: Report) -> None:
        if inference.operation == semconv.LOAD_OPERATION or self._pid != os.getpid():
            self._pid = os.getpid()
            self._leaks.restart()  # what a model takes is no growth; a forked child has memory of its own
            return
        model = inference.operation if inference.info is None else inference.info.name
        for device, held, noise in _readings(report):
            self._add(inference, model, device, held, noise, report)

    def _add(
        self, inference: Inference, model: str, device: str, held: int | None, noise: Noise, report: Report
    ) -> None:
        key, counts, at_ns = (model, device), inference.counts, inference.end_ns or 0
        shape = (counts.rows_max, counts.length_max)
        others = inference.overlap.open_after
        leak = self._leaks.add(key, held, noise, at_ns=at_ns, shape=shape, others=others)
        if leak is not None:
            # once for each memory: a leak anywhere in the process shows at every model that runs meanwhile
            faults.warn_once(f"leak {device}", leak.sentence(model, None if device == "cpu" else device))
            attributes = {
                semconv.DEVICE: device,
                semconv.GROWTH: leak.bytes_per_inference,
                semconv.GROWN: leak.grown_bytes,
                semconv.WINDOW: leak.inferences,
            }
            report.events.append(Event(semconv.LEAK_EVENT, attributes, at_ns))
        growth = self._leaks.growth(key)
        if growth is not None:
            on_device = {semconv.DEVICE: device}
            report.points.append(
                Point(semconv.MEMORY_GROWTH, growth, on_device, of_operation=False, has_exemplar=False)
            )


def _readings(report: Report) -> Iterator[tuple[str, int | None, Noise]]:
    process, memory = report.results.get("process"), report.results.get("memory")
    yield "cpu", None if process is None else process.memory_bytes, RESIDENT
    if memory is not None and memory.after is not None:
        yield memory.device, memory.after.allocated, ALLOCATOR
