"""Tensors scaled to norms they had, one by one: where Triton runs, in one launch for all of a dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdgrad.ops import local
from cdgrad.ops.overlaps import elements_in_one_piece

if TYPE_CHECKING:
    from cdgrad.ops.triton.scaling import Scaling


class Rescaling:
    """old / new times each tensor, and the tensor itself where new is 0 or not a number.

    Args:
        tensors: none of them a DTensor; those of `run` have the same forms.
        backend: as `cdgrad.channel_directed_`.
    """

    def __init__(self, tensors: Sequence[Tensor], backend: str) -> None:
        self._rest: list[int] = []
        self._fused: list[tuple[list[int], Scaling]] = []
        members: dict[tuple[torch.device, torch.dtype], dict[int, int]] = {}
        for i, tensor in enumerate(tensors):
            size = elements_in_one_piece(tensor)
            if size is not None and local.on_triton(backend, tensor):
                members.setdefault((tensor.device, tensor.dtype), {})[i] = size
            else:
                self._rest.append(i)
        for sizes in members.values():
            from cdgrad.ops.triton.scaling import Scaling  # needs Triton, which is not on every machine

            chosen = list(sizes)
            self._fused.append((chosen, Scaling([tensors[i] for i in chosen], list(sizes.values()))))

    def run(self, tensors: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Scale in place; `old` and `new` hold one float64 number for each tensor."""
        for chosen, scaling in self._fused:
            scaling.run(*([each[i] for i in chosen] for each in (tensors, old, new)))
        if self._rest:
            factors = _ratios([old[i] for i in self._rest], [new[i] for i in self._rest])
            for i, factor in zip(self._rest, factors, strict=True):
                local.distinct(tensors[i]).mul_(_as_factor(factor, tensors[i]))


def _ratios(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """old / new, and 1 where new is 0."""
    if len({norm.device for norm in new}) > 1:
        return [torch.where(b > 0, a / b, 1.0) for a, b in zip(old, new, strict=True)]
    numerator, denominator = torch.stack(old), torch.stack(new)
    return list(torch.where(denominator > 0, numerator / denominator, 1.0).unbind())


def _as_factor(factor: Tensor, tensor: Tensor) -> Tensor:
    # On a GPU a number without axes is rounded to the dtype of the tensor: for bfloat16 to 3 digits.
    return factor if tensor.device.type == "cpu" or tensor.itemsize > 2 else factor.float().view(1)
