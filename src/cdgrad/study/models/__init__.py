"""Networks by name: built-in ones, or the user's own as ``module:callable``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from cdgrad.study import StudyError
from cdgrad.study.callables import call, load_callable
from cdgrad.study.models import libraries
from cdgrad.study.models.densenet import DenseNetBC
from cdgrad.study.models.initialization import initialize_fan_out
from cdgrad.study.models.mobilenet import MobileNetV2
from cdgrad.study.models.preact import PreActResNet, WideResNet
from cdgrad.study.models.resnet import CifarResNet, ResNet18
from cdgrad.study.models.small import SmallCNN
from cdgrad.study.models.vgg import VGG

__all__ = ["BUILTIN", "LIBRARIES", "build", "initialize_fan_out"]

LIBRARIES = libraries.LIBRARIES
BUILTIN: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": SmallCNN,
    "resnet8": partial(CifarResNet, depth=8),
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet44": partial(CifarResNet, depth=44),
    "resnet56": partial(CifarResNet, depth=56),
    "resnet18": ResNet18,
    "preact-resnet164": partial(PreActResNet, depth=164),
    "wide-resnet16-4": partial(WideResNet, depth=16, width=4),
    "wide-resnet28-10": partial(WideResNet, depth=28, width=10),
    "vgg11-bn": partial(VGG, depth=11),
    "vgg16-bn": partial(VGG, depth=16),
    "densenet-bc": DenseNetBC,
    "mobilenet-v2": MobileNetV2,
}


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, arguments: Mapping[str, Any]
) -> nn.Module:
    """The network of a study: a built-in one, a library's, or ``module:callable``, which is
    called with (image_shape, classes, **arguments).

    Raises:
        StudyError: it cannot be imported, refuses the arguments or is not a module.
    """
    library, _, inner = name.partition(":")
    if library in LIBRARIES:
        model = libraries.build(library, inner, image_shape, classes, arguments)
    else:
        if name not in BUILTIN and not inner:
            raise StudyError(f"unknown model {name!r}; give module:callable or one of {', '.join(BUILTIN)}")
        make = BUILTIN.get(name) or load_callable(name)
        model = call(make, name, image_shape, classes, **arguments)
    if not isinstance(model, nn.Module):
        raise StudyError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
    return model
