"""What the GPU kernels read: records of tensors, programs, and the weights of a metric; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdgrad.metrics import Array, MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import sobolev_weights
from cdgrad.ops.memory_layout import Columns
from cdgrad.ops.triton.kernels import RECORD


class Tile(NamedTuple):
    """What a program holds at once: rows of a segment, segments, columns.

    A column that is longer takes several tiles. Columns that are not aligned need more registers for their
    addresses, so there are half as many of them.
    """

    rows: int
    segments: int
    columns: int
    warps: int
    vector: int = 4
    """Aligned columns that a thread loads at once."""

    def tiles(self, n: int) -> int:
        """Tiles along n channels."""
        return -(-n // (self.rows * self.segments))

    def side(self, n: int) -> int:
        """Groups of columns beside each other in a tile: as many as its segments suffice for."""
        return self.segments // min(-(-n // self.rows), self.segments)

    def width(self, n: int, *, aligned: bool = True) -> int:
        """Columns of a program."""
        return self.side(n) * (self.columns >> (not aligned))


# By the bytes of an element. A thread holds 32 elements (of float64 16), in at most 128 registers, with which
# two programs fit on a multiprocessor.
_WIDE = Tile(8, 32, 16, 8, 2)
_REWEIGHTED = {2: Tile(8, 32, 32, 8), 4: Tile(8, 32, 32, 8), 8: _WIDE}
_SOBOLEV = {2: Tile(16, 32, 16, 8, 2), 4: Tile(16, 32, 16, 8, 2), 8: _WIDE}
_MEAN = {2: Tile(16, 16, 32, 8, 2), 4: Tile(16, 16, 32, 8, 2), 8: _WIDE}
TILES: dict[type[Metric], dict[int, Tile]] = {
    ReweightedL2: _REWEIGHTED,
    Sobolev: _SOBOLEV,
    MeanSobolev: _MEAN,
}


# Weights: of the metric, and before the others those of a channel count.
HEAD, SCALARS = 2, 10
_FINITE = 400  # exponents whose exponential and its square are finite


class Records(NamedTuple):
    """The tensors of one dtype, and the programs."""

    tensors: NDArray[np.int64]  # (tensors, RECORD)
    programs: NDArray[np.int32]  # (programs, 3): tensor, which of its blocks of columns, access
    used: int  # bit i: there are tensors of access i
    channels: tuple[int, ...]  # distinct channel counts, in the order of their weights
    scratch: int  # float64 values


def records(tensors: Sequence[tuple[Columns, bool]], *, sobolev: bool, tile: Tile) -> Records:
    """What the kernel reads of the tensors, and its programs in the order in which they begin.

    Those of many tiles first, which take longest. Then those of another access than most, whose first one
    waits until its instructions come from memory.

    Args:
        tensors: columns of each tensor, and whether its first element lies at a multiple of 16 bytes.
        sobolev: whether the weights depend on the channel count, and a scratch is needed.
        tile: the tile.
    """
    channels = tuple(sorted({columns.n for columns, _ in tensors}))
    offsets = _offsets(channels, tile)
    table = np.zeros((len(tensors), RECORD), np.int64)
    table[:, 8::2] = 1
    blocks: list[int] = []
    accesses: list[int] = []
    slots = 0
    for row, (columns, aligned) in zip(table, tensors, strict=True):
        n, access = columns.n, _access(columns, aligned, tile.vector)
        blocks.append(-(-columns.number // tile.width(n, aligned=not access)))
        side = tile.side(n)
        row[:7] = n, columns.step, columns.number, side, 2**16 // side + 1, offsets[n], slots
        row[8 : 8 + 2 * len(columns.axes)] = np.ravel(columns.axes)
        accesses.append(access)
        if sobolev and tile.tiles(n) > 1:
            slots += blocks[-1] * tile.tiles(n) * (tile.columns >> (access > 0))
    order = sorted(range(len(tensors)), key=lambda i: (-tile.tiles(tensors[i][0].n), -accesses[i]))
    programs = [np.stack(np.broadcast_arrays(i, np.arange(blocks[i]), accesses[i]), axis=1) for i in order]
    used = sum(1 << access for access in set(accesses))
    return Records(table, np.concatenate(programs).astype(np.int32), used, channels, slots)


def _access(columns: Columns, aligned: bool, vector: int) -> int:
    """0: contiguous columns, `vector` at a time; 1: contiguous; 2: strided."""
    if len(columns.axes) > 1 or (columns.axes and columns.axes[0][1] != 1):
        return 2
    return 0 if aligned and columns.number % vector == 0 and columns.step % vector == 0 else 1


def _offsets(channels: Sequence[int], tile: Tile) -> dict[int, int]:
    """Where the weights of each channel count begin."""
    offsets: dict[int, int] = {}
    at = HEAD
    for n in channels:
        offsets[n] = at
        at += SCALARS + tile.segments + tile.tiles(n) * (2 + tile.segments)
    return offsets


def weights(channels: Sequence[int], metric: Metric, tile: Tile) -> Array:
    """float64: 1 / lam and whether the boundary is periodic, then for Sobolev those of each channel count."""
    match metric:
        case ReweightedL2(lam=lam):
            return np.array([1 / lam, 0.0])
        case MeanSobolev(lam=lam, boundary=boundary):
            return np.array([1 / lam, boundary == "periodic"])
        case Sobolev(lam=lam, boundary=boundary):
            periodic = boundary == "periodic"
            each = [_sobolev(n, lam, tile, periodic) for n in channels]
            return np.concatenate([np.array([1 / lam, periodic]), *each])
        case _:
            raise TypeError(f"no Triton kernel is known for {metric!r}")


def _sobolev(n: int, lam: float, tile: Tile, periodic: bool) -> Array:
    """Weights of one channel count; `cdgrad.ops.triton.sobolev` says what each is for."""
    solve = sobolev_weights.images(n, lam, periodic)
    rows, segments = tile.rows, tile.segments

    def power(exponent: NDArray[np.int64] | int) -> Array:
        return np.exp(-solve.theta * np.asarray(exponent))

    # From behind the segment that holds the last channel to this channel. Where it is not finite, neither
    # sum matters beyond the channel that it begins with.
    behind = solve.theta * (-n % rows)
    back = np.exp(behind) if behind < _FINITE else 0.0
    onto_next = solve.strength * power(1)
    scalars = [solve.complement, solve.inverse_pivot, solve.strength, onto_next, onto_next * back, back]
    scalars += [solve.near, solve.far, power(1), power(rows)]
    start = rows * segments * np.arange(tile.tiles(n))
    real = np.minimum(n - start, rows * segments)
    ends = rows * (1 + np.arange(segments))
    return np.concatenate(
        [
            np.array(scalars),
            power(ends),
            power(start),
            power(real),
            power(np.maximum(real[:, None] - ends, 0)).ravel(),
        ]
    )
