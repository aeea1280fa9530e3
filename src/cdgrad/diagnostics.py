"""Measurements along the channel axis: roughness, the gradient's signal and noise, what directing does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdgrad.dtensors import is_dtensor


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
    columns = _columns(weight, dim, groups)
    steps = columns.diff(dim=1).square().sum()
    deviations = (columns - columns.mean(1, keepdim=True)).square().sum()
    return float(steps / (2 * deviations))


@torch.no_grad()
def agreement(raw: Sequence[Tensor], directed: Sequence[Tensor]) -> tuple[float, float]:
    """``cos(g, P g)`` and ``|P g| / |g|`` of the ordinary gradient g and the directed, as one long vector.

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
        inner += _sum(g * Pg)
        g_square += _sum(g.square())
        directed_square += _sum(Pg.square())
    if g_square == 0:
        return math.nan, math.nan
    ratio = math.sqrt(directed_square / g_square)
    return (inner / (g_square * ratio) if ratio else math.nan), ratio


def _sum(x: Tensor) -> float:
    """Over the whole tensor: of a sharded one, float() would be this rank's part of the sum."""
    total = x.sum()
    return float(total.full_tensor() if is_dtensor(total) else total)


@dataclass(frozen=True)
class Spectrum:
    """Power of the gradient's signal and noise on each mode along the channel, float64, shape (n,).

    Attributes:
        signal: squared expected gradient, mean over the columns; unbiased, so it may be below 0.
        noise: variance of one mini-batch's gradient, mean over the columns.
    """

    signal: Tensor
    noise: Tensor

    @property
    def ratio(self) -> Tensor:
        """Signal over noise, mode by mode; nan where a mode has no noise."""
        return torch.where(self.noise > 0, self.signal / self.noise, math.nan)


@torch.no_grad()
def signal_and_noise(gradients: Sequence[Tensor], dim: int = 0, groups: int = 1) -> Spectrum:
    """What of a mini-batch's gradient is the loss's and what is the batch's, mode by mode.

    Along the channel each column of gradient i has coefficients ``c_ik = <g_i, v_k>`` in the
    orthonormal DCT-II basis v_k, the modes of the free boundary, v_0 constant. With K gradients at the
    same weights from independent batches, per column

        ``noise_k = sum_i (c_ik - mean_i c_ik)^2 / (K - 1)``, ``signal_k = (mean_i c_ik)^2 - noise_k / K``

    both unbiased; then averaged over the columns. Damping mode k pays where its ratio is below the
    others': the linear filter of least squared error has the factors ``signal_k / (signal_k + noise_k)``
    (Wiener).

    Args:
        gradients: K >= 2 gradients of one weight at the same weights, each from batches of its own.
        dim: the channel axis.
        groups: number of consecutive intervals of the axis, each a channel axis of its own.

    Returns:
        A `Spectrum` of n = channels / groups modes, mode 0 (the mean) first.

    Raises:
        ValueError: fewer than two gradients.

    >>> spectrum = signal_and_noise([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])])
    >>> spectrum.signal.numpy().round(6), spectrum.noise.numpy().round(6)
    (array([ 8., -2.]), array([0., 4.]))
    """
    if len(gradients) < 2:
        raise ValueError(f"noise shows between gradients: expected at least 2, got {len(gradients)}")
    modes = torch.stack([_modes(gradient, dim, groups) for gradient in gradients])
    noise = modes.var(dim=0)
    signal = modes.mean(dim=0).square() - noise / len(gradients)
    return Spectrum(signal.mean(dim=(0, 2)), noise.mean(dim=(0, 2)))


@torch.no_grad()
def mean_share(weight: Tensor, dim: int = 0, groups: int = 1) -> float:
    """The share of a weight's energy in mode 0, its mean over the channels; 1 / n for white noise.

    ``n sum mean(h)^2 / sum |h|^2`` over the columns h of n channels.

    Args:
        weight: any shape and floating dtype.
        dim: the channel axis.
        groups: number of consecutive intervals of the axis, each a channel axis of its own.

    Returns:
        A number in [0, 1]; nan for a weight of zeros.

    >>> mean_share(torch.tensor([1.0, 3.0]))
    0.8
    """
    columns = _columns(weight, dim, groups)
    mean_energy = columns.shape[1] * columns.mean(1).square().sum()
    return float(mean_energy / columns.square().sum())


@torch.no_grad()
def similarity_order(weight: Tensor, dim: int = 0) -> Tensor:
    """An order of the channels in which neighbors are alike: a nearest-neighbor chain.

    It starts at the channel farthest from the mean channel and goes to the nearest one not yet
    visited, in the Euclidean distance of their weights. Sorting makes even white noise smoother, so
    compare with the roughness of sorted noise, or sort by one tensor and look at another.

    Args:
        weight: any shape and floating dtype.
        dim: the channel axis, of n entries.

    Returns:
        A permutation of 0..n-1, int64. Cost: n^2 times the weights of a channel.

    >>> similarity_order(torch.tensor([0.0, 6.0, 1.0, 4.0]))
    tensor([1, 3, 2, 0])
    """
    channels = weight.double().movedim(dim, 0).flatten(1) if weight.ndim > 1 else weight.double()[:, None]
    distances = torch.cdist(channels, channels)
    at = int((channels - channels.mean(0)).square().sum(1).argmax())
    order = [at]
    for _ in range(len(channels) - 1):
        distances[:, at] = math.inf
        at = int(distances[at].argmin())
        order.append(at)
    return torch.tensor(order)


def _modes(gradient: Tensor, dim: int, groups: int) -> Tensor:
    """Coefficients in the orthonormal DCT-II basis along the channel, of shape (groups, n, columns)."""
    columns = _columns(gradient, dim, groups)
    n = columns.shape[1]
    k, m = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64) + 0.5
    basis = math.sqrt(2 / n) * torch.cos(math.pi / n * k[:, None] * m)
    basis[0] = 1 / math.sqrt(n)
    return basis.to(columns.device) @ columns


def _columns(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """In float64, of shape (groups, n, columns): n channels of each group along axis 1."""
    channels = tensor.double().movedim(dim, 0)
    return channels.reshape(groups, len(channels) // groups, -1)
