"""The coupling of the pieces of a cut channel interval, derived in `cdgrad.ops.sharded.interface_system`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cdgrad.metrics import Array, MeanSobolev, Sobolev

NUMBERS = 3
"""Numbers per column that describe a piece: its mean, and the first and last value of its own solve."""


def interface(metric: Sobolev | MeanSobolev, lengths: tuple[int, ...], responses: Sequence[Array]) -> Array:
    """The matrix from every piece's (mu - M, first, last) to every piece's (v, theta_right, theta_left).

    Args:
        metric: of the whole interval; its lam n^2 must be finite.
        lengths: of the pieces, in order.
        responses: c w of each piece.

    Returns:
        Array (pieces, 3, pieces, 3).

    Cost: O(pieces^3).
    """
    pieces, n = len(lengths), sum(lengths)
    cuts = pieces if metric.boundary == "periodic" else pieces - 1
    c = metric.lam * float(n) ** 2
    mass = 1.0 if isinstance(metric, Sobolev) else 0.0
    near, far = [w[-1] for w in responses], [w[0] for w in responses]
    # Unknowns: v of every piece, then theta of every cut; cut i lies between pieces i and i + 1.
    right = [pieces + i if i < cuts else None for i in range(pieces)]
    left = [right[i - 1] for i in range(pieces)]

    system = np.zeros((pieces + cuts, pieces + cuts))
    data = np.zeros((pieces + cuts, pieces, NUMBERS))
    for i, length in enumerate(lengths[:-1]):
        system[i, i] = mass * length / c
        for theta, sign in ((right[i], -1.0), (left[i], 1.0)):
            if theta is not None:
                system[i, theta] += sign
        data[i, i, 0] = length / c
    system[pieces - 1, :pieces] = lengths
    for theta in range(pieces, pieces + cuts):
        i = theta - pieces
        j = (i + 1) % pieces
        system[theta, theta] += 1 + near[i] + near[j]
        system[theta, i] += 1
        system[theta, j] -= 1
        for other, weight in ((left[i], far[i]), (right[j], far[j])):
            if other is not None:
                system[theta, other] -= weight
        data[theta, j, 1] = 1
        data[theta, i, 2] = -1

    scale = np.abs(system).max(axis=1, keepdims=True)
    known: Array = np.reshape(data, (pieces + cuts, pieces * NUMBERS)) / scale
    solved = np.asarray(np.linalg.solve(system / scale, known), dtype=np.float64)
    solved: Array = np.concatenate([solved, np.zeros((1, pieces * NUMBERS))])  # no flux at a free end
    chosen = [
        [i, -1 if right[i] is None else right[i], -1 if left[i] is None else left[i]] for i in range(pieces)
    ]
    return solved[np.array(chosen)].reshape(pieces, 3, pieces, NUMBERS)
