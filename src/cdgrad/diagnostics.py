"""Measurements along the channel axis (roughness, the gradient's signal and noise, what directing does), and
of training itself: how far rounding moves it, and how sharp the loss is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdgrad.columns import columns_of, exact
from cdgrad.dtensors import is_dtensor
from cdgrad.machine import has_float64
from cdgrad.selection import Target


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

    Raises:
        TypeError, ValueError: complex numbers; groups that do not divide the axis.

    Returns:
        A number in [0, 2); nan where no column varies, as with a single channel.

    Source: half of von Neumann's ratio (J. von Neumann, Annals of Mathematical Statistics, 1941).

    >>> roughness(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    0.3
    """
    steps, deviations = _energies(columns_of(weight, dim, groups))
    return float(steps / (2 * deviations))


class Alignment(NamedTuple):
    """How a directed gradient lies to the ordinary one: their cosine, and the ratio of their L2 norms."""

    cosine: float
    norm_ratio: float

    @staticmethod
    def of(products: Tensor) -> Alignment:
        """From the inner products of `alignment_products`."""
        inner, g_square, directed_square = map(float, products.cpu())
        if g_square == 0:
            return Alignment(math.nan, math.nan)
        ratio = math.sqrt(directed_square / g_square)
        return Alignment(inner / (g_square * ratio) if ratio else math.nan, ratio)


@torch.no_grad()
def alignment(raw: Sequence[Tensor], directed: Sequence[Tensor]) -> Alignment:
    """``cos(g, P g)`` and ``|P g| / |g|`` of the ordinary gradient g and the directed, as one long vector.

    A metric's operator is positive definite, so the cosine is positive: P g is a descent direction.

    Args:
        raw: the gradients g, one tensor a weight.
        directed: the gradients P g, of the same shapes.

    Raises:
        ValueError: the shapes differ.

    Returns:
        An `Alignment`; nan where g or P g is zero, and both nan for empty lists.

    >>> alignment([torch.tensor([3.0, 4.0])], [torch.tensor([6.0, 8.0])])
    Alignment(cosine=1.0, norm_ratio=2.0)
    """
    return Alignment.of(alignment_products(raw, directed))


@torch.no_grad()
def alignment_products(raw: Sequence[Tensor], directed: Sequence[Tensor]) -> Tensor:
    """The inner products g . P g, g . g and P g . P g of `alignment`, float64 of shape (3,).

    They stay on the device of the gradients, and the host does not wait for them.
    """
    device = raw[0].device if raw and has_float64(raw[0].device) else "cpu"
    totals = [torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)]
    if [g.shape for g in raw] != [Pg.shape for Pg in directed]:
        raise ValueError("expected two lists of gradients of equal shapes, in the same order")
    for g, Pg in zip(raw, directed, strict=True):
        g, Pg = exact(g), exact(Pg)
        for total, product in zip(totals, (g * Pg, g.square(), Pg.square()), strict=True):
            part = product.sum()
            total += part.full_tensor() if is_dtensor(part) else part
    return torch.stack(totals)


@torch.no_grad()
def gradient_statistics(jobs: Sequence[tuple[Target, Tensor, Tensor]]) -> dict[str, float]:
    """`cdgrad.Attachment.statistics` of (target, ordinary gradient g, directed gradient P g)."""
    products = [alignment_products([raw], [directed]) for _, raw, directed in jobs]
    energies = [torch.stack([_energies(block) for block in _blocks(target)]).sum(0) for target, _, _ in jobs]
    # On one device, so that the host waits once.
    rows = [torch.cat(each).to(products[0].device) for each in zip(products, energies, strict=True)]
    of_weights = torch.stack(rows).cpu() if rows else torch.zeros(0, 5, dtype=torch.float64)
    statistics: dict[str, float] = {}
    names = ["", *(f"{target.name}/" for target, _, _ in jobs)]
    for name, row in zip(names, [of_weights.sum(0), *of_weights], strict=True):
        cosine, norm_ratio = Alignment.of(row[:3])
        statistics |= {f"{name}norm_ratio": norm_ratio, f"{name}cosine": cosine}
        if name:
            statistics[f"{name}roughness"] = float(row[3] / (2 * row[4]))
    return statistics


def _blocks(target: Target) -> list[Tensor]:
    """The weight's channel intervals, each of shape (groups, n, columns)."""
    weight = target.param.detach()
    weight = weight.full_tensor() if is_dtensor(weight) else weight
    if not target.sizes:
        return [columns_of(weight, target.dim, target.groups)]
    return [columns_of(block, target.dim, 1) for block in torch.split(weight, list(target.sizes), target.dim)]


def _energies(columns: Tensor) -> Tensor:
    """Squared steps between neighbors, and squared deviations from the mean, of shape (2,)."""
    steps = columns.diff(dim=1).square().sum()
    return torch.stack([steps, (columns - columns.mean(1, keepdim=True)).square().sum()])


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
        raise ValueError(f"expected at least 2 gradients to estimate the noise, got {len(gradients)}")
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
    columns = columns_of(weight, dim, groups)
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
    channels = columns_of(weight, dim, 1)[0]
    distances = torch.cdist(channels, channels)
    at = int((channels - channels.mean(0)).square().sum(1).argmax())
    order = [at]
    for _ in range(len(channels) - 1):
        distances[:, at] = math.inf
        at = int(distances[at].argmin())
        order.append(at)
    return torch.tensor(order, device="cpu")


@torch.no_grad()
def divergence(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """How far two copies of a network have moved apart: the mean over all weights of ``2 |a - b| / (|a| +
    |b|)``.

    It measures what rounding alone does along training, where both copies are trained by methods that are
    equal in exact arithmetic. An entry that is 0 in both counts as 0.

    Args:
        a: the parameters of one copy.
        b: those of the other, of the same shapes in the same order.

    Returns:
        0 for equal weights, about 1.44 for independent normal ones, 2 where all signs differ; nan without
        entries.

    Raises:
        ValueError: the shapes differ.

    Source: after Y. Sun, D. Lao, A. Yezzi, G. Sundaramoorthi, arXiv 2206.02001.

    >>> divergence([torch.tensor([1.0, 3.0])], [torch.tensor([1.0, 1.0])])
    0.5
    """
    total, count = 0.0, 0
    if [x.shape for x in a] != [y.shape for y in b]:
        raise ValueError("expected parameters of equal shapes, in the same order")
    for x, y in zip(a, b, strict=True):
        x, y = exact(x), exact(y)
        size = x.abs() + y.abs()
        # Where both are 0, so is the difference, and any positive size will do.
        total += _sum(2 * (x - y).abs() / size.where(size > 0, 1))
        count += x.numel()
    return total / count if count else math.nan


def sharpness(
    loss: Tensor, parameters: Sequence[Tensor], iterations: int = 100, tolerance: float = 1e-4, seed: int = 0
) -> float:
    """The eigenvalue of largest size of the loss's Hessian, by power iteration.

    Times the learning rate of gradient descent it is 2 at the edge of stability: beyond, a quadratic loss
    diverges.

    Args:
        loss: a scalar, computed from `parameters` with a graph that can be differentiated twice.
        parameters: the tensors to differentiate by.
        iterations: Hessian-vector products at most.
        tolerance: relative change of the eigenvalue at which to stop.
        seed: of the first vector.

    Returns:
        The Rayleigh quotient of the last vector, negative where the direction curves down; 0 for a loss
        without curvature. Two eigenvalues of nearly the same size and opposite signs give a number between
        them. Cost: two backward passes for each iteration.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> round(sharpness((w * w * torch.tensor([3.0, 0.5])).sum(), [w]), 3)
    6.0
    """
    weights = list(parameters)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    if not any(g.requires_grad for g in gradients):
        return 0.0
    random = torch.Generator("cpu").manual_seed(seed)
    v = [torch.randn(w.shape, generator=random, device="cpu").to(w) for w in weights]
    value = 0.0
    for _ in range(iterations):
        norm = math.sqrt(sum(_sum(exact(x).square()) for x in v))
        if norm == 0:
            return 0.0
        v = [x / norm for x in v]
        inner = torch.stack([(g * x).sum() for g, x in zip(gradients, v, strict=True)]).sum()
        product = torch.autograd.grad(inner, weights, retain_graph=True, materialize_grads=True)
        last, value = value, sum(_sum(exact(p * x)) for p, x in zip(product, v, strict=True))
        v = [p.detach() for p in product]
        if abs(value - last) <= tolerance * abs(value):
            break
    return value


def _modes(gradient: Tensor, dim: int, groups: int) -> Tensor:
    """Coefficients in the orthonormal DCT-II basis along the channel, of shape (groups, n, columns)."""
    columns = columns_of(gradient, dim, groups)
    n = columns.shape[1]
    k = torch.arange(n, dtype=torch.float64, device=columns.device)
    basis = math.sqrt(2 / n) * torch.cos(math.pi / n * k[:, None] * (k + 0.5))
    basis[0] = 1 / math.sqrt(n)
    return basis @ columns
