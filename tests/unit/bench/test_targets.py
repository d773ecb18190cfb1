"""Specifications of targets, and callables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from inferspan.bench import targets
from inferspan.bench.targets import Specification, TargetError, parse
from inferspan.bench.workload import WorkloadError

FIRST = Specification("./model", task="text-generation", device="cpu", dtype="bfloat16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("./other", Specification("./other", "text-generation", device="cpu"), id="name"),
        pytest.param(
            "./other,dtype=float16",
            Specification("./other", "text-generation", device="cpu", dtype="float16"),
            id="name-and-key",
        ),
        pytest.param(
            "quantize=dynamic-int8,dtype=none",
            Specification("./model", "text-generation", device="cpu", quantize="dynamic-int8"),
            id="changes-of-the-first",
        ),
    ],
)
def test_parse(text: str, expected: Specification) -> None:
    assert parse(text, FIRST) == expected


@pytest.mark.parametrize("text", ["./other,fast", "name=x", "speed=9", "./other,direct=true"])
def test_parse_refuses_what_is_no_key(text: str) -> None:
    with pytest.raises(TargetError, match="is not KEY=VALUE"):
        parse(text, FIRST)


@pytest.mark.parametrize(
    ("name", "is_callable"),
    [
        ("my.module:make", True),
        ("module:Class.make", True),
        ("org/model", False),
        ("./folder", False),
        (r"C:\models\mine", False),
        ("module:", False),
    ],
)
def test_callables_are_told_from_models(name: str, is_callable: bool) -> None:
    assert Specification(name).is_callable is is_callable


def test_label_says_what_is_not_the_default() -> None:
    assert FIRST.label == "model bfloat16"
    assert (
        Specification("org/model", compile="default", quantize="dynamic-int8").label
        == "model dynamic-int8 compile default"
    )
    assert Specification("a.b:make").label == "a.b:make"


def test_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(TargetError, match="there is no such folder"):
        targets.load(Specification("./not-there"))


def test_quantization_that_is_not_known_is_refused(tmp_path: Any) -> None:
    with pytest.raises(TargetError, match="'int3' is not one of dynamic-int8"):
        targets.load(Specification(str(tmp_path), quantize="int3"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], targets.Target]:
    """The target whose module's function returns this."""

    def load(result: Any) -> targets.Target:
        module = ModuleType("bench_under_test")
        module.make = lambda: result  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return targets.load(Specification("bench_under_test:make"))

    return load


def test_callable_gets_batches(made: Callable[[Any], targets.Target]) -> None:
    target = made(lambda batch: [text.upper() for text in batch])

    assert target.caller(None, None, False)(["a", "b"]) == ["A", "B"]
    assert len(target.requests(7, None, 3, 0)[0].split()) == 7


def test_callable_without_arguments_is_called_as_it_is(made: Callable[[Any], targets.Target]) -> None:
    call = made(lambda: "done").caller(None, None, False)

    assert call([None]) == "done"
    with pytest.raises(WorkloadError, match="nothing to make batches of"):
        call([None, None])


def test_module_gets_inputs_of_the_batch(made: Callable[[Any], targets.Target]) -> None:
    torch = pytest.importorskip("torch")
    target = made((torch.nn.Linear(4, 2), lambda batch, length: torch.ones(batch, 4)))

    result = target.caller(None, None, False)([None] * 3)

    assert tuple(result.shape) == (3, 2)
    assert not result.requires_grad
    assert target.model == {"class": "Linear", "parameters": 10, "dtype": "float32", "device": "cpu", "size_bytes": 40}


@pytest.mark.parametrize("result", [5, (1, 2)], ids=["number", "tuple"])
def test_what_is_no_callable_is_refused(made: Callable[[Any], targets.Target], result: Any) -> None:
    with pytest.raises(TargetError, match="should give a callable"):
        made(result)


def test_module_without_inputs_is_refused(made: Callable[[Any], targets.Target]) -> None:
    torch = pytest.importorskip("torch")

    with pytest.raises(TargetError, match="nobody knows its inputs"):
        made(torch.nn.Linear(4, 2))
