"""The operator's sweeps along the channel, compiled by numba on the vectors of `cdgrad.ops.cpu.vectors`.

A block is n channels of some columns, few enough to stay in cache: the first sweep reads it from memory, the
second finds it there. A tile is `ROWS` channels of `LANES` columns; the running values of its columns stay in
registers from its first row to its last. They are float64, which keeps float32 gradients within 1e-6 of the
exact result. Sums of float64 gradients may exceed the largest float where the result does not: they are of
the gradient times a power of two, which is exact. Rows often lie a page or more apart, where the hardware
prefetcher does not follow: both sweeps prefetch the rows of the next tiles, in the order of memory.
"""

# numba compiles these functions from types that only it knows.
# pyright: basic
from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, cfunc, types  # pyright: ignore[reportPrivateImportUsage]  numba declares no names public
from numba.extending import overload

from cdgrad.ops.cpu import tiles, vectors
from cdgrad.ops.cpu.tiles import compiled, get, lanes_left, prefetch_next, put, reload, spill, tile_address
from cdgrad.ops.cpu.vectors import (
    FLOAT64,
    INT64,
    LANES,
    called,
    fetch_add,
    load,
    pointer,
    rounded,
    store,
    times,
    wide,
    zeros,
)

# The columns of the work table, one row per tensor; sizes and strides in elements.
(
    POINTER,
    CHANNELS,
    STEP,  # from channel to channel
    COLUMNS,  # along the inner axis
    STRIDE,  # from column to column of it
    ACROSS,  # blocks along it
    OUTER,  # size of the two outer axes together
    OUTER_BLOCK,  # of those per block
    NEAR,  # size of the nearer outer axis
    NEAR_STRIDE,
    FAR_STRIDE,
    WEIGHTS,  # where this tensor's weights begin
    END,  # blocks of this and all earlier tensors
) = range(13)
FIELDS = 13

# What a call hands to its threads, as int64: addresses, unless noted.
(
    TABLE,  # int64 (TENSORS, FIELDS)
    TENSORS,  # a number
    WEIGHT,  # float64 (4, TOTAL), as `cdgrad.ops.cpu.launch` prepares them for the metric
    TOTAL,  # a number: the channels of all tensors
    SCALE,  # float64 (TENSORS,), the same
    PERIODIC,  # 0 or 1: the boundary
    BOUNDS,  # int64 (THREADS + 1,): the range of blocks of each thread is from its bound to the next
    COUNTERS,  # int64 (THREADS + 1,): blocks taken of each thread's range, see `OWN`, and threads begun
    SCRATCH,  # memory of the threads, each with
    SCRATCH_BYTES,  # a number: as many bytes
    THREADS,  # a number
    THREAD,  # a C function that returns the number of the thread that calls it; 0: none is known
) = range(12)
JOB_FIELDS = 12

OWN, OTHERS = 1, 1 << 32  # added to a range's counter by its thread, and by another

# As many as the nearest cache has ways: where channels are a multiple of a page apart, a tile's rows all fall
# into one set of it. With 16 the sweeps take 1.7 times as long there, with 4 they take 1.1 times.
ROWS = 8
SUMS = 3  # running values of a column, at most


@lru_cache(maxsize=32)
def worker(family: str, dtype: str, *, cache: bool) -> Any:
    """The compiled function that any number of threads may run at once, on the address of one job.

    Each call takes blocks and directs them until none is left. It raises nothing and allocates nothing.

    Args:
        family: of the metric.
        dtype: of what is stored: float32, float64, uint16 (bfloat16 bits) or int16 (half).
        cache: keep the machine code on disk, for the processes to come.
    """
    like = np.empty(0, dtype)
    # numba's cache on disk knows this file and what a closure holds, but not the other files.
    source = inspect.getsource(vectors) + inspect.getsource(tiles)

    def run(address):
        _direct(address, like, family, source)

    return cfunc(types.void(types.intp), cache=cache)(run)


def _direct(address, like, family, source):
    """Take blocks and direct them until none is left."""
    raise NotImplementedError


@overload(_direct, prefer_literal=True)
def _direct_of(address, like, family, source):
    directed = {"reweighted": _reweighted, "sobolev": _sobolev, "mean-sobolev": _mean_sobolev}[
        family.literal_value
    ]

    def direct(address, like, family, source):
        job = carray(pointer(address, INT64), (JOB_FIELDS,))
        table = carray(pointer(job[TABLE], INT64), (job[TENSORS], FIELDS))
        weights = carray(pointer(job[WEIGHT], FLOAT64), (4, job[TOTAL]))
        scales = carray(pointer(job[SCALE], FLOAT64), (job[TENSORS],))
        threads, counters, turn, tensor = job[THREADS], job[COUNTERS], 0, 0
        bounds = carray(pointer(job[BOUNDS], INT64), (threads + 1,))
        thread = called(job[THREAD]) if job[THREAD] else fetch_add(counters + 8 * threads, 1)
        run = job[SCRATCH] + thread * job[SCRATCH_BYTES]
        periodic = job[PERIODIC] != 0
        while turn < threads:
            # Its own range from the front, then what others have left of theirs from the end: threads on
            # neighbors take cache lines from each other, where both have columns or one has prefetched.
            of = (thread + turn) % threads
            taken = fetch_add(counters + 8 * of, OWN if of == thread else OTHERS)
            front, back = taken % OTHERS, taken // OTHERS
            if bounds[of] + front + back >= bounds[of + 1]:
                turn, tensor = turn + 1, 0
                continue
            block = bounds[of] + front if of == thread else bounds[of + 1] - 1 - back
            tensor = tensor if of == thread else 0
            while block >= table[tensor, END]:
                tensor += 1
            t = table[tensor]
            if tensor:
                block -= table[tensor - 1, END]
            w, scale = weights[:, t[WEIGHTS] : t[WEIGHTS] + t[CHANNELS]], scales[tensor]
            vectors, part = -(-t[COLUMNS] // LANES), block % t[ACROSS]
            start = part * vectors // t[ACROSS] * LANES
            width = min((part + 1) * vectors // t[ACROSS] * LANES, t[COLUMNS]) - start
            first = block // t[ACROSS] * t[OUTER_BLOCK]
            whole = width - width % LANES if t[STRIDE] == 1 else 0
            for outer in range(first, min(first + t[OUTER_BLOCK], t[OUTER])):
                far, near = outer // t[NEAR], outer % t[NEAR]
                offset = far * t[FAR_STRIDE] + near * t[NEAR_STRIDE] + start * t[STRIDE]
                x = t[POINTER] + offset * like.itemsize
                if whole:
                    directed(x, like, t, None, None, whole, periodic, w, scale, run)
                if whole < width and t[STRIDE] == 1:
                    x += whole * like.itemsize
                    directed(x, like, t, None, width - whole, LANES, periodic, w, scale, run)
                elif whole < width:
                    directed(x, like, t, t[STRIDE], width, width, periodic, w, scale, run)

    return direct


# Below, addresses are integers; `stride` is None where columns are contiguous, and `count` where all lanes of
# every tile are columns. `run` is the address of running values, `width` float64 for each kind of them.


@compiled
def _shape(t, like, width, run):
    """Channels, bytes from one to the next, columns with those that fill the last tile; values at zero."""
    width = -(-width // LANES) * LANES
    for j in range(0, SUMS * width, LANES):
        put(zeros(), run + 8 * j)
    return t[CHANNELS], t[STEP] * like.itemsize, width


@compiled
def _reweighted(x, like, t, stride, count, width, periodic, w, scale, run):
    """mean + (x - mean) scale."""
    n, step, width = _shape(t, like, width, run)
    share = 1.0 / float(n)
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = tile_address(x, like, first * step, j, stride), lanes_left(count, j)
            mean = get(run + 8 * j)
            for _ in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, like, stride, left, width, step)
                mean += wide(load(row, like, stride, mask)) * share
                row += step
            put(mean, run + 8 * j)
    # Backwards: the last rows are the likeliest to be in the nearest cache.
    for first in range((n - 1) // ROWS * ROWS, -1, -ROWS):
        ahead, left = x + (first - ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = tile_address(x, like, first * step, j, stride), lanes_left(count, j)
            mean = get(run + 8 * j)
            # In two parts, so that float32 is enough from here on: the first difference is nearly exact.
            high = rounded(mean, like)
            # Halves: a deviation may be twice the largest float where the result is finite.
            half_high, half_low = high * 0.5, rounded(mean - wide(high), like) * 0.5
            for _ in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, like, stride, left, width, step)
                half = rounded(wide(load(row, like, stride, mask)), like) * 0.5 - half_high - half_low
                store(half * (2 * scale) + high, row, like, stride, mask)
                row += step


@compiled
def _sobolev(x, like, t, stride, count, width, periodic, w, scale, run):
    """(I + lam A)^-1 x by elimination and substitution, see `cdgrad.ops.sobolev_weights.Sobolev`.

    What is kept between the sweeps is y_m / pivot_m, of the size of the gradient: y_m may overflow, and is
    times `scale` where float64 is stored. The inner product with the wrap is part of the first sweep.
    """
    n, step, width = _shape(t, like, width, run)
    before, inverse, wrap, ratio, back = w[0], w[1], w[2], w[3], 1 / scale
    wrapped, spilled = run + 8 * width, run + 16 * width
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = tile_address(x, like, first * step, j, stride), lanes_left(count, j)
            value, product = get(run + 8 * j), get(wrapped + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, like, stride, left, width, step)
                g = times(wide(load(row, like, stride, mask)), scale, like)
                value = g + value * before[m]
                if periodic:
                    product += g * wrap[m]
                spill(value * inverse[m], row, like, stride, mask, spilled + 4 * (m * width + j))
                row += step
            put(value, run + 8 * j)
            put(product, wrapped + 8 * j)
    for j in range(0, width, LANES):
        put(zeros(), run + 8 * j)
    for first in range((n - 1) // ROWS * ROWS, -1, -ROWS):
        last = min(first + ROWS, n) - 1
        ahead, left = x + (first - ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = tile_address(x, like, last * step, j, stride), lanes_left(count, j)
            value, product = get(run + 8 * j), get(wrapped + 8 * j)
            for m in range(last, first - 1, -1):
                ahead, left = prefetch_next(ahead, like, stride, left, width, step)
                reloaded = reload(row, like, stride, mask, spilled + 4 * (m * width + j))
                value = wide(reloaded) + value * ratio[m]
                small = times(value, scale, like) - product * wrap[m] if periodic else value
                store(times(small, back, like) if periodic else value, row, like, stride, mask)
                row -= step
            put(value, run + 8 * j)


@compiled
def _mean_sobolev(x, like, t, stride, count, width, periodic, w, scale, run):
    """mean + (lam A)^+ x, integrating twice, see `cdgrad.ops.cpu.launch`.

    The first sweep takes inner products: the mean, g~ - mean at channel 0, the slope at the wrap. The second
    integrates the deviation twice and writes. Where float64 is stored, all are times w[2, 0], a power of two.
    """
    n, step, width = _shape(t, like, width, run)
    start, wrap, power, back = w[0], w[1], w[2, 0], 1 / w[2, 0]
    values, slopes = run + 8 * width, run + 16 * width
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = tile_address(x, like, first * step, j, stride), lanes_left(count, j)
            total, value, slope = get(run + 8 * j), get(values + 8 * j), get(slopes + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, like, stride, left, width, step)
                g = times(wide(load(row, like, stride, mask)), power, like)
                total += g
                value += g * start[m]
                if periodic:
                    slope += g * wrap[m]
                row += step
            put(total, run + 8 * j)
            put(value, values + 8 * j)
            put(slope, slopes + 8 * j)
    for j in range(0, width, LANES):
        mean = get(run + 8 * j) / float(n)
        put(mean, run + 8 * j)
        put(get(values + 8 * j) + mean, values + 8 * j)
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = tile_address(x, like, first * step, j, stride), lanes_left(count, j)
            mean, value, slope = get(run + 8 * j), get(values + 8 * j), get(slopes + 8 * j)
            for _ in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, like, stride, left, width, step)
                slope += (mean - times(wide(load(row, like, stride, mask)), power, like)) * scale
                store(times(value, back, like), row, like, stride, mask)
                value += slope
                row += step
            put(value, values + 8 * j)
            put(slope, slopes + 8 * j)
