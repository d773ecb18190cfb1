"""Resident memory and CPU time of the process, as the kernel says them."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter_ns

import pytest

from inferspan import semconv
from inferspan.core.probe import Report
from inferspan.probes import process
from inferspan.probes.process import ProcessProbe, ResidentMemory, cpu_time_ns
from support import records

STATM = Path("/proc/self/statm")
needs_proc = pytest.mark.skipif(not STATM.exists(), reason="the platform has no /proc")


@pytest.fixture
def statm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the kernel's."""
    file = tmp_path / "statm"
    file.write_text("1000 25 10 1 0 99 0\n")
    monkeypatch.setattr(process, "_STATM", str(file))
    monkeypatch.setattr(process, "_PAGE_BYTES", 4096)
    return file


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@needs_proc
def test_memory_is_what_the_kernel_says() -> None:
    memory = ResidentMemory()
    expected = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = memory.read_bytes()
    memory.close()

    assert found is not None
    assert abs(found - expected) < 64 * 1024 * 1024
    assert found % os.sysconf("SC_PAGE_SIZE") == 0


def test_memory_is_the_resident_pages_in_bytes(statm: Path) -> None:
    assert ResidentMemory().read_bytes() == 25 * 4096


def test_memory_is_read_anew_each_time(statm: Path) -> None:
    memory = ResidentMemory()
    assert memory.read_bytes() == 25 * 4096
    statm.write_text("1000 26 10 1 0 99 0\n")

    assert memory.read_bytes() == 26 * 4096


@pytest.mark.parametrize(
    "text", [pytest.param("", id="empty"), pytest.param("12", id="short"), pytest.param("a b c", id="no numbers")]
)
def test_memory_of_an_unreadable_file_is_none(statm: Path, text: str) -> None:
    statm.write_text(text)

    assert ResidentMemory().read_bytes() is None


def test_memory_without_proc_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_STATM", str(tmp_path / "absent"))

    assert ResidentMemory().read_bytes() is None


def test_memory_closed_is_none_and_opened_again_is_there(statm: Path) -> None:
    memory = ResidentMemory()
    memory.close()
    memory.close()
    assert memory.read_bytes() is None
    memory.reopen()

    assert memory.read_bytes() == 25 * 4096


@needs_proc
def test_memory_opened_again_holds_one_descriptor() -> None:
    before = open_descriptors()
    memory = ResidentMemory()
    for _ in range(10):
        memory.reopen()
    assert open_descriptors() == before + 1
    memory.close()
    assert open_descriptors() == before


def test_cpu_time_goes_on_with_work() -> None:
    start = cpu_time_ns()
    while cpu_time_ns() == start:
        sum(range(1000))

    assert cpu_time_ns() > start


# The probe


def test_probe_reads_at_both_ends_of_an_inference(statm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = iter([5_000_000_000, 5_250_000_000])
    monkeypatch.setattr(process, "cpu_time_ns", lambda: next(cpu))
    probe = ProcessProbe()
    record = records.inference()
    mark = probe.begin(record, None)
    statm.write_text("1000 26 10 1 0 99 0\n")
    record.end_ns = perf_counter_ns() + 20_000_000
    probe.end(record, mark)
    report = Report()
    probe.report(record, mark, report)
    probe.close()

    assert report.attributes == {
        semconv.CPU_TIME: 0.25,
        semconv.MEMORY_USAGE_BEFORE: 25 * 4096,
        semconv.MEMORY_USAGE: 26 * 4096,
    }
    assert report.results["process"] is mark


def test_memory_is_not_read_again_within_ten_milliseconds_where_that_will_do(statm: Path) -> None:
    probe = ProcessProbe()
    record, at_once, later = (records.inference() for _ in range(3))
    begun = record.start_ns = perf_counter_ns()
    mark = probe.begin(record, None)
    assert mark.memory_start_bytes == 25 * 4096
    statm.write_text("1000 26 10 1 0 99 0\n")

    record.end_ns = at_once.start_ns = begun + 9_000_000
    probe.end(record, mark)
    assert mark.memory_bytes == 25 * 4096
    assert probe.begin(at_once, None).memory_start_bytes == 25 * 4096
    later.start_ns = perf_counter_ns() + 10_000_000
    assert probe.begin(later, None).memory_start_bytes == 26 * 4096
    statm.write_text("1000 27 10 1 0 99 0\n")
    record.end_ns = perf_counter_ns() + 10_000_000
    probe.end(record, mark)
    assert mark.memory_bytes == 27 * 4096
    probe.close()


def test_memory_is_known_to_whoever_asks_while_another_thread_reads_it(
    statm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, pread = ProcessProbe(), os.pread
    record, other = records.inference(), records.inference()
    mark, of_other = probe.begin(record, None), probe.begin(other, None)

    def read(*args: int) -> bytes:
        other.end_ns = record.end_ns - 1  # type: ignore[operator]
        probe.end(other, of_other)
        return pread(*args)

    record.end_ns = probe._memory.last_ns + 10_000_000
    monkeypatch.setattr(os, "pread", read)
    probe.end(record, mark)
    probe.close()

    assert (mark.memory_bytes, of_other.memory_bytes) == (25 * 4096, 25 * 4096)


def test_probe_of_an_inference_that_it_did_not_see_begin_reports_nothing() -> None:
    report = Report()
    probe = ProcessProbe()
    probe.report(records.inference(), None, report)
    probe.close()

    assert (report.attributes, report.results) == ({}, {})


@needs_proc
def test_probe_that_is_closed_holds_no_descriptor() -> None:
    before = open_descriptors()
    probe = ProcessProbe()
    assert open_descriptors() == before + 1
    probe.close()

    assert open_descriptors() == before
