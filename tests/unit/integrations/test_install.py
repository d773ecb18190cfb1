"""When and where the libraries are patched: nothing imported, nothing done twice, nothing left behind."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import threading
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

import inferspan
from inferspan import InferspanWarning
from inferspan.core import current
from inferspan.instrumentor import InferspanInstrumentor, state
from inferspan.integrations import patching
from support.recorder import Recorder

HEAVY = "('torch', 'transformers', 'pynvml', 'numpy', 'tokenizers', 'rich')"


IMPORTS = "import transformers; from transformers.generation import utils; from transformers.pipelines import base"


def python(code: str, *options: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def patched() -> dict[str, bool]:
    """Whether the main methods are ours now."""
    import transformers
    from transformers.generation import utils
    from transformers.pipelines import base

    return {
        "pipeline": patching.is_ours(vars(base.Pipeline)["__call__"]),
        "generate": patching.is_ours(vars(utils.GenerationMixin)["generate"]),
        "tokenizer": patching.is_ours(vars(transformers.PreTrainedTokenizerBase)["__call__"]),
        "forward": "__call__" in vars(transformers.PreTrainedModel),
    }


ALL = {"pipeline": True, "generate": True, "tokenizer": True, "forward": True}
NONE = {"pipeline": False, "generate": False, "tokenizer": False, "forward": False}


def attributes_of_everything() -> dict[tuple[str, str], Any]:
    """Every attribute of every class of transformers and torch.nn that is loaded."""
    return {
        (f"{module}.{name}", attribute): value
        for module, loaded in list(sys.modules.items())
        if module.startswith(("transformers.", "torch.nn.modules.module", "torch._dynamo.eval_frame"))
        for name, cls in list(getattr(loaded, "__dict__", {}).items())
        if isinstance(cls, type)
        for attribute, value in vars(cls).items()
    }


# Importing


def test_import_and_instrument_import_no_library_and_start_no_thread() -> None:
    code = f"""
import sys, threading
import inferspan
inferspan.instrument()
print([name for name in {HEAVY} if name in sys.modules], threading.active_count())
with inferspan.inference("answer"):
    pass
print([name for name in {HEAVY} if name in sys.modules])
inferspan.uninstrument()
print([name for name in {HEAVY} if name in sys.modules], threading.active_count())
"""
    assert python(code) == "[] 1\n[]\n[] 1\n"


@pytest.mark.usefixtures("program_with_torch")
@pytest.mark.parametrize(
    "order",
    [
        pytest.param(
            "inferspan.instrument(); inferspan.uninstrument(); inferspan.instrument(); import transformers", id="before"
        ),
        pytest.param(f"{IMPORTS}; inferspan.instrument()", id="after"),
    ],
)
def test_instrument_before_or_after_the_import_patches_the_same(order: str) -> None:
    code = f"""
import inferspan
from inferspan.integrations.patching import is_ours
{order}
{IMPORTS}
def look():
    print(
        is_ours(vars(base.Pipeline)["__call__"]),
        is_ours(vars(utils.GenerationMixin)["generate"]),
        is_ours(vars(transformers.PreTrainedTokenizerBase)["__call__"]),
        "__call__" in vars(transformers.PreTrainedModel),
    )
look()
inferspan.uninstrument()
look()
inferspan.instrument()
look()
"""
    assert python(code) == "True True True True\nFalse False False False\nTrue True True True\n"


@pytest.mark.usefixtures("program_with_torch")
def test_library_imported_after_uninstrument_is_left_alone() -> None:
    code = """
import inferspan
inferspan.instrument()
inferspan.uninstrument()
from transformers import PreTrainedTokenizerBase
from inferspan.integrations.patching import is_ours
print(is_ours(vars(PreTrainedTokenizerBase)["__call__"]))
"""
    assert python(code) == "False\n"


# Doing and undoing


def test_instrument_patches_and_uninstrument_leaves_every_class_as_it_was(bare_recorder: Recorder) -> None:
    patched()  # imports
    before = attributes_of_everything()
    for _ in range(3):
        bare_recorder.instrument()
        assert patched() == ALL
        inferspan.uninstrument()
        assert patched() == NONE
    after = attributes_of_everything()

    assert {key for key in before if after.get(key) is not before[key]} == set()
    assert set(after) == set(before)


def test_instrument_with_some_hooks_patches_those_alone(bare_recorder: Recorder) -> None:
    bare_recorder.instrument(hooks=["tokenizers"])
    assert patched() == {**NONE, "tokenizer": True}
    inferspan.uninstrument()
    bare_recorder.instrument(hooks=[])
    assert patched() == NONE
    inferspan.uninstrument()
    bare_recorder.instrument()

    assert patched() == ALL


def test_instrument_twice_changes_nothing_and_says_so(
    bare_recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    bare_recorder.instrument(children_max=3)
    pipeline = state.pipeline
    bare_recorder.instrument(children_max=4)
    settings = current.settings()

    assert settings is not None
    assert (settings.children_max, state.pipeline) == (3, pipeline)
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "Attempting to instrument while already instrumented")
    ]


def test_uninstrument_twice_changes_nothing_and_says_so(
    bare_recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    bare_recorder.instrument()
    inferspan.uninstrument()
    inferspan.uninstrument()

    assert [record.message for record in caplog.records] == ["Attempting to uninstrument while already uninstrumented"]


def test_instrument_and_uninstrument_from_many_threads_end_in_order(
    bare_recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    patched()
    caplog.set_level(logging.CRITICAL, "opentelemetry.instrumentation.instrumentor")
    start = threading.Barrier(8)
    errors = []

    def work() -> None:
        start.wait()
        try:
            for _ in range(4):
                bare_recorder.instrument()
                with inferspan.inference("answer"):
                    pass
                inferspan.uninstrument()
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if InferspanInstrumentor().is_instrumented_by_opentelemetry:
        inferspan.uninstrument()

    assert errors == []
    assert patched() == NONE
    assert (current.settings(), len(current.state.open)) == (None, 0)
    bare_recorder.clear()
    bare_recorder.instrument()
    assert patched() == ALL
    with inferspan.inference("answer"):
        pass
    assert bare_recorder.trees() == ["answer"]


def test_threads_first_to_ask_get_one_instrumentor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InferspanInstrumentor, "_instance", None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            monkeypatch.setattr(InferspanInstrumentor, "_instance", None)
            start = threading.Barrier(8)
            found = []

            def work(start: threading.Barrier = start, found: list[int] = found) -> None:
                start.wait()
                found.append(id(InferspanInstrumentor()))

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(set(found)) == 1
    finally:
        sys.setswitchinterval(interval)


# What is not as it should be


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    """A module of that name that is not the real one."""
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def warned(recorder: Recorder, **settings: Any) -> list[str]:
    """What ``instrument()`` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder.instrument(**settings)
    assert {warning.category for warning in caught} <= {InferspanWarning}
    return [str(warning.message) for warning in caught]


OF_TRANSFORMERS = ["pipelines", "generation", "continuous_batching", "tokenizers", "models", "loading"]
ON_TORCH = ["pipelines", "generation", "continuous_batching", "models", "modules", "loading"]


@pytest.mark.parametrize(
    ("library", "version", "oldest", "off", "expected"),
    [
        pytest.param("transformers", "4.56.2", "4.57", OF_TRANSFORMERS, NONE, id="transformers"),
        pytest.param("transformers", "3.0.0", "4.57", OF_TRANSFORMERS, NONE, id="ancient transformers"),
        pytest.param("torch", "2.3.1+cu121", "2.4", ON_TORCH, {**NONE, "tokenizer": True}, id="torch"),
    ],
)
def test_library_that_is_too_old_is_warned_of_once_and_what_needs_it_is_left_alone(
    bare_recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    version: str,
    oldest: str,
    off: list[str],
    expected: dict[str, bool],
) -> None:
    patched()
    monkeypatch.setattr(sys.modules[library], "__version__", version)

    assert warned(bare_recorder) == [
        f"{library} {version} is older than {oldest}, the oldest that inferspan supports; "
        f"this is not instrumented: {', '.join(off)}"
    ]
    assert patched() == expected
    with inferspan.inference("answer"):
        pass
    assert bare_recorder.trees() == ["answer"]


def test_library_that_is_too_old_leaves_the_others_instrumented(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing.util as processes

    import torch
    import uvicorn.server as uvicorn

    patched()
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.40.0")
    assert len(warned(bare_recorder)) == 1

    assert patching.is_ours(vars(torch.nn.Module)["eval"])
    assert patching.is_ours(vars(uvicorn.Server)["shutdown"])
    assert state.registry._patches in list(processes._afterfork_registry.values())
    model = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    model(torch.ones(1, 2))
    assert bare_recorder.trees() == ["forward"]


def test_libraries_that_are_both_too_old_are_warned_of_each(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched()
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.40.0")
    monkeypatch.setattr(sys.modules["torch"], "__version__", "2.3.1")

    assert sorted(warning.split(" is ")[0] for warning in warned(bare_recorder)) == [
        "torch 2.3.1",
        "transformers 4.40.0",
    ]
    assert patched() == NONE


def test_library_that_is_too_old_is_warned_of_by_what_was_asked_for(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "__version__", "2.3.1")
    old = "torch 2.3.1 is older than 2.4, the oldest that inferspan supports; this is not instrumented: "

    assert warned(bare_recorder, hooks=["modules", "tokenizers"]) == [f"{old}modules"]
    inferspan.uninstrument()
    assert warned(bare_recorder, hooks=[]) == [f"{old}everything of it"]


@pytest.mark.parametrize(
    ("library", "version"),
    [
        pytest.param("transformers", "4.57.0.dev0", id="source build of the oldest"),
        pytest.param("transformers", "5.24.0.dev0", id="source build of the next"),
        pytest.param("transformers", "10.0.0", id="two digits"),
        pytest.param("torch", "2.4.0a0+git1234", id="vendor build of the oldest"),
        pytest.param("torch", "2.10.0", id="two digits after the point"),
        pytest.param("torch", "unknown", id="no version"),
        pytest.param("torch", "", id="empty"),
        pytest.param("torch", None, id="none"),
    ],
)
def test_library_that_is_not_known_to_be_too_old_is_instrumented(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch, library: str, version: str | None
) -> None:
    patched()
    monkeypatch.setattr(sys.modules[library], "__version__", version)

    assert warned(bare_recorder) == []
    assert patched() == ALL


def test_library_that_is_half_imported_is_warned_of_once(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # three hooks want this one
    module = pretend(monkeypatch, "transformers.modeling_utils")
    module.__spec__ = ModuleSpec("transformers.modeling_utils", None)
    module.__spec__._initializing = True  # type: ignore[attr-defined]

    assert warned(bare_recorder) == [
        "transformers.modeling_utils is only half imported, so inferspan cannot instrument it; "
        "call inferspan.instrument() before or after importing it, not during"
    ]


def test_library_without_what_is_patched_is_a_fault_once_and_the_import_goes_on(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from inferspan import faults

    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    patched()
    pretend(monkeypatch, "transformers.pipelines.base")
    bare_recorder.instrument()

    assert faults.counts() == {"hooks.pipelines: transformers.pipelines.base": 1}
    assert len(caplog.records) == 1
    assert patched() == {**ALL, "pipeline": False}


@pytest.fixture
def nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before torch and transformers were imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("nothing_imported")
@pytest.mark.parametrize(
    "imitation",
    [
        pytest.param(ModuleType("torch"), id="without a spec"),
        pytest.param(object(), id="no module at all"),
    ],
)
def test_torch_that_is_an_imitation_stops_nobody(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch, imitation: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch", imitation)

    assert warned(bare_recorder) == []
    with inferspan.inference("answer"):
        pass
    assert bare_recorder.trees() == ["answer"]


@pytest.mark.usefixtures("nothing_imported")
def test_torch_that_is_absent_is_warned_of_and_blocks_still_work(
    bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "torch" else find_spec(name, *args)
    )

    assert warned(bare_recorder) == [
        "torch is not installed: inferspan has only inferspan.inference() blocks to record"
    ]
    with inferspan.inference("answer"):
        pass
    assert bare_recorder.trees() == ["answer"]
