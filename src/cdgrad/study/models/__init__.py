"""Networks by name: built-in ones, or the user's own as ``module:callable``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module

from torch import nn

from cdgrad.study import StudyError
from cdgrad.study.callables import call_network, load_callable
from cdgrad.study.models import libraries
from cdgrad.study.models.initialization import initialize_fan_out
from cdgrad.study.spec.networks import NETWORKS

__all__ = ["BUILTIN", "LIBRARIES", "build", "initialize_fan_out"]

LIBRARIES = libraries.LIBRARIES
BUILTIN: dict[str, Callable[..., nn.Module]] = {
    name: partial(getattr(import_module(f"{__name__}.{n.module}"), n.name), **n.arguments)
    for name, n in NETWORKS.items()
}


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, arguments: Mapping[str, object]
) -> nn.Module:
    """The network of a study: a built-in one, a library's, or ``module:callable``; see `call_network`.

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
        if isinstance(make, nn.Module):
            raise StudyError(
                f"{name} is a network, and every run needs a new one; name a function or a class that "
                "returns one"
            )
        model = call_network(make, name, image_shape, classes, arguments)
    if not isinstance(model, nn.Module):
        raise StudyError(
            f"{name} must return a torch.nn.Module, got {type(model).__name__}; return the network itself"
        )
    return model
