"""Threads that come first at the same time."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from inferspan.integrations.patching import Patches
from support import cheap
from support.recorder import Recorder


def test_second_thread_waits_for_nothing_and_has_all_phases(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(cheap.CheapPipeline):
        def preprocess(self, item: Any) -> dict[str, Any]:
            return super().preprocess(item)

    pipe = Own(cheap.CheapModel(cheap.CheapConfig()).eval(), task="cheap", device="cpu")
    begun, go_on = threading.Event(), threading.Event()
    wrap = Patches.wrap

    def wrap_late(self: Patches, *args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert go_on.wait(30)
        wrap(self, *args)

    monkeypatch.setattr(Patches, "wrap", wrap_late)
    thread = threading.Thread(target=pipe, args=(1,))
    thread.start()
    assert begun.wait(30)
    pipe(2)
    go_on.set()
    thread.join(30)

    whole = ("cheap CheapModel", "preprocess", "forward", "postprocess")
    assert recorder.trees() == [whole, whole]
