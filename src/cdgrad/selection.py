"""Which parameters of a model are convolution weights, and along which axis their channels lie.

The output channels of a convolution are axis 0 of its weight, those of a transposed one axis 1, and
grouped ones fall into intervals: a wrong axis is a silent error, so the layer decides, not the shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, TypeGuard, cast, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Direction = Literal["output", "input", "height", "width"]
Patterns = str | Sequence[str] | None
Blocks = Mapping[str, int | Sequence[int]]

_Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_LAZY = "not materialized: pass a batch through the model first"


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
        rows = [
            (
                t.name,
                "x".join(map(str, t.param.shape)),
                str(t.dim),
                "+".join(map(str, t.sizes)) or str(t.groups),
            )
            for t in self.targets
        ]
        lines = table(("processed", "shape", "axis", "groups"), rows)
        if self.skipped:
            lines += ["", *table(("left alone", "because"), [(s.name, s.reason) for s in self.skipped])]
        return "\n".join(lines)


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
        TypeError: `model` is not a module.
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
    direction: Direction = "output",
    linear: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    blocks: Blocks | None = None,
) -> Selection:
    """`select` without its warning."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    uses = list(_uses(model))
    names = [use.name for use in uses]
    excluded = {name for hits in _matched(exclude, names, "exclude").values() for name in hits}
    excluded_params = {id(use.param) for use in uses if use.name in excluded}
    block_counts = _counts_by_name(blocks or {}, names)
    found = {use.name: _axis(use, direction, linear, use.name in block_counts) for use in uses}
    included_by = _matched(include, names, "include")
    included = {name for hits in included_by.values() for name in hits} if include is not None else set(names)
    for pattern, hits in included_by.items():
        _refuse_idle_pattern("include", pattern, {name: found[name] for name in hits})
    for pattern, hits in _matched(list(blocks or ()), names, "blocks").items():
        _refuse_idle_pattern("blocks", pattern, {name: found[name] for name in hits})

    axes: dict[int, set[tuple[int, int]]] = {}
    for use in uses:
        if not isinstance(axis := found[use.name], str):
            axes.setdefault(id(use.param), set()).add(axis)

    targets: dict[int, Target] = {}
    skipped: list[Skipped] = []
    for use in uses:
        key, axis = id(use.param), found[use.name]
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


def warn_of_nothing(model: nn.Module, selection: Selection, direction: str, linear: bool) -> None:
    """Warn that nothing is processed, with the likely cause."""
    hint = ""
    if is_scripted(model):
        hint = "; pass the module that torch.jit.script was given, whose parameters are the same tensors"
    elif any(skipped.reason == _LAZY for skipped in selection.skipped):
        hint = "; pass a batch through the model first, for its lazy layers"
    warnings.warn(
        f"nothing to direct in {type(model).__name__}: looked for weights of Conv1d-3d and "
        f"ConvTranspose1d-3d{' and Linear' if linear else ''} with more than one entry along "
        f"{direction!r}{hint}; print the selection to see why each of its {len(selection.skipped)} "
        "parameters is left alone",
        stacklevel=3,
    )


def is_scripted(layer: nn.Module) -> bool:
    """Whether torch.jit compiled it, which hides the type of every layer."""
    return isinstance(layer, torch.jit.ScriptModule)


def has_lazy(selection: Selection) -> bool:
    """Whether a parameter was left alone because it has no shape yet."""
    return any(skipped.reason == _LAZY for skipped in selection.skipped)


def is_convolution(layer: nn.Module) -> TypeGuard[_Convolution]:
    """Whether it is one of torch's six convolutions, or a subclass."""
    return isinstance(layer, _Convolution)


def _target(use: _Use, dim: int, groups: int, blocks: int | Sequence[int]) -> Target:
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


def _counts_by_name(blocks: Blocks, names: Sequence[str]) -> dict[str, int | Sequence[int]]:
    counts: dict[str, int | Sequence[int]] = {}
    for pattern, hits in _matched(list(blocks), names, "blocks").items():
        for name in hits:
            if name in counts and counts[name] != blocks[pattern]:
                raise ValueError(
                    f"two patterns of blocks match {name}, one of them {pattern!r}; expected one"
                )
            counts[name] = blocks[pattern]
    return counts


def _refuse_idle_pattern(argument: str, pattern: str, found: Mapping[str, tuple[int, int] | str]) -> None:
    """Refuse a pattern that matches nothing that can be processed, now or once it is materialized."""
    reasons = {name: axis for name, axis in found.items() if isinstance(axis, str) and axis != _LAZY}
    if len(reasons) == len(found):
        name, reason = next(iter(reasons.items()))
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise ValueError(
            f"{argument} pattern {pattern!r} matches only parameters that cannot be processed: {name} "
            f"({reason}){more}; name weights of convolutions"
        )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a plain table with left-aligned columns."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


class _Use(NamedTuple):
    """A parameter under one of its names, with the layer and the layer's tensor that it makes up."""

    name: str
    param: nn.Parameter
    layer: nn.Module
    tensor: str


def _uses(model: nn.Module) -> Iterator[_Use]:
    """Every parameter under every name; those of a parametrization belong to the layer it serves."""
    owners: dict[nn.Module, tuple[nn.Module, str]] = {}
    modules = cast(Iterator[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False))
    for prefix, module in modules:
        parametrizations = getattr(module, "parametrizations", None)
        if isinstance(parametrizations, nn.ModuleDict):
            owners |= {sub: (module, tensor) for tensor, sub in parametrizations.items()}
        layer, tensor = owners.get(module, (module, ""))
        for own_name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            # The hooks of torch.nn.utils keep the free tensors as weight_v, weight_g, weight_orig.
            of = tensor or own_name.removesuffix("_orig").removesuffix("_v").removesuffix("_g")
            yield _Use(f"{prefix}.{own_name}" if prefix else own_name, param, layer, of)


def _axis(use: _Use, direction: Direction, linear: bool, named: bool) -> tuple[int, int] | str:
    """(dim, groups) of the channel intervals along `direction`, or why the parameter is left alone.

    `named` says that `blocks` names it.
    """
    layer, param = use.layer, use.param
    if is_scripted(layer):
        return f"{type(layer).__name__}: compiled by torch.jit, which hides the kind of layer"
    if not (is_convolution(layer) or isinstance(layer, nn.Linear)):
        kernel = not is_lazy(param) and param.ndim >= 3
        if named and not is_lazy(param) and param.ndim >= 2 and param.is_floating_point():
            return (0, 1) if direction == "output" else f"{type(layer).__name__}: no known {direction} axis"
        # Only the layer knows the axis of a kernel that is handed to torch.nn.functional.
        remedy = f" layer; if its axis 0 is the output channel, blocks={{{use.name!r}: 1}} processes it"
        return f"{type(layer).__name__}: not a convolution{remedy if kernel else ''}"
    if use.tensor == "bias":
        return "bias"
    if use.tensor != "weight":
        return f"{use.tensor} of {type(layer).__name__}: not its weight"
    if isinstance(layer, nn.Linear) and not linear:
        return "Linear: off by default, linear=True processes it"
    if is_lazy(param):
        return _LAZY
    shape = _weight_shape(layer)
    if tuple(param.shape) != shape:
        return f"shape {tuple(param.shape)} is not the weight's {shape}: channel axis unknown"
    if not param.is_floating_point():
        return f"dtype {param.dtype}: not real floating point"
    if direction in ("height", "width"):
        dim, groups = len(shape) - (1 if direction == "width" else 2), 1
        if dim < 2:
            return f"{type(layer).__name__}: no {direction} axis"
    elif isinstance(layer, nn.Linear):
        dim, groups = int(direction == "input"), 1
    else:
        dim = int((direction == "output") == layer.transposed)
        # Axis 0 holds all channels of one side, group after group; axis 1 one group's share.
        groups = layer.groups if dim == 0 else 1
    if shape[dim] == groups:
        return f"one {direction} entry{' per group' if groups > 1 else ''}: nothing to smooth"
    return dim, groups


def _weight_shape(layer: _Convolution | nn.Linear) -> tuple[int, ...]:
    """From the layer's settings: reading a parametrized weight may run a power iteration."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    ends = (
        (layer.in_channels, layer.out_channels)
        if layer.transposed
        else (layer.out_channels, layer.in_channels)
    )
    return ends[0], ends[1] // layer.groups, *layer.kernel_size


def _matched(patterns: Patterns, names: Sequence[str], argument: str) -> dict[str, list[str]]:
    """The names that each of the shell patterns matches."""
    matched: dict[str, list[str]] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        matched[pattern] = hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no parameter; names are {shown or 'none'} "
                f"(shell patterns of whole names, such as 'layer1.*')"
            )
    return matched
