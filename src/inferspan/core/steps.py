"""The clock of one ``generate()``: when the first token came, how many steps there were, how long each took.

It is driven by :meth:`tick`, once each time the decoding loop asks whether it should go on: before the first token,
and after every token. transformers itself has waited for the device by then (the loop needs the answer on the
host), so a host clock read there is when the token was really there, and nothing of ours waits.

With assisted decoding one step yields one or more tokens: steps are counted here, tokens from the result.
"""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from inferspan import semconv

if TYPE_CHECKING:
    from collections.abc import Callable

    from inferspan.core.batch import Output

PREFILL, DECODE = semconv.PREFILL, semconv.DECODE
_KEPT_MAX = 1024


class Generation:
    """Steps of one generation, of one decoding loop or of several after each other. Times are ``perf_counter_ns``
    readings, ``outputs`` what each loop returned; ``read_later`` counts the last of them anew once it is on the host.
    ``loop`` is what an integration notes of the one that runs. ``is_assisted``: a draft proposes tokens.
    ``on_first_token`` is called when the first one is there.

    ``in_loop`` distinguishes a call that is the generation itself (Whisper's ``generate`` calls the general one for
    each segment, Blip's that of its language model) from one inside a step of it (a draft model), which must not count:
    ``has_nested`` says that there was one. ``forwards``: how often each model was called meanwhile, by its identity.

    One of a loop that is written out is driven by :meth:`mark`; ``tokens_later`` came with its steps after the first.
    """

    def __init__(self) -> None:
        self.start_ns = perf_counter_ns()
        self.end_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.steps = 0
        self.tokens_later = 0
        self.intervals_ns: list[int] = []
        self.outputs: list[Output] = []
        self.read_later: Callable[[Any], Output | None] | None = None
        self.in_loop = self.has_nested = False
        self.loop: Any = None
        self.forwards: defaultdict[int, int] = defaultdict(int)
        self.loops = 0
        self.is_assisted = False
        self.on_first_token: Callable[[], Any] | None = None
        self._stride = 1
        self._last_ns = 0
        self._in_first_step = True

    def tick(self, unfinished: bool = True) -> None:
        """The loop asks whether to go on; ``unfinished`` is the answer that it gets."""
        now = perf_counter_ns()
        began, self.in_loop = not self.in_loop, unfinished
        if began:
            self._in_first_step = True
            self.loops += 1
            return
        self.steps += 1
        if self.first_token_ns is None:
            self.first_token_ns = now
            if self.on_first_token is not None:
                self.on_first_token()
        elif not self._in_first_step and self.steps % self._stride == 0:
            self._keep(now - self._last_ns)
        self._in_first_step = False
        self._last_ns = self.last_token_ns = now

    def mark(self, tokens: int) -> None:
        """A step has given so many tokens."""
        if self.steps:
            self.tokens_later += tokens
        self.in_loop = True
        self.tick(unfinished=False)

    def so_far(self) -> Generation:
        """What there is of it, as one that ends now. The intervals stay with the one that goes on."""
        copied = copy(self)
        copied.end_ns, copied.intervals_ns = perf_counter_ns(), []
        return copied

    def until(self, end_ns: int) -> tuple[int | None, int]:
        """When the first token came and when the generation ended. One whose phase was cut off goes on beyond it."""
        first_ns = self.first_token_ns
        return None if first_ns is None or first_ns > end_ns else first_ns, min(self.end_ns or end_ns, end_ns)

    def time_per_step_ns(self) -> float | None:
        """Mean time of the steps after the first; ``None`` with fewer than two."""
        if self.first_token_ns is None or self.last_token_ns is None or self.steps < 2:
            return None
        return (self.last_token_ns - self.first_token_ns) / (self.steps - 1)

    def _keep(self, interval_ns: int) -> None:
        # A long generation keeps every second, fourth, … interval: bounded, and still spread over all its steps.
        self.intervals_ns.append(interval_ns)
        if len(self.intervals_ns) >= _KEPT_MAX:
            del self.intervals_ns[1::2]
            self._stride *= 2
