"""The addresses of tensors in memory, as the bytes of an array of int64.

Bytes are one key for all that depends on addresses, and their hash is computed once: for 53 tensors a
tuple of integers takes twice as long to make, and to look up.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cdgrad._torch_private import is_fake, is_functorch_wrapped
from cdgrad.ops.overlaps import are_disjoint, bytes_spanned, refuse_overlaps

_Key = TypeVar("_Key")
_T = TypeVar("_T")
_lock = Lock()  # threads may share a table
REMEMBERED = 16
"""Steps whose addresses are remembered: an allocator returns the blocks of a step after one or a few."""


def without_address(tensor: torch.Tensor) -> str | None:
    """Why no kernel may read and write the tensor at its address, as a sentence; None if one may."""
    if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
        return f"a {type(tensor).__name__} may not be plain memory"
    if is_functorch_wrapped(tensor):
        return "under torch.func's transforms a tensor has no memory of its own"
    if tensor.layout is not torch.strided or tensor.is_neg():
        return "sparse, packed and lazily negated tensors are not plain memory"
    return None


def addresses_of(tensors: Sequence[torch.Tensor]) -> bytes:
    """Where the first element of each is."""
    return _starts(tensors).tobytes()


def _starts(tensors: Sequence[torch.Tensor]) -> NDArray[np.int64]:
    try:
        return np.fromiter(map(torch.Tensor.data_ptr, tensors), np.int64, len(tensors))
    except OverflowError:
        # Some GPUs have addresses beyond 2^63, which become negative: their order and distances stay.
        return np.fromiter(map(torch.Tensor.data_ptr, tensors), np.uint64, len(tensors)).view(np.int64)


def integers(addresses: bytes) -> list[int]:
    """The addresses as numbers."""
    return np.frombuffer(addresses, np.int64).tolist()


def chosen(addresses: bytes, members: Sequence[int]) -> bytes:
    """The addresses of some of the tensors."""
    return np.frombuffer(addresses, np.int64)[list(members)].tobytes()


def remember(table: dict[_Key, _T], key: _Key, value: _T, most: int | None = None) -> _T:
    """Keep the value for this key, in place of the oldest if there are `most`; returns it."""
    with _lock:
        while key not in table and len(table) >= (REMEMBERED if most is None else most):
            del table[next(iter(table))]
        table[key] = value
    return value


class DistinctAddresses:
    """The addresses of tensors of the forms of given ones; tensors that overlap are refused, by `names`."""

    def __init__(self, tensors: Sequence[torch.Tensor], names: Sequence[str] = ()) -> None:
        self._names = names
        self._spans = np.array([bytes_spanned(tensor) for tensor in tensors], np.int64)
        self._fake = any(map(is_fake, tensors))
        self._known: dict[bytes, None] = {}  # without overlaps, the oldest first

    def __call__(self, tensors: Sequence[torch.Tensor]) -> bytes:
        """The addresses; empty for tensors without any: fake ones, and those of `torch.func`'s transforms.

        Raises:
            ValueError: two tensors overlap.
        """
        if self._fake:
            return b""
        try:
            starts = _starts(tensors)
        except RuntimeError:
            refuse_overlaps(tensors, self._names)
            return b""
        addresses = starts.tobytes()
        if addresses in self._known:
            return addresses
        if not are_disjoint(starts, starts + self._spans):
            # On several devices, or interleaved, they may still be distinct.
            refuse_overlaps(tensors, self._names)
        remember(self._known, addresses, None)
        return addresses
