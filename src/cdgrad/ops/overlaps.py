"""Refuses gradients that share memory: in place, an element that is written twice would be wrong twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

_Layout = tuple[tuple[int, int], ...]  # (size, stride) of the axes with more than one element of their own


def refuse_overlaps(grads: Sequence[Tensor]) -> None:
    """Refuse tensors of which two elements are the same memory, within one tensor or between two.

    Expanded axes (stride 0) are no such elements: they are written once. Exact, for any strides; the
    layouts already seen cost a comparison of addresses.

    Raises:
        ValueError: with the index of a gradient that overlaps, and the remedy.
    """
    spans: list[tuple[torch.device, int, int, int]] = []
    for i, grad in enumerate(grads):
        address = _address(grad)
        if address is None:
            continue
        layout = _layout(grad.shape, grad.stride())
        if _overlaps_itself(layout):
            raise ValueError(
                f"grads[{i}] of shape {tuple(grad.shape)} and strides {grad.stride()} overlaps itself in "
                "memory, so it cannot be written in place; clone it first"
            )
        spans.append((grad.device, address, address + _reach(layout) * grad.itemsize, i))
    spans.sort(key=lambda span: (span[0].type, span[0].index or 0, span[1]))
    open_spans: list[tuple[torch.device, int, int, int]] = []
    for span in spans:
        device, start, _, i = span
        open_spans = [other for other in open_spans if other[0] == device and other[2] > start]
        for _, other_start, _, j in open_spans:
            if _share(grads[j], grads[i], start - other_start):
                first, second = sorted((i, j))
                raise ValueError(
                    f"grads[{first}] and grads[{second}] overlap in memory, so the operator would apply "
                    "twice there; pass each element once, or clone one of them"
                )
        open_spans.append(span)


def bytes_spanned(grad: Tensor) -> int:
    """Bytes from the first element to behind the last; 0 for what has no memory of its own."""
    if _address(grad) is None:
        return 0
    return _reach(_layout(grad.shape, grad.stride())) * grad.itemsize


def _address(grad: Tensor) -> int | None:
    """Where its first element is; None for what has no memory of its own, and for no elements."""
    if grad.layout is not torch.strided or grad.device.type == "meta":
        return None
    try:
        return grad.data_ptr() or None
    except RuntimeError:  # tensors of torch.func's transforms, and fake ones
        return None


@lru_cache(maxsize=1024)
def _layout(shape: Sequence[int], stride: Sequence[int]) -> _Layout:
    axes = [(size, by) for size, by in zip(shape, stride, strict=True) if size > 1 and by]
    return tuple(sorted(axes, key=lambda axis: axis[1]))


def _reach(layout: _Layout) -> int:
    """Elements from the first to behind the last."""
    return 1 + sum((size - 1) * by for size, by in layout)


@lru_cache(maxsize=1024)
def _overlaps_itself(layout: _Layout) -> bool:
    reach = 0
    for size, by in layout:
        if by <= reach:
            # Sorted strides that do not nest may still hit each element once.
            return int(_marks(layout, 0, _reach(layout)).sum()) < prod(size for size, _ in layout)
        reach += (size - 1) * by
    return False


def _share(first: Tensor, second: Tensor, distance: int) -> bool:
    """Whether two tensors, `distance` bytes apart, have an element in common."""
    layouts = [_layout(grad.shape, grad.stride()) for grad in (first, second)]
    if first.itemsize != second.itemsize or distance % first.itemsize:
        return True  # two dtypes in one piece of memory
    return _meet(*layouts, distance // first.itemsize)


@lru_cache(maxsize=1024)
def _meet(first: _Layout, second: _Layout, distance: int) -> bool:
    size = max(_reach(first), distance + _reach(second))
    return bool((_marks(first, 0, size) & _marks(second, distance, size)).any())


def _marks(layout: _Layout, start: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """True at every element of the layout that begins at `start`, of `size` elements of memory."""
    marks = np.zeros(size, dtype=bool)
    shape, strides = [n for n, _ in layout], [by for _, by in layout]
    np.lib.stride_tricks.as_strided(marks[start:], shape, strides)[...] = True
    return marks
