"""The error codes of NVML: what each means for a device, for the driver, and for the user."""

from __future__ import annotations

from inferspan import faults

_BACK_OFF_S = (1.0, 60.0)

NO_DRIVER = 12
# not for this board, driver or user: bad argument, not supported, no permission, no function, version, deprecated
FOR_GOOD = frozenset({2, 3, 4, 13, 25, 26})
DEVICE_GONE = frozenset({15, 16, 28})  # lost, reset required, not found
DRIVER_GONE = frozenset({1, 9, NO_DRIVER, 18})  # not initialised, not loaded, no library, another version of it
_WARNINGS = {
    1: "NVML is not initialised any more: something shut it down",
    4: "the driver does not permit it to this user: some metrics of the device are absent",
    9: "the NVIDIA driver is not loaded",
    15: "the GPU has fallen off the bus",
    16: "the GPU has to be reset",
    18: "the NVIDIA driver was replaced while this process runs: its devices are absent until it is started again",
    28: "the GPU is not there any more",
    999: "the driver gave an unknown error",
}


class GoneError(Exception):
    """The device, or the whole driver, cannot be asked now; the argument is the driver's code."""


class BackOff:
    """When to try again: after 1 s, 2 s, … 60 s, until :meth:`reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.due_at, self._pause = 0.0, _BACK_OFF_S[0]

    def failed(self, now: float) -> None:
        self.due_at, self._pause = now + self._pause, min(self._pause * 2, _BACK_OFF_S[1])


def report(code: int, about: str) -> None:
    """Warn of a code that says something to the user, once for each code."""
    if code == NO_DRIVER:
        faults.logger.debug("inferspan: no NVIDIA driver here, so no metrics of NVIDIA devices")
    elif code in _WARNINGS:
        faults.warn_once(f"nvml {code}", f"NVML, {about}: {_WARNINGS[code]} (NVML error {code})")
