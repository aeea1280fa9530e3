# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false
# Kernels are written in Triton's own language, whose names Python's types do not describe.
"""The GPU kernels: one program owns a block of columns of one tensor, all along its channel.

It goes along the channel in chunks of ROWS twice, forward to gather what every chunk must know of the
others, backward to write the result. So each element is read twice and written once, 1.5 times the
traffic of a scaling in place, less what the L2 cache still holds of the first reading; that is why the
second pass begins where the first ended. Elimination would write in its first pass as well, and could
not keep its unknowns in a half-precision tensor; Green's function needs neither.

Between load and store all is float64, because float32 running values were seen to cost 4e-5 at
n = 4096. With one warp to a block of 32 columns the compiler gives each thread one column and all rows
of a chunk in registers, so that scans and sums along the channel need no other thread.

What depends on lam is data, so that changing it compiles nothing. Layout of the tables:
cdgrad.ops.triton.launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cdgrad.ops import memory_layout

DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
AXES = tl.constexpr(memory_layout.MOST_AXES)
FIELDS = tl.constexpr(4 + 2 * memory_layout.MOST_AXES)  # of a tensor in the table
PROGRAM = tl.constexpr(3)  # fields of a program


@triton.jit
def reweighted(
    addresses,
    table,
    weights,
    scratch,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PERIODIC: tl.constexpr,
):
    """mean + (g - mean) / lam."""
    start, exists, n, step, weights, _ = _place(addresses, table, weights, DTYPE, COLUMNS)
    rows = tl.arange(0, ROWS)
    chunks = tl.cdiv(n, ROWS)
    total = tl.zeros((COLUMNS,), tl.float64)
    for chunk in range(chunks):
        address, there = _tile(start, exists, chunk * ROWS + rows, n, step)
        total += tl.sum(_load(address, there), 0)
    mean = (total / n.to(tl.float64))[None, :]
    scale = tl.load(weights)
    for back in range(chunks):
        address, there = _tile(start, exists, (chunks - 1 - back) * ROWS + rows, n, step)
        _store(address, there, mean + (_load(address, there) - mean) * scale)


@triton.jit
def sobolev(
    addresses,
    table,
    weights,
    scratch,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PERIODIC: tl.constexpr,
):
    """green_m (f_m + b_m - g_m), less wrap_m (wrap . g) if periodic: cdgrad.ops.sobolev_weights.Sobolev."""
    start, exists, n, step, weights, slot = _place(addresses, table, weights, DTYPE, COLUMNS)
    rows = tl.arange(0, ROWS)
    chunks = tl.cdiv(n, ROWS)
    # Five arrays, each padded to whole chunks.
    before = weights  # ratio[m-1], of f_{m-1} in f_m
    after = before + chunks * ROWS  # ratio[n-2-m], of b_{m+1} in b_m
    onward = after + chunks * ROWS  # of g_m in f at the chunk's last row
    green = onward + chunks * ROWS
    wrap = green + chunks * ROWS

    # f just above each chunk goes to the scratch; what is above the end only a wrap would need to pass.
    above = scratch + slot + tl.arange(0, COLUMNS)
    f = tl.zeros((COLUMNS,), tl.float64)
    tl.store(above, f)
    around = tl.zeros((COLUMNS,), tl.float64)
    for chunk in range(chunks if PERIODIC else chunks - 1):
        m = chunk * ROWS + rows
        address, there = _tile(start, exists, m, n, step)
        g = _load(address, there)
        kept = tl.load(before + chunk * ROWS) * tl.load(onward + chunk * ROWS)
        f = kept * f + tl.sum(tl.load(onward + m)[:, None] * g, 0)
        tl.store(above + (chunk + 1) * COLUMNS, f)
        if PERIODIC:
            around += tl.sum(tl.load(wrap + m)[:, None] * g, 0)
    tl.debug_barrier()  # what one thread stored another may load

    first, last = (rows == 0)[:, None], (rows == ROWS - 1)[:, None]
    b = tl.zeros((COLUMNS,), tl.float64)
    for back in range(chunks):
        chunk = chunks - 1 - back
        m = chunk * ROWS + rows
        address, there = _tile(start, exists, m, n, step)
        g = _load(address, there)
        f = tl.load(above + chunk * COLUMNS)
        down = tl.broadcast_to(tl.load(before + m)[:, None], (ROWS, COLUMNS))
        up = tl.broadcast_to(tl.load(after + m)[:, None], (ROWS, COLUMNS))
        fs = tl.where(first, down * f[None, :] + g, g)
        bs = tl.where(last, up * b[None, :] + g, g)
        _, fs = tl.associative_scan((down, fs), 0, _compose)
        _, bs = tl.associative_scan((up, bs), 0, _compose, reverse=True)
        b = tl.sum(tl.where(first, bs, 0.0), 0)
        x = tl.load(green + m)[:, None] * (fs + (bs - g))
        if PERIODIC:
            x -= tl.load(wrap + m)[:, None] * around[None, :]
        _store(address, there, x)


@triton.jit
def mean_sobolev(
    addresses,
    table,
    weights,
    scratch,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PERIODIC: tl.constexpr,
):
    """mean + (mean(r) - r_m) / (lam n^2), with r_m = sum_{i>m} q_i and q_i = sum_{j>=i} (g_j - mean).

    If periodic, q less its mean over the n differences. Three moments of a column give its mean, mean(q)
    and mean(r), so the second pass can write what it sums.
    """
    start, exists, n, step, weights, _ = _place(addresses, table, weights, DTYPE, COLUMNS)
    rows = tl.arange(0, ROWS)
    chunks = tl.cdiv(n, ROWS)
    arm = rows.to(tl.float64)[:, None]
    size = n.to(tl.float64)
    origin = size - size
    total = tl.zeros((COLUMNS,), tl.float64)  # sum of g_m
    first = tl.zeros((COLUMNS,), tl.float64)  # sum of m g_m
    second = tl.zeros((COLUMNS,), tl.float64)  # sum of m (m + 1) / 2 g_m
    for chunk in range(chunks):
        address, there = _tile(start, exists, chunk * ROWS + rows, n, step)
        g = _load(address, there)
        # Moments about the chunk's first row, moved to row 0.
        zeroth, lever = tl.sum(g, 0), tl.sum(arm * g, 0)
        total += zeroth
        first += origin * zeroth + lever
        second += 0.5 * origin * (origin + 1) * zeroth + origin * lever
        second += tl.sum(0.5 * arm * (arm + 1) * g, 0)
        origin += ROWS

    mean = total / size
    mean_q = tl.zeros((COLUMNS,), tl.float64)
    if PERIODIC:
        mean_q = first / size - mean * (size - 1) / 2
    mean_r = second / size - mean * (size * size - 1) / 6 - mean_q * (size - 1) / 2
    scale = tl.load(weights) / (size * size)
    q = -mean_q  # below the rows seen so far
    r = tl.zeros((COLUMNS,), tl.float64)
    for back in range(chunks):
        # Rows in descending order, so that the scans, too, run upward from the last row.
        address, there = _tile(start, exists, n - 1 - back * ROWS - rows, n, step)
        deviation = tl.where(there, _load(address, there) - mean[None, :], 0.0)
        qs = tl.where(there, tl.cumsum(deviation, 0) + q[None, :], 0.0)
        rs = tl.cumsum(qs, 0) - qs + r[None, :]
        _store(address, there, mean[None, :] + (mean_r[None, :] - rs) * scale)
        q += tl.sum(deviation, 0)
        r += tl.sum(qs, 0)


@triton.jit
def _place(addresses, table, weights, DTYPE: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the program's columns begin, and which exist; n; the channel's stride; the weights; the slot."""
    program = table + tl.load(table) + PROGRAM * tl.program_id(0)
    index, column, slot = tl.load(program), tl.load(program + 1).to(tl.int32), tl.load(program + 2)
    tensor = table + 1 + FIELDS * index
    n, step = tl.load(tensor).to(tl.int32), tl.load(tensor + 1)
    place = column + tl.arange(0, COLUMNS)
    exists = place < tl.load(tensor + 2)
    weights += tl.load(tensor + 3)
    offset = tl.zeros((COLUMNS,), tl.int64)
    for axis in tl.static_range(AXES):
        size, stride = tl.load(tensor + 4 + 2 * axis).to(tl.int32), tl.load(tensor + 5 + 2 * axis)
        offset += (place % size) * stride
        place = place // size
    start = tl.load(addresses + index).to(tl.pointer_type(DTYPE)) + offset
    return start, exists, n, step, weights, slot


@triton.jit
def _tile(start, exists, m, n, step):
    """Addresses of the rows m, and which of them there are."""
    return start[None, :] + (m * step)[:, None], ((m >= 0) & (m < n))[:, None] & exists[None, :]


@triton.jit
def _load(address, there):
    """Values in float64, 0 where there is none."""
    g = tl.load(address, mask=there, other=0.0)
    return (g if g.dtype == tl.float64 else g.to(tl.float32)).to(tl.float64)  # bfloat16 goes via float32


@triton.jit
def _store(address, there, x):
    dtype: tl.constexpr = address.dtype.element_ty
    tl.store(address, (x if dtype == tl.float64 else x.to(tl.float32)).to(dtype), mask=there)


@triton.jit
def _compose(a, f, b, g):
    """The maps y -> a y + f and then y -> b y + g, as one."""
    return a * b, b * f + g


@triton.jit(do_not_specialize=[f"a{i}" for i in range(16)])
def write16(addresses, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    """Sixteen integers into a table. As kernel arguments they become part of a captured graph."""
    tl.store(addresses + 0, a0)
    tl.store(addresses + 1, a1)
    tl.store(addresses + 2, a2)
    tl.store(addresses + 3, a3)
    tl.store(addresses + 4, a4)
    tl.store(addresses + 5, a5)
    tl.store(addresses + 6, a6)
    tl.store(addresses + 7, a7)
    tl.store(addresses + 8, a8)
    tl.store(addresses + 9, a9)
    tl.store(addresses + 10, a10)
    tl.store(addresses + 11, a11)
    tl.store(addresses + 12, a12)
    tl.store(addresses + 13, a13)
    tl.store(addresses + 14, a14)
    tl.store(addresses + 15, a15)


INTERPRETED = not isinstance(
    sobolev, triton.JITFunction
)  # imported under TRITON_INTERPRET=1: runs on the CPU
