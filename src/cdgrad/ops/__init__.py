"""The operator on torch tensors, and the choice of its backend."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import SupportsIndex

import torch

from cdgrad._torch_private import outside_graphs
from cdgrad.dtensors import is_dtensor, local_part
from cdgrad.metrics import Metric, as_metric
from cdgrad.ops import eager, local
from cdgrad.ops.overlaps import refuse_overlaps
from cdgrad.ops.prepared import Prepared
from cdgrad.ops.sharded import operator as sharded


# torch.compile leaves the calls as they are, between two graphs: the kernels gain nothing from it, and a
# graph would hold the metric as a constant.
@outside_graphs
def channel_directed(grad: torch.Tensor, metric: Metric | str, dim: int = 0, groups: int = 1) -> torch.Tensor:
    """The gradient in `metric` along axis `dim`, from the ordinary gradient: a new tensor.

    With g one column of `grad` along `dim`, the column g~ of the result satisfies
    ``<g~, k>_metric = mean(g k)`` for every k. Written out, A = D^T D being the negative second
    difference over spacing 1/n:

    ========================  =======================================
    metric                    g~
    ========================  =======================================
    ``L2()``                  g
    ``ReweightedL2(lam)``     mean(g) + (g - mean(g)) / lam
    ``Sobolev(lam)``          (I + lam A)^-1 g
    ``MeanSobolev(lam)``      mean(g) + (lam A)^+ g
    ========================  =======================================

    The result is differentiable; the operator is symmetric and so its own derivative. Non-finite
    entries spread along their column and stay non-finite.

    Args:
        grad: floating point, any shape, strides and device. Narrower than float32 is computed in
            float32.
        metric: a metric or its text.
        dim: the channel axis; negative counts from the end.
        groups: number of consecutive equal intervals of the axis, each a channel axis of its own
            (grouped convolutions).

    Returns:
        Tensor of grad's shape, dtype and device.

    Raises:
        TypeError: `grad` is not a floating-point tensor, or `metric` is not a metric.
        IndexError: `dim` is out of range.
        ValueError: `groups` does not divide the axis, or a bad metric text.

    Cost: linear in ``grad.numel()``.
    Source: arXiv 2008.10766 (abstract); equations derived in docs/theory.md.

    >>> channel_directed(torch.tensor([1.0, 3.0]), "reweighted:lam=4")
    tensor([1.7500, 2.2500])
    """
    metric = as_metric(metric)
    _check(grad, dim, groups, "grad")
    if is_dtensor(grad):
        return sharded.directed(grad, metric, dim, groups)
    x = local.as_channels(grad, dim, groups)
    if not x.numel():
        return grad.clone()
    return eager.directed(x, metric).flatten(0, 1).movedim(0, dim)


@outside_graphs
def channel_directed_(
    grads: Sequence[torch.Tensor],
    metric: Metric | str,
    dims: int | Sequence[int] = 0,
    groups: int | Sequence[int] = 1,
    backend: str = "auto",
) -> None:
    """`channel_directed` on a list of gradients, in place: memory and strides are kept.

    Every tensor is checked before the first is written, so what is refused leaves all untouched. An
    expanded tensor is written once per element it holds. DTensors are directed as a whole, each rank
    writing its own part; every rank must call with the same list, see docs/distributed.md.

    Args:
        grads: floating-point tensors; see `channel_directed`.
        metric: a metric or its text.
        dims: the channel axis, one for all or one per tensor.
        groups: the group count, one for all or one per tensor.
        backend: ``"auto"`` (what `select_backend` names for each tensor) or a backend's name.

    Raises:
        TypeError, IndexError, ValueError: as `channel_directed`; also an unknown backend or one that
            cannot take a gradient, a number of dims or groups that is not the number of gradients, or
            gradients that overlap in memory.
        RuntimeError: a CUDA graph is being captured before the same step ran once outside.

    Cost: linear in the number of elements.

    >>> grad = torch.tensor([1.0, 3.0])
    >>> channel_directed_([grad], "reweighted:lam=4")
    >>> grad
    tensor([1.7500, 2.2500])
    """
    metric = as_metric(metric)
    all_dims, all_groups = _checked(grads, dims, groups, backend)
    if any(map(is_dtensor, grads)):
        sharded.directed_(grads, metric, all_dims, all_groups, backend)
    else:
        local.directed_(list(zip(grads, all_dims, all_groups, strict=True)), metric, backend)


def prepare(
    grads: Sequence[torch.Tensor],
    metric: Metric | str,
    dims: int | Sequence[int] = 0,
    groups: int | Sequence[int] = 1,
    backend: str = "auto",
    names: Sequence[str] = (),
) -> Prepared:
    """`channel_directed_` for many steps: ``prepare(grads, ...).run(grads)`` does what it does.

    The arguments are checked and the backends are chosen here; a step then costs little time on the host.
    Nothing is written.

    Args:
        grads: gradients of the forms that those of every step will have.
        metric: a metric or its text.
        dims: the channel axis, one for all or one per tensor.
        groups: the group count, one for all or one per tensor.
        backend: as `channel_directed_`.
        names: what errors call the gradients, one for each; without names, their indices.

    Raises:
        TypeError, IndexError, ValueError: as `channel_directed_`.

    >>> grad = torch.tensor([1.0, 3.0])
    >>> prepared = prepare([grad], "reweighted:lam=4")
    >>> prepared.run([grad])
    >>> grad
    tensor([1.7500, 2.2500])
    """
    all_dims, all_groups = _checked(grads, dims, groups, backend, names)
    return Prepared(grads, as_metric(metric), all_dims, all_groups, backend, names)


def select_backend(
    grad: torch.Tensor, metric: Metric | str, dim: int = 0, groups: int = 1
) -> tuple[str, str]:
    """The backend that ``backend="auto"`` uses for this gradient, and the reason, as a sentence.

    >>> select_backend(torch.ones(4, 3), "sobolev:lam=0.01")
    ('cpu', 'fused CPU kernels, one read and one write per element')
    """
    _check(grad, dim, groups, "grad")
    if is_dtensor(grad):
        grad, groups = local_part(grad), 1
    return local.choose("auto", as_metric(metric), grad, dim % grad.ndim, groups)


def _checked(
    grads: Sequence[torch.Tensor],
    dims: int | Sequence[int],
    groups: int | Sequence[int],
    backend: str,
    names: Sequence[str] = (),
) -> tuple[Sequence[int], Sequence[int]]:
    """Dims, counted from the front, and groups, one for each gradient; refuses what cannot be directed."""
    # The rows of a tensor would be taken for gradients.
    if isinstance(grads, torch.Tensor) or not hasattr(grads, "__len__"):
        kind = type(grads).__name__
        raise TypeError(f"grads must be a list of gradients, got a {kind}; for one gradient, pass [grad]")
    if backend not in ("auto", *local.BACKENDS):
        raise ValueError(f"unknown backend {backend!r}; known are auto, {', '.join(local.BACKENDS)}")
    all_dims = _one_each(dims, len(grads), "dims")
    all_groups = _one_each(groups, len(grads), "groups")
    for i, (grad, dim, count) in enumerate(zip(grads, all_dims, all_groups, strict=True)):
        _check(grad, dim, count, names[i] if names else f"grads[{i}]")
    refuse_overlaps([local_part(grad) for grad in grads], names)
    return [dim % grad.ndim for grad, dim in zip(grads, all_dims, strict=True)], all_groups


def _check(grad: torch.Tensor, dim: int, groups: int, name: str) -> None:
    """Refuse what has no view of shape (groups, channels per group, ...)."""
    if not isinstance(grad, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(grad).__name__}")
    if not grad.is_floating_point():
        raise TypeError(
            f"{name} must have a real floating dtype, got {grad.dtype}; convert it first, e.g. .float()"
        )
    if grad.layout is not torch.strided:
        raise TypeError(
            f"{name} has layout {grad.layout}, and only dense ones have a channel axis; make it dense first, "
            ".to_dense()"
        )
    if not (type(dim) is type(groups) is int):  # asking whether a type has __index__ takes microseconds
        for what, value in (("dim", dim), ("groups", groups)):
            if not isinstance(value, SupportsIndex) or isinstance(value, bool):
                raise TypeError(f"{what} of {name} must be an integer, got {value!r}")
    if not grad.ndim:
        raise IndexError(f"dim {dim} is out of range for {name}, which has no axes; expected one or more")
    if not -grad.ndim <= dim < grad.ndim:
        raise IndexError(
            f"dim {dim} is out of range for {name} of shape {tuple(grad.shape)}; "
            f"it must lie in [{-grad.ndim}, {grad.ndim - 1}]"
        )
    if groups < 1 or grad.shape[dim] % groups:
        raise ValueError(
            f"groups must be a positive divisor of the channel axis: got groups={groups} for "
            f"{grad.shape[dim]} channels, axis {dim} of {name} of shape {tuple(grad.shape)}"
        )


def _one_each(value: int | Sequence[int], count: int, name: str) -> Sequence[int]:
    if not isinstance(value, Sized):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} must be one int or one per gradient: got {len(value)} for {count} gradients"
        )
    return value
