"""What Inferspan adds to the latency of a service: ``examples/serve.py`` under load, with and without it.

    python benchmarks/service.py [--rounds 4] [--seconds 10] [--loads 30,60,90] [--cores N]

The service runs in a process of its own, in turns:

    off    as it is
    otel   under ``opentelemetry-instrument`` with FastAPI's instrumentation, but without ours
    ours   the same with ours: what changes nothing but ``pip install inferspan``

Spans and metrics are sent by OTLP over HTTP to a server here that throws them away. First the capacity of ``off`` is
measured: requests a second of four clients that never rest. Then requests arrive at random (a Poisson process of the
same seed for all) at shares of this capacity, whether the last ones were answered or not, and latency counts from when
a request was due. Medians over the rounds, and the difference to ``otel`` with 95 % of bootstrap samples.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from overhead import Sink, bootstrap

ROOT = Path(__file__).resolve().parent.parent
MODES = ("off", "otel", "ours")
FIGURES = ("P50", "P95", "P99", "answered/s")
BODY = b'{"text": "What a good day, and what a good book that was!"}'
REQUEST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def service(mode: str, sink: str, cores: int) -> Iterator[int]:
    """The service in this mode, once it answers; its port."""
    port = free_port()
    environ = {
        **os.environ,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "inferspan" if mode == "otel" else "",
        "UVICORN_LOG_LEVEL": "warning",
    }
    command = [sys.executable, str(ROOT / "examples" / "serve.py")]
    if mode != "off":
        command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, command[-1]]

    def pin() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pin if cores else None
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                asyncio.run(ask_once(port))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the service does not start: {' '.join(command)}") from None
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(60)


class Connection:
    """One connection that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self) -> None:
        self._writer.write(REQUEST % (len(BODY), BODY))
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def ask_once(port: int) -> None:
    connection = await Connection.open(port)
    await connection.ask()
    connection.close()


async def capacity(port: int, seconds: float) -> float:
    """Requests a second of four clients that never rest."""
    answered, end = 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal answered
        connection = await Connection.open(port)
        while time.perf_counter() < end:
            await connection.ask()
            answered += 1
        connection.close()

    await asyncio.gather(*(client() for _ in range(4)))
    return answered / seconds


async def arrivals(port: int, rate: float, seconds: float) -> dict[str, float]:
    """Latencies in milliseconds of requests that arrive at random, counted from when each was due."""
    chance, idle, latencies = random.Random(1), [await Connection.open(port) for _ in range(8)], []
    begin = time.perf_counter()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        await connection.ask()
        latencies.append((time.perf_counter() - due) * 1e3)
        idle.append(connection)

    tasks, due = [], begin
    while due < begin + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
        due += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    spent = time.perf_counter() - begin
    for connection in idle:
        connection.close()
    latencies.sort()
    found = {f"P{share}": latencies[int(len(latencies) * share / 100)] for share in (50, 95, 99)}
    return {**found, "answered/s": len(latencies) / spent}


def report(load: int, rounds: Sequence[dict[str, dict[str, float]]]) -> None:
    print(f"{load} % of capacity")
    for mode in MODES:
        line = f"  {mode:5}"
        for figure in FIGURES:
            line += f"  {figure} {statistics.median(found[mode][figure] for found in rounds):8.2f}"
            if mode == "ours":

                def share(rounds: Sequence[dict[str, dict[str, float]]], figure: str = figure) -> float:
                    return 100 * statistics.median(
                        found["ours"][figure] / found["otel"][figure] - 1 for found in rounds
                    )

                line += " {:+.1f} % [{:+.1f} {:+.1f}]".format(*bootstrap(rounds, share))
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--loads", type=lambda text: [int(load) for load in text.split(",")], default=[30, 60, 90])
    parser.add_argument("--cores", type=int, default=0, help="how many cores the service may use; 0: all there are")
    options = parser.parse_args()
    for module in ("fastapi", "uvicorn", "opentelemetry.instrumentation.fastapi", "opentelemetry.exporter.otlp"):
        if importlib.util.find_spec(module) is None:
            parser.error(f"{module} is not installed")
    sink = Sink.serve().removesuffix("/v1/traces")
    with service("off", sink, options.cores) as port:
        asyncio.run(capacity(port, 2))
        most = asyncio.run(capacity(port, options.seconds))
    print(f"capacity without telemetry: {most:.0f} requests a second")
    rounds: dict[int, list[dict[str, dict[str, float]]]] = {load: [] for load in options.loads}
    for number in range(options.rounds):
        found: dict[int, dict[str, dict[str, float]]] = {load: {} for load in options.loads}
        for mode in (*MODES[number % 3 :], *MODES[: number % 3]):
            with service(mode, sink, options.cores) as port:
                asyncio.run(capacity(port, 2))  # warm
                for load in options.loads:
                    found[load][mode] = asyncio.run(arrivals(port, most * load / 100, options.seconds))
        for load in options.loads:
            rounds[load].append(found[load])
    for load in options.loads:
        report(load, rounds[load])


if __name__ == "__main__":
    main()
