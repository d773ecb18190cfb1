"""Fixtures of all tests: telemetry that is kept in memory, and an environment without surprises."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Before anything imports a library that reads them.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import pytest

import inferspan
from inferspan import faults
from support.recorder import Recorder


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own shell reaches a test."""
    for variable in list(os.environ):
        if variable.startswith(("INFERSPAN_", "OTEL_")):
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def faults_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault inside inferspan, which the program would never see, fails the test that met it."""
    monkeypatch.setattr(faults, "reraise", True)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Instrumented with default settings, everything kept in memory; put back afterwards."""
    recorder = Recorder()
    recorder.instrument()
    yield recorder
    recorder.close()
    assert not faults.counts()


@pytest.fixture
def bare_recorder() -> Iterator[Recorder]:
    """The same, but the test calls ``recorder.instrument(...)`` itself, with its own settings."""
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture(autouse=True)
def uninstrumented_afterwards() -> Iterator[None]:
    yield
    from inferspan.instrumentors import InferspanInstrumentor

    if InferspanInstrumentor().is_instrumented_by_opentelemetry:
        inferspan.uninstrument()


def pytest_sessionfinish() -> None:
    """Tensors that DataLoader workers shared: freed while torch is whole, or it complains of each at exit."""
    reductions = sys.modules.get("torch.multiprocessing.reductions")
    if reductions is not None:
        reductions.shared_cache.clear()
