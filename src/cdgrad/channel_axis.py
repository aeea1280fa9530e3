"""The channel axis of a layer's parameter: the layer decides, not the shape.

The output channels of a convolution are axis 0 of its weight, those of a transposed one axis 1, and
grouped ones fall into intervals: a wrong axis is a silent error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeGuard, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Direction = Literal["output", "input", "height", "width"]
_Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
LAZY = "not materialized: pass a batch through the model first"


class Use(NamedTuple):
    """A parameter under one of its names, with the layer and the layer's tensor that it makes up."""

    name: str
    param: nn.Parameter
    layer: nn.Module
    tensor: str


def uses_of(model: nn.Module) -> Iterator[Use]:
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
            plain_name = own_name.removesuffix("_orig").removesuffix("_v").removesuffix("_g")
            yield Use(f"{prefix}.{own_name}" if prefix else own_name, param, layer, tensor or plain_name)


def channel_axis(use: Use, direction: Direction, linear: bool, named: bool) -> tuple[int, int] | str:
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
        return LAZY
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


def is_convolution(layer: nn.Module) -> TypeGuard[_Convolution]:
    """Whether it is one of torch's six convolutions, or a subclass."""
    return isinstance(layer, _Convolution)


def is_scripted(layer: nn.Module) -> bool:
    """Whether torch.jit compiled it, which hides the type of every layer."""
    return isinstance(layer, torch.jit.ScriptModule)
