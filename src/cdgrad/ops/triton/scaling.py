"""Tensors times quotients of norms that are on the GPU, in place: one launch for all tensors of a dtype."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdgrad._torch_private import stream_handle
from cdgrad.ops.addresses import addresses_of, integers, remember
from cdgrad.ops.graphs import capturing_on, keep_until_read
from cdgrad.ops.triton import launch
from cdgrad.ops.triton.kernels import DTYPES
from cdgrad.ops.triton.scaled import PIECE
from cdgrad.ops.triton.upload import upload, upload_integers
from cdgrad.ops.versions import wrote_behind_autograd

_WARPS = 4  # a thread holds 32 elements


class _Arrays(NamedTuple):
    """What launches on one stream read; see `cdgrad.ops.triton.launch` for their order."""

    records: Tensor
    addresses: dict[bytes, Tensor]


class Scaling:
    """Gives tensors of one device and dtype their former norms.

    Args:
        tensors: plain memory without gaps; those of `run` have the same forms.
        sizes: the elements of each in memory.
    """

    def __init__(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
        self._device, self._dtype = tensors[0].device, tensors[0].dtype
        firsts = [np.arange(0, size, PIECE) for size in sizes]
        self._records = np.concatenate(
            [
                np.stack([np.full_like(first, i), first, np.full_like(first, size)], axis=1)
                for i, (first, size) in enumerate(zip(firsts, sizes, strict=True))
            ]
        ).astype(np.int64)
        self._on_stream: dict[int, _Arrays] = {}

    def run(self, tensors: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        """Multiply each by old / new; where new is 0 or not a number, it stays.

        Raises:
            RuntimeError: a CUDA graph is being captured, and these forms have not run before.
        """
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            arrays, addresses = self._arrays(addresses_of(tensors))
            kernel: Any = launch.named_kernel("scaled")
            norms = [torch.stack(list(each)).double() for each in (old, new)]
            options = {"DTYPE": DTYPES[self._dtype], "PIECE": PIECE, "num_warps": _WARPS, **launch.FUSED}
            kernel[(len(self._records),)](addresses, arrays.records, *norms, **options)
        wrote_behind_autograd(tensors)

    def _arrays(self, key: bytes) -> tuple[_Arrays, Tensor]:
        if capturing_on(self._device):
            return self._arrays_of_graph(key)
        stream = stream_handle(self._device) if self._device.type == "cuda" else 0
        arrays = self._on_stream.get(stream)
        if arrays is None:
            arrays = _Arrays(upload(self._records, self._device), {})
            remember(self._on_stream, stream, arrays, launch.STREAMS)
            launch.prepare_captures(self._device)
        addresses = arrays.addresses.get(key)
        if addresses is None:
            addresses = remember(arrays.addresses, key, upload_integers(key, self._device))
        return arrays, addresses

    def _arrays_of_graph(self, key: bytes) -> tuple[_Arrays, Tensor]:
        if not self._on_stream:
            raise RuntimeError(
                "a CUDA graph is being captured, and no step with rescale='norm' and these gradients ran "
                "outside it; run one step before the capture"
            )
        arrays = next(reversed(self._on_stream.values()))
        addresses = arrays.addresses.get(key)
        keep_until_read(self._device, [arrays.records])
        if addresses is not None:
            keep_until_read(self._device, [addresses])
            return arrays, addresses
        return arrays, launch.write_in_graph(integers(key), self._device)
