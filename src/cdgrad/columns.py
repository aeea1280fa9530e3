"""A tensor in float64 as columns along its channel axis, for measurements."""

from __future__ import annotations

from torch import Tensor

from cdgrad.machine import has_float64


def exact(x: Tensor) -> Tensor:
    """In float64; on the host for GPUs that have none."""
    return x.double() if has_float64(x.device) else x.cpu().double()


def columns_of(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """In float64, of shape (groups, n, columns): n channels of each group along axis 1.

    Raises:
        TypeError: complex numbers.
        ValueError: no channel axis, or one that the groups do not divide.
        IndexError: no such axis.
    """
    if tensor.is_complex():
        raise TypeError(f"expected real numbers, got {tensor.dtype}")
    if not tensor.ndim or groups < 1 or tensor.shape[dim] % groups:
        shape = tuple(tensor.shape)
        raise ValueError(f"expected channels that {groups} groups divide, got axis {dim} of shape {shape}")
    channels = exact(tensor).movedim(dim, 0)
    n = len(channels) // groups
    return channels.reshape(groups, n, tensor.numel() // len(channels) if n else 0)
