"""Real servers, stopped by a signal and recycling their workers: every request that was answered has its trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import pytest

from support.ledger import PATIENCE_S, TREE, Ran, environment, read

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="servers and signals of POSIX")

REQUESTS = 12
FORWARD = (*TREE, "forward")
UVICORN = ("uvicorn", "support.served:asgi", "--log-level", "warning", "--port")
GUNICORN = ("gunicorn", "support.served:wsgi", "--log-level", "warning", "--bind")


def serve(folder: Path, command: Sequence[str], *, instrumented: bool = True) -> Ran:
    """Start the server, have it answer, stop it by SIGTERM."""
    ledger, log = folder / f"ledger-{int(instrumented)}", folder / f"log-{int(instrumented)}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = str(port) if command[0] == "uvicorn" else f"127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *[where if part == "PORT" else part for part in command]],
            env=environment(ledger, instrumented, OMP_NUM_THREADS="1"),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for number in range(REQUESTS):
            assert ask(port, number, process, log) == number + 1
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Ran(status, "", log.read_text(errors="replace"), read(ledger))


def ask(port: int, number: int, process: subprocess.Popen[bytes], log: Path) -> int:
    """Ask until there is an answer: a server that starts, or changes its worker, refuses."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := _answer(port, number)) is None:
        if time.monotonic() > deadline or process.poll() is not None:
            pytest.fail(f"no answer:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)
    return answer


def _answer(port: int, number: int) -> int | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}", timeout=30) as answer:
            return int(answer.read())
    except (urllib.error.URLError, HTTPException, OSError):
        return None


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            (*UVICORN, "PORT"),
            id="uvicorn",
            marks=pytest.mark.promise("SIGTERM to uvicorn", "exported; it dies of the signal as ever"),
        ),
        pytest.param(
            (*UVICORN, "PORT", "--workers", "2", "--limit-max-requests", "3"),
            id="uvicorn, workers recycled",
            marks=pytest.mark.promise("recycling of uvicorn's workers, and SIGTERM to all", "exported"),
        ),
        pytest.param(
            (*GUNICORN, "PORT", "--workers", "2"),
            id="gunicorn",
            marks=pytest.mark.promise("SIGTERM to gunicorn", "exported"),
        ),
        pytest.param(
            (*GUNICORN, "PORT", "--workers", "1", "--max-requests", "3", "--preload"),
            id="gunicorn, preloaded, recycled",
            marks=pytest.mark.promise("recycling of gunicorn's workers, forked from a preloaded model", "exported"),
        ),
    ],
)
def test_server_exports_every_request_that_it_answered(tmp_path: Path, command: Sequence[str]) -> None:
    without = serve(tmp_path, command, instrumented=False)
    ran = serve(tmp_path, command)

    assert ran.status == without.status
    assert set(range(REQUESTS)) <= set(ran.ended())
    assert ran.exported(FORWARD) == ran.ended(), ran.stderr
    assert ran.points("gen_ai.client.operation.duration", "gen_ai.operation.name") == {
        "answer": sum(ran.ended().values())
    }
    assert "Traceback" not in ran.stderr


@pytest.mark.promise("uvicorn's workers under gunicorn", "exported")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_uvicorn_under_gunicorn_exports_every_request(tmp_path: Path) -> None:
    command = ("gunicorn", "support.served:asgi", "--worker-class", "uvicorn.workers.UvicornWorker", "--bind", "PORT")
    ran = serve(tmp_path, command)

    assert ran.status == 0, ran.stderr
    assert ran.exported(FORWARD) == ran.ended() == Counter([-1, *range(REQUESTS)])
