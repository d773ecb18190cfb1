"""Fixtures of all tests: telemetry that is kept in memory, and an environment without surprises."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything imports a library that reads them.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import pytest

import inferspan
from inferspan import faults
from inferspan.integrations.patching import is_ours
from support.fakenvml import FakeDriver, build
from support.recorder import Recorder

PATCHED = [
    ("torch._dynamo.utils", "log_compilation_event"),
    ("torch.nn", "Module.eval"),
    ("transformers.generation.utils", "GenerationMixin.generate"),
    ("transformers.modeling_utils", "PreTrainedModel.__call__"),
    ("transformers.pipelines.base", "Pipeline.forward"),
    ("transformers.pipelines.text_generation", "TextGenerationPipeline.__call__"),
    ("transformers.tokenization_utils_base", "PreTrainedTokenizerBase.__call__"),
]


TOGETHER = ("tests/e2e/", "tests/gpu/", "tests/integration/test_distributed.py", "tests/integration/test_serve.py")
"""What one process runs where several run the tests (``pytest -n 2``): the backends, the GPU, torchrun and the service
are started once, and are not in two tests' figures at the same time."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each test goes to the process that is free; xdist's own groups (3.8) do nothing under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next(filter(nodeid.startswith, TOGETHER), nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "load" else None


class WithoutTorch(MetaPathFinder, Loader):
    """torch and transformers as if installed, but whoever imports them is skipped: a file of tests, or a single one."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in ("torch", "transformers") else None

    def exec_module(self, module: ModuleType) -> None:
        pytest.skip(f"needs {module.__name__}", allow_module_level=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-torch", action="store_true", help="skip what imports torch or transformers")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-torch"):
        assert "torch" not in sys.modules
        sys.meta_path.insert(0, WithoutTorch())


@pytest.fixture
def program_with_torch(request: pytest.FixtureRequest) -> None:
    """For a test that starts a program which imports torch: nothing is imported here, and it takes as long."""
    if request.config.getoption("--without-torch"):
        pytest.skip("its program needs torch")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own shell reaches a test."""
    for variable in list(os.environ):
        if variable.startswith(("INFERSPAN_", "OTEL_")):
            monkeypatch.delenv(variable)
    # what the developer's machine has besides; the tests of devices say otherwise
    monkeypatch.setenv("INFERSPAN_DEVICES", "never")


@pytest.fixture(autouse=True)
def faults_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault inside inferspan, which the program would never see, fails the test that met it."""
    monkeypatch.setattr(faults, "reraise", True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What samples (the pipelines' default for text) ends where it did before: by chance it draws an end token."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


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
    from inferspan.instrumentor import InferspanInstrumentor

    if InferspanInstrumentor().is_instrumented_by_opentelemetry:
        inferspan.uninstrument()


@pytest.fixture
def greenlet() -> Iterator[Any]:
    """The library, for one test: while it is loaded, more is looked at in each call."""
    yield pytest.importorskip("greenlet")
    del sys.modules["greenlet"]


@pytest.fixture
def trio() -> Iterator[Any]:
    yield pytest.importorskip("trio")
    del sys.modules["trio"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Fail the test that leaves something patched, not one that comes later and finds it so."""
    yield
    found = {f"{module}.{name}": _attribute(module, name) for module, name in PATCHED}
    assert [name for name, function in found.items() if is_ours(function)] == []


def _attribute(module: str, name: str) -> object:
    try:
        return attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):  # not imported
        return NotImplemented


def pytest_sessionfinish() -> None:
    """Tensors that DataLoader workers shared: freed while torch is whole, or it complains of each at exit."""
    reductions = sys.modules.get("torch.multiprocessing.reductions")
    if reductions is not None:
        reductions.shared_cache.clear()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub of the NVIDIA driver, built."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with one idle-looking H200, as far as this process's pynvml can tell."""
    driver = FakeDriver(nvml_library, tmp_path)
    driver.load(monkeypatch)
    return driver
