"""Measurements along the channel axis: how rough a weight is, and what directing does to a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def roughness(weight: Tensor, dim: int = 0, groups: int = 1) -> float:
    """Dirichlet energy along the channel over its expectation for white noise of the same variance.

    ``r = sum <h, A h> / (2 n^2 sum |h - mean h|^2)``, summed over the columns h of n channels, with A
    = D^T D the free second difference over spacing 1/n (so the numerator is n^2 times the squared
    steps between neighbors). For independent Gaussian channels r has expectation 1 whatever n, since
    a ratio of this kind is independent of its denominator; r is near 0 where neighboring channels
    agree, and near 2 where they alternate.

    Args:
        weight: any shape and floating dtype.
        dim: the channel axis.
        groups: number of consecutive intervals of the axis, each a channel axis of its own.

    Returns:
        A number in [0, 2); nan where no column varies, as with a single channel.

    Source: half of von Neumann's ratio (J. von Neumann, Annals of Mathematical Statistics, 1941).

    >>> roughness(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    0.3
    """
    channels = weight.double().movedim(dim, 0)
    columns = channels.reshape(groups, len(channels) // groups, -1)
    steps = columns.diff(dim=1).square().sum()
    deviations = (columns - columns.mean(1, keepdim=True)).square().sum()
    return float(steps / (2 * deviations))


@torch.no_grad()
def agreement(raw: Sequence[Tensor], directed: Sequence[Tensor]) -> tuple[float, float]:
    """cos(g, P g) and |P g| / |g| of the ordinary gradient g and the directed one, as one long vector.

    A metric's operator is positive definite, so the cosine is positive: P g is a descent direction.

    Args:
        raw: the gradients g, one tensor a weight.
        directed: the gradients P g, of the same shapes.

    Returns:
        (cosine, ratio); nan where g or P g is zero, and both nan for empty lists.

    >>> agreement([torch.tensor([3.0, 4.0])], [torch.tensor([6.0, 8.0])])
    (1.0, 2.0)
    """
    inner, g_square, directed_square = 0.0, 0.0, 0.0
    for g, Pg in zip(raw, directed, strict=True):
        g, Pg = g.double(), Pg.double()
        inner += float((g * Pg).sum())
        g_square += float(g.square().sum())
        directed_square += float(Pg.square().sum())
    if g_square == 0:
        return math.nan, math.nan
    ratio = math.sqrt(directed_square / g_square)
    return (inner / (g_square * ratio) if ratio else math.nan), ratio
