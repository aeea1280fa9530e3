"""What an arm does to the gradient: centralize it, then direct it, perhaps over permuted channels.

`attach` knows hooks, closures and what was directed already; here its `Attachment` gets another
operator. Centralization removes what is common to all weights of a filter, so it comes first: the
metric, and ``rescale``, see the centralized gradient.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.optim import Optimizer

from cdgrad.attachment import Attachment, attach
from cdgrad.diagnostics import agreement
from cdgrad.dtensors import is_dtensor
from cdgrad.metrics import L2, as_metric
from cdgrad.selection import Selection, Target
from cdgrad.study import StudyError, streams
from cdgrad.study.spec import BASELINE_METRIC, Setting


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
    plain = setting.metric == BASELINE_METRIC
    options: dict[str, Any] = {
        "direction": setting.direction,
        "linear": setting.linear,
        "rescale": setting.rescale,
    }
    if not (setting.permute or setting.centralize):
        return None if plain else _effective(attach(optimizer, model, setting.metric, **options))
    if any(map(is_dtensor, model.parameters())):
        raise StudyError("permute and centralize need whole parameters, and these are sharded; use DDP")
    # `attach` checks the optimizer and the model; an attachment with the arm's operator takes over.
    with warnings.catch_warnings():
        if plain:
            warnings.simplefilter("ignore", UserWarning)  # a model without convolutions has linear weights
        checked = attach(optimizer, model, L2() if plain else setting.metric, **options)
    checked.remove()
    return _effective(_ArmAttachment(optimizer, model, checked, setting, seed))


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


def direct_and_compare(handle: Attachment | None) -> tuple[float, float]:
    """Direct the gradients ahead of the step; the cosine of g and P g, and |P g| / |g|.

    Over all weights that the arm changes, as one vector. (1, 1) where nothing is attached.
    """
    if handle is None:
        return 1.0, 1.0
    grads = [t.param.grad for t in handle.selection.targets if t.param.grad is not None]
    raw = [grad.clone() for grad in grads]
    handle.apply()
    return agreement(raw, grads)


class _ArmAttachment(Attachment):
    """An attachment whose operator centralizes, and permutes the channels around the metric's."""

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, checked: Attachment, setting: Setting, seed: int
    ) -> None:
        self._filters = _filter_axes(model) if setting.centralize else {}
        self._metric_targets = {t.param for t in checked.selection.targets}
        known = {t.param: t for t in checked.selection.targets}
        names = {param: name for name, param in model.named_parameters()}
        targets = [*known.values(), *(Target(names[p], p, 0, 1) for p in self._filters if p not in known)]
        self._orders: dict[nn.Parameter, Tensor] = {}
        if setting.permute:
            random = streams.generator(seed, streams.PERMUTATION)
            for target in checked.selection.targets:
                order = _permutation(target.param.shape[target.dim], target.groups, random)
                self._orders[target.param] = order.to(target.param.device)
        covered = {t.name for t in targets}
        skipped = tuple(s for s in checked.selection.skipped if s.name not in covered)
        options = {key: value for key, value in checked.options.items() if key != "metric"}
        super().__init__(
            optimizer, model, Selection(tuple(targets), skipped), as_metric(checked.metric), options
        )

    def _active(self) -> bool:
        return self.enabled and (bool(self._filters) or super()._active())

    def _operate(self, pending: list[tuple[Target, Tensor]]) -> None:
        for target, grad in pending:
            if target.param in self._filters:
                _centralize_(grad, *self._filters[target.param])
        directed = [(t, g) for t, g in pending if t.param in self._metric_targets]
        if self._metric == L2():
            return
        if not self._orders:
            super()._operate(directed)
            return
        for target, grad in directed:  # one by one, so that one shuffled copy is alive at a time
            order = self._orders[target.param]
            shuffled = grad.index_select(target.dim, order)
            super()._operate([(target, shuffled)])
            grad.index_copy_(target.dim, order, shuffled)


def _permutation(size: int, groups: int, random: np.random.Generator) -> Tensor:
    """A permutation of `size` channels that keeps every group's channels in the group."""
    each = size // groups
    return torch.tensor(np.concatenate([g * each + random.permutation(each) for g in range(groups)]))


def _filter_axes(model: nn.Module) -> dict[nn.Parameter, tuple[int, int]]:
    """Weights of convolutions and linear layers: (axis of the output channels, groups along axis 0).

    The groups matter only where the output channels are not axis 0: the rows of a transposed
    convolution's weight are input channels, group after group.
    """
    axes: dict[nn.Parameter, tuple[int, int]] = {}
    for layer in model.modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            weight = layer._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]
            transposed = isinstance(layer, _ConvNd) and layer.transposed
            if weight is not None:
                axes[weight] = (1, cast(_ConvNd, layer).groups) if transposed else (0, 1)
    return axes


def _centralize_(grad: Tensor, axis: int, groups: int) -> None:
    """Subtract from each output filter's gradient its mean, in place."""
    if axis == 0:
        grad.sub_(grad.mean(tuple(range(1, grad.ndim)), keepdim=True))
        return
    # Splitting an axis is a view of any layout, unlike joining two.
    rows = grad.view(groups, grad.shape[0] // groups, *grad.shape[1:])
    rows.sub_(rows.mean((1, *range(3, rows.ndim)), keepdim=True))
