"""The catalogue of built-in networks: names and where they are, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_MOST = 10_000


@dataclass(frozen=True)
class Network:
    """A class in `cdgrad.study.models`, and the arguments that the name stands for."""

    module: str
    name: str
    arguments: Mapping[str, int] = field(default_factory=dict[str, int])


NETWORKS = {
    "small-cnn": Network("small", "SmallCNN"),
    "resnet8": Network("resnet", "CifarResNet", {"depth": 8}),
    "resnet20": Network("resnet", "CifarResNet", {"depth": 20}),
    "resnet32": Network("resnet", "CifarResNet", {"depth": 32}),
    "resnet44": Network("resnet", "CifarResNet", {"depth": 44}),
    "resnet56": Network("resnet", "CifarResNet", {"depth": 56}),
    "resnet18": Network("resnet", "ResNet18"),
    "preact-resnet164": Network("preact", "PreActResNet", {"depth": 164}),
    "wide-resnet16-4": Network("preact", "WideResNet", {"depth": 16, "width": 4}),
    "wide-resnet28-10": Network("preact", "WideResNet", {"depth": 28, "width": 10}),
    "vgg11-bn": Network("vgg", "VGG", {"depth": 11}),
    "vgg16-bn": Network("vgg", "VGG", {"depth": 16}),
    "densenet-bc": Network("densenet", "DenseNetBC"),
    "mobilenet-v2": Network("mobilenet", "MobileNetV2"),
}


def check_sizes(name: str, arguments: Mapping[str, object]) -> None:
    """Refuse a width, depth or growth rate that no built-in network can have.

    Raises:
        ValueError: with the key.
    """
    kinds = (int, float) if name == "mobilenet-v2" else (int,)  # its width multiplies the usual one
    for key in ("width", "depth", "growth"):
        value = arguments.get(key, 1)
        possible = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= _MOST
        if name in NETWORKS and not possible:
            what = "an integer from 1" if kinds == (int,) else "a number above 0"
            raise ValueError(f"{key} must be {what} to {_MOST}; got {value!r:.60}")
