"""The table of integrations: what its rows say is there, and one row more is all that another library needs."""

from __future__ import annotations

import inspect
import linecache
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from wrapt import importer

import inferspan
from inferspan import config, faults, instrumentor, semconv
from inferspan.config import Settings
from inferspan.integrations import INTEGRATIONS, TORCH, Integration, Library, patching, version_attributes
from inferspan.integrations.registry import Registry
from support.recorder import Recorder

# What another library takes: this file, and the row below.
TOY_INTEGRATION = """
from inferspan.core import current

def install(module, patches):
    patches.wrap(module.Encoder, "encode", encode)

def encode(original):
    def encode(self, text):
        with current_inference("encode"):
            return original(self, text)
    return encode

def current_inference(name):
    from inferspan import inference
    return inference(name)
"""
TOY = Integration("toys", Library("toylib", oldest=(1, 2)), "toy_integration", {"toylib.encoder": "install"})
TOYLIB = {
    "__init__.py": "__version__ = '1.2.0'\nfrom toylib import encoder\n",
    "encoder.py": "class Encoder:\n    def encode(self, text):\n        return text.upper()\n",
}


@pytest.fixture
def toylib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library, and the file that patches it, neither imported yet."""
    (tmp_path / "toylib").mkdir()
    for name, source in TOYLIB.items():
        (tmp_path / "toylib" / name).write_text(source)
    (tmp_path / "toy_integration.py").write_text(TOY_INTEGRATION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(faults, "_between", set(faults._between))
    yield
    for name in ("toylib", "toylib.encoder", "toy_integration"):
        sys.modules.pop(name, None)
        importer._post_import_hooks.pop(name, None)  # older wrapt takes what was imported once as still there


def is_patched() -> bool:
    return patching.is_ours(vars(sys.modules["toylib.encoder"].Encoder)["encode"])


# The table


def test_rows_have_names_of_their_own() -> None:
    names = [integration.name for integration in INTEGRATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("integration", [pytest.param(row, id=row.name) for row in INTEGRATIONS])
def test_row_leads_to_functions_that_patch_modules_of_a_library(integration: Integration) -> None:
    file = import_module(integration.file, "inferspan.integrations")
    for module, function in integration.modules.items():
        parameters = list(inspect.signature(getattr(file, function)).parameters)
        assert (len(parameters), parameters[1]) == (2, "patches"), function
        assert module.partition(".")[0] in {library.name for library in integration.libraries}


@pytest.mark.parametrize("integration", [pytest.param(row, id=row.name) for row in INTEGRATIONS])
def test_row_says_once_when_it_is_on(integration: Integration) -> None:
    assert [integration.is_selectable, bool(integration.measure), integration.always].count(True) == 1
    assert integration.measure in ("", *config.MEASURES)


def test_hooks_that_may_be_named_are_those_of_the_table() -> None:
    assert config.HOOKS == (
        "pipelines",
        "generation",
        "continuous_batching",
        "tokenizers",
        "models",
        "modules",
        "loading",
    )
    assert Settings().hooks == frozenset(config.HOOKS)


def test_integrations_are_on_with_their_measure_their_name_or_always() -> None:
    def enabled(settings: Settings) -> list[str]:
        return [integration.name for integration in INTEGRATIONS if integration.is_enabled(settings)]

    always = [
        "streamers",
        "handover",
        "modules_by_hand",
        "compiled",
        "parallel",
        "multiprocessing",
        "uvicorn",
        "billiard",
    ]
    nothing = Settings(hooks=frozenset(), measure=frozenset())
    assert enabled(nothing) == always
    assert set(enabled(replace(nothing, measure=frozenset({"gpu_time"})))) == {*always, "graphs"}
    assert set(enabled(replace(nothing, measure=frozenset({"compiles"})))) == {*always, "compilation"}
    assert set(enabled(replace(nothing, hooks=frozenset({"tokenizers"})))) == {*always, "tokenizers"}
    assert enabled(Settings()) == [integration.name for integration in INTEGRATIONS]


def test_versions_on_the_scope_are_those_of_the_libraries() -> None:
    assert version_attributes() == {semconv.TRANSFORMERS_VERSION: "transformers", semconv.TORCH_VERSION: "torch"}
    assert version_attributes([TOY]) == {}
    assert version_attributes([replace(TOY, library=Library("toylib", version_attribute="toy.version"))]) == {
        "toy.version": "toylib"
    }


# What is imported


def test_files_of_integrations_are_imported_with_their_library_alone() -> None:
    code = """
import sys
import inferspan
inferspan.instrument()
def files():
    return [name for name in sorted(sys.modules) if name.startswith("inferspan.integrations.")]
print([name for name in files() if ".transformers" in name or name.endswith(("graphs", "parallel"))])
import torch
print([name for name in files() if ".transformers" in name or name.endswith(("graphs", "parallel"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n['inferspan.integrations.torch.graphs', 'inferspan.integrations.torch.parallel']\n"


def test_files_of_integrations_import_nothing_but_ours() -> None:
    # they are imported under a lock of wrapt's, and another thread's import of something else may wait for it
    code = """
import sys
import inferspan
inferspan.instrument()
from importlib import import_module
from inferspan.integrations import INTEGRATIONS
before = set(sys.modules)
for integration in INTEGRATIONS:
    import_module(integration.file, "inferspan.integrations")
print([name for name in set(sys.modules) - before if not name.startswith("inferspan.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# One library more


@pytest.mark.usefixtures("toylib")
def test_row_more_is_a_library_more(bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrumentor.state, "registry", Registry((*INTEGRATIONS, replace(TOY, always=True))))
    bare_recorder.instrument()
    assert "toy_integration" not in sys.modules

    from toylib.encoder import Encoder  # type: ignore[import-not-found]

    assert is_patched()
    assert Encoder().encode("a") == "A"
    assert bare_recorder.trees() == ["encode"]
    inferspan.uninstrument()
    assert not is_patched()
    assert Encoder().encode("a") == "A"
    bare_recorder.instrument()
    assert is_patched()


@pytest.mark.usefixtures("toylib")
def test_library_imported_before_is_patched_at_once() -> None:
    import toylib.encoder  # noqa: F401

    registry = Registry([TOY])
    registry.install(Settings(hooks=frozenset({"toys"})))
    assert is_patched()
    registry.remove()
    assert not is_patched()


@pytest.mark.usefixtures("toylib")
def test_library_that_is_not_asked_for_is_not_even_waited_for() -> None:
    registry = Registry([TOY])
    registry.install(Settings(hooks=frozenset()))
    import toylib.encoder  # noqa: F401

    assert not is_patched()
    assert "toy_integration" not in sys.modules
    registry.remove()


@pytest.mark.usefixtures("toylib")
def test_library_no_longer_asked_for_is_left_alone() -> None:
    registry = Registry([TOY])
    registry.install(Settings(hooks=frozenset({"toys"})))
    registry.remove()
    registry.install(Settings(hooks=frozenset()))
    import toylib.encoder  # noqa: F401

    assert not is_patched()
    registry.remove()


@pytest.mark.usefixtures("toylib")
@pytest.mark.parametrize(
    ("row", "old"),
    [
        pytest.param(replace(TOY, library=Library("toylib", oldest=(1, 3))), "toylib 1.2.0", id="itself"),
        pytest.param(replace(TOY, needs=(TORCH,)), "torch 2.3.0", id="what it needs"),
    ],
)
def test_library_too_old_or_on_one_too_old_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, row: Integration, old: str
) -> None:
    import torch

    monkeypatch.setattr(torch, "__version__", "2.3.0")
    monkeypatch.setattr(faults, "_reported", {})
    registry = Registry([row])
    registry.install(Settings(hooks=frozenset({"toys"})))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import toylib.encoder  # noqa: F401

    assert [str(warning.message).partition(" is ")[0] for warning in caught] == [old]
    assert str(caught[0].message).endswith("this is not instrumented: toys")
    assert caught[0].filename == __file__, "not the library's own file, nor one of ours"
    assert linecache.getline(__file__, caught[0].lineno).strip().startswith("import toylib.encoder")
    assert not is_patched()
    registry.remove()
