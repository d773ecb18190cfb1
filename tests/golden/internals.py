"""All that the golden run takes from modules of Inferspan that are not public."""

from __future__ import annotations

import pytest

from inferspan import faults


def faults_fail(patch: pytest.MonkeyPatch) -> None:
    """A fault inside Inferspan, which the program would never see, ends the scenario that met it."""
    patch.setattr(faults, "reraise", True)


def faults_are_counted(patch: pytest.MonkeyPatch) -> None:
    """For scenarios in which something of the program's own fails inside Inferspan."""
    patch.setattr(faults, "reraise", False)


def forget_faults() -> None:
    """What scenarios have counted is nothing to the tests that come after them."""
    faults._counts.clear()
