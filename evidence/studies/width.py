"""The width of a network as a mesh: channels are samples of functions of s in [0, 1], and can be resampled.

`meshes_of` finds by torch.fx which layers share an axis of channels; `resize` returns a plain module of
another width. Where the weights behind a channel axis are smooth in s (`smooth_`, `Smoother`), the features
are, too, because convolution, normalization and activation act channel by channel; folding then costs an
error of second order in the gap between kept channels. None of this is part of the package.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from cdgrad import Sobolev
from cdgrad.diagnostics import similarity_order

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What acts on every channel alone, and in the same way whatever its number.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
FUNCTIONS = (
    F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    torch.flatten, torch.mean, F.dropout,
)  # fmt: skip
METHODS = ("relu", "mean", "flatten", "contiguous")
ADDITIONS = (operator.add, operator.iadd, torch.add)


class Change(NamedTuple):
    """From n to k channels: what writes them becomes ``sample @ w``, what reads them ``V @ spread``.

    Attributes:
        sample: shape (k, n); its rows sum to 1.
        spread: shape (n, k); the features a of before are about ``spread @ (sample @ a)``.
    """

    sample: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Meshes:
    """Which module writes, follows and reads which axis of channels; an axis is a number.

    Attributes:
        sizes: channels of each axis that can be resized.
        writes: the axis of a layer's outputs, by the module's name.
        follows: the axes of a module that acts channel by channel; several where they were concatenated.
        reads: the axes of a layer's inputs; an axis that is not in `sizes` keeps its channels.
        all_sizes: channels of every axis.
    """

    sizes: Mapping[int, int]
    writes: Mapping[str, int]
    follows: Mapping[str, tuple[int, ...]]
    reads: Mapping[str, tuple[int, ...]]
    all_sizes: Mapping[int, int]


def meshes_of(model: nn.Module) -> Meshes:
    """The axes of channels of `model`; those of its input and of its output keep their sizes.

    What is added shares an axis, what is concatenated keeps one axis a part, depthwise convolutions and batch
    norm follow their input's.

    Raises:
        ValueError: an operation that treats channels by their number, such as padding with zeros, or that is
            not known here.
    """
    tracer = _Tracer(model)
    for node in fx.symbolic_trace(model).graph.nodes:
        tracer.visit(node)
    return tracer.meshes()


class _Tracer:
    """Axes as sets that are united where features are added."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.parent: list[int] = []
        self.size: list[int] = []
        self.fixed: set[int] = set()
        self.at: dict[fx.Node, list[int]] = {}
        self.writes: dict[str, int] = {}
        self.follows: dict[str, list[int]] = {}
        self.reads: dict[str, list[int]] = {}

    def new(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        return len(self.parent) - 1

    def root(self, axis: int) -> int:
        while self.parent[axis] != axis:
            axis = self.parent[axis]
        return axis

    def visit(self, node: fx.Node) -> None:
        sources = [self.at[source] for source in node.all_input_nodes]
        if node.op == "placeholder":
            self.at[node] = [self.new(0)]
            self.fixed.add(self.at[node][0])
        elif node.op == "output":
            self.fixed.update(axis for source in sources for axis in source)
        elif node.op == "call_module":
            self.at[node] = self.module(str(node.target), sources[0])
        elif node.op == "call_function" and node.target in ADDITIONS:
            self.at[node] = self.united(sources, node)
        elif node.op == "call_function" and node.target is torch.cat:
            if (node.args[1:] or [node.kwargs.get("dim", 0)])[0] != 1:
                raise ValueError(f"{node.name} does not concatenate channels, which are axis 1")
            self.at[node] = [axis for source in sources for axis in source]
        elif node.target in (FUNCTIONS if node.op == "call_function" else METHODS):
            self.at[node] = sources[0]
        else:
            raise ValueError(
                f"{node.name} may treat channels by their number, so that they are no samples of a function; "
                "known are convolution, linear, batch norm, pooling, activation, addition and concatenation"
            )

    def module(self, name: str, axes: list[int]) -> list[int]:
        layer = self.modules[name]
        if isinstance(layer, CONVOLUTIONS) and layer.groups == 1:
            return self.layer(name, axes, layer.out_channels)
        if isinstance(layer, nn.Linear):
            return self.layer(name, axes, layer.out_features)
        if isinstance(layer, NORMS) or (
            isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels
        ):
            self.follows[name] = axes
        elif not isinstance(layer, ELEMENTWISE):
            raise ValueError(f"{name}, a {type(layer).__name__}, is not known to act on every channel alike")
        return axes

    def layer(self, name: str, axes: list[int], out: int) -> list[int]:
        self.reads[name] = axes
        if name not in self.writes:
            self.writes[name] = self.new(out)
        return [self.writes[name]]

    def united(self, sources: list[list[int]], node: fx.Node) -> list[int]:
        first, *others = sources
        for other in others:
            if [self.size[self.root(a)] for a in first] != [self.size[self.root(a)] for a in other]:
                raise ValueError(f"{node.name} adds features whose channels are cut differently")
            for a, b in zip(first, other, strict=True):
                self.parent[self.root(b)] = self.root(a)
        return first

    def meshes(self) -> Meshes:
        fixed = {self.root(axis) for axis in self.fixed}
        writes = {name: self.root(axis) for name, axis in self.writes.items()}
        return Meshes(
            {axis: self.size[axis] for axis in dict.fromkeys(writes.values()) if axis not in fixed},
            writes,
            {name: tuple(map(self.root, axes)) for name, axes in self.follows.items()},
            {name: tuple(map(self.root, axes)) for name, axes in self.reads.items()},
            dict(enumerate(self.size)),
        )


def coarsen(n: int, k: int) -> Change:
    """Keep k of n channels, evenly spaced from the first to the last; piecewise linear in between."""
    kept = torch.linspace(0, n - 1, k, dtype=torch.float64).round() if k > 1 else torch.tensor([(n - 1) // 2])
    return _folded(n, kept.long())


def _folded(n: int, kept: Tensor) -> Change:
    """Keep the channels `kept`, ascending, and interpolate linearly in their numbers."""
    k, at = len(kept), torch.arange(n, dtype=torch.float64)
    sample, spread = torch.zeros(k, n), torch.zeros(n, k)
    sample[torch.arange(k), kept] = 1
    if k == 1:
        return Change(sample, torch.ones(n, 1))
    left = (torch.searchsorted(kept.double(), at, right=True) - 1).clamp(0, k - 2)
    share = ((at - kept[left]) / (kept[left + 1] - kept[left])).clamp(0, 1)
    spread[torch.arange(n), left] = (1 - share).float()
    spread[torch.arange(n), left + 1] = share.float()
    return Change(sample, spread)


def refine(n: int, k: int) -> Change:
    """k > n channels, the old ones among them; the least-norm weights read them as the old ones were read."""
    interpolate = coarsen(k, n).spread
    return Change(interpolate, torch.linalg.pinv(interpolate.double()).float())


def resized(n: int, k: int) -> Change:
    """From n to k channels."""
    return coarsen(n, k) if k <= n else refine(n, k)


def new_width(n: int, width: float) -> int:
    """Channels at `width` times the present one, at least 1."""
    return max(1, round(n * width))


def resize(model: nn.Module, width: float, meshes: Meshes | None = None) -> nn.Module:
    """A copy of `model` with `width` times the channels in every layer but input and output.

    Args:
        model: traceable by torch.fx.
        width: factor, above 0; below 1 channels are folded, above 1 they are interpolated.
        meshes: `meshes_of` the model, where the caller has it already.

    Raises:
        ValueError: as `meshes_of`.
    """
    meshes = meshes or meshes_of(model)
    return changed(model, meshes, {axis: resized(n, new_width(n, width)) for axis, n in meshes.sizes.items()})


def changed(model: nn.Module, meshes: Meshes, changes: Mapping[int, Change]) -> nn.Module:
    """A copy of `model`, of ordinary layers, with other channels along the axes of `changes`."""
    copied = copy.deepcopy(model)
    values = changed_tensors(
        {**dict(model.named_parameters()), **dict(model.named_buffers())}, meshes, changes
    )
    for name in {*meshes.writes, *meshes.follows}:
        layer: Any = copied.get_submodule(name)
        for key in ("weight", "bias", "running_mean", "running_var"):
            if (value := values.get(f"{name}.{key}")) is not None:
                old = getattr(layer, key)
                value = value.detach().clone()
                setattr(
                    layer, key, nn.Parameter(value, old.requires_grad) if key in layer._parameters else value
                )
        _set_sizes(layer)
    return copied


def _set_sizes(layer: Any) -> None:
    """The layer's own count of channels, as its weights have it."""
    if isinstance(layer, NORMS):
        layer.num_features = len(layer.running_mean)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        layer.out_channels = layer.weight.shape[0]
        if layer.groups > 1:
            layer.groups = layer.out_channels
        layer.in_channels = layer.weight.shape[1] * layer.groups


def changed_tensors(
    tensors: Mapping[str, Tensor], meshes: Meshes, changes: Mapping[int, Change]
) -> dict[str, Tensor]:
    """The parameters and buffers under `changes`, by name; differentiable in `tensors`."""
    values = dict(tensors)
    rows = {name: (axis,) for name, axis in meshes.writes.items()} | dict(meshes.follows)
    for name, axes in rows.items():
        for key in ("weight", "bias", "running_mean", "running_var"):
            if (value := values.get(f"{name}.{key}")) is not None:
                values[f"{name}.{key}"] = _along_rows(value, axes, meshes, changes)
    for name, axes in meshes.reads.items():
        values[f"{name}.weight"] = _along_columns(values[f"{name}.weight"], axes, meshes, changes)
    return values


def _along_rows(value: Tensor, axes: Sequence[int], meshes: Meshes, changes: Mapping[int, Change]) -> Tensor:
    parts = value.split([meshes.all_sizes[axis] for axis in axes]) if len(axes) > 1 else [value]
    new = [
        torch.tensordot(changes[axis].sample.to(part), part, 1) if axis in changes else part
        for axis, part in zip(axes, parts, strict=True)
    ]
    return torch.cat(new) if len(new) > 1 else new[0]


def _along_columns(
    weight: Tensor, axes: Sequence[int], meshes: Meshes, changes: Mapping[int, Change]
) -> Tensor:
    """A weight (P, inputs, ...) whose inputs are the axes' channels, each `repeat` inputs in a row."""
    if not any(axis in changes for axis in axes):
        return weight
    sizes = [meshes.all_sizes[axis] for axis in axes]
    repeat = weight.shape[1] // sum(sizes)
    parts = weight.split([size * repeat for size in sizes], 1)
    new: list[Tensor] = []
    for axis, size, part in zip(axes, sizes, parts, strict=True):
        if axis in changes:
            split = part.reshape(len(part), size, repeat, *part.shape[2:])
            mixed = torch.tensordot(split, changes[axis].spread.to(part), dims=([1], [0])).movedim(-1, 1)
            part = mixed.reshape(len(part), -1, *part.shape[2:])
        new.append(part)
    return torch.cat(new, 1)


# Other ways of dropping channels, to compare with.


def drop_smallest(model: nn.Module, meshes: Meshes, width: float) -> dict[int, Change]:
    """Remove the channels whose filters have the smallest L1 norm, and what reads them (Li et al. 2017)."""
    changes: dict[int, Change] = {}
    for axis, signature in signatures(model, meshes, scaled=False).items():
        keep = signature.abs().sum(1).topk(new_width(len(signature), width)).indices.sort().values
        sample = torch.eye(len(signature))[keep]
        changes[axis] = Change(sample, sample.T.clone())
    return changes


def merge_alike(model: nn.Module, meshes: Meshes, width: float) -> dict[int, Change]:
    """Again and again drop one of the two most alike channels; its readers read the other one."""
    changes: dict[int, Change] = {}
    for axis, signature in signatures(model, meshes).items():
        n, k = len(signature), new_width(len(signature), width)
        stands_for = torch.arange(n)
        distance = torch.cdist(signature, signature)
        distance.fill_diagonal_(math.inf)
        for _ in range(n - k):
            kept, dropped = divmod(int(distance.argmin()), n)
            stands_for[stands_for == dropped] = kept
            distance[dropped], distance[:, dropped] = math.inf, math.inf
        keep = stands_for.unique()
        spread = (stands_for[:, None] == keep[None]).float()
        changes[axis] = Change(torch.eye(n)[keep], spread)
    return changes


def fold_sorted(model: nn.Module, meshes: Meshes, width: float) -> dict[int, Change]:
    """Sort the channels so that neighbors are alike, then fold."""
    changes: dict[int, Change] = {}
    for axis, signature in signatures(model, meshes).items():
        order = similarity_order(signature)
        sample, spread = coarsen(len(order), new_width(len(order), width))
        place = torch.eye(len(order))[order]  # (place @ w)[i] = w[order[i]]
        changes[axis] = Change(sample @ place, place.T @ spread)
    return changes


def signatures(model: nn.Module, meshes: Meshes, *, scaled: bool = True) -> dict[int, Tensor]:
    """The filters that write each channel of an axis, side by side: shape (channels, weights).

    With `scaled`, as a following batch norm scales them, and with its shift beside them.
    """
    parts: dict[int, list[Tensor]] = {axis: [] for axis in meshes.sizes}
    layers = dict(model.named_modules())
    behind = _norms_behind(model)
    for name, axis in meshes.writes.items():
        if axis in parts:
            weight = layers[name].weight.detach().flatten(1)
            norm = layers[behind[name]] if name in behind else None
            if scaled and norm is not None and norm.running_var is not None:
                gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
                shift = norm.bias.detach() - gain * norm.running_mean
                weight = torch.cat([gain[:, None] * weight, shift[:, None]], 1)
            parts[axis].append(weight)
    return {axis: torch.cat(weights, 1) for axis, weights in parts.items()}


def _norms_behind(model: nn.Module) -> dict[str, str]:
    """The batch norm that alone reads a layer's output, by the layer's name."""
    modules, following = dict(model.named_modules()), dict[str, str]()
    for node in fx.symbolic_trace(model).graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], NORMS):
            (source,) = node.all_input_nodes
            if source.op == "call_module" and len(source.users) == 1:
                following[source.target] = node.target
    return following


# Smoothness: of the initialization, and of the training.


def cosines(n: int) -> Tensor:
    """The orthonormal modes of the free boundary, one a row: the DCT-II basis, float64."""
    k, m = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    basis = torch.cos(math.pi * k * (m + 0.5) / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def power(n: int, strength: float, exponent: float = 1.0) -> Tensor:
    """P^exponent for P of Sobolev(strength / n^2): factor 1 / (1 + 4 strength sin^2(pi k / 2n)) on mode k."""
    basis = cosines(n)
    factors = torch.tensor(Sobolev(strength / n**2).spectrum(n)) ** exponent
    return (basis.T * factors) @ basis


@torch.no_grad()
def smooth_(model: nn.Module, meshes: Meshes, strength: float) -> None:
    """Make the weights that write resizable axes a draw of the metric's own Gaussian, in place.

    w becomes P^(1/2) w, scaled to the norm that w had: noise whose covariance along the channel is P.
    """
    for name, axis in meshes.writes.items():
        if axis in meshes.sizes:
            weight = model.get_submodule(name).weight
            smooth = torch.tensordot(power(meshes.sizes[axis], strength, 0.5).to(weight), weight, 1)
            weight.copy_(smooth * (weight.norm() / smooth.norm()))


class Smoother:
    """The operator on all gradients along the resizable axes: weights, biases, scales and shifts.

    Each tensor keeps its gradient's norm. The strength lam n^2 is the same in all layers, so that the
    operator acts alike on equally many neighbors, and may be changed between steps.
    """

    def __init__(self, model: nn.Module, meshes: Meshes) -> None:
        self.tensors: list[tuple[nn.Parameter, list[int] | None]] = []
        rows = {name: (axis,) for name, axis in meshes.writes.items()} | dict(meshes.follows)
        for name, axes in rows.items():
            if all(axis in meshes.sizes for axis in axes):
                sizes = [meshes.sizes[axis] for axis in axes]
                self.tensors += [(p, sizes) for p in model.get_submodule(name).parameters(recurse=False)]

    @torch.no_grad()
    def __call__(self, strength: float) -> None:
        """Direct the gradients in place."""
        operators: dict[int, Tensor] = {}
        for param, sizes in self.tensors:
            if param.grad is None or sizes is None:
                continue
            for g in param.grad.split(sizes):
                n = len(g)
                if n not in operators:
                    operators[n] = power(n, strength).float()
                smooth = torch.tensordot(operators[n].to(g), g, 1)
                g.copy_(smooth * (g.norm() / smooth.norm().clamp_min(1e-30)))


@torch.no_grad()
def reestimate_(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Renew the running statistics of batch norm: the average over the batches, no weight is changed."""
    norms = [layer for layer in model.modules() if isinstance(layer, NORMS)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    for images in batches:
        model(images)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


Method = Callable[[nn.Module, Meshes, float], dict[int, Change]]


def fold(model: nn.Module, meshes: Meshes, width: float) -> dict[int, Change]:
    """Fold the channels in their own order."""
    return {axis: coarsen(n, new_width(n, width)) for axis, n in meshes.sizes.items()}


REDUCTIONS: dict[str, Method] = {
    "fold": fold,
    "smallest": drop_smallest,
    "merged": merge_alike,
    "sorted": fold_sorted,
}
