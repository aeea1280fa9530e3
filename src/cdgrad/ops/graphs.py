"""The capture of CUDA graphs: whether one is in progress, and how weights outlive it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cdgrad._torch_private import as_like, graph_in_capture

# What a captured graph reads must outlive it, and of most graphs nothing says when they end.
_kept: set[object] = set()
_kept_by: WeakKeyDictionary[object, set[object]] = WeakKeyDictionary()


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def capturing_on(device: torch.device) -> bool:
    """The same, of work on `device`, whichever device is the current one."""
    if device.type != "cuda":
        return False
    if device.index in (None, torch.cuda.current_device()):
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def refuse_upload(device: torch.device, weights: str) -> None:
    """Raise RuntimeError while a CUDA graph is being captured, which cannot hold a copy from the host."""
    if capturing_on(device):
        raise RuntimeError(
            f"a CUDA graph is being captured, and the weights of {weights} are not on the GPU yet; run the "
            "same step once before the capture"
        )


def keep_for_replays(read: Iterable[object]) -> None:
    """Keep what a CUDA graph that is being captured reads, for good if it is not known which graph that is.

    Where `cdgrad._torch_private.captured_by` says it, as long as that graph exists.
    """
    graph = graph_in_capture()
    (_kept if graph is None else _kept_by.setdefault(graph, set())).update(read)


def lent(weights: list[Tensor], like: Tensor) -> list[Tensor]:
    """Weights in a cache, on the device of `like`, for operations with it on the current stream."""
    keep_until_read(like.device, weights)
    return as_like(weights, like)


def keep_until_read(device: torch.device, weights: Iterable[Tensor]) -> None:
    """Let weights in a cache outlive what the current stream reads them for, or a graph that it captures.

    The cache may drop them at any time, and an allocator knows of their own stream alone: it would give the
    memory away while another stream still reads it.
    """
    if capturing_on(device):
        keep_for_replays(weights)
    elif device.type in ("cuda", "xpu"):
        stream: Any = torch.get_device_module(device).current_stream(device)
        for tensor in weights:
            tensor.record_stream(stream)
