"""The weights of the linear-time solves, in closed form: float64, no recurrence, no cancellation.

With c = lam n^2 the H1 metric solves T x = g, T = I + lam A tridiagonal: 1 + 2 c on the diagonal (1 + c
at free ends), -c beside it. The even solution of its interior rows that meets the left end is

    phi_m = cosh(theta (m + 1/2)),    2 sinh(theta / 2) = c^(-1/2),

and everything a sweep needs is a quotient of such functions. Subtracting in 1 + 2 c - c^2 / pivot instead
would lose the 1, which is what makes T invertible, once c nears 1e11 (n = 16384, lam = 1000).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cdgrad.metrics import Array
from cdgrad.ops.byte_cache import cached_by_bytes

# Beyond these c the operator is the identity, or the mean, to rounding; within them nothing overflows.
_SMALLEST, _LARGEST = 1e-300, 1e300
_LARGEST_OF_IMAGES = 1e30  # their sums, about sqrt(c) times the gradient's, stay finite in float32


class Sobolev(NamedTuple):
    """Weights for (I + lam A)^-1 on n channels; arrays of length n, indexed by the channel m.

    Two ways to use them, in any mixture over columns. Elimination, which can run in place:

        y_m = g_m + ratio[m-1] y_{m-1},    x_m = inverse_pivot[m] y_m + ratio[m] x_{m+1}

    and Green's function, whose two sweeps are independent and keep the mean to rounding, because
    nothing in them is subtracted from an equal:

        f_m = g_m + ratio[m-1] f_{m-1},    b_m = g_m + ratio[n-2-m] b_{m+1},
        x_m = green[m] (f_m + b_m - g_m)

    both for free ends. The periodic solution is ``x - wrap (wrap . g)``: with u = e_0 - e_{n-1},
    T_periodic = T + c u u^T differs by rank one, and (wrap . g) is a multiple of x_0 - x_{n-1}.
    """

    ratio: Array  # phi_m / phi_{m+1} = c / pivot_m, in (0, 1); the last, beyond the end, is 0
    inverse_pivot: Array  # 1 / (c + s_m); the last is 1 / s_{n-1}
    green: Array  # the diagonal of T^-1
    wrap: Array  # T^-1 - T_periodic^-1 = wrap wrap^T; odd about the middle
    complement: Array  # 1 - ratio without cancellation; the last is 1
    wrap_flux: float  # T wrap = wrap_flux u: across the wrap-around edge flows wrap_flux (wrap . g)


@cached_by_bytes(32 * 2**20)
def sobolev(n: int, lam: float) -> Sobolev:
    """The weights for n channels; computed once per (n, lam), read-only.

    Relative error of every entry: a few 1e-16.
    """
    c = min(max(lam * float(n) ** 2, _SMALLEST), _LARGEST)
    theta = 2 * np.arcsinh(0.5 / np.sqrt(c))
    m = np.arange(n, dtype=np.float64)
    even = 1 + np.exp(-theta * (2 * m + 1))  # 2 phi_m exp(-theta (m + 1/2))
    # s_m = pivot_m - c = c (phi_{m+1} / phi_m - 1)
    s = (0.5 + np.sqrt(0.25 + c)) * -np.expm1(-2 * theta * (m + 1)) / even
    ratio, inverse_pivot = 1 / (1 + s / c), 1 / (c + s)
    ratio[-1], inverse_pivot[-1] = 0.0, 1 / s[-1]
    green = even * even[::-1] / (even[0] * even[-1] * s[-1])
    wrap, wrap_flux = _wrap(n, c, float(theta))
    complement = s / (c + s)
    complement[-1] = 1.0
    for array in (ratio, inverse_pivot, green, wrap, complement):
        array.setflags(write=False)
    return Sobolev(ratio, inverse_pivot, green, wrap, complement, wrap_flux)


def _wrap(n: int, c: float, theta: float) -> tuple[Array, float]:
    """wrap = z wrap_flux and wrap_flux = sqrt(c / (1 + c (z_0 - z_{n-1}))), where T z = u; z is odd.

    z_m = odd_m / scale with odd_m = sinh(theta ((n - 1) / 2 - m)), and scale from row 0 of T z = u. All
    times 2 exp(-theta (n - 1) / 2), so that nothing overflows.
    """
    if n == 1:
        return np.zeros(1), 0.0
    half = (n - 1) / 2
    distance = half - np.arange((n + 1) // 2)  # the first half; the second mirrors it
    odd = -np.expm1(-2 * theta * distance) * np.exp(theta * (distance - half))
    step = (np.exp(-theta / 2) + np.exp(-theta * (n - 1.5))) * np.sqrt(c)  # c (odd_0 - odd_1)
    scale = odd[0] + step
    first = odd * np.sqrt(c / scale / (scale + 2 * c * odd[0]))
    wrap_flux = float(np.sqrt(c) * np.sqrt(scale / (scale + 2 * c * odd[0])))
    return np.concatenate([first, -first[: n // 2][::-1]]), wrap_flux


class Images(NamedTuple):
    """Weights for (I + lam A)^-1 on n channels by the method of images; all but theta are those of every row.

    On a line without ends, where with q = exp(-theta) Green's function is strength q^|i - j|, the gradient is
    continued beyond its ends: mirrored at free ones, repeated if periodic. With q^(m + 1) times `ahead` in
    f and q^(n - m) times `below` in b, which sum the images,

        f_m = g_m + q f_{m-1},    b_m = g_m + q b_{m+1},    x_m = strength (f_m + b_m - g_m)
        ahead = near b_0 + far f_{n-1},    below = near f_{n-1} + far b_0    (f and b without images)

    and x_m = inverse_pivot f_m + q x_{m+1} with images: no weight depends on the row. Nothing is subtracted.
    """

    theta: float
    complement: float  # 1 - q without cancellation
    inverse_pivot: float  # q / c
    strength: float  # tanh(theta / 2)
    near: float  # of the images in the end at hand; 0 if periodic
    far: float  # of those in the other end


def images(n: int, lam: float, periodic: bool) -> Images:
    """The weights for n channels. Relative error of every entry: a few 1e-16."""
    c = min(max(lam * float(n) ** 2, _SMALLEST), _LARGEST_OF_IMAGES)
    theta = float(2 * np.arcsinh(0.5 / np.sqrt(c)))
    around = 1 / -float(np.expm1(-theta * (n if periodic else 2 * n)))  # 1 + q^period + q^(2 period) + ...
    near, far = (0.0, around) if periodic else (around, around * float(np.exp(-theta * n)))
    complement, ratio = -float(np.expm1(-theta)), float(np.exp(-theta))
    return Images(theta, complement, ratio / c, float(np.tanh(theta / 2)), near, far)
