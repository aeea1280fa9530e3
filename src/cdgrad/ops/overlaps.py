"""Refuses gradients that share memory: in place, an element that is written twice would be wrong twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdgrad._torch_private import is_fake

_Layout = tuple[tuple[int, int], ...]  # (size, stride) of the axes with more than one element of their own
_Integers = NDArray[np.int64]


def refuse_overlaps(grads: Sequence[Tensor], names: Sequence[str] = ()) -> None:
    """Refuse tensors of which two elements are the same memory, within one tensor or between two.

    Expanded axes (stride 0) are no such elements: they are written once. Exact, for any strides.

    Raises:
        ValueError: with the name, or the index, of a gradient that overlaps, and the remedy.

    Cost: where the intervals of memory are disjoint, a sort; of interleaved parts of one tensor, a comparison
    of each with each, in numpy.
    """
    names = names or [f"grads[{i}]" for i in range(len(grads))]
    members: list[int] = []
    addresses: list[int] = []
    spans: list[int] = []
    for i, grad in enumerate(grads):
        address = _address(grad)
        if address is None:
            continue
        span = _span(grad.shape, grad.stride(), grad.itemsize)
        if span is None:
            raise ValueError(
                f"{names[i]} of shape {tuple(grad.shape)} and strides {grad.stride()} overlaps itself in "
                "memory, so it cannot be written in place; clone it first"
            )
        members.append(i)
        addresses.append(address)
        spans.append(span)
    starts = np.array(addresses, np.uint64).view(np.int64)  # as `cdgrad.ops.addresses` has them
    if are_disjoint(starts, starts + np.array(spans, np.int64)):
        return
    for cluster in _clusters(grads, members, addresses, spans):
        pair = _overlapping([grads[i] for i, _ in cluster], [address for _, address in cluster])
        if pair is not None:
            first, second = sorted(cluster[k][0] for k in pair)
            raise ValueError(
                f"{names[first]} and {names[second]} overlap in memory, so the operator would apply "
                "twice there; pass each element once, or clone one of them"
            )


def are_disjoint(starts: _Integers, ends: _Integers) -> bool:
    """Whether intervals are disjoint: sorted, each ends before the next begins. The arrays are sorted."""
    starts.sort()
    ends.sort()
    return not np.count_nonzero(ends[:-1] > starts[1:])


def bytes_spanned(grad: Tensor) -> int:
    """Bytes from the first element to behind the last; 0 for what has no memory of its own."""
    if _address(grad) is None:
        return 0
    return _reach(_layout(grad.shape, grad.stride())) * grad.itemsize


def elements_in_one_piece(grad: Tensor) -> int | None:
    """How many elements it has in memory, where they fill a piece of it without gaps; else None."""
    layout = _layout(grad.shape, grad.stride())
    count = prod(size for size, _ in layout)
    return count if _address(grad) is not None and _reach(layout) == count else None


def _address(grad: Tensor) -> int | None:
    """Where its first element is; None for what has no memory of its own, and for no elements."""
    if grad.layout is not torch.strided or is_fake(grad):
        return None
    try:
        return grad.data_ptr() or None
    except RuntimeError:  # tensors of torch.func's transforms
        return None


def _memory(grad: Tensor) -> object:
    """A key that two tensors have in common if they may share memory.

    On Apple's GPUs torch gives the address of an object in place of a storage's memory (up to 2.13), and such
    objects lie closer together than the storages are long.
    """
    return (grad.device, grad.untyped_storage().data_ptr()) if grad.device.type == "mps" else grad.device


def _clusters(
    grads: Sequence[Tensor], members: list[int], addresses: list[int], spans: list[int]
) -> Iterator[list[tuple[int, int]]]:
    """Tensors of one memory whose intervals are connected, as (index, address) in order of the addresses."""
    by_memory: dict[object, list[tuple[int, int, int]]] = {}
    for i, address, span in zip(members, addresses, spans, strict=True):
        by_memory.setdefault(_memory(grads[i]), []).append((address, i, address + span))
    for intervals in by_memory.values():
        cluster: list[tuple[int, int]] = []
        end = 0
        for address, i, its_end in sorted(intervals):
            if address >= end:
                if len(cluster) > 1:
                    yield cluster
                cluster = []
            cluster.append((i, address))
            end = max(end, its_end)
        if len(cluster) > 1:
            yield cluster


def _overlapping(grads: list[Tensor], addresses: list[int]) -> tuple[int, int] | None:
    """Two tensors with an element in common, by their places; None if there are none."""
    layouts = [_layout(grad.shape, grad.stride()) for grad in grads]
    size = grads[0].itemsize
    distances = [address - addresses[0] for address in addresses]
    in_units = all(grad.itemsize == size for grad in grads) and not any(each % size for each in distances)
    boxes = _boxes(layouts, np.array(distances, np.int64) // size) if in_units else None
    if boxes is not None:
        return _meeting(*boxes)
    for k, grad in enumerate(grads):
        for j in range(k):
            if _share(grads[j], grad, addresses[k] - addresses[j]):
                return j, k
    return None


def _boxes(layouts: list[_Layout], starts: _Integers) -> tuple[_Integers, _Integers] | None:
    """Corners of the tensors in one lattice, (tensors, axes), where all are boxes of it; else None.

    Parts of one tensor are such boxes: each stride divides the next, and places are mixed-radix numbers.
    """
    strides = sorted({1, *(by for layout in layouts for _, by in layout)})
    radices = [by // smaller for by, smaller in zip(strides[1:], strides, strict=False)]
    if any(smaller * radix != by for smaller, radix, by in zip(strides, radices, strides[1:], strict=False)):
        return None
    size_by_stride = [{by: size for size, by in layout} for layout in layouts]
    sizes = np.array([[sizes.get(by, 1) for by in strides] for sizes in size_by_stride])
    low = starts[:, None] // np.array(strides)
    low[:, :-1] %= np.array(radices, np.int64)
    high = low + sizes
    return None if (high[:, :-1] > np.array(radices, np.int64)).any() else (low, high)


def _meeting(low: _Integers, high: _Integers) -> tuple[int, int] | None:
    """Two boxes that intersect."""
    if any(are_disjoint(low[:, axis].copy(), high[:, axis].copy()) for axis in range(low.shape[1])):
        return None
    for k in range(1, len(low)):
        meets = ((low[k] < high[:k]) & (low[:k] < high[k])).all(1)
        if meets.any():
            return int(meets.argmax()), k
    return None


@lru_cache(maxsize=1024)
def _layout(shape: Sequence[int], stride: Sequence[int]) -> _Layout:
    axes = [(size, by) for size, by in zip(shape, stride, strict=True) if size > 1 and by]
    return tuple(sorted(axes, key=lambda axis: axis[1]))


@lru_cache(maxsize=1024)
def _span(shape: Sequence[int], stride: Sequence[int], itemsize: int) -> int | None:
    """Bytes from the first element to behind the last; None where two elements are one memory."""
    layout = _layout(shape, stride)
    return None if _overlaps_itself(layout) else _reach(layout) * itemsize


def _reach(layout: _Layout) -> int:
    """Elements from the first to behind the last."""
    return 1 + sum((size - 1) * by for size, by in layout)


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
