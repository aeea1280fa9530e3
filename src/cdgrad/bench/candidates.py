"""What is timed on the gradients of a network: the operator, and what else people do to gradients."""

# torch types neither its optimizers nor its transforms.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cdgrad._torch_private import foreach_mul_
from cdgrad.metrics import MeanSobolev, Metric, ReweightedL2, Sobolev
from cdgrad.ops import channel_directed_

METRICS: tuple[Metric, ...] = (
    ReweightedL2(3),
    Sobolev(0.01),
    Sobolev(0.01, "periodic"),
    MeanSobolev(0.1),
    MeanSobolev(0.1, "periodic"),
)
FLOOR = "torch._foreach_mul_"
Candidates = dict[str, Callable[[], object]]


def floor(grads: list[Tensor]) -> Candidates:
    """Reads and writes every element once: what the memory allows."""
    return {FLOOR: partial(foreach_mul_, grads, 1.0)}


def operators(grads: list[Tensor], groups: Sequence[int], backends: Sequence[str]) -> Candidates:
    """Every metric with every backend; names are ``metric | backend``."""
    return {
        f"{metric} | {backend}": partial(channel_directed_, grads, metric, 0, groups, backend=backend)
        for metric in METRICS
        for backend in backends
    }


def composition(grads: list[Tensor]) -> Candidates:
    """The re-weighted metric as the best composition of torch calls we know."""
    return {"lerp_ to the mean": lambda: [g.lerp_(g.mean(0, keepdim=True), 2 / 3) for g in grads]}


def peers(grads: list[Tensor]) -> Candidates:
    """Gradient centralization, smoothing by FFT, and optimizer steps."""
    plain = [grad.flatten(1) for grad in grads]
    candidates: Candidates = {
        "gradient centralization": lambda: [g.sub_(g.mean(dim=(1, 2, 3), keepdim=True)) for g in grads],
        "Laplacian smoothing (FFT)": lambda: [_laplacian_smoothing(g) for g in grads],
    }
    for name, make in {
        "SGD step (foreach)": partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
        "SGD step (fused)": partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
        "AdamW step (foreach)": partial(torch.optim.AdamW, foreach=True),
        "AdamW step (fused)": partial(torch.optim.AdamW, fused=True),
    }.items():
        candidates[name] = make(_parameters(grads)).step
    candidates["Muon step"] = torch.optim.Muon(_parameters(plain)).step
    return candidates


def _parameters(grads: list[Tensor]) -> list[Tensor]:
    """Parameters with these gradients, so that optimizers find the same memory."""
    parameters: list[Tensor] = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    return parameters


def _laplacian_smoothing(grad: Tensor) -> None:
    """(I - sigma L)^-1 with sigma = 1 on the flattened gradient, periodic, as in arXiv 1806.06317."""
    flat = grad.flatten()
    n = len(flat)
    frequencies = torch.arange(n // 2 + 1) * (2 * torch.pi / n)
    damped = torch.fft.rfft(flat) / (1 + 2 * (1 - torch.cos(frequencies)))
    grad.copy_(torch.fft.irfft(damped, n).view_as(grad))
