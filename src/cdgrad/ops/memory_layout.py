"""A strided tensor as columns along its channel: integers only, no tensor is touched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple


class Columns(NamedTuple):
    """n channels `step` elements apart, and the axes that lead from column to column."""

    n: int
    step: int
    axes: tuple[tuple[int, int], ...]  # (size, stride), the smallest stride first

    @property
    def number(self) -> int:
        return prod(size for size, _ in self.axes)


@lru_cache(maxsize=4096)  # asked for in every call, and answered in a tenth of the time
def columns_of(shape: Sequence[int], stride: Sequence[int], dim: int, groups: int) -> Columns | None:
    """The columns in memory of a tensor whose axis `dim` holds `groups` intervals of channels.

    Axes that follow one another in memory become one, in any order of the dims, so a contiguous and a
    channels-last weight of n output channels both have one axis of columns; a group is an axis like any
    other. An expanded axis counts once, since its slices are one memory. None if no operator changes
    anything: no elements, one channel per group, or a channel axis that is expanded and so constant.

    >>> columns_of((64, 32, 3, 3), (288, 9, 3, 1), dim=0, groups=1)
    Columns(n=64, step=288, axes=((288, 1),))
    >>> columns_of((32, 64, 3, 3), (576, 9, 3, 1), dim=1, groups=1)
    Columns(n=64, step=9, axes=((9, 1), (32, 576)))
    """
    dim %= len(shape)
    n, step = shape[dim] // groups, stride[dim]
    if n < 2 or step == 0 or 0 in shape:
        return None
    others = [(size, by) for axis, (size, by) in enumerate(zip(shape, stride, strict=True)) if axis != dim]
    others.append((groups, n * step))
    axes: list[tuple[int, int]] = []
    for size, by in sorted(((size, by) for size, by in others if size > 1 and by), key=lambda axis: axis[1]):
        if axes and by == axes[-1][0] * axes[-1][1]:
            axes[-1] = (axes[-1][0] * size, axes[-1][1])
        else:
            axes.append((size, by))
    return Columns(n, step, tuple(axes))
