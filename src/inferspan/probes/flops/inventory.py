"""What a model computes, as plain numbers, and in closed form what a call with given shapes adds up to.

An :class:`Inventory` is made by :func:`inferspan.probes.flops.walk.take_inventory`. It has a :class:`Stack` for all
layers that see the same positions: the main one, and before it an encoder or the tower of another modality. FLOPs are
two for each multiply-add. Everything here is arithmetic on integers: it may run on any thread, as often as one likes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class Flops(NamedTuple):
    """Floating-point operations; ``exact`` is false where something was left out or had to be assumed."""

    count: int  # type: ignore[assignment]  # nobody counts the elements of this tuple
    exact: bool


@dataclass(slots=True)
class CallShapes:
    """Shapes of one call, of ``rows`` rows.

    ``length`` is that of ids or embeddings (the encoder's, if there is one), ``decoder_length`` the decoder's,
    ``source_length`` that of an encoder's output that came ready, ``media`` the shape of pixels or audio, ``keep`` the
    positions that logits are asked for. ``past`` is what the cache holds, ``None`` where only the device knows;
    ``slides``: of layers with a window it holds no more than that.
    """

    rows: int
    length: int | None = None
    decoder_length: int | None = None
    source_length: int | None = None
    media: tuple[int, ...] | None = None
    past: int | None = 0
    keep: int | None = None
    cached: bool = True
    slides: bool = True


@dataclass(slots=True)
class Convolution:
    """A convolution, or a pooling with no FLOPs, in a chain: ``flops`` for each position that it writes (transposed:
    reads). One on a ``branch`` has the same input as what follows it."""

    flops: int
    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    branch: bool

    def sizes_after(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        each = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=False)
        if self.transposed:
            return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in each)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)


@dataclass(slots=True)
class Stack:
    """Layers that see the same positions.

    FLOPs of linear layers for each position (``token``), row, and position whose logits are kept (``head``); of
    attention for each pair of query and key, by the window of its layers. Cross-attention: for each position where
    there is an encoder's output (``cross``), each position of that output (``source``: keys and values, once;
    ``again``: in each forward), pair.
    """

    token: int = 0
    row: int = 0
    head: int = 0
    pairs: dict[int | None, int] = field(default_factory=dict)
    cross: int = 0
    source: int = 0
    again: int = 0
    source_pair: int = 0
    chain: list[Convolution] = field(default_factory=list)
    extra_tokens: int = 0
    layers: int = 0
    weight_bytes: int = 0

    def enter(self, work: CallShapes) -> tuple[int, int, int]:
        """FLOPs, rows and positions of what comes in: ids as they are, pixels and audio through the convolutions."""
        if work.media is None or (work.length is not None and not self.chain):
            return 0, work.rows, work.length or 1
        if not self.chain:
            return 0, work.rows, (work.media[1] if len(work.media) > 2 else 1) + self.extra_tokens
        rows, sizes = _spatial(work.media, self.chain[0])
        flops = 0
        for step in self.chain:
            after = step.sizes_after(sizes)
            flops += rows * step.flops * math.prod(sizes if step.transposed else after)
            sizes = sizes if step.branch else after
        # patches that come flat are the positions of one row
        rows, length = (rows, math.prod(sizes)) if sizes else (1, rows)
        return flops, rows, length + self.extra_tokens

    def flops(self, rows: int, queries: int, past: int = 0, source: int = 0, slides: bool = True) -> int:
        """One pass over ``queries`` new positions a row, after ``past`` cached ones, with ``source`` of an encoder."""
        each = self.token + sum(
            flops * (queries + (min(past, window - 1) if window is not None and slides else past))
            for window, flops in self.pairs.items()
        )
        if source:
            each += self.cross + self.source_pair * source
        once = self.row + (self.again if past else self.again + self.source) * source
        return rows * (queries * each + once)


@dataclass(slots=True)
class Inventory:
    """What one model computes. ``shards``: over how many devices tensor parallelism splits it; counts are of all.
    ``parameters`` are the names of what its ``forward`` takes, ``modules`` the identities of all its modules.

    ``weight_bytes`` is what a decoding step of one row reads of the weights: the decoder's and the head's, of experts
    as many as a token goes to, of embeddings one row; ``None`` where a format of its own hides its size. ``kv`` is
    what one token of one row takes in the cache, in bytes by window; ``None`` for a model without a cache.
    ``source_kv`` is what one position of an encoder's output takes there.
    """

    main: Stack
    encoder: Stack | None
    tower: Stack | None
    exact: bool
    parameters: tuple[str, ...]
    modules: frozenset[int]
    shards: int
    weight_bytes: int | None
    kv: dict[int | None, int] | None
    source_kv: int = 0

    def kv_bytes(self, rows: int, tokens: int, slides: bool = True, source: int = 0) -> int | None:
        """Bytes of the cache of ``rows`` with ``tokens`` each, of which a layer with a window keeps all that the next
        one sees besides itself, and ``source`` positions of an encoder."""
        if self.kv is None:
            return None
        return (
            rows
            * sum(
                size * (min(tokens, window - 1) if window is not None and slides else tokens)
                for window, size in self.kv.items()
            )
            + rows * source * self.source_kv
        )

    def forward(self, work: CallShapes) -> Flops:
        """One call of the model."""
        flops, rows, queries, source, exact = self._enter(work, work.decoder_length or work.length or 1)
        flops += self.main.flops(rows, queries, work.past or 0, source, work.slides)
        flops += rows * min(work.keep or queries, queries) * self.main.head
        return Flops(flops, exact and work.past is not None)

    def generation(self, first: CallShapes, steps: int, given: CallShapes | None = None) -> tuple[Flops, Flops]:
        """Prefill (up to the first token) and decode (the rest) of ``generate()`` with ``steps`` forwards in all.

        ``first`` are the shapes of the first of them, after which each takes one more position of each row; ``given``
        those of what ``generate()`` was given, which an encoder or a tower has seen before.
        """
        count, exact = self.forward(first)
        before = None if first.media is not None else given
        side = self.encoder or (self.tower if before is not None and before.media is not None else None)
        if before is not None and side is not None and before.source_length is None:
            flops, rows, source = side.enter(before)
            count += flops + side.flops(rows, source)
        _, rows, queries, source, _ = self._enter(first, first.decoder_length or first.length or 1)
        main, more, length = self.main, steps - 1, (first.past or 0) + queries
        if first.cached:
            crossed = main.cross + (main.source_pair + main.again) * source if source else 0
            decode = more * (main.token + main.row + crossed)
            for window, flops in main.pairs.items():
                decode += flops * _keys(length, more, window if first.slides else None)
            decode *= rows
            kept = more
        else:  # each step runs all that there is so far: of second degree in the step, so summed by its differences
            one, two, three = (main.flops(rows, length + step, 0, source) for step in (1, 2, 3))
            decode = more * one + math.comb(more, 2) * (two - one) + math.comb(more, 3) * (three - 2 * two + one)
            kept = _keys(length, more, None) if first.keep is None else more * first.keep
        return Flops(count, exact), Flops(decode + rows * kept * main.head, exact)

    def _enter(self, work: CallShapes, decoder_length: int) -> tuple[int, int, int, int, bool]:
        """FLOPs of what runs before the main stack, its rows and positions, the encoder's positions; exact?"""
        if self.encoder is not None:
            if work.source_length is not None:
                return 0, work.rows, decoder_length, work.source_length, self.exact
            flops, rows, source = self.encoder.enter(work)
            flops += self.encoder.flops(rows, source)
            return flops, work.rows, decoder_length, source, self.exact
        if self.tower is not None and work.media is not None:  # how many of its positions go on is not known
            flops, rows, length = self.tower.enter(work)
            flops += self.tower.flops(rows, length)
            return flops, *((work.rows, work.length) if work.length else (0, 1)), 0, False
        return *self.main.enter(work), work.source_length or 0, self.exact


def _keys(length: int, steps: int, window: int | None) -> int:
    """Keys that ``steps`` new tokens after ``length`` see in all, each one more than the last, up to the window."""
    growing = steps if window is None else min(max(window - length, 0), steps)
    return growing * length + growing * (growing + 1) // 2 + (steps - growing) * (window or 0)


def _spatial(shape: tuple[int, ...], first: Convolution) -> tuple[int, tuple[int, ...]]:
    """Rows and spatial sizes of a convolution's input, wherever its channels stand; flat patches have no size."""
    dimensions = len(first.kernel)
    if len(shape) == 2 and shape[1] == first.channels * math.prod(first.kernel):
        return shape[0], ()
    sizes = list(shape[1:])
    if len(sizes) > dimensions:
        places = [-dimensions - 1, -1, *range(-len(sizes), 0)]
        sizes.pop(next((place for place in places if sizes[place] == first.channels), -dimensions - 1))
    lead = len(sizes) - dimensions
    return shape[0] * math.prod(sizes[:lead]), tuple(sizes[lead:])
