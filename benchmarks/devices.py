"""What one collection of the device metrics costs in Python, with a driver that answers at once.

    LD_LIBRARY_PATH=FOLDER_OF_THE_STUB python benchmarks/devices.py [BOARDS]

The stub of the tests stands in for the driver (``gcc -shared -fPIC -o libnvidia-ml.so.1 tests/nvml_stub/fakenvml.c``),
so that what is left is pynvml, our own code and the SDK. The stub reads its script at each call, which costs more than
pynvml does: it is run without a script, and its own time is measured apart and shown.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
from collections.abc import Callable
from time import perf_counter, thread_time

import pynvml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from inferspan import config
from inferspan.devices import instruments
from inferspan.devices.host import Host
from inferspan.devices.nvml import Nvml
from inferspan.devices.ownership import Ownership
from inferspan.devices.sampler import Sampler

ROUNDS = 300


def median_ms(function: Callable[[], object]) -> float:
    """CPU time of this thread: the machine may have other work."""
    times = []
    for _ in range(ROUNDS):
        begun = thread_time()
        function()
        times.append((thread_time() - begun) * 1e3)
    return statistics.median(times)


def main() -> None:
    nvml = Nvml()
    boards = nvml.devices()
    for board in boards:
        nvml.read(board)
    calls = nvml.calls
    reading = median_ms(lambda: [nvml.read(board) for board in boards])
    calls = (nvml.calls - calls) // ROUNDS
    count = ctypes.c_uint()
    bare = pynvml.nvmlLib.nvmlDeviceGetCount_v2
    driver = median_ms(lambda: [bare(ctypes.byref(count)) for _ in range(calls)])

    sampler = Sampler([nvml], Host(), Ownership("always"), all_devices=True, interval_s=0)
    whole = median_ms(lambda: sampler._read(perf_counter()))
    sampler = Sampler([nvml], Host(), Ownership("always"), all_devices=True, interval_s=1e9)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instruments.create(provider.get_meter("benchmark"), config.load({}, {}), lambda: sampler)
    reader.get_metrics_data()
    collecting = median_ms(reader.get_metrics_data)

    version = sys.version.split()[0]
    print(f"Python {version}, {len(boards)} board(s), {calls} driver calls a snapshot, median of {ROUNDS} rounds")
    print(f"reading the boards, on the reader thread    {reading:6.2f} ms")
    print(f"  of it the stub's own calls                {driver:6.2f} ms")
    print(f"with host, process and points               {whole:6.2f} ms")
    print(f"collecting all instruments from a snapshot  {collecting:6.2f} ms, on the exporter's thread")


if __name__ == "__main__":
    main()
