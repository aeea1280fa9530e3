"""``cdgrad inspect``: which tensors of a model are processed, and the roughness of its weights."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cdgrad import tables
from cdgrad.commands.arguments import count
from cdgrad.study import StudyError
from cdgrad.study.shown import brief, one_line

if TYPE_CHECKING:
    from torch import nn

    from cdgrad.selection import Direction, Selection

HELP = "print which tensors of a model are processed, and why"
DESCRIPTION = "Print which parameters of a model are processed, along which axis, and why."

_CIFAR = (3, 32, 32)
_IMAGE_SHAPES = {"small-cnn": (1, 8, 8)}  # the quickstart's network, for the digits
_CLASSES = 10
_NAMED = 20  # parameters that are left alone, up to which each has a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="small-cnn",
        help="a built-in name such as resnet20, timm:NAME, torchvision:NAME, or module:callable that is or "
        "returns a torch.nn.Module (default: small-cnn)",
    )
    parser.add_argument(
        "--image-shape",
        type=_image_shape,
        metavar="CxHxW",
        help="channels, height and width of the images (default: 1x8x8 for small-cnn, 3x32x32 for others)",
    )
    parser.add_argument("--classes", type=count, metavar="N", help="number of outputs (default: 10)")
    parser.add_argument(
        "--direction",
        choices=("output", "input", "height", "width"),
        default="output",
        help="the axis of the weights to direct along (default: output, the output channels)",
    )
    parser.add_argument("--linear", action="store_true", help="also process Linear weights")
    parser.add_argument(
        "--include",
        action="append",
        metavar="PATTERN",
        help="only parameters whose name matches; * and ? are wildcards; may be repeated",
    )
    parser.add_argument(
        "--exclude", action="append", metavar="PATTERN", help="exclude parameters whose name matches"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a state dict, such as cdgrad train --weights saves; also print the roughness of its weights",
    )
    parser.add_argument("--checkpoint", type=_renamed, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Print the selection, and the roughness of given weights."""
    model = load_model(options.model, options.weights, options.image_shape, options.classes)
    selection = selection_of(model, options.direction, options.linear, options.include, options.exclude)
    selection = _shown(selection)
    print(listing(selection))
    if options.weights and selection.targets:
        print(f"\n{roughness_table(selection)}")
    return 0


def _image_shape(text: str) -> tuple[int, int, int]:
    sides = text.split("x")
    if len(sides) != 3 or not all(re.fullmatch("[1-9][0-9]{0,3}", side) for side in sides):
        raise argparse.ArgumentTypeError(f"must be like 3x32x32, channels first, got {text!r:.60}")
    channels, height, width = map(int, sides)
    if channels == height > 3 and width in (1, 3):
        raise argparse.ArgumentTypeError(
            f"has the channels first, like {width}x{channels}x{height}; got {text!r}"
        )
    return channels, height, width


def _renamed(text: str) -> str:
    raise argparse.ArgumentTypeError(f"use --weights {text}; a checkpoint is the state of an unfinished run")


def load_model(
    name: str, weights: str | None, image_shape: tuple[int, int, int] | None, classes: int | None
) -> nn.Module:
    """A network as a study builds it, or the one that ``module:name`` is.

    Args:
        name: built-in, ``timm:NAME``, ``torchvision:NAME``, or ``module:callable``.
        weights: a file with a state dict.
        image_shape: (channels, height, width); None: the digits' for small-cnn, CIFAR's for others.
        classes: number of outputs; None: 10.

    Raises:
        StudyError: it cannot be built, or `weights` is not its state dict.
    """
    from torch import nn

    from cdgrad.study import callables, models

    library = name.partition(":")[0] in models.LIBRARIES
    own = callables.load_callable(name) if ":" in name and not library else None
    shape = image_shape or _IMAGE_SHAPES.get(name, _CIFAR)
    model = own if isinstance(own, nn.Module) else models.build(name, shape, classes or _CLASSES, {})
    if weights is not None:
        _load_weights(model, name, Path(weights))
    return model


def selection_of(
    model: nn.Module,
    direction: str,
    linear: bool,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> Selection:
    """`cdgrad.select`, its refusals as a `StudyError`; an empty selection shows in its own table."""
    from cdgrad.selection import select

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return select(
                model,
                direction=cast("Direction", direction),
                linear=linear,
                include=include,
                exclude=exclude,
            )
        except ValueError as error:
            raise StudyError(str(error)) from error


def _shown(selection: Selection) -> Selection:
    """The selection with names and reasons that steer no terminal: a model's names may hold anything."""
    return replace(
        selection,
        targets=tuple(replace(target, name=one_line(target.name)) for target in selection.targets),
        skipped=tuple(
            replace(s, name=one_line(s.name), reason=one_line(s.reason)) for s in selection.skipped
        ),
    )


def listing(selection: Selection) -> str:
    """The selection as it prints; where it leaves many parameters alone, one a reason, and how many more."""
    if len(selection.skipped) <= _NAMED:
        return str(selection)
    reasons: dict[str, list[str]] = {}
    for skipped in selection.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.name)
    rows = [
        (names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), reason)
        for reason, names in reasons.items()
    ]
    processed = str(replace(selection, skipped=()))
    note = "print(cdgrad.select(model)) lists all of them"
    return "\n".join([processed, "", *tables.plain(("left alone", "because"), rows), note])


def roughness_table(selection: Selection) -> str:
    """The roughness of every selected weight along its channel axis."""
    from cdgrad.diagnostics import roughness

    rows = [(t.name, f"{roughness(t.param, t.dim, t.groups):.3f}") for t in selection.targets]
    note = "1: as rough as white noise; 0: neighboring channels agree; 2: they alternate"
    return "\n".join([*tables.plain(("roughness along the channel", "value"), rows), note])


def _load_weights(model: nn.Module, name: str, path: Path) -> None:
    import torch

    if path.exists() and not path.is_file():  # torch would wait for the writer of a pipe
        raise StudyError(f"--weights {path} is not a regular file; name a file that holds a state dict")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StudyError(f"--weights {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever the bytes lead its unpickler to
        raise StudyError(f"--weights {path} is not a state dict: {brief(error)}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = cast(dict[str, Any], state)["state_dict"]
    try:
        model.load_state_dict(cast(Any, state))
    except Exception as error:  # keys and values may be anything
        raise StudyError(f"--weights {path} does not fit {name}: {one_line(error)}") from error
