"""Networks of timm and torchvision, by ``timm:NAME`` and ``torchvision:NAME``; untrained."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.models.layers import ImageShape
from cdgrad.study.shown import one_line

LIBRARIES = ("timm", "torchvision")


def build(
    library: str, name: str, image_shape: ImageShape, classes: int, arguments: Mapping[str, object]
) -> Any:
    """A network of a library with `classes` outputs, and for timm with the images' channels.

    Raises:
        StudyError: the library is not installed, does not know the name, or refuses the arguments.
    """
    full = f"{library}:{name}"
    try:
        # Imported by name and only here: the import takes seconds, and few studies need one.
        module: Any = import_module(library if library == "timm" else "torchvision.models")
    except ImportError as error:
        raise StudyError(f"{full} needs {library} ({error}): pip install {library}") from error
    if library == "timm":
        make, given = module.create_model, {"num_classes": classes, "in_chans": image_shape[0]}
    elif image_shape[0] != 3:
        raise StudyError(f"{full} takes images of 3 channels, got {image_shape[0]}; use timm:{name}")
    else:
        make, given = module.get_model, {"num_classes": classes}
    try:
        return make(name, **given, **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        named = ", ".join(arguments) or "none"
        raise StudyError(
            f"{full} cannot be built with the arguments ({named}): {one_line(error)}; correct them in [model]"
        ) from error
