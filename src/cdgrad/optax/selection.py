"""Which leaves of a parameter tree are convolution kernels, and along which axis their channels lie.

Flax and Haiku trees carry names and arrays only, so the name and the rank decide; Equinox trees carry
the layers themselves, which know their axis and groups. The table says what was decided: print it.
"""

# jax and optax type their arrays, but few of their functions.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from cdgrad.messages import first_few
from cdgrad.optax.targets import Selection, Skipped, Target

Select = Mapping[str, int | None] | Callable[[str, Any], bool]
Blocks = Mapping[str, int | Sequence[int]]

# Names of layers that are no convolutions, in lower case. Their kernels have rank 3 or more where they
# have several input or output axes, or where `scan` or `vmap` stacks a layer.
_PROJECTIONS = ("query", "key", "value", "out", "qkv", "*_proj", "*dense*", "*linear*", "*einsum*")
# No window of a convolution is longer; a stack of attention kernels is (layers, features, heads, features).
_LONGEST_WINDOW = 64
_UNDECIDED = "undecided"


def selection(
    params: Any,
    *,
    axis: int | None = None,
    select: Select | None = None,
    groups: Mapping[str, int] | None = None,
    blocks: Blocks | None = None,
) -> Selection:
    """What `channel_directed` with the same arguments processes in this tree.

    A leaf's name is its path with ``/`` between the keys. Recognized without arguments:

    ==================================  ======================================  ==================
    kernel                              shape                                   output axis
    ==================================  ======================================  ==================
    Flax linen and nnx: ``kernel``      (..., I/groups, O), rank 3 or more      -1
    Haiku: ``w``                        (..., I/groups, O), rank 3 or more      -1
    Haiku: ``w`` of ``*transpose*``     (..., O, I)                             -2
    Equinox: a Conv's ``weight``        (O, I/groups, ...)                      0, groups known
    Equinox: a ConvTranspose's          (O, I/groups, ...)                      0, groups known
    ==================================  ======================================  ==================

    Equinox's axis is counted from the end, so that stacked layers are right too. Not visible in a
    tree, and therefore arguments: Flax's and Haiku's group counts. The bias shows a kernel (..., O, I) of
    Flax's ``ConvTranspose(transpose_kernel=True)`` or of another name in Haiku; without a bias, or with
    I = O, ``select`` names it. Dense kernels, attention projections, biases and norm parameters are
    left alone, and so is an interval of a single channel (depthwise, one output channel).

    ``scan`` and ``vmap`` stack Dense kernels to rank 3, the rank of 1-d convolutions. The bias beside a
    kernel tells them apart: it is stacked, too. Without a bias the layer's name decides (``*conv*``). A
    kernel that neither decides is left alone, `channel_directed` warns on init, and ``select`` decides.

    Args:
        params: a tree of arrays, or of their shapes; gradients will do.
        axis: the channel axis of every processed leaf, in place of the recognized one.
        select: ``{pattern: axis}`` changes what is recognized: leaves whose name matches the shell
            pattern (``*``, ``?``, ``[]``) are processed along that axis, or left alone where it is
            None; the first match counts. Or a predicate ``(name, leaf) -> bool``: exactly those
            leaves are processed, where not recognized along the last axis.
        groups: ``{pattern: count}``: number of groups of grouped kernels; the first match counts.
        blocks: ``{pattern: count or sizes}``: leaves whose channel axis is several axes one after the
            other, as in a fused projection; every block is smoothed by itself. Leaves of two or more
            axes that are named here are processed, where not recognized along the last axis.

    Returns:
        A `Selection`; `print` it for a table.

    Raises:
        TypeError: axis, or a value of select or groups, is no int.
        IndexError: an axis that its leaf does not have.
        ValueError: a pattern without a match, or of groups or blocks for leaves that are left alone; a
            group count that does not divide the axis; blocks that do not fit it.

    >>> params = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}}
    >>> print(selection(params))
    processed      shape    axis  groups
    Conv_0/kernel  3x3x4x8  -1    1
    <BLANKLINE>
    left alone   because
    Conv_0/bias  rank 1: a bias or norm parameter
    """
    leaves = [(_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    names = [name for name, _ in leaves]
    if axis is not None:
        axis = _int(axis, "axis")
    by_pattern = select if isinstance(select, Mapping) else {}
    for argument, patterns in (
        ("select", by_pattern),
        ("groups", groups or {}),
        ("blocks", blocks or {}),
    ):
        _check_patterns(patterns, names, argument)
    layers = _equinox_layers(params)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves if hasattr(leaf, "shape")}
    unknown: dict[str, str] = {}  # why leaves are left alone that neither their tree nor `select` names

    def decide(name: str, leaf: Any) -> Target | Skipped:
        layout = _layout(name, leaf, layers, shapes, _first_match(groups or {}, name) is not None)
        if isinstance(layout, str) and _first_match(blocks or {}, name) and _is_weight(leaf):
            layout = -1, 1
        if callable(select):
            if not select(name, leaf):
                return Skipped(name, "not selected")
            if isinstance(layout, str):
                layout = -1, 1
        elif (pattern := _first_match(by_pattern, name)) is not None:
            if (chosen := by_pattern[pattern]) is None:
                return Skipped(name, f"None for {pattern!r}")
            layout = _int(chosen, f"the axis for {pattern!r}"), layers.get(name, (0, 1))[1]
            return _in_blocks(_target(name, leaf, *layout, groups), blocks)
        if isinstance(layout, str):
            unknown[name] = layout
            return Skipped(name, layout)
        return _in_blocks(_target(name, leaf, layout[0] if axis is None else axis, layout[1], groups), blocks)

    chosen = Selection(tuple(decide(name, leaf) for name, leaf in leaves))
    _refuse_idle_patterns(groups or {}, names, unknown, "groups")
    _refuse_idle_patterns(blocks or {}, names, unknown, "blocks")
    return chosen


def warn_of_doubts(chosen: Selection) -> None:
    """Warn of kernels that may be convolutions and are left alone, and of a tree with nothing to direct."""
    if undecided := [leaf.name for leaf in chosen.skipped if leaf.reason.startswith(_UNDECIDED)]:
        warnings.warn(
            f"left {len(undecided)} kernels alone that may be convolutions or stacked Dense kernels "
            f"({first_few(undecided)}); decide with select={{{undecided[0]!r}: -1}}, or None in place of "
            "the axis",
            stacklevel=3,
        )
        return
    if not chosen.targets:
        warnings.warn(
            f"nothing to direct among {len(chosen.skipped)} leaves: looked for kernels named 'kernel' (Flax) "
            "or 'w' (Haiku) of rank 3 or more, and for Equinox convolutions; print "
            "cdgrad.optax.selection(params) to see why each is left alone, and name leaves with select=",
            stacklevel=3,
        )


def _layout(
    name: str,
    leaf: Any,
    layers: Mapping[str, tuple[int, int]],
    shapes: Mapping[str, tuple[int, ...]],
    counted: bool,
) -> tuple[int, int] | str:
    """(axis, groups) as recognized, or why the leaf is left alone; `counted` says that `groups` names it."""
    if not hasattr(leaf, "dtype"):
        return f"{type(leaf).__name__}: not an array"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"dtype {leaf.dtype}: not real floating point"
    if name in layers:
        return layers[name]
    rank = len(leaf.shape)
    module, _, last = name.rpartition("/")
    if rank < 2 or last == "bias":
        return f"rank {rank}: a bias or norm parameter"
    if last not in ("kernel", "w"):
        return f"{last!r} is not the name of a known kernel; select={{name: axis}} processes it"
    if rank == 2:
        return "rank 2: Dense, off by default, select={name: axis} processes it"
    layer, shape = module.rpartition("/")[2], tuple(leaf.shape)
    bias = _without_ones(shapes.get(f"{module}/{'bias' if last == 'kernel' else 'b'}".removeprefix("/")))
    if reason := _no_convolution(layer, shape, bias):
        return reason
    if last == "w" and "depthwise" in module and shape[-2] == 1 and not counted:
        return "depthwise: one channel per group, unless groups={name: count} says otherwise"
    return _output_axis(shape, bias, last == "w" and "transpose" in layer), 1


def _no_convolution(layer: str, shape: tuple[int, ...], bias: tuple[int, ...] | None) -> str | None:
    """Why a kernel of rank 3 or more is no convolution, or may be none, by its layer's name and bias."""
    name = layer.lower()
    if "conv" not in name and any(fnmatchcase(name, pattern) for pattern in _PROJECTIONS):
        return f"{layer!r}: a projection, not a convolution"
    # A layer that is stacked, or has several output axes, has a bias of as many axes more.
    # Flax's ConvLocal has one kernel and one bias per position, and channels as a convolution has.
    if bias is not None and len(shape) - len(bias) == 1 and "convlocal" not in name:
        return f"bias of rank {len(bias)}: stacked Dense kernels or a projection, not a convolution"
    if "conv" in name or (bias is not None and len(bias) == 1):
        return None
    if len(shape) == 3 or max(shape[:-2]) > _LONGEST_WINDOW:
        return f"{_UNDECIDED}: a convolution or stacked Dense kernels, select={{name: axis or None}} decides"
    return None


def _output_axis(shape: tuple[int, ...], bias: tuple[int, ...] | None, transposed: bool) -> int:
    """-1 or -2, whichever has the bias's entries; the layer's name decides where both have, or no bias is."""
    fits = [axis for axis in (-1, -2) if bias and bias[-1] == shape[axis]]
    return fits[0] if len(fits) == 1 else -2 if transposed else -1


def _without_ones(bias: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The bias's shape without the ones at its end: Haiku's channels-first layers have biases (O, 1, 1)."""
    while bias and bias[-1] == 1 and len(bias) > 1:
        bias = bias[:-1]
    return bias


def _equinox_layers(tree: Any) -> dict[str, tuple[int, int]]:
    """(axis, groups) of the weight of each Equinox convolution in the tree, by the leaf's name."""
    equinox: Any = sys.modules.get("equinox")  # a tree can hold its modules only if it was imported
    if equinox is None:
        return {}
    kinds = (equinox.nn.Conv, equinox.nn.ConvTranspose)

    def is_layer(node: Any) -> bool:
        return isinstance(node, kinds)

    return {
        _name((*path, jax.tree_util.GetAttrKey("weight"))): (-node.num_spatial_dims - 2, node.groups)
        for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_layer)
        if is_layer(node)
    }


def _target(
    name: str, leaf: Any, axis: int, groups: int, given: Mapping[str, int] | None
) -> Target | Skipped:
    """The checked target, with the group count that was given for it, if one was."""
    shape = tuple(leaf.shape)
    if not -len(shape) <= axis < len(shape):
        raise IndexError(f"axis {axis} is out of range for {name} of shape {shape}")
    pattern = _first_match(given or {}, name)
    if given and pattern is not None:
        groups = _int(given[pattern], f"the group count for {pattern!r}")
    n = shape[axis]
    if groups < 1 or n % groups:
        raise ValueError(
            f"groups must be a positive divisor of the channel axis: got groups={groups} for {n} channels, "
            f"axis {axis} of {name} of shape {shape}; give its own count in groups={{{name!r}: count}}"
        )
    if n == groups:
        return Skipped(name, f"one channel{' per group' if groups > 1 else ''}: nothing to smooth")
    unsure = pattern is None and axis == -1 and len(shape) > 2 and shape[-2] == 1
    note = "one input channel: if this kernel is depthwise, set its count in groups=" if unsure else ""
    return Target(name, shape, axis, groups, note)


def _in_blocks(target: Target | Skipped, blocks: Blocks | None) -> Target | Skipped:
    """The target, its intervals divided into blocks.

    Raises:
        ValueError: blocks that do not fit the channel axis.
    """
    pattern = _first_match(blocks or {}, target.name)
    if not blocks or pattern is None or isinstance(target, Skipped):
        return target
    given, n, groups = blocks[pattern], target.shape[target.axis], target.groups
    sizes = (n // given,) * given if isinstance(given, int) and given > 0 else given
    place = (
        f"blocks for {target.name} of shape {target.shape}, whose channel axis {target.axis} has {n} entries"
    )
    if isinstance(sizes, int) or min(sizes, default=0) < 1 or sum(sizes) != n:
        raise ValueError(f"{place}: expected a divisor, or positive sizes that add up to {n}, got {given!r}")
    if groups > 1 and (len(set(sizes)) > 1 or n % (groups * len(sizes))):
        raise ValueError(
            f"{place} in {groups} groups: expected a count of equal blocks in each, got {given!r}"
        )
    if len(set(sizes)) > 1:
        return replace(target, sizes=tuple(sizes))
    count = groups * len(sizes)
    return replace(target, groups=count) if count < n else Skipped(target.name, "one channel per block")


def _is_weight(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and len(leaf.shape) > 1


def _name(path: Sequence[Any]) -> str:
    """Keys joined by ``/``, without the last key of a Flax nnx variable, which only some trees have."""
    name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
    is_variable = isinstance(path[-1], jax.tree_util.GetAttrKey) if path else False
    return name.removesuffix("/value") if is_variable else name


def _first_match(patterns: Iterable[str], name: str) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _check_patterns(patterns: Iterable[str], names: Sequence[str], argument: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no leaf; names are {first_few(names, 4) or 'none'} "
                f"(shell patterns of whole names, such as 'Conv_*/kernel')"
            )


def _refuse_idle_patterns(
    patterns: Iterable[str], names: Sequence[str], unknown: Mapping[str, str], argument: str
) -> None:
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if all(name in unknown for name in matched):
            raise ValueError(
                f"{argument} pattern {pattern!r} matches only leaves that are left alone: {matched[0]} "
                f"({unknown[matched[0]]}); name kernels of convolutions, or name the leaf with select=, too"
            )


def _int(value: Any, what: str) -> int:
    """`value` as an int; a traced one cannot name an axis."""
    try:
        return value.__index__()
    except (AttributeError, TypeError):
        raise TypeError(
            f"{what} must be an int, got {value!r}; under optax.inject_hyperparams name it in static_args"
        ) from None
