"""Which parameters of a model are convolution weights, and along which axis their channels lie.

The output channels of a convolution are axis 0 of its weight, those of a transposed one axis 1, and
grouped ones fall into intervals: a wrong axis is a silent error, so the layer decides, not the shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, cast, get_args

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import is_lazy

Direction = Literal["output", "input", "height", "width"]
Patterns = str | Sequence[str] | None


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter to direct: `groups` consecutive intervals of channels along axis `dim`."""

    name: str
    param: nn.Parameter
    dim: int
    groups: int


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
        rows = [(t.name, "x".join(map(str, t.param.shape)), str(t.dim), str(t.groups)) for t in self.targets]
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
        model: any module; its lazy layers must have seen a batch.
        direction: ``"output"``, or for ablations ``"input"``, ``"height"``, ``"width"``.
        linear: process the weights of `torch.nn.Linear` too.
        include: shell patterns (``*``, ``?``, ``[]``) of parameter names; others are left alone.
        exclude: shell patterns of parameter names to leave alone.

    Returns:
        A `Selection`; `print` it for a table.

    Raises:
        TypeError: `model` is not a module.
        ValueError: unknown direction, or a pattern that matches no parameter.

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
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    uses = list(_uses(model))
    names = [use.name for use in uses]
    included = _matched(include, names, "include") if include is not None else set(names)
    excluded = _matched(exclude, names, "exclude") if exclude is not None else set[str]()
    excluded_params = {id(use.param) for use in uses if use.name in excluded}

    axes: dict[int, set[tuple[int, int]]] = {}
    for use in uses:
        if not isinstance(axis := _axis(use, direction, linear), str):
            axes.setdefault(id(use.param), set()).add(axis)

    targets: dict[int, Target] = {}
    skipped: list[Skipped] = []
    for use in uses:
        key = id(use.param)
        axis = _axis(use, direction, linear)
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
            targets[key] = Target(use.name, use.param, *axis)
    if not targets:
        warnings.warn(
            f"nothing to direct in {type(model).__name__}: looked for weights of Conv1d-3d and "
            f"ConvTranspose1d-3d{' and Linear' if linear else ''} with more than one entry along "
            f"{direction!r}; print the selection to see why each of its {len(uses)} parameters is left alone",
            stacklevel=2,
        )
    return Selection(tuple(targets.values()), tuple(skipped))


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


def _axis(use: _Use, direction: Direction, linear: bool) -> tuple[int, int] | str:
    """(dim, groups) of the channel intervals along `direction`, or why the parameter is left alone."""
    layer, param = use.layer, use.param
    if not isinstance(layer, _ConvNd | nn.Linear):
        return f"{type(layer).__name__}: not a convolution"
    if use.tensor == "bias":
        return "bias"
    if use.tensor != "weight":
        return f"{use.tensor} of {type(layer).__name__}: not its weight"
    if isinstance(layer, nn.Linear) and not linear:
        return "Linear: off by default, linear=True processes it"
    if is_lazy(param):
        return "not materialized: pass a batch through the model first"
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


def _weight_shape(layer: _ConvNd | nn.Linear) -> tuple[int, ...]:
    """From the layer's settings: reading a parametrized weight may run a power iteration."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    ends = (
        (layer.in_channels, layer.out_channels)
        if layer.transposed
        else (layer.out_channels, layer.in_channels)
    )
    return ends[0], ends[1] // layer.groups, *layer.kernel_size


def _matched(patterns: str | Sequence[str], names: Sequence[str], argument: str) -> set[str]:
    """The names that any of the shell patterns matches."""
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no parameter; names are {shown or 'none'} "
                f"(shell patterns of whole names, such as 'layer1.*')"
            )
        matched.update(hits)
    return matched
