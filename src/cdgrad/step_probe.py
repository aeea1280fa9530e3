"""Whether an optimizer's step overwrites the directed gradient, checked in the first step.

Many optimizers write `param.grad` inside their step, and most may: they add weight decay or clip. One that
writes what it has reduced over workers there throws the directed gradient away. The smallest gradient tells
them apart: what the step left derives from the directed gradient, the weight and the optimizer's state, as
Nesterov's momentum does, or it does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from cdgrad._torch_private import version
from cdgrad.dtensors import is_dtensor, local_part
from cdgrad.selection import Target
from cdgrad.target_operator import Job

_TOLERANCE = 1e-2  # relative; half-precision gradients are rounded to 4e-3
_REMEDY = (
    "if it exchanges gradients between workers, do that before the step and call handle.apply() after it, or "
    "call cdgrad.channel_directed_ on the gradients that the update reads"
)


class StepProbe:
    """Copies of one small gradient, from before the operator and before the update."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._state: list[Tensor] = []
        self._raw = self._directed = self._weight = torch.empty(0)
        self._seen: tuple[Tensor, int] | None = None

    def before_operator(self, jobs: Sequence[Job]) -> None:
        """Copy the smallest of the ordinary gradients that has an element."""
        target, grad, _ = min(jobs, key=lambda job: job[1].numel() or math.inf)
        self._target, self._raw, self._seen = target, local_part(grad).clone(), None

    @torch.no_grad()
    def before_update(self, optimizer: Optimizer) -> None:
        """Copy the same gradient, now directed, its weight and its state, of an earlier step perhaps."""
        if self._target is not None and (grad := self._target.param.grad) is not None:
            self._directed, self._weight = local_part(grad).clone(), local_part(self._target.param).clone()
            self._seen = grad, version(grad)
            state = cast(Mapping[Tensor, object], optimizer.state).get(self._target.param)
            self._state = _similar(state, self._directed)

    @torch.no_grad()
    def check_update(self, kind: str) -> bool:
        """Whether the question is answered, after the update.

        Raises:
            RuntimeError: the step put the ordinary gradient in the place of the directed one.

        Warns:
            UserWarning: the step wrote something that does not derive from the directed gradient.
        """
        if self._target is None or self._seen is None:
            return False
        grad = self._target.param.grad
        if grad is None or (grad is self._seen[0] and version(grad) == self._seen[1]):
            return True
        written = local_part(grad)
        if not written.isfinite().all() or not written.any():
            return False
        name = self._target.name
        # First without the state, which may contain the ordinary gradient.
        for state in ([], self._state):
            if _is_derived(written, self._directed, self._weight, *state):
                return True
            if _is_combination(written, self._raw, self._weight, *state):
                raise RuntimeError(
                    f"{kind}.step replaced the directed gradient of {name} by the ordinary one; {_REMEDY}"
                )
        warnings.warn(
            f"{kind}.step, or a hook that ran later, wrote the gradient of {name} after it was directed, and "
            f"the update may have used the ordinary one; {_REMEDY}",
            stacklevel=4,
        )
        return True


def _similar(state: object, grad: Tensor) -> list[Tensor]:
    """Copies of the finite tensors in an optimizer's state that are like the gradient."""
    if not isinstance(state, Mapping):
        return []
    found: list[Tensor] = []
    for value in cast(Mapping[object, object], state).values():
        if isinstance(value, Tensor) and (type(value) is Tensor or is_dtensor(value)):
            part = local_part(value)
            if _form(part) == _form(grad) and part.is_floating_point() and part.isfinite().all():
                found.append(part.clone())
    return found


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.device, tensor.layout


def _is_derived(x: Tensor, grad: Tensor, *others: Tensor) -> bool:
    """Whether x is a gradient that an optimizer centralized, scaled (also by element) or added others to."""
    centralized = grad - grad.mean(tuple(range(1, grad.ndim)), keepdim=True) if grad.ndim > 1 else grad
    if _is_combination(x, grad, centralized, *others):
        return True
    return any(torch.equal(x.sign(), like.sign()) for like in (grad, -grad, centralized, -centralized))


def _is_combination(x: Tensor, *of: Tensor) -> bool:
    """Whether x is a linear combination of the others, to rounding."""
    # On the host: not every GPU has float64, nor every backend a pseudo-inverse.
    target, *parts = (part.detach().cpu().double().flatten() for part in (x, *of))
    basis = torch.stack(parts, 1)
    inverse = cast(Tensor, torch.linalg.pinv(basis))
    residual = (target - basis @ (inverse @ target)).square().sum()
    return bool(residual <= _TOLERANCE**2 * target.square().sum())
