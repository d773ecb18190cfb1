"""XID events, by which NVIDIA's driver reports errors of a GPU: counted by a thread that only waits for them."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from inferspan import faults, semconv
from inferspan.devices.reader import Sample, of

_XIDS_MAX = 64
_XID = 0x8


class Xids:
    """Counts the driver's XID events, on a thread that only waits for them."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._stop = threading.Event()
        self._watched: set[str] = set()

    def counts(self, device_id: str) -> Sample:
        counts = list(self._counts.items())
        return {of(semconv.XIDS, semconv.XID_CODE, code): n for (about, code), n in counts if about == device_id}

    def start(self, pynvml: Any, handles: dict[str, Any]) -> None:
        if self._watched == set(handles) and not self._stop.is_set():
            return
        self._stop.set()
        self._watched, self._stop = set(handles), threading.Event()
        arguments = (pynvml, handles, self._stop)
        threading.Thread(target=self._run, args=arguments, name="inferspan-xid", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self, pynvml: Any, handles: dict[str, Any], stop: threading.Event) -> None:
        try:
            events = pynvml.nvmlEventSetCreate()
            for handle in handles.values():
                pynvml.nvmlDeviceRegisterEvents(handle, _XID, events)
            owners = {_address(handle): device_id for device_id, handle in handles.items()}
            while not stop.is_set():
                self._wait(pynvml, events, owners)
            pynvml.nvmlEventSetFree(events)
        except Exception as error:  # noqa: BLE001 - no such events (Windows, vGPU), or the driver went away
            faults.logger.debug("inferspan: XID errors are not watched (%s)", error)
            stop.set()

    def _wait(self, pynvml: Any, events: Any, owners: dict[int, str]) -> None:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, 1000)
        except pynvml.NVMLError_Timeout:
            return
        key = (owners.get(_address(event.device), ""), int(event.eventData))
        if key in self._counts or len(self._counts) < _XIDS_MAX:
            self._counts[key] = self._counts.get(key, 0) + 1


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
