"""What ``opentelemetry-instrument`` takes longer to start a program with inferspan installed.

    python benchmarks/startup.py [--rounds 10]

``python -c pass`` plain, under ``opentelemetry-instrument`` without inferspan's part, and with it. Fresh processes that
take turns; seconds, the mean of the lower half of the rounds. It also looks whether torch was imported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from overhead import lower_half

PROGRAM = "import sys; sys.exit('torch' in sys.modules)"
AGENT = [str(Path(sys.executable).with_name("opentelemetry-instrument"))]
MODES: dict[str, tuple[list[str], dict[str, str]]] = {
    "plain": ([], {}),
    "without inferspan": (AGENT, {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "inferspan"}),
    "with inferspan": (AGENT, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    exporters = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode, (agent, environment) in MODES.items():
            start = time.perf_counter()
            command = [*agent, sys.executable, "-c", PROGRAM]
            subprocess.run(command, env={**os.environ, **exporters, **environment}, check=True)
            found[mode].append(time.perf_counter() - start)
    for mode, times in found.items():
        print(f"{mode:18} {lower_half(times):.3f} s")
    print("torch was not imported")


if __name__ == "__main__":
    main()
