"""What is kept of an exception: text, bounded, the message only when asked, and never the exception."""

from __future__ import annotations

import gc
import weakref

import pytest

from inferspan.core.errors import Failure, failure_of, type_name


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
    assert failure == Failure("ValueError", f'  File "{__file__}", line {line}, in {test}\n', None)


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
