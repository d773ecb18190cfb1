"""``tests/e2e/application.py`` as a process that ``opentelemetry-instrument`` starts, and that is told what to do."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.backends import LOG_LINES

SCRIPT = Path(__file__).parents[1] / "e2e" / "application.py"
# With requests, on which the SDK's HTTP exporter is built, these two win over OTEL_EXPORTER_OTLP_CERTIFICATE.
NOT_INHERITED = ("OTEL_", "INFERSPAN_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
START_S = 180.0
ANSWER_S = 120.0
EXIT_S = 120.0


class Application:
    """Started and ready. ``endpoint`` is where its OTLP goes, ``protocol`` ``grpc`` or ``http/protobuf``."""

    def __init__(self, folder: Path, service: str, endpoint: str, protocol: str = "grpc", **environ: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.service = service
        self.log = folder / f"{service}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [_beside_python("opentelemetry-instrument"), sys.executable, str(SCRIPT)],
                env={
                    **kept,
                    "HF_HUB_OFFLINE": "1",
                    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                    "OMP_NUM_THREADS": "1",
                    "OTEL_SERVICE_NAME": service,
                    "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                    "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                    "OTEL_TRACES_EXPORTER": "otlp",
                    "OTEL_METRICS_EXPORTER": "otlp",
                    "OTEL_LOGS_EXPORTER": "none",
                    # often, so that a test need not wait; the defaults are 5 s and 60 s
                    "OTEL_BSP_SCHEDULE_DELAY": "200",
                    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                    "INFERSPAN_DEVICES": "never",
                    **environ,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._expect("ready", START_S)

    def do(self, what: str, times: int = 1, answer: str = "done") -> None:
        """Have it done that often, and return when it is; the test fails where it answers anything else."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {times}\n")
        self._process.stdin.flush()
        self._expect(answer, ANSWER_S)

    def end(self) -> str:
        """Let it end as a program does, with its telemetry flushed, and return what it wrote to its error output."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.service} does not end:\n{self._last_lines()}")
        assert status == 0, f"{self.service} ended with status {status}:\n{self._last_lines()}"
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line.strip())
        self._answers.put("(ended)")

    def _expect(self, wanted: str, patience_s: float) -> None:
        try:
            answer = self._answers.get(timeout=patience_s)
        except queue.Empty:
            answer = f"(nothing in {patience_s:.0f} s)"
        if answer != wanted:
            self.kill()
            pytest.fail(f"{self.service} answered {answer!r} in place of {wanted!r}:\n{self._last_lines()}")

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _beside_python(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name
