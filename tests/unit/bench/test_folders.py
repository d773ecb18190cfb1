"""Paths in what a result keeps are cut to their last part; what only looks like one stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inferspan.bench.folders import last_part, without_folders


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("/home/alice/acme/model", "model", id="absolute"),
        pytest.param("/home/alice/acme/", "acme/", id="folder"),
        pytest.param("~/acme/model.pt", "model.pt", id="home"),
        pytest.param("~alice/acme/model.pt", "model.pt", id="somebody's home"),
        pytest.param("../acme/model.pt", "model.pt", id="relative"),
        pytest.param("C:\\Users\\alice\\model.pt", "model.pt", id="Windows"),
        pytest.param("\\\\server\\alice\\model.pt", "model.pt", id="share"),
        pytest.param("file:///home/alice/model.pt", "model.pt", id="file URL"),
        pytest.param("--out=/home/alice/run.json", "--out=run.json", id="option"),
        pytest.param("/a/x.so:/home/alice/y.so", "x.so:y.so", id="list"),
        pytest.param("[Errno 2] no file: '/home/alice b/c d/x.bin'", "[Errno 2] no file: 'x.bin'", id="with spaces"),
        pytest.param("from '/a/b' to '/home/alice/c'", "from 'b' to 'c'", id="two in quotes"),
        pytest.param('File "/home/alice/x.py", line 3', 'File "x.py", line 3', id="traceback"),
        pytest.param("cannot read /home/alice/x.bin, retry", "cannot read x.bin, retry", id="in a sentence"),
        pytest.param("https://huggingface.co/acme/model", "https://huggingface.co/acme/model", id="URL"),
        pytest.param("http://localhost:8000/v1", "http://localhost:8000/v1", id="URL with a port"),
        pytest.param("acme/model", "acme/model", id="Hub id"),
        pytest.param("package.module:function", "package.module:function", id="callable"),
        pytest.param("12.5 tokens/s, and/or 1 / 2", "12.5 tokens/s, and/or 1 / 2", id="no path"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_text_without_folders(text: str, left: str) -> None:
    assert without_folders(text) == left


def test_last_part_of_a_folder_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert [last_part(name) for name in ("acme/model", "acme/model/", "acme/other")] == ["model", "model", "acme/other"]


def test_command_of_a_result_has_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    from inferspan.cli.bench import _command

    monkeypatch.setattr(sys, "argv", ["/usr/bin/inferspan", "bench", "/home/alice/model", "-o", "/home/alice/run.json"])

    assert _command() == ["inferspan", "bench", "model", "-o", "run.json"]


def test_message_of_a_failure_has_no_folders() -> None:
    from inferspan.bench.point import _failure

    failure = _failure(FileNotFoundError(2, "No such file", "/home/alice/acme/prompts.txt"))

    assert (failure.type, failure.message) == ("FileNotFoundError", "[Errno 2] No such file: 'prompts.txt'")
