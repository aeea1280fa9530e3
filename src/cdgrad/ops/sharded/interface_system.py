"""The interface system: what the pieces of a cut channel interval need to know of one another.

An interval of n channels is cut into pieces. On a piece of L channels with piece mean mu, the solution of
``(I + c A) g~ = g`` (Sobolev; c = lam n^2, A the second difference over unit spacing) or
``c A g~ = g - M`` (mean-weighted; M the mean over the interval) is

    g~ = M + v + a + theta_right c w - theta_left c reversed(w)

* a, the standalone solve of the piece: the operator with free ends, on the deviation from mu; its mean is 0;
* theta, the jump of g~ across an end of the piece, 0 at a free end; c theta is the flux there;
* w, the piece's response, of mean 0, to a unit flux through its last channel;
* v, the piece mean of g~ - M.

The v and theta solve, with mass = 1 for Sobolev and 0 for mean-weighted,

    mass L v - c (theta_right - theta_left) = L (mu - M)      every piece
    sum of L v = 0                                            instead of the last one: it is their sum
    theta = g~(first of the next piece) - g~(last)            every cut

So a piece shares three numbers per column, mu and the end values of a, whatever its length. Means and
deviations are kept apart throughout: where c is large the deviation of g~ is of order 1/c, and a sum
of both would have lost it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from cdgrad.metrics import Array, MeanSobolev, Sobolev
from cdgrad.ops import eager
from cdgrad.ops.byte_cache import cached_by_bytes
from cdgrad.ops.pieces import NUMBERS, interface


class Piece(NamedTuple):
    """Part of an interval of channels, on one rank, that continues on another."""

    interval: int  # counted over the cut intervals of the axis
    rank: int
    slot: int  # counted over the pieces of this rank; a contiguous shard has at most two
    start: int  # on the rank
    length: int


class Coupling(NamedTuple):
    """How one piece is corrected by all pieces of its interval."""

    rows: Array  # (3, pieces * NUMBERS): v, theta_right, theta_left from every piece's mu - M, first, last
    response: Array  # (length,): c w
    shares: Array  # (pieces, 1): their parts of the interval


@lru_cache(maxsize=512)
def cut(channels: int, shards: int, n: int) -> tuple[Piece, ...]:
    """The pieces of the intervals of n channels that `torch.chunk` over the shards cuts, in order.

    >>> [(piece.rank, piece.start, piece.length) for piece in cut(6, shards=2, n=2)]
    [(0, 2, 1), (1, 0, 1)]
    """
    size = -(-channels // shards)
    bounds = [(min(rank * size, channels), min((rank + 1) * size, channels)) for rank in range(shards)]
    pieces: list[Piece] = []
    slots = [0] * shards
    interval = 0
    for low in range(0, channels, n):
        overlaps = [(max(a, low), min(b, low + n), rank) for rank, (a, b) in enumerate(bounds)]
        parts = [part for part in overlaps if part[0] < part[1]]
        if len(parts) < 2:
            continue
        for start, stop, rank in parts:
            pieces.append(Piece(interval, rank, slots[rank], start - bounds[rank][0], stop - start))
            slots[rank] += 1
        interval += 1
    return tuple(pieces)


def standalone(metric: Sobolev | MeanSobolev, n: int, length: int) -> Sobolev | MeanSobolev:
    """The metric of a piece of an interval of n channels: free ends, and lam length^2 = c."""
    return replace(metric, lam=metric.lam * (n / length) ** 2, boundary="free")


@cached_by_bytes(32 * 2**20)
def coupling(metric: Sobolev | MeanSobolev, lengths: tuple[int, ...], index: int) -> Coupling:
    """The correction of piece `index` of an interval cut into pieces of these lengths.

    Cost: O(max(lengths) + len(lengths)^3), once for each metric and cut.
    """
    n = sum(lengths)
    responses = [_response(metric, n, length) for length in lengths]
    rows = interface(metric, lengths, responses)[index].reshape(NUMBERS, -1)
    return Coupling(rows, responses[index], np.array(lengths)[:, None] / n)


@cached_by_bytes(32 * 2**20)
def _response(metric: Sobolev | MeanSobolev, n: int, length: int) -> Array:
    """c w: the piece's response, of mean 0, to a jump of 1 after its last channel."""
    unit = np.full((1, length), -1 / length)
    unit[0, -1] += 1
    solved = eager.directed(torch.from_numpy(unit), standalone(metric, n, length))
    return metric.lam * float(n) ** 2 * solved[0].numpy()
