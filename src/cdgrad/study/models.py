"""Networks by name: built-in ones, or the user's own as ``module:callable``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from cdgrad.study import StudyError


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm, the later two after halving the image; a linear head.

    Args:
        image_shape: (channels, height, width).
        classes: number of outputs.
        width: channels of the first convolution; the later two have twice as many.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(image_shape[0], width),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (n, classes) of images (n, channels, height, width)."""
        return self.head(self.features(images))


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    # Batch norm subtracts the channel means, so the convolution needs no bias.
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


BUILTIN: dict[str, Callable[..., nn.Module]] = {"small-cnn": SmallCNN}


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """The network of a study: a built-in one, or ``callable(image_shape, classes, **arguments)``.

    Raises:
        StudyError: it cannot be imported, refuses the arguments or is not a module.
    """
    make = BUILTIN.get(name) or load_callable(name)
    model = call(make, name, image_shape, classes, **arguments)
    if not isinstance(model, nn.Module):
        raise StudyError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def load_callable(name: str) -> Callable[..., Any]:
    """The object that ``module:callable`` names.

    Raises:
        StudyError: there is none, or it cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        raise StudyError(f"unknown model {name!r}; give module:callable or one of {', '.join(BUILTIN)}")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise StudyError(f"{name} cannot be imported: {error}") from error
    if not callable(found):
        raise StudyError(f"{name} must be callable, got {type(found).__name__}")
    return found


def call(make: Callable[..., Any], name: str, *args: Any, **arguments: Any) -> Any:
    """``make(*args, **arguments)``, with a refusal of the arguments explained."""
    try:
        return make(*args, **arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "none"
        raise StudyError(f"{name} refuses its arguments ({given}): {error}") from error
