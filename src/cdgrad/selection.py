"""Which parameters of a model are processed, along which channel axis, and why the others are not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from cdgrad import tables
from cdgrad.channel_axis import LAZY, Direction, Use, channel_axis, is_scripted, uses_of
from cdgrad.name_patterns import Patterns, matched_names, refuse_idle_pattern

Blocks = Mapping[str, int | Sequence[int]]


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter to direct, with its channel intervals along axis `dim`.

    Attributes:
        name: the parameter's name in the model.
        param: the parameter.
        dim: the channel axis.
        groups: number of consecutive equal intervals, each a channel axis of its own.
        sizes: the channels of each interval, where they differ (``groups`` is then 1); else empty.
    """

    name: str
    param: nn.Parameter
    dim: int
    groups: int
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One parameter that is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """What is processed and what is not; every parameter name of the model is in one of the two."""

    targets: tuple[Target, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        processed = [(t.name, t.param.shape, t.dim, t.groups, t.sizes, "") for t in self.targets]
        return tables.selection(processed, [(s.name, s.reason) for s in self.skipped])


def select(
    model: nn.Module,
    *,
    direction: Direction = "output",
    linear: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    blocks: Blocks | None = None,
) -> Selection:
    """The convolution weights of `model` and the axis of each along `direction`.

    =====================  =======================  ======================  ============
    layer, weight shape    output                   input                   height/width
    =====================  =======================  ======================  ============
    Conv (O, I/G, ...)     axis 0, G groups         axis 1                  axis -2 / -1
    ConvTranspose          axis 1                   axis 0, G groups        axis -2 / -1
    (I, O/G, ...)
    Linear (O, I)          axis 0                   axis 1                  none
    =====================  =======================  ======================  ============

    An interval with a single entry (depthwise, one output channel, a 1 x 1 kernel's width) is left
    alone, as are biases and the parameters of other layers. Reparametrised weights are processed
    where the underlying parameter has the weight's own shape.

    Args:
        model: any module, not compiled by `torch.jit`; its lazy layers must have seen a batch.
        direction: ``"output"``, or for ablations ``"input"``, ``"height"``, ``"width"``.
        linear: process the weights of `torch.nn.Linear` too.
        include: shell patterns (``*``, ``?``, ``[]``) of parameter names; others are left alone.
        exclude: shell patterns of parameter names to leave alone.
        blocks: shell patterns of parameters whose channel axis is several axes one after the other, as
            in a fused projection, each with the number of equal blocks or their sizes: ``{"*.qkv.weight":
            3, "*.gate_up.weight": [512, 256]}``. Every block is smoothed by itself. A parameter of two or
            more axes in a layer of another kind (``in_proj_weight``, gates of an RNN, a kernel for
            `torch.nn.functional.conv2d`) is processed along axis 0 if it is named here, with 1 for one block.

    Returns:
        A `Selection`; `print` it for a table.

    Raises:
        TypeError: `model` is not a module; patterns or blocks of another type.
        ValueError: unknown direction; a pattern that matches no parameter, or only parameters that
            cannot be processed; blocks that do not fit the channel axis.

    Warns:
        UserWarning: nothing is processed.

    >>> print(select(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))))
    processed  shape    axis  groups
    0.weight   8x3x3x3  0     1
    2.weight   8x4x3x3  0     2
    <BLANKLINE>
    left alone  because
    0.bias      bias
    2.bias      bias
    """
    selection = find_targets(model, direction, linear, include, exclude, blocks)
    if not selection.targets:
        warn_of_nothing(model, selection, direction, linear)
    return selection


def find_targets(
    model: nn.Module,
    direction: Direction,
    linear: bool,
    include: Patterns,
    exclude: Patterns,
    blocks: Blocks | None,
) -> Selection:
    """`select` without its warning."""
    _check_arguments(model, direction, linear)
    _check_blocks(blocks)
    uses = list(uses_of(model))
    names = [use.name for use in uses]
    excluded = {name for hits in matched_names(exclude, names, "exclude").values() for name in hits}
    excluded_params = {id(use.param) for use in uses if use.name in excluded}
    block_counts = _counts_by_name(blocks or {}, names)
    axis_of = {use.name: channel_axis(use, direction, linear, use.name in block_counts) for use in uses}
    included_by = matched_names(include, names, "include")
    included = {name for hits in included_by.values() for name in hits} if include is not None else set(names)
    for pattern, hits in included_by.items():
        refuse_idle_pattern("include", pattern, {name: axis_of[name] for name in hits})
    for pattern, hits in matched_names(list(blocks or ()), names, "blocks").items():
        refuse_idle_pattern("blocks", pattern, {name: axis_of[name] for name in hits})

    axes: dict[int, set[tuple[int, int]]] = {}
    for use in uses:
        if not isinstance(axis := axis_of[use.name], str):
            axes.setdefault(id(use.param), set()).add(axis)

    targets: dict[int, Target] = {}
    skipped: list[Skipped] = []
    for use in uses:
        key, axis = id(use.param), axis_of[use.name]
        if isinstance(axis, str):
            skipped.append(Skipped(use.name, axis))
        elif key in excluded_params:
            skipped.append(Skipped(use.name, "excluded"))
        elif use.name not in included:
            skipped.append(Skipped(use.name, "not included"))
        elif key in targets:
            skipped.append(Skipped(use.name, f"tied to {targets[key].name}, processed once"))
        elif len(axes[key]) > 1:
            skipped.append(Skipped(use.name, "tied to a layer with another channel axis: ambiguous"))
        else:
            targets[key] = _target(use, *axis, block_counts.get(use.name, 1))
    return Selection(tuple(targets.values()), tuple(skipped))


def warn_of_nothing(
    model: nn.Module, selection: Selection, direction: str, linear: bool, stacklevel: int = 3
) -> None:
    """Warn that nothing is processed, with the likely cause; `stacklevel` 3 is the caller's caller."""
    hint = ""
    if is_scripted(model):
        hint = "; pass the module that torch.jit.script was given, whose parameters are the same tensors"
    elif any(skipped.reason == LAZY for skipped in selection.skipped):
        hint = "; pass a batch through the model first, for its lazy layers"
    warnings.warn(
        f"nothing to direct in {type(model).__name__}: looked for weights of Conv1d-3d and "
        f"ConvTranspose1d-3d{' and Linear' if linear else ''} with more than one entry along "
        f"{direction!r}{hint}; print(cdgrad.select(model)) says why each of its {len(selection.skipped)} "
        "parameters is left alone",
        stacklevel=stacklevel,
    )


def has_lazy(selection: Selection) -> bool:
    """Whether a parameter was left alone because it has no shape yet."""
    return any(skipped.reason == LAZY for skipped in selection.skipped)


def _target(use: Use, dim: int, groups: int, blocks: int | Sequence[int]) -> Target:
    """The target, its intervals divided into blocks.

    Raises:
        ValueError: blocks that do not fit the channel axis.
    """
    n = use.param.shape[dim]
    place = (
        f"blocks for {use.name} of shape {tuple(use.param.shape)}, whose channel axis {dim} has {n} entries"
    )
    if isinstance(blocks, int):
        if blocks < 1 or n % (groups * blocks):
            each = f" in {groups} groups" if groups > 1 else ""
            raise ValueError(f"{place}{each}: {blocks} equal blocks do not fit; expected a divisor, or sizes")
        return Target(use.name, use.param, dim, groups * blocks)
    sizes = tuple(blocks)
    if groups > 1:
        raise ValueError(
            f"{place} in {groups} groups: expected a count of equal blocks, got sizes {list(sizes)}"
        )
    if any(size < 1 for size in sizes) or sum(sizes) != n:
        raise ValueError(f"{place}: expected positive sizes that add up to {n}, got {list(sizes)}")
    if len(set(sizes)) == 1:
        return Target(use.name, use.param, dim, len(sizes))
    return Target(use.name, use.param, dim, 1, sizes)


def _check_arguments(model: object, direction: object, linear: object) -> None:
    if not isinstance(model, nn.Module):
        hint = "; the optimizer comes first: attach(optimizer, model, ...)" * hasattr(model, "param_groups")
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{hint}")
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    if not isinstance(linear, bool):
        raise TypeError(f"linear is True or False, got {linear!r}")


def _check_blocks(blocks: Blocks | None) -> None:
    """Refuse what is not patterns with a count or sizes each."""
    if blocks is None:
        return
    if not isinstance(blocks, Mapping):
        raise TypeError(
            f"blocks must be a mapping of patterns of parameter names to a count or sizes, such as "
            f"{{'*.qkv.weight': 3}}; got {blocks!r}"
        )
    for pattern, value in blocks.items():
        counts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
            raise TypeError(f"blocks of {pattern!r} must be a count or a list of sizes, got {value!r}")


def _counts_by_name(blocks: Blocks, names: Sequence[str]) -> dict[str, int | Sequence[int]]:
    counts: dict[str, int | Sequence[int]] = {}
    for pattern, hits in matched_names(list(blocks), names, "blocks").items():
        for name in hits:
            if name in counts and counts[name] != blocks[pattern]:
                raise ValueError(
                    f"two patterns of blocks match {name}, one of them {pattern!r}; expected one"
                )
            counts[name] = blocks[pattern]
    return counts
