"""How much runs for one inference: numbers of functions, which do not depend on the machine."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.recorder import Recorder

# Not to be raised without a reason that stands in docs/performance.md. Two are to spare: whether the resident memory is
# read again depends on the time since the last reading. With older versions a generation takes more calls.
CALLS_MAX = {"classification": 62, "model": 60, "generate": 280}
# Ours and OpenTelemetry's, where it is emitted.
EMITTING_MAX = {"classification": (215, 280), "model": (170, 160), "generate": (360, 540)}


def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "functions.py"
    spec = importlib.util.spec_from_file_location("functions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_library_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another test has imported one, each phase asks it for its task."""
    for name in ("greenlet", "trio"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def functions_of(recorder: Recorder) -> Callable[[str], Counter[str]]:
    functions: Any = benchmark()
    calls = functions.calls()
    return lambda name: functions.functions_of(calls[name])


@pytest.mark.parametrize("name", CALLS_MAX)
def test_few_functions_of_ours_run_on_the_calling_thread(
    functions_of: Callable[[str], Counter[str]], name: str
) -> None:
    counted = functions_of(name)

    assert sum(counted.values()) <= CALLS_MAX[name], counted.most_common()


@pytest.mark.parametrize("name", EMITTING_MAX)
def test_few_functions_run_where_it_is_emitted(recorder: Recorder, name: str) -> None:
    functions: Any = benchmark()
    ours, sdks = functions.emitting(functions.calls()[name])

    most = EMITTING_MAX[name]
    assert 0 < sum(ours.values()) <= most[0], ours.most_common()
    assert 0 < sum(sdks.values()) <= most[1], sdks.most_common()
