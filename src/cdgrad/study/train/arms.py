"""What an arm does to the gradient: centralize it, then direct it, perhaps over permuted channels.

`attach` knows hooks, closures and what was directed already; an arm gives it another operator.
Centralization removes what is common to all weights of a filter, so it comes first: the metric, and
``rescale``, see the centralized gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdgrad.attachment import Attachment, Options, attach, attach_operator
from cdgrad.channel_axis import is_convolution
from cdgrad.diagnostics import Alignment, alignment_products
from cdgrad.dtensors import is_dtensor
from cdgrad.metrics import L2, Metric, as_metric
from cdgrad.ops import select_backend
from cdgrad.selection import Direction, Selection, Target
from cdgrad.study import StudyError, streams
from cdgrad.study.spec import NO_METRIC, Setting
from cdgrad.target_operator import DirectedInMetrics, Job, Operate, Rescale

_FilterAxes = Mapping[nn.Parameter, tuple[int, int]]


def attach_arm(setting: Setting, optimizer: Optimizer, model: nn.Module, seed: int) -> Attachment | None:
    """Attach to `optimizer` what the arm of `setting` does; None where that is nothing.

    With ``permute``, the operator P becomes Q^T P Q with a permutation Q of the channels of each
    tensor (within each group), drawn from `seed`. With ``centralize``, the gradient g of each weight
    of a convolution or `torch.nn.Linear` first loses its mean over each output filter, g - mean(g)
    over all axes but the output channel's (Yong et al., *Gradient Centralization*, ECCV 2020, who
    also leave biases and norm parameters alone).

    Raises:
        StudyError: permuted or centralized parameters that are sharded; or nothing to direct.
        ValueError, TypeError: as `cdgrad.attach`.
    """
    has_metric = setting.metric != NO_METRIC
    options = Options(
        direction=cast(Direction, setting.direction),
        linear=setting.linear,
        rescale=cast(Rescale, setting.rescale),
    )
    if not (setting.permute or setting.centralize):
        if not has_metric:
            return None
        return _effective(attach(optimizer, model, setting.metric, **asdict(options)))
    if any(map(is_dtensor, model.parameters())):
        raise StudyError("permute and centralize need whole parameters, and these are sharded; use DDP")
    selection = options.select(model)
    directed = {target.param for target in selection.targets} if has_metric else set[nn.Parameter]()
    operate = DirectedInMetrics(options.rescale)
    if setting.permute:
        operate = permuted(operate, channel_orders(selection, seed))
    if setting.centralize:
        axes = _filter_axes(model)
        operate = centralized(operate, axes, directed)
        selection = _with_filters(selection, axes, model)
    metric = as_metric(setting.metric) if has_metric else L2()
    return _effective(attach_operator(optimizer, model, metric, options, selection, operate))


def _effective(handle: Attachment) -> Attachment:
    """The attachment, unless it has nothing to direct: its arm would equal the baseline.

    Raises:
        StudyError: no weight that is trained is selected.
    """
    if any(target.param.requires_grad for target in handle.selection.targets):
        return handle
    skipped = handle.selection.skipped
    reason = f"; {skipped[0].name}: {skipped[0].reason}" if skipped else ""
    metric = handle.metric
    handle.remove()
    raise StudyError(
        f"metric {metric} has nothing to direct in this network, so that the arm would equal the baseline"
        f"{reason}; give it trainable convolutions (lazy ones after a forward pass), or linear = true"
    )


def operator_backends(handle: Attachment | None) -> str:
    """The backends that computed an arm's operator, such as ``"cpu"``; ``"none"`` where there is none."""
    if handle is None or (metric := handle.metric) == L2() or not isinstance(metric, Metric):
        return "none"
    backends: set[str] = set()
    for target in handle.selection.targets:
        grad = target.param.grad if target.param.grad is not None else target.param.detach()
        if is_dtensor(grad):
            backends.add("sharded")
        elif target.param.requires_grad:
            backends.add(select_backend(grad, metric, target.dim, target.groups)[0])
    return ", ".join(sorted(backends)) or "none"


def direct_and_sum(handle: Attachment) -> Tensor:
    """Direct the gradients g ahead of the step; returns g . P g, g . g and P g . P g, on their device.

    Over all weights that the arm changes, as one vector.
    """
    grads = [t.param.grad for t in handle.selection.targets if t.param.grad is not None]
    raw = [grad.clone() for grad in grads]
    handle.apply()
    return alignment_products(raw, grads)


def alignment_of(products: Tensor) -> Alignment:
    """The cosine of g and P g, and |P g| / |g|, from the products that `direct_and_sum` returned."""
    return Alignment.of(products)


def permuted(operate: Operate, orders: Mapping[nn.Parameter, Tensor]) -> Operate:
    """The operator over the channels in another order: Q^T P Q, one gradient at a time."""

    def operate_permuted(jobs: Sequence[Job]) -> None:
        for target, grad, metric in jobs:  # so that one shuffled copy is alive at a time
            if metric != L2():
                shuffled = grad.index_select(target.dim, orders[target.param])
                operate([(target, shuffled, metric)])
                grad.index_copy_(target.dim, orders[target.param], shuffled)

    return operate_permuted


def centralized(operate: Operate, axes: _FilterAxes, directed: set[nn.Parameter]) -> Operate:
    """The operator on the parameters in `directed`, after every filter's gradient lost its mean."""

    def operate_centralized(jobs: Sequence[Job]) -> None:
        for target, grad, _ in jobs:
            if target.param in axes:
                _centralize_(grad, *axes[target.param])
        if rest := [job for job in jobs if job[0].param in directed and job[2] != L2()]:
            operate(rest)

    return operate_centralized


def channel_orders(selection: Selection, seed: int) -> dict[nn.Parameter, Tensor]:
    """The permutation of the channels of each target, drawn from the seed."""
    random = streams.generator(seed, streams.PERMUTATION)
    return {
        t.param: _permutation(t.param.shape[t.dim], t.groups, random).to(t.param.device)
        for t in selection.targets
    }


def _permutation(size: int, groups: int, random: np.random.Generator) -> Tensor:
    """A permutation of `size` channels that keeps every group's channels in the group."""
    each = size // groups
    return torch.tensor(np.concatenate([g * each + random.permutation(each) for g in range(groups)]))


def _with_filters(selection: Selection, axes: _FilterAxes, model: nn.Module) -> Selection:
    """The selection, with the centralized weights as further targets."""
    selected = {target.param for target in selection.targets}
    names = {param: name for name, param in model.named_parameters()}
    further = [Target(names[param], param, 0, 1) for param in axes if param not in selected]
    covered = {target.name for target in further}
    skipped = tuple(s for s in selection.skipped if s.name not in covered)
    return Selection((*selection.targets, *further), skipped)


def _filter_axes(model: nn.Module) -> dict[nn.Parameter, tuple[int, int]]:
    """Weights of convolutions and linear layers: (axis of the output channels, groups along axis 0).

    The groups matter only where the output channels are not axis 0: the rows of a transposed
    convolution's weight are input channels, group after group.
    """
    axes: dict[nn.Parameter, tuple[int, int]] = {}
    for layer in model.modules():
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is None:
            continue
        if is_convolution(layer):
            axes[weight] = (1, layer.groups) if layer.transposed else (0, 1)
        elif isinstance(layer, nn.Linear):
            axes[weight] = (0, 1)
    return axes


def _centralize_(grad: Tensor, axis: int, groups: int) -> None:
    """Subtract from each output filter's gradient its mean, in place."""
    if axis == 0:
        grad.sub_(grad.mean(tuple(range(1, grad.ndim)), keepdim=True))
        return
    # Splitting an axis is a view of any layout, unlike joining two.
    rows = grad.view(groups, grad.shape[0] // groups, *grad.shape[1:])
    rows.sub_(rows.mean((1, *range(3, rows.ndim)), keepdim=True))
