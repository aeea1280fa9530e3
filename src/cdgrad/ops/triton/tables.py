"""What the GPU kernels read: the records of their programs, and the weights of a metric; numpy only."""

from __future__ import annotations

from collections import Counter
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

    Where channels need it, segments are doubled and columns halved, up to `doublings` times. A column that is
    longer still takes several tiles, with segments doubled `looped` times and half of the rows, because the
    next tile is loaded meanwhile. Columns that are not aligned need more registers for their addresses, so
    there are half as many of them.
    """

    rows: int
    segments: int
    columns: int
    doublings: int
    warps: int
    vector: int = 4
    """Aligned columns that a thread loads at once."""
    looped: int = 2

    @property
    def kinds(self) -> int:
        """Sizes (the last one is looped over), each with aligned, contiguous and strided columns."""
        return 3 * (self.doublings + 2)

    def size(self, n: int) -> int:
        """Which of the sizes n channels take."""
        fitting = (i for i in range(self.doublings + 1) if n <= self.rows * self.segments << i)
        return next(fitting, self.doublings + 1)

    def shape(self, size: int, *, aligned: bool = True) -> tuple[int, int, int]:
        """Rows of a segment, segments and columns of a tile of that size."""
        loops = size > self.doublings
        doublings = self.looped if loops else size
        return self.rows >> loops, self.segments << doublings, self.columns >> doublings + (not aligned)

    def channels(self, size: int) -> int:
        """Channels that a tile of that size holds."""
        rows, segments, _ = self.shape(size)
        return rows * segments

    def tiles(self, n: int) -> int:
        """Tiles along n channels."""
        return -(-n // self.channels(self.size(n)))


# By the bytes of an element. A thread holds 32 elements (of float64 16), in at most 128 registers, with which
# two programs fit on a multiprocessor.
_REWEIGHTED = {2: Tile(8, 8, 128, 2, 8), 4: Tile(8, 8, 128, 2, 8), 8: Tile(8, 8, 64, 4, 8, 2)}
_SOBOLEV = {2: Tile(16, 4, 128, 4, 8, 2, 3), 4: Tile(16, 4, 128, 4, 8, 2, 3), 8: Tile(8, 8, 64, 4, 8, 2)}
_MEAN = {2: Tile(16, 4, 128, 3, 8, 2), 4: Tile(16, 4, 128, 3, 8, 2), 8: Tile(8, 8, 64, 4, 8, 2)}
TILES: dict[type[Metric], dict[int, Tile]] = {
    ReweightedL2: _REWEIGHTED,
    Sobolev: _SOBOLEV,
    MeanSobolev: _MEAN,
}


# Weights: of the metric, and before the others those of a channel count.
HEAD, SCALARS = 2, 9
_FINITE = 400  # exponents whose exponential and its square are finite


class Records(NamedTuple):
    """The programs of tensors of one dtype."""

    table: NDArray[np.int64]  # (programs, RECORD)
    used: int  # bit i: there are programs of kind i
    channels: tuple[int, ...]  # distinct channel counts, in the order of their weights
    scratch: int  # float64 values


def records(tensors: Sequence[tuple[Columns, bool]], *, sobolev: bool, tile: Tile) -> Records:
    """The programs' records, in the order in which they begin.

    Loops first, which take longest. Then kinds with few programs before those with many: the first program of
    a kind on a multiprocessor waits until its instructions come from memory, which the others use meanwhile.

    Args:
        tensors: columns of each tensor, and whether its first element lies at a multiple of 16 bytes.
        sobolev: whether the weights depend on the channel count, and a scratch is needed.
        tile: the tile.
    """
    channels = tuple(sorted({columns.n for columns, _ in tensors}))
    offsets = _offsets(channels, tile)
    table: list[tuple[int, NDArray[np.int64]]] = []
    number: Counter[int] = Counter()
    slots = 0
    for index, (columns, aligned) in enumerate(tensors):
        size, access = tile.size(columns.n), _access(columns, aligned, tile.vector)
        kind = 3 * size + access
        width = tile.shape(size, aligned=not access)[2]
        starts = np.arange(0, columns.number, width)
        programs = np.zeros((len(starts), RECORD), np.int64)
        programs[:, :7] = (index, 0, kind, columns.n, columns.step, columns.number, offsets[columns.n])
        programs[:, 1] = starts
        programs[:, 9::2] = 1
        programs[:, 9 : 9 + 2 * len(columns.axes)] = np.ravel(columns.axes)
        if sobolev and size > tile.doublings:
            share = tile.tiles(columns.n) * width
            programs[:, 7] = slots + share * np.arange(len(starts))
            slots += share * len(starts)
        table.append((kind, programs))
        number[kind] += len(starts)
    first_looped = 3 * (tile.doublings + 1)
    table.sort(key=lambda part: (part[0] < first_looped, number[part[0]], -part[1][0, 3]))
    used = sum(1 << kind for kind in number)
    return Records(np.concatenate([programs for _, programs in table]), used, channels, slots)


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
        rows, segments, _ = tile.shape(tile.size(n))
        at += SCALARS + 2 * rows + segments + tile.tiles(n) * (2 + segments)
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
    rows, segments, _ = tile.shape(tile.size(n))

    def power(exponent: NDArray[np.int64] | int) -> Array:
        return np.exp(-solve.theta * np.asarray(exponent))

    # From behind the segment that holds the last channel to this channel. Where it is not finite, neither
    # sum matters beyond the channel that it begins with.
    behind = solve.theta * (-n % rows)
    back = np.exp(behind) if behind < _FINITE else 0.0
    onto_next = solve.strength * power(1)
    scalars = [solve.complement, solve.inverse_pivot, solve.strength, onto_next, onto_next * back, back]
    scalars += [solve.near, solve.far, power(rows)]
    start = rows * segments * np.arange(tile.tiles(n))
    real = np.minimum(n - start, rows * segments)
    ends = rows * (1 + np.arange(segments))
    return np.concatenate(
        [
            np.array(scalars),
            power(rows - 1 - np.arange(rows)),
            power(np.arange(rows)),
            power(ends - rows),
            power(start),
            power(real),
            power(np.maximum(real[:, None] - ends, 0)).ravel(),
        ]
    )
