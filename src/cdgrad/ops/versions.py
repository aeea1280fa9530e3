"""Counts for autograd what kernels wrote without it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import increment_version


def wrote_behind_autograd(tensors: Sequence[Tensor]) -> None:
    """Count a write of each tensor, as an operation of torch in place does."""
    try:
        increment_version(tensors)
    except RuntimeError:  # tensors of inference mode count no writes
        increment_version([tensor for tensor in tensors if not tensor.is_inference()])
