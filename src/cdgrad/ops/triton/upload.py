"""Copies of small arrays to a GPU that the host does not wait for.

They come from pinned memory, which a copy reads after the host continued. torch's allocator of pinned memory
knows these copies: it records an event behind them when the block is freed, and gives it to nobody before.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from cdgrad.metrics import Array

# Tensors on the host are made by functions that no default device concerns (torch.set_default_device).


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; the copy joins the current stream."""
    return _uploaded(torch.from_numpy(array), device)


def upload_integers(numbers: bytes, device: torch.device) -> Tensor:
    """The bytes of an int64 array as a tensor on the device; the copy joins the current stream."""
    # A bytearray, because torch warns of memory that cannot be written.
    return _uploaded(torch.frombuffer(bytearray(numbers), dtype=torch.int64), device)


def write(target: Tensor, array: Array) -> None:
    """Write the array into a tensor of its dtype; the copy joins the current stream."""
    target.copy_(_pinned(torch.from_numpy(array), target.device), non_blocking=True)


def _uploaded(host: Tensor, device: torch.device) -> Tensor:
    return _pinned(host, device).to(device, non_blocking=True) if device.type == "cuda" else host


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    # Tensor.pin_memory asks the driver about the memory first.
    return torch.empty_like(tensor, pin_memory=True).copy_(tensor) if device.type == "cuda" else tensor
