"""Faults of our own: logged once, counted, bounded, and never raised into the program."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from inferspan import InferspanWarning, faults

FAULT = (
    "inferspan: a fault in {}; the program is not affected, this part of its telemetry is missing. "
    "Further faults there are counted, not logged."
)


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


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    return caplog.record_tuples


def test_fault_first_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    fail("here")

    assert messages(caplog) == [("inferspan", logging.WARNING, FAULT.format("here"))]
    assert "RuntimeError: broken" in caplog.text
    assert "in fail" in caplog.text


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

    assert messages(caplog) == [("inferspan", logging.WARNING, "mend this")]


def test_warning_that_is_filtered_out_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", InferspanWarning)
        faults.warn("mend this")

    assert (caught, messages(caplog)) == ([], [])


def test_program_run_with_warnings_as_errors_goes_on() -> None:
    code = "import os; os.environ['INFERSPAN_METRICS'] = 'perhaps'\nimport inferspan; inferspan.instrument(); print(1)"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
    assert done.stderr == ("INFERSPAN_METRICS='perhaps' is not allowed (allowed: true, false); True is used instead\n")
