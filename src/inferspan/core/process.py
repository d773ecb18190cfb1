"""The end of the process and its forks: what becomes of the inferences that are open then."""

from __future__ import annotations

import os
from contextlib import suppress
from time import perf_counter_ns, sleep

from opentelemetry.trace import get_current_span

from inferspan import faults
from inferspan.core import current
from inferspan.core.state import state

_CLOSING_NS = 10**9


def abandon_open() -> None:
    """The process ends, or is uninstrumented: close what still runs, with what is known of it. A lazy result ends
    with its last item."""
    found = list(state.open.values())
    for inference in found:
        if not inference.claim():
            continue
        inference.is_abandoned = True
        with inference.phases.lock:  # against a phase that ends just now
            inference.phases.cut_off()
            last, lazy = inference.phases.last, inference.lazy
            end_ns = None if lazy is None else max(lazy.last_ns, 0 if last is None else last.end_ns)
            current.close(inference, end_ns=end_ns, is_claimed=True)
    deadline_ns = perf_counter_ns() + _CLOSING_NS
    while any(id(inference) in state.open for inference in found) and perf_counter_ns() < deadline_ns:
        sleep(0.001)


def leave_process() -> None:
    """The process ends without exit handlers: emit now what they would have emitted."""
    sink = state.sink
    if sink is None:
        return
    try:
        abandon_open()
        sink.leave_process()
    except Exception:  # noqa: BLE001
        faults.note("scope.leave_process")


def _after_fork_in_child() -> None:
    # The child must not export its parent's inferences, nor record inside one that only the parent can end.
    inside = outer = current.here()
    while outer is not None:
        outer.is_of_parent, outer = True, outer.outer
    for inference in state.open.values():
        inference.claim()
        inference.end_ns = inference.start_ns
    state.open.clear()
    if inside is not None:
        inside.shade = current.enter_suppressed()


def _before_fork() -> None:
    # A root's ids are made when they are asked for: the child may be in the same trace, so both have to have them.
    # The current one may have ended: a task that was begun in it goes on in its context.
    roots = (inference.root for inference in list(state.open.values()))
    for span in filter(None, (get_current_span(), *roots)):
        with suppress(Exception):  # the current one may be of the program's making
            span.get_span_context()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
