"""What would be directed in a model, and how rough its weights are along that axis."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cdgrad.diagnostics import roughness
from cdgrad.selection import Direction, Selection, select, table
from cdgrad.study import StudyError, models

_CIFAR = (3, 32, 32)
_IMAGE_SHAPES = {"small-cnn": (1, 8, 8)}  # the quickstart's network, for the digits
_CLASSES = 10
_NAMED = 20  # parameters that are left alone, up to which each has a line


def load_model(
    name: str, checkpoint: str | None, image_shape: tuple[int, int, int] | None, classes: int | None
) -> nn.Module:
    """A network as a study builds it, or what ``module:callable`` is or returns without arguments.

    Args:
        name: built-in, ``timm:NAME``, ``torchvision:NAME``, or ``module:callable``.
        checkpoint: a file with a state dict.
        image_shape: (channels, height, width); None: the digits' for small-cnn, CIFAR's for others.
        classes: number of outputs; None: 10. Without both, ``module:callable`` gets no arguments.

    Raises:
        StudyError: it cannot be built, or `checkpoint` is not its state dict.
    """
    library = name.partition(":")[0] in models.LIBRARIES
    if name in models.BUILTIN or library or image_shape or classes:
        shape = image_shape or _IMAGE_SHAPES.get(name, _CIFAR)
        model: Any = models.build(name, shape, classes or _CLASSES, {})
    else:
        model = models.load_callable(name)
        model = model if isinstance(model, nn.Module) else models.call(model, name)
    if not isinstance(model, nn.Module):
        raise StudyError(f"{name} must be or return a torch.nn.Module, got {type(model).__name__}")
    if checkpoint is not None:
        _load_weights(model, name, Path(checkpoint))
    return model


def selection_of(
    model: nn.Module,
    direction: str,
    linear: bool,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> Selection:
    """`cdgrad.select`, its refusals as a `StudyError`; an empty selection shows in its own table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return select(
                model,
                direction=cast(Direction, direction),
                linear=linear,
                include=include,
                exclude=exclude,
            )
        except ValueError as error:
            raise StudyError(str(error)) from error


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
    note = "print(cdgrad.select(model)) names every one"
    return "\n".join([processed, "", *table(("left alone", "because"), rows), note])


def roughness_table(selection: Selection) -> str:
    """The roughness of every selected weight along its channel axis."""
    rows = [(t.name, f"{roughness(t.param, t.dim, t.groups):.3f}") for t in selection.targets]
    note = "1: as rough as white noise; 0: neighboring channels agree; 2: they alternate"
    return "\n".join([*table(("roughness along the channel", "value"), rows), note])


def _load_weights(model: nn.Module, name: str, path: Path) -> None:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StudyError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever the bytes lead its unpickler to
        raise StudyError(f"checkpoint {path} is not a file of plain tensors: {_first_line(error)}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]  # pyright: ignore[reportUnknownVariableType]
    try:
        model.load_state_dict(cast(Any, state))
    except (RuntimeError, TypeError) as error:
        raise StudyError(f"checkpoint {path} does not fit {name}: {' '.join(str(error).split())}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
