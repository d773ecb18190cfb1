"""What is kept of an exception: text, bounded, the message only when asked, and never the exception."""

from __future__ import annotations

import builtins
import gc
import weakref
from types import ModuleType

import pytest

from inferspan.core.errors import Failure, failure_of, type_name

IMPORTED_AS = __name__.replace(".", "/") + ".py"


class Boom(Exception):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def caught(error: BaseException, depth: int = 0) -> BaseException:
    """The exception after it was raised through ``depth`` frames."""

    def dive(left: int) -> None:
        if left:
            dive(left - 1)
        raise error

    try:
        dive(depth)
    except type(error) as raised:
        return raised
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(ValueError("x"), "ValueError", id="built in"),
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="built in, no Exception"),
        pytest.param(Boom("x"), f"{__name__}.Boom", id="of a module"),
    ],
)
def test_type_name_has_the_module_unless_built_in(error: BaseException, expected: str) -> None:
    assert type_name(error) == expected


def test_failure_without_message_quotes_neither_it_nor_the_source() -> None:
    try:
        raise ValueError("the prompt")
    except ValueError as error:
        failure = failure_of(error, with_message=False, message_length=100)
        line = error.__traceback__.tb_lineno if error.__traceback__ else None

    test = "test_failure_without_message_quotes_neither_it_nor_the_source"
    assert failure == Failure("ValueError", f'  File "{IMPORTED_AS}", line {line}, in {test}\n', None)


def program(path: str, module: str, source: str = "def fail():\n    raise ValueError('x')\n") -> ModuleType:
    """A module as it would be imported from there."""
    made = ModuleType(module)
    exec(compile(source, path, "exec"), vars(made))
    return made


@pytest.mark.parametrize(
    ("path", "module", "shown"),
    [
        pytest.param("/home/alice/acme-merger/ranker.py", "ranker", "ranker.py", id="module"),
        pytest.param("/home/alice/merger/train.py", "__main__", "train.py", id="script"),
        pytest.param(
            "/home/alice/merger/acme/rank/model.py", "acme.rank.model", "acme/rank/model.py", id="in packages"
        ),
        pytest.param("/home/alice/acme/rank/__init__.py", "acme.rank", "acme/rank/__init__.py", id="package"),
        pytest.param("/home/alice/alice.py", "alice", "alice.py", id="module called like its folder"),
        pytest.param("/home/alice/other/model.py", "acme.rank.model", "model.py", id="not from where its name says"),
        pytest.param("C:\\Users\\alice\\acme\\model.py", "acme.model", "acme/model.py", id="Windows"),
        pytest.param("/home/alice/lib.zip/acme/model.py", "acme.model", "acme/model.py", id="zip"),
        pytest.param("merger/model.py", "model", "model.py", id="relative"),
        pytest.param("<string>", "acme.model", "<string>", id="no file"),
        pytest.param("<ipython-input-3-4f>", "__main__", "<ipython-input-3-4f>", id="notebook"),
        pytest.param("<doctest /home/alice/a.txt[0]>", "a", "a.txt[0]>", id="doctest"),
        pytest.param(
            "/home/alice/.cache/huggingface/modules/transformers_modules/acme_hyphen_merger/model.py",
            "transformers_modules.acme_hyphen_merger.model",
            "model.py",
            id="code that came with a model in a local folder",
        ),
    ],
)
def test_failure_has_files_without_folders(path: str, module: str, shown: str) -> None:
    with pytest.raises(ValueError, match="x") as raised:
        program(path, module).fail()
    stack = failure_of(raised.value, with_message=True, message_length=100).stack

    assert stack.splitlines()[-1] == f'  File "{shown}", line 2, in fail'
    assert "alice" not in stack.replace(shown, "")


@pytest.mark.parametrize("name", [None, 3])
def test_failure_has_files_without_folders_in_a_nameless_module(name: object) -> None:
    module = program("/home/alice/model.py", "model")
    vars(module)["__name__"] = name
    with pytest.raises(ValueError, match="x") as raised:
        module.fail()

    stack = failure_of(raised.value, with_message=False, message_length=0).stack
    assert stack.splitlines()[-1] == '  File "model.py", line 2, in fail'


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise RuntimeError("the prompt") from cause
    except RuntimeError as error:
        return error


def test_failure_has_neither_notes_nor_causes() -> None:
    error = raised_from(caught(ValueError("read from /home/alice")))
    error.__notes__ = ["read from /home/alice"]  # type: ignore[attr-defined]

    plain = failure_of(error, with_message=False, message_length=100)
    assert (plain.type, plain.message, plain.stack.count("File")) == ("RuntimeError", None, 1)
    assert failure_of(error, with_message=True, message_length=100).message == "the prompt"


def test_failure_has_nothing_of_what_a_group_holds() -> None:
    group = getattr(builtins, "ExceptionGroup", None)
    if group is None:
        pytest.skip("Python 3.10 has no groups")
    failure = failure_of(group("several", [ValueError("/home/alice")]), with_message=True, message_length=100)

    assert failure == Failure("ExceptionGroup", "", "several (1 sub-exception)")


def test_failure_of_a_worker_has_the_traceback_in_its_message_without_folders() -> None:
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/home/alice/acme/data.py", line 7, in __getitem__\n    raise ValueError(text)\n'
        "ValueError: the prompt\n"
    )
    failure = failure_of(ValueError(text), with_message=True, message_length=1000)

    assert failure.message == text.replace("/home/alice/acme/", "")


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        pytest.param("acme.errors", "acme.errors.Refused", id="module"),
        pytest.param("/home/alice/errors.py", "Refused", id="module that is called like its file"),
        pytest.param("C:\\Users\\alice\\errors.py", "Refused", id="Windows"),
        pytest.param("transformers_modules.merger.errors", "Refused", id="code that came with a model"),
    ],
)
def test_type_name_has_no_folder(module: str, shown: str) -> None:
    assert type_name(type("Refused", (Exception,), {"__module__": module})()) == shown


def test_failure_with_message_has_it_cut() -> None:
    assert failure_of(caught(ValueError("x" * 50)), with_message=True, message_length=10).message == "x" * 10


def test_failure_whose_message_cannot_be_made_has_none() -> None:
    failure = failure_of(caught(Unprintable()), with_message=True, message_length=10)

    assert (failure.type, failure.message) == (f"{__name__}.Unprintable", None)


def test_failure_never_raised_has_an_empty_stack() -> None:
    assert failure_of(ValueError("x"), with_message=True, message_length=10) == Failure("ValueError", "", "x")


def test_failure_of_a_deep_stack_keeps_the_innermost_frames() -> None:
    stack = failure_of(caught(ValueError(), depth=200), with_message=False, message_length=0).stack

    assert stack.count("  File ") == 32
    assert stack.splitlines()[-1].endswith(", in dive")
    assert "in caught" not in stack


def test_failure_of_endless_recursion_is_bounded() -> None:
    def endless() -> None:
        endless()

    with pytest.raises(RecursionError) as raised:
        endless()

    assert failure_of(raised.value, with_message=False, message_length=0).stack.count("  File ") == 32


def test_failure_keeps_neither_the_exception_nor_what_its_frames_hold() -> None:
    class Tensor:
        pass

    def fail() -> tuple[Failure, weakref.ref[Tensor], weakref.ref[BaseException]]:
        tensor = Tensor()
        try:
            raise Boom(tensor)
        except Boom as error:
            return failure_of(error, with_message=True, message_length=10), weakref.ref(tensor), weakref.ref(error)

    failure, tensor, error = fail()
    gc.collect()

    assert (tensor(), error()) == (None, None)
    assert failure.type.endswith("Boom")


def test_failure_leaves_the_exception_as_it_was() -> None:
    cause = ValueError("cause")
    error = caught(Boom("x"))
    error.__cause__ = cause
    trace = error.__traceback__
    failure_of(error, with_message=True, message_length=10)

    assert (error.args, error.__cause__, error.__traceback__) == (("x",), cause, trace)
    assert getattr(error, "__notes__", None) is None
