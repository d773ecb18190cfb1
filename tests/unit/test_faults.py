"""Faults of our own: logged once, counted, bounded, and never raised into the program."""

from __future__ import annotations

import linecache
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inferspan
from inferspan import InferspanWarning, faults
from support.recorder import Recorder

FAULT = (
    "inferspan: a fault in {}; the program is not affected, this part of its telemetry is missing. "
    "Further faults there are counted, not logged."
)
LOGGED = "not logged."


@pytest.fixture(autouse=True)
def as_in_a_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Faults are not raised again, and none are remembered from other tests or for them."""
    monkeypatch.setattr(faults, "reraise", False)
    monkeypatch.setattr(faults, "_reported", {})
    monkeypatch.setattr(faults, "_counts", {})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def fail(place: str, text: str = "broken") -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError:
        faults.note(place)


def line(warning: warnings.WarningMessage) -> str:
    """The line of source that it points at."""
    return linecache.getline(warning.filename, warning.lineno).strip()


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    """What was logged, without the exceptions."""
    return [(name, level, text.split(LOGGED)[0] + LOGGED) for name, level, text in caplog.record_tuples]


def test_fault_first_is_logged_with_where_it_came_from(caplog: pytest.LogCaptureFixture) -> None:
    fail("here")

    assert messages(caplog) == [("inferspan", logging.WARNING, FAULT.format("here"))]
    assert caplog.messages[0].split(LOGGED)[1].startswith(' RuntimeError at\n  File "')
    assert caplog.messages[0].endswith(", in fail\n")


def test_fault_is_logged_without_its_message_and_folders(caplog: pytest.LogCaptureFixture) -> None:
    fail("here", "Tell me a secret")

    assert "secret" not in caplog.text
    assert str(Path(__file__).parent) not in caplog.text


def test_fault_further_at_one_place_is_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        fail("here")
    fail("there")

    assert [message for _, _, message in messages(caplog)] == [FAULT.format("here"), FAULT.format("there")]
    assert faults.counts() == {"here": 1000, "there": 1}


def test_fault_counts_are_a_copy() -> None:
    fail("here")
    faults.counts().clear()

    assert faults.counts() == {"here": 1}


def test_faults_at_many_places_are_logged_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    for place in range(300):
        fail(str(place))

    assert len(messages(caplog)) == 256
    assert len(faults.counts()) == 300


def test_fault_after_forget_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    fail("here")
    faults.forget()
    fail("here")

    assert [message for _, _, message in messages(caplog)] == [FAULT.format("here")] * 2
    assert faults.counts() == {"here": 2}


def test_fault_in_our_own_tests_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", True)
    with pytest.raises(RuntimeError, match="broken"):
        fail("here")


def test_warning_is_issued_each_time() -> None:
    with warnings.catch_warnings(record=True) as caught:
        faults.warn("mend this")
        faults.warn("mend this")

    assert [warning.category for warning in caught] == [InferspanWarning] * len(caught)
    assert [str(warning.message) for warning in caught] == ["mend this", "mend this"]


def test_warning_once_is_issued_once_for_its_key() -> None:
    with warnings.catch_warnings(record=True) as caught:
        faults.warn_once("a", "first")
        faults.warn_once("a", "second")
        faults.warn_once("b", "third")

    assert [warning.category for warning in caught] == [InferspanWarning] * len(caught)
    assert [str(warning.message) for warning in caught] == ["first", "third"]


def test_warning_turned_into_an_error_is_logged_instead(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faults.warn("mend this")

    assert caplog.record_tuples == [("inferspan", logging.WARNING, "mend this")]


def test_warning_that_is_filtered_out_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", InferspanWarning)
        faults.warn("mend this")

    assert (caught, messages(caplog)) == ([], [])


def test_warning_points_at_the_line_that_instruments(bare_recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERSPAN_METRICS", "perhaps")
    with warnings.catch_warnings(record=True) as caught:
        inferspan.instrument()

    assert [(warning.filename, line(warning)) for warning in caught] == [(__file__, "inferspan.instrument()")]


def test_warning_through_a_library_of_the_table_points_at_who_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_between", set(faults._between))
    faults.look_past(["somelib"])
    library: dict[str, Any] = {"__name__": "somelib.inner"}
    exec(compile("def call(function): function('mend this')", "somelib.py", "exec"), library)
    with warnings.catch_warnings(record=True) as caught:
        library["call"](faults.warn)

    assert [(warning.filename, line(warning)) for warning in caught] == [(__file__, 'library["call"](faults.warn)')]


def test_warning_of_our_own_thread_points_at_what_issues_it() -> None:
    ours: dict[str, Any] = {"__name__": "inferspan.emit.somewhere", "faults": faults}
    exec(compile("def look():\n    faults.warn_once('a leak', 'mend this')", "somewhere.py", "exec"), ours)
    with warnings.catch_warnings(record=True) as caught:
        thread = threading.Thread(target=ours["look"])
        thread.start()
        thread.join()

    assert [(warning.filename, warning.lineno, str(warning.message)) for warning in caught] == [
        ("somewhere.py", 2, "mend this")
    ]


def test_warning_is_filtered_by_the_module_of_the_user() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        faults.warn("mend this")

    assert caught == []


# What is guarded


@faults.guarded("half")
def half(number: int, *, of: int = 2) -> int:
    """Half of it."""
    return number // of


@faults.guarded("count", default=-1)
def count(numbers: list[int]) -> int:
    return numbers.index(5)


def test_guarded_function_gives_its_result_and_looks_as_it_did() -> None:
    assert (half(6), half(9, of=3), half(number=4)) == (3, 3, 2)
    assert (half.__name__, half.__doc__, half.__wrapped__(6)) == ("half", "Half of it.", 3)  # type: ignore[attr-defined]
    assert faults.counts() == {}


def test_guarded_function_that_raises_is_a_fault_and_gives_the_default(caplog: pytest.LogCaptureFixture) -> None:
    assert (half(1, of=0), half(1, of=0), count([])) == (None, None, -1)

    assert faults.counts() == {"half": 2, "count": 1}
    assert [message for _, _, message in messages(caplog)] == [FAULT.format("half"), FAULT.format("count")]
    assert "in half" in caplog.text


def test_guarded_method_is_bound() -> None:
    class Counter:
        number = 3

        @faults.guarded("counter.add")
        def add(self, number: int) -> int:
            return self.number + number

    assert Counter().add(4) == 7
    assert Counter().add("4") is None  # type: ignore[arg-type]
    assert faults.counts() == {"counter.add": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_guarded_function_that_is_interrupted_passes_it_on(error: type[BaseException]) -> None:
    @faults.guarded("interrupted")
    def interrupted() -> None:
        raise error

    with pytest.raises(error):
        interrupted()
    assert faults.counts() == {}


def test_guarded_function_in_our_own_tests_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "reraise", True)
    with pytest.raises(ZeroDivisionError):
        half(1, of=0)


def test_program_run_with_warnings_as_errors_goes_on() -> None:
    code = "import os; os.environ['INFERSPAN_METRICS'] = 'perhaps'\nimport inferspan; inferspan.instrument(); print(1)"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
    assert done.stderr == ("INFERSPAN_METRICS='perhaps' is not allowed (allowed: true, false); True is used instead\n")
