"""What the GPU kernels read: the records of their programs, and the weights of a metric; numpy only."""

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

    Where channels need it, segments are doubled and columns halved, up to `doublings` times; a column that is
    longer still takes several of the last tile, with a quarter of the rows.
    """

    rows: int
    segments: int
    columns: int
    doublings: int
    warps: int

    @property
    def kinds(self) -> int:
        """Sizes (the last one is looped over), each with aligned, contiguous and strided columns."""
        return 3 * (self.doublings + 2)

    def size(self, n: int) -> int:
        """Which of the sizes n channels take."""
        fitting = (i for i in range(self.doublings + 1) if n <= self.rows * self.segments << i)
        return next(fitting, self.doublings + 1)

    def shape(self, size: int) -> tuple[int, int, int]:
        """Rows of a segment, segments and columns of a tile of that size."""
        doublings = min(size, self.doublings)
        rows = self.rows if size == doublings else self.rows // 4
        return rows, self.segments << doublings, self.columns >> doublings

    def channels(self, size: int) -> int:
        """Channels that a tile of that size holds."""
        rows, segments, _ = self.shape(size)
        return rows * segments

    def tiles(self, n: int) -> int:
        """Tiles along n channels."""
        return -(-n // self.channels(self.size(n)))


# By the bytes of an element. A thread holds 32 elements (of float64 16). Chosen from the compiler's output
# for 128 registers, with which two programs fit on a multiprocessor.
TILES = {2: Tile(8, 8, 128, 4, 8), 4: Tile(8, 8, 128, 4, 8), 8: Tile(8, 8, 64, 4, 8)}


def vector(itemsize: int) -> int:
    """Columns that a thread loads at once: 16 bytes, of 16-bit elements 8.

    Eight columns a thread have twice the float64 values that cross segments: 500 bytes of them were spilled.
    """
    return min(4, 16 // itemsize)


class Records(NamedTuple):
    """The programs of tensors of one dtype."""

    table: NDArray[np.int64]  # (programs, RECORD)
    used: int  # bit i: there are programs of kind i
    channels: tuple[int, ...]  # distinct channel counts, in the order of their weights
    scratch: int  # float64 values


def records(tensors: Sequence[tuple[Columns, bool]], sobolev: bool, itemsize: int, tile: Tile) -> Records:
    """The programs' records; those that take longest come first, so that none is left over at the end.

    Args:
        tensors: columns of each tensor, and whether its first element lies at a multiple of 16 bytes.
        sobolev: whether the weights depend on the channel count, and a scratch is needed.
        itemsize: bytes of an element.
        tile: the tile.
    """
    channels = tuple(sorted({columns.n for columns, _ in tensors}))
    offsets = _offsets(channels, tile)
    table: list[NDArray[np.int64]] = []
    used = slots = 0
    for index, (columns, aligned) in sorted(enumerate(tensors), key=lambda job: -job[1][0].n):
        size = tile.size(columns.n)
        kind = 3 * size + _access(columns, aligned, vector(itemsize))
        used |= 1 << kind
        width = tile.shape(size)[2]
        starts = np.arange(0, columns.number, width)
        programs = np.zeros((len(starts), RECORD), np.int64)
        programs[:, :9] = (index, 0, kind, columns.n, columns.step, columns.number, *offsets[columns.n], 0)
        programs[:, 1] = starts
        programs[:, 10::2] = 1
        programs[:, 10 : 10 + 2 * len(columns.axes)] = np.ravel(columns.axes)
        if sobolev and size > tile.doublings:
            share = tile.tiles(columns.n) * width
            programs[:, 8] = slots + share * np.arange(len(starts))
            slots += share * len(starts)
        table.append(programs)
    return Records(np.concatenate(table), used, channels, slots)


def _access(columns: Columns, aligned: bool, vector: int) -> int:
    """0: contiguous columns, `vector` at a time; 1: contiguous; 2: strided."""
    if len(columns.axes) > 1 or (columns.axes and columns.axes[0][1] != 1):
        return 2
    return 0 if aligned and columns.number % vector == 0 and columns.step % vector == 0 else 1


def _offsets(channels: Sequence[int], tile: Tile) -> dict[int, tuple[int, int]]:
    """Of each channel count its first row, and where its segment weights begin (behind their head)."""
    tiles = [tile.tiles(n) for n in channels]
    lengths = [count * tile.channels(tile.size(n)) for n, count in zip(channels, tiles, strict=True)]
    at = 2 + 2 * sum(lengths)
    offsets: dict[int, tuple[int, int]] = {}
    row = 0
    for n, count, length in zip(channels, tiles, lengths, strict=True):
        offsets[n] = row, at + count + 1
        row += length
        at += count + 1 + 8 * (length // tile.shape(tile.size(n))[0])
    return offsets


def weights(channels: Sequence[int], metric: Metric, tile: Tile) -> tuple[Array, Array]:
    """float64: 1 / lam and whether the boundary is periodic, row weights, then heads and segment weights;
    and those of recurrences.
    """
    match metric:
        case ReweightedL2(lam=lam):
            return np.array([1 / lam, 0.0]), np.zeros(1)
        case MeanSobolev(lam=lam, boundary=boundary):
            return np.array([1 / lam, boundary == "periodic"]), np.zeros(1)
        case Sobolev(lam=lam, boundary=boundary):
            periodic = boundary == "periodic"
            each = [_sobolev(n, lam, tile, periodic) for n in channels]
            rows, segments, local = ([arrays[i] for arrays in each] for i in range(3))
            return np.concatenate([np.array([1 / lam, periodic]), *rows, *segments]), np.concatenate(local)
        case _:
            raise TypeError(f"no Triton kernel is known for {metric!r}")


def _sobolev(n: int, lam: float, tile: Tile, periodic: bool) -> tuple[Array, Array, Array]:
    """Row, segment and recurrence weights of one channel count, padded to whole tiles.

    Rows beyond the last pass on what comes from either side; so does the row before the first.
    """
    solve = sobolev_weights.sobolev(n, lam)
    tiles = tile.tiles(n)
    rows, height = tiles * tile.channels(tile.size(n)), tile.shape(tile.size(n))[0]
    less_before, less_after, inverse_pivot = np.zeros((3, rows))
    less_before[1:n] = solve.complement[: n - 1]
    less_after[: n - 1] = solve.complement[: n - 1]
    # The last row passes x_{n-1} on as well: its pivot is small where c is large, and would amplify rounding.
    inverse_pivot[: n - 1] = solve.inverse_pivot[:-1]
    before, mirrored = np.ones((2, rows))
    before[1:n] = solve.ratio[: n - 1]
    mirrored[: n - 1] = solve.ratio[: n - 1][::-1]  # of b_{m+1} in b_m
    before, mirrored = before.reshape(-1, height), mirrored.reshape(-1, height)
    in_last, in_first = np.ones((2, *before.shape))
    in_last[:, :-1] = np.cumprod(before[:, :0:-1], axis=1)[:, ::-1]  # of g_m in f at the segment's last row
    in_first[:, 1:] = np.cumprod(mirrored[:, :-1], axis=1)  # and in b at its first
    factor, factor_up = before.prod(1), mirrored.prod(1)
    last = np.arange(1, len(before) + 1) * height - 1
    inner = last + 1 < n
    of_b = np.where(inner, solve.green[np.minimum(last + 1, n - 1)], solve.inverse_pivot[-1])
    of_f = np.where(inner, of_b * solve.ratio[np.minimum(last, n - 1)], of_b)
    by_tile: Array = np.ones(tiles)
    by_tile[1:] = np.cumprod(factor.reshape(tiles, -1).prod(1))[:-1]
    head = np.append(by_tile[::-1], periodic * solve.wrap_flux**2 * solve.green[0])
    segments = [factor, factor_up, of_f, of_b, *_through_tiles(factor, factor_up, tiles)]
    return (
        np.stack([in_last.ravel(), in_first.ravel()], axis=1).ravel(),
        np.concatenate([head, np.stack(segments, axis=1).ravel()]),
        np.stack([less_before, inverse_pivot, less_after], axis=1).ravel(),
    )


def _through_tiles(factor: Array, factor_up: Array, tiles: int) -> tuple[Array, Array, Array, Array]:
    """Products of the segments' factors in each tile: from its beginning to behind a segment, from its end to
    before one, from behind a segment to its end, and from before one to its beginning.
    """
    down, up = factor.reshape(tiles, -1), factor_up.reshape(tiles, -1)
    to_end: Array = np.ones(down.shape)
    to_end[:, :-1] = np.cumprod(down[:, :0:-1], axis=1)[:, ::-1]
    to_beginning: Array = np.ones(up.shape)
    to_beginning[:, 1:] = np.cumprod(up[:, :-1], axis=1)
    through: Array = np.cumprod(down, axis=1, dtype=np.float64)
    through_up: Array = np.cumprod(up[:, ::-1], axis=1, dtype=np.float64)[:, ::-1]
    return through.ravel(), through_up.ravel(), to_end.ravel(), to_beginning.ravel()
