"""The operator's kernels for float32 tensors of so many channels that columns do not fit in cache.

Blocks of whole columns would be a few cache lines wide there, and threads that work on neighboring blocks
would take lines from each other. So a tensor is divided into chunks of consecutive channels, which fit in the
second cache of a core, in three phases, each by all threads. `SUMS` reads the gradient: inner products of the
columns of every chunk. `CARRY` computes from them what enters each chunk from the chunks beside it. `SOLVE`
reads each chunk again, solves in cache and writes. A thread has the same chunks in both. Chunks do not depend
on the number of threads, nor do results.
"""

# numba compiles these functions from types that only it knows.
# pyright: basic
from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from numba import carray, cfunc, types  # pyright: ignore[reportPrivateImportUsage]  numba declares no names public
from numba.extending import overload

from cdgrad.ops.cpu import tiles, vectors
from cdgrad.ops.cpu.kernels import ROWS
from cdgrad.ops.cpu.tiles import compiled, get, lanes_left, prefetch_next, put
from cdgrad.ops.cpu.vectors import (
    FLOAT32,
    FLOAT64,
    INT64,
    LANES,
    called,
    fetch_add,
    load,
    pointer,
    rounded,
    store,
    wide,
    zeros,
)

# What a call hands to its threads, as int64: addresses, unless noted.
(
    GRADIENT,
    CHANNELS,  # a number
    STEP,  # bytes from channel to channel
    COLUMNS,  # a number
    PARTS,  # columns are divided into so many parts
    HEIGHT,  # channels of a chunk
    CHUNKS,  # a number
    PERIODIC,  # 0 or 1: the boundary
    WEIGHTS,  # float64 (WEIGHT_ROWS, CHUNKS HEIGHT), see `cdgrad.ops.cpu.chunks`
    FACTORS,  # float64 (3, CHUNKS)
    SCALE,  # float64 (1,)
    CARRIED,  # float64 (CHUNKS + 1, CARRIES, whole lanes of columns): sums, then what enters; last the totals
    COUNTERS,  # int64 (THREADS + 1,): items taken so far from each thread's range, and threads begun
    THREADS,  # a number
    THREAD,  # a C function that returns the number of the thread that calls it; 0: none is known
    PHASE,  # a number: SUMS, CARRY or SOLVE
) = range(16)
JOB_FIELDS = 16
SUMS, CARRY, SOLVE = range(3)
CARRIES = 4  # per column and chunk, at most
STRIP = 8  # vectors of columns whose values are carried at once: memory is read in pieces of 1 KiB
# Rows of the weights. The mean-weighted metric has START and WRAP.
BEFORE, INVERSE, RATIO, WRAP, TO_LAST, TO_FIRST = range(6)
START, WEIGHT_ROWS = 0, 6


@lru_cache(maxsize=8)
def worker(family: str, dtype: str, *, cache: bool) -> Any:
    """The compiled function that any number of threads may run at once, on the address of one job.

    Args: as of `cdgrad.ops.cpu.kernels.worker`; the dtype is float32.
    """
    source = inspect.getsource(vectors) + inspect.getsource(tiles)

    def run(address):
        _direct(address, family, source)

    return cfunc(types.void(types.intp), cache=cache)(run)


def _direct(address, family, source):
    """Take parts of chunks, in the carrying phase vectors of columns, until none is left."""
    raise NotImplementedError


@overload(_direct, prefer_literal=True)
def _direct_of(address, family, source):
    sums, carry, solve = {
        "reweighted": (_reweighted_sums, _reweighted_carry, _reweighted_solve),
        "sobolev": (_sobolev_sums, _sobolev_carry, _sobolev_solve),
        "mean-sobolev": (_mean_sobolev_sums, _mean_sobolev_carry, _mean_sobolev_solve),
    }[family.literal_value]
    sums, solve = _in_vectors(sums), _in_vectors(solve)

    def direct(address, family, source):
        job = carray(pointer(address, INT64), (JOB_FIELDS,))
        weights = carray(pointer(job[WEIGHTS], FLOAT64), (WEIGHT_ROWS, job[CHUNKS] * job[HEIGHT]))
        factors = carray(pointer(job[FACTORS], FLOAT64), (3, job[CHUNKS]))
        scale = carray(pointer(job[SCALE], FLOAT64), (1,))[0]
        phase, chunks, periodic = job[PHASE], job[CHUNKS], job[PERIODIC] != 0
        vectors = -(-job[COLUMNS] // LANES)
        gap = 8 * LANES * vectors
        totals = job[CARRIED] + chunks * CARRIES * gap
        total = -(-vectors // STRIP) if phase == CARRY else chunks * job[PARTS]
        threads, counters, turn = job[THREADS], job[COUNTERS], 0
        thread = called(job[THREAD]) if job[THREAD] else fetch_add(counters + 8 * threads, 1)
        while turn < threads:
            # A range of its own, the same in each phase, and in that order what others have left of theirs.
            of = (thread + turn) % threads
            begin, end = of * total // threads, (of + 1) * total // threads
            taken = fetch_add(counters + 8 * of, 1)
            if begin + taken >= end:
                turn += 1
                continue
            item = begin + taken
            if phase == CARRY:
                x, width = 8 * LANES * STRIP * item, min(STRIP, vectors - STRIP * item) * LANES
                carry(job[CARRIED] + x, totals + x, gap, width, job, factors, scale)
                continue
            if phase == SOLVE:  # what was read last is the likeliest to be in cache
                item = end - 1 - taken
            chunk, part = item // job[PARTS], item % job[PARTS]
            start = part * vectors // job[PARTS] * LANES
            width = min((part + 1) * vectors // job[PARTS] * LANES, job[COLUMNS]) - start
            first = chunk * job[HEIGHT]
            n = min(job[HEIGHT], job[CHANNELS] - first)
            x = job[GRADIENT] + first * job[STEP] + 4 * start
            run = job[CARRIED] + chunk * CARRIES * gap + 8 * start
            w = weights[:, first : first + n]
            if phase == SUMS:
                sums(x, n, job[STEP], width, periodic, w, run, totals + 8 * start, gap, job[CHANNELS])
            else:
                solve(x, n, job[STEP], width, periodic, w, run, totals + 8 * start, gap, scale)

    return direct


def _in_vectors(sweep):
    """The sweep on any number of columns: those that fill vectors, then the others."""

    @compiled
    def on_all(x, n, step, width, periodic, w, run, totals, gap, scale):
        whole = width - width % LANES
        if whole:
            sweep(x, n, step, None, whole, periodic, w, run, totals, gap, scale)
        if whole < width:
            x, run, totals = x + 4 * whole, run + 8 * whole, totals + 8 * whole
            sweep(x, n, step, width - whole, LANES, periodic, w, run, totals, gap, scale)

    return on_all


# Below, `run` is the address of a chunk's first carried value; `gap` bytes lead from one kind to the next.


@compiled
def _clear(run, gap, width):
    for kind in range(CARRIES):
        for j in range(0, width, LANES):
            put(zeros(), run + kind * gap + 8 * j)


@compiled
def _total(run, totals, gap, width, chunks, kind):
    """The sum of one kind over all chunks."""
    for j in range(0, width, LANES):
        put(zeros(), totals + kind * gap + 8 * j)
    for chunk in range(chunks):
        here = run + (chunk * CARRIES + kind) * gap
        for j in range(0, width, LANES):
            put(get(totals + kind * gap + 8 * j) + get(here + 8 * j), totals + kind * gap + 8 * j)


@compiled
def _reweighted_sums(x, n, step, count, width, periodic, w, run, totals, gap, channels):
    """Of g_m / channels."""
    _clear(run, gap, width)
    share = 1.0 / float(channels)
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = x + first * step + 4 * j, lanes_left(count, j)
            total = get(run + 8 * j)
            for _ in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, FLOAT32, None, left, width, step)
                total += wide(load(row, FLOAT32, None, mask)) * share
                row += step
            put(total, run + 8 * j)


@compiled
def _reweighted_carry(run, totals, gap, width, job, factors, scale):
    """The mean: the total of kind 0."""
    _total(run, totals, gap, width, job[CHUNKS], 0)


@compiled
def _reweighted_solve(x, n, step, count, width, periodic, w, run, totals, gap, scale):
    """mean + (x - mean) scale, as `cdgrad.ops.cpu.kernels` does it."""
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = x + first * step + 4 * j, lanes_left(count, j)
            mean = get(totals + 8 * j)
            high = rounded(mean, FLOAT32)
            half_high, half_low = high * 0.5, rounded(mean - wide(high), FLOAT32) * 0.5
            for _ in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, FLOAT32, None, left, width, step)
                half = load(row, FLOAT32, None, mask) * 0.5 - half_high - half_low
                store(half * (2 * scale) + high, row, FLOAT32, None, mask)
                row += step


@compiled
def _sobolev_sums(x, n, step, count, width, periodic, w, run, totals, gap, channels):
    """y at the chunk's last channel and x at its first, were it alone, and the product with the wrap."""
    _clear(run, gap, width)
    to_last, to_first, wrap = w[TO_LAST], w[TO_FIRST], w[WRAP]
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = x + first * step + 4 * j, lanes_left(count, j)
            y, above, product = get(run + 8 * j), get(run + gap + 8 * j), get(run + 2 * gap + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, FLOAT32, None, left, width, step)
                g = wide(load(row, FLOAT32, None, mask))
                y += g * to_last[m]
                above += g * to_first[m]
                if periodic:
                    product += g * wrap[m]
                row += step
            put(y, run + 8 * j)
            put(above, run + gap + 8 * j)
            put(product, run + 2 * gap + 8 * j)


@compiled
def _sobolev_carry(run, totals, gap, width, job, factors, scale):
    """y before each chunk, of kind 3; x behind it, of kind 0; the wrap's product, the total of kind 2."""
    chunks, size = job[CHUNKS], CARRIES * gap
    _total(run, totals, gap, width, chunks, 2)
    for j in range(0, width, LANES):
        put(zeros(), run + 3 * gap + 8 * j)
    for chunk in range(1, chunks):
        here = run + chunk * size
        for j in range(0, width, LANES):
            y = get(here - size + 8 * j) + get(here - size + 3 * gap + 8 * j) * factors[0, chunk - 1]
            put(y, here + 3 * gap + 8 * j)
    for j in range(0, width, LANES):
        put(zeros(), run + (chunks - 1) * size + 8 * j)
    for chunk in range(chunks - 1, 0, -1):
        here = run + chunk * size
        for j in range(0, width, LANES):
            x = get(here + gap + 8 * j) + get(here + 8 * j) * factors[1, chunk]
            put(x + get(here + 3 * gap + 8 * j) * factors[2, chunk], here - size + 8 * j)


@compiled
def _sobolev_solve(x, n, step, count, width, periodic, w, run, totals, gap, scale):
    """Elimination and substitution, as `cdgrad.ops.cpu.kernels` does them."""
    before, inverse, wrap, ratio = w[BEFORE], w[INVERSE], w[WRAP], w[RATIO]
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = x + first * step + 4 * j, lanes_left(count, j)
            value = get(run + 3 * gap + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, FLOAT32, None, left, width, step)
                value = wide(load(row, FLOAT32, None, mask)) + value * before[m]
                store(value * inverse[m], row, FLOAT32, None, mask)
                row += step
            put(value, run + 3 * gap + 8 * j)
    for first in range((n - 1) // ROWS * ROWS, -1, -ROWS):
        last = min(first + ROWS, n) - 1
        for j in range(0, width, LANES):
            row, mask = x + last * step + 4 * j, lanes_left(count, j)
            value, product = get(run + 8 * j), get(totals + 2 * gap + 8 * j)
            for m in range(last, first - 1, -1):
                value = wide(load(row, FLOAT32, None, mask)) + value * ratio[m]
                store(value - product * wrap[m] if periodic else value, row, FLOAT32, None, mask)
                row -= step
            put(value, run + 8 * j)


@compiled
def _mean_sobolev_sums(x, n, step, count, width, periodic, w, run, totals, gap, channels):
    """Of g_m, of the products with the weights, and of (n - m) g_m, where m begins at the chunk's first."""
    _clear(run, gap, width)
    start, wrap = w[START], w[WRAP]
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = x + first * step + 4 * j, lanes_left(count, j)
            total, value = get(run + 8 * j), get(run + gap + 8 * j)
            slope, double = get(run + 2 * gap + 8 * j), get(run + 3 * gap + 8 * j)
            for m in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, FLOAT32, None, left, width, step)
                g = wide(load(row, FLOAT32, None, mask))
                total += g
                double += total
                value += g * start[m]
                if periodic:
                    slope += g * wrap[m]
                row += step
            put(total, run + 8 * j)
            put(value, run + gap + 8 * j)
            put(slope, run + 2 * gap + 8 * j)
            put(double, run + 3 * gap + 8 * j)


@compiled
def _mean_sobolev_carry(run, totals, gap, width, job, factors, scale):
    """Value and slope before each chunk, of kinds 1 and 2; and the mean, the total of kind 0."""
    chunks, size, rows = job[CHUNKS], CARRIES * gap, float(job[HEIGHT])
    for kind in range(3):
        _total(run, totals, gap, width, chunks, kind)
    for j in range(0, width, LANES):
        mean = get(totals + 8 * j) / float(job[CHANNELS])
        put(mean, totals + 8 * j)
        put(get(totals + gap + 8 * j) + mean, run + gap + 8 * j)
        put(get(totals + 2 * gap + 8 * j), run + 2 * gap + 8 * j)
    for chunk in range(1, chunks):
        here = run + chunk * size
        for j in range(0, width, LANES):
            mean, above = get(totals + 8 * j), here - size + 8 * j
            value, slope = get(above + gap), get(above + 2 * gap)
            value += slope * rows + (mean * (0.5 * rows * (rows + 1)) - get(above + 3 * gap)) * scale
            put(value, here + gap + 8 * j)
            put(slope + (mean * rows - get(above)) * scale, here + 2 * gap + 8 * j)


@compiled
def _mean_sobolev_solve(x, n, step, count, width, periodic, w, run, totals, gap, scale):
    """The deviation integrated twice, as `cdgrad.ops.cpu.kernels` does it."""
    for first in range(0, n, ROWS):
        ahead, left = x + (first + ROWS) * step, width
        for j in range(0, width, LANES):
            row, mask = x + first * step + 4 * j, lanes_left(count, j)
            mean, value, slope = get(totals + 8 * j), get(run + gap + 8 * j), get(run + 2 * gap + 8 * j)
            for _ in range(first, min(first + ROWS, n)):
                ahead, left = prefetch_next(ahead, FLOAT32, None, left, width, step)
                slope += (mean - wide(load(row, FLOAT32, None, mask))) * scale
                store(value, row, FLOAT32, None, mask)
                value += slope
                row += step
            put(value, run + gap + 8 * j)
            put(slope, run + 2 * gap + 8 * j)
