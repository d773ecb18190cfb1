"""What is being captured, and who waits for whom."""

from __future__ import annotations

import os
import threading

import pytest

from inferspan.probes.captures import Captures
from inferspan.probes.captures import captures as of_this_process


def test_a_capture_waits_for_a_query_that_has_begun() -> None:
    captures = Captures()
    assert captures.keep_out()
    began = threading.Event()
    thread = threading.Thread(target=lambda: (captures.begin(1), began.set()))
    thread.start()
    assert not began.wait(0.05)
    captures.let_in()
    assert began.wait(5)
    thread.join()
    assert not captures.keep_out()


def test_captures_of_several_threads_at_once() -> None:
    captures = Captures()
    first, second = object(), object()
    captures.begin(first)
    captures.begin(second)
    captures.end(first)
    captures.end(first)  # capture_end calls capture_end_pre
    assert not captures.keep_out()
    captures.end(second)
    assert captures.keep_out()
    captures.let_in()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_knows_no_captures_of_its_parent() -> None:
    captures = of_this_process
    graph = object()
    captures.begin(graph)
    try:
        child = os.fork()
        if not child:
            os._exit(0 if captures.keep_out() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        captures.end(graph)
