"""Captures of graphs, seen through ``torch.cuda.CUDAGraph`` and its like of other kinds: begun, ended, failed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

from inferspan.integrations.patching import Patches, is_ours
from inferspan.integrations.torch import graphs
from inferspan.probes import accelerator
from inferspan.probes.captures import Captures


class Graph:
    """As in torch 2.15, where ``capture_end`` has two halves; ``fails`` names what raises."""

    fails = ""

    def capture_begin(self, pool: str = "") -> None:
        assert not _readable()
        if self.fails == "begin":
            raise RuntimeError("begin")

    def capture_end_pre(self) -> None:
        assert not _readable()
        if self.fails == "end":
            raise RuntimeError("end")

    def capture_end(self) -> None:
        self.capture_end_pre()


def _readable() -> bool:
    if accelerator.captures.keep_out():
        accelerator.captures.let_in()
        return True
    return False


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    captures = Captures()
    monkeypatch.setattr(accelerator, "captures", captures)
    monkeypatch.setattr(graphs, "captures", captures)
    module, patches = ModuleType("graphs"), Patches()
    module.NPUGraph = Graph  # type: ignore[attr-defined]
    module.make_graphed_callables = lambda: None  # type: ignore[attr-defined]
    graphs.install(module, patches)
    yield
    patches.undo()
    assert "_inferspan_wrapper" not in vars(Graph.capture_begin)


def test_readers_are_kept_away_from_begin_to_end() -> None:
    graph = Graph()
    assert _readable()
    graph.capture_begin(pool="x")
    assert not _readable()
    graph.capture_end()
    assert _readable()


def test_the_first_half_of_the_end_is_the_end() -> None:
    graph = Graph()
    graph.capture_begin()
    graph.capture_end_pre()
    assert _readable()


@pytest.mark.parametrize("fails", ["begin", "end"])
def test_a_capture_that_fails_is_over(fails: str) -> None:
    graph = Graph()
    graph.fails = fails

    def capture() -> None:
        graph.capture_begin()
        graph.capture_end()

    with pytest.raises(RuntimeError, match=fails):
        capture()
    assert _readable()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.cuda.graphs", "CUDAGraph"),
        ("torch.xpu.graphs", "XPUGraph"),
        ("torch.mtia.mtia_graph", "MTIAGraph"),
        ("torch.accelerator.graphs", "Graph"),
    ],
)
def test_classes_of_the_installed_torch(module: str, name: str) -> None:
    """What this torch has of them is patched, each by its own methods, and the bases in C++ are left alone."""
    torch = pytest.importorskip("torch")
    try:
        found = import_module(module)
    except ImportError:
        pytest.skip(f"torch {torch.__version__} has no {module}")
    patches = Patches()
    graphs.install(found, patches)
    try:
        kind = getattr(found, name)
        assert is_ours(vars(kind)["capture_begin"])
        assert is_ours(vars(kind)["capture_end"])
        assert not hasattr(vars(kind.__mro__[1]).get("capture_begin"), "_inferspan_wrapper")
    finally:
        patches.undo()
    assert not is_ours(vars(kind)["capture_begin"])
