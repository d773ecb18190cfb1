"""Folders of the program and of its models: nowhere in what leaves the process."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

import inferspan
from inferspan import faults
from support import tiny
from support.recorder import Recorder

SECRETS = ("alice", "acme")

PROGRAM = """
import torch

class Refused(Exception):
    pass

class Failing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x):
        try:
            self.linear(x, x)
        except TypeError as error:
            refused = Refused(f"in {__file__}")
            refused.__notes__ = [f"read {__file__}"]
            raise refused from error

class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise Refused(f"in {__file__}")

def scale(x, by):
    return x * 2 if by == "a" else x * 3
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder whose name is a secret."""
    home = tmp_path / "home" / "alice" / "acme-merger"
    home.mkdir(parents=True)
    return home


@pytest.fixture
def program(home: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in it, which the process of a worker finds as well."""
    file = home / "ranker.py"
    file.write_text(PROGRAM)
    spec = importlib.util.spec_from_file_location("ranker", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "ranker", module)
    return module


def saved(home: Path) -> str:
    folder = str(home / "model")
    tiny.causal_lm().save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    return folder


def load(home: Path, _: ModuleType) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(saved(home))


def load_nothing(home: Path, _: ModuleType) -> None:
    with pytest.raises((OSError, ValueError), match="alice"):
        transformers.LlamaForCausalLM.from_pretrained(str(home / "nothing"))


def complete(home: Path, _: ModuleType) -> None:
    folder = saved(home)
    transformers.pipeline("text-generation", model=folder, tokenizer=folder)("the king", max_new_tokens=2)


def tokenize(home: Path, _: ModuleType) -> None:
    transformers.AutoTokenizer.from_pretrained(saved(home))("the king")


def fail(_: Path, program: ModuleType) -> None:
    with pytest.raises(program.Refused):
        program.Failing().eval()(torch.ones(1))


def fail_in_a_block(home: Path, program: ModuleType) -> None:
    with (
        pytest.raises(program.Refused),
        inferspan.inference("answer", model=str(home / "model")) as block,
        block.phase("forward"),
    ):
        program.Failing()(torch.ones(1))


def fail_in_a_worker(_: Path, program: ModuleType) -> None:
    pipe = transformers.pipeline("text-generation", model=tiny.causal_lm(), tokenizer=tiny.text_tokenizer())
    with pytest.raises(program.Refused, match="Original Traceback"):
        list(pipe(program.Texts(), num_workers=1, max_new_tokens=2))


def compile_again(_: Path, program: ModuleType) -> None:
    scale = torch.compile(program.scale, backend="eager")
    with inferspan.inference("answer"):
        scale(torch.ones(2), "a")
        scale(torch.ones(2), "/home/alice")


CALLS = {
    call.__name__: call
    for call in (load, load_nothing, complete, tokenize, fail, fail_in_a_block, fail_in_a_worker, compile_again)
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_folders_of_the_program_are_nowhere(
    bare_recorder: Recorder, home: Path, program: ModuleType, call: Callable[[Path, ModuleType], None]
) -> None:
    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    bare_recorder.instrument(logger_provider=provider)
    call(home, program)
    spans = bare_recorder.spans()
    told = "\n".join([*(span.to_json() for span in spans), *map(str, points(bare_recorder)), *map(str, logs(exporter))])
    assert spans
    assert [secret for secret in SECRETS if secret in told] == []


def points(recorder: Recorder) -> list[Any]:
    return [point for name in sorted(recorder.metric_names()) for point in recorder.points(name)]


def logs(exporter: InMemoryLogRecordExporter) -> list[Any]:
    return [data.log_record.to_json() for data in exporter.get_finished_logs()]


def test_stack_of_the_programs_own_module_names_its_file(bare_recorder: Recorder, home: Path, program: Any) -> None:
    bare_recorder.instrument()
    fail(home, program)
    (event,) = next(span for span in bare_recorder.spans() if span.events).events
    attributes = event.attributes or {}
    assert set(attributes) == {"exception.type", "exception.stacktrace"}
    assert attributes["exception.type"] == "ranker.Refused"
    last = str(attributes["exception.stacktrace"]).splitlines()[-1]
    assert (last.startswith('  File "ranker.py", line '), last.endswith(", in forward")) == (True, True)


def test_folders_in_the_traceback_of_a_worker_are_not_in_a_captured_message(
    bare_recorder: Recorder, home: Path, program: Any
) -> None:
    bare_recorder.instrument(capture_content="SPAN_ONLY")
    fail_in_a_worker(home, program)
    (event,) = bare_recorder.span("text_completion").events
    message = str((event.attributes or {})["exception.message"])
    assert "Original Traceback" in message
    assert 'File "ranker.py", line ' in message
    # what the program has written itself is its own
    assert message.count("alice") == message.count(f"Refused: in {home}")


def test_fault_of_ours_is_logged_without_folders(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: Path, program: Any
) -> None:
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_counts", {})
    monkeypatch.setattr(faults, "_reported", {})
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program.Failing()(torch.ones(1))
        except program.Refused:
            faults.note("here")
    assert 'ranker.Refused at\n  File "' in caplog.text
    assert [secret for secret in SECRETS if secret in caplog.text] == []
