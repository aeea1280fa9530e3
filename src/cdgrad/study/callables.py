"""Callables that a specification names as ``module:callable``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from cdgrad.study import StudyError


def load_callable(name: str) -> Callable[..., Any]:
    """The object that ``module:callable`` names; the callable may be a class's, such as ``nets:Net.small``.

    Raises:
        StudyError: there is none, or it cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        raise StudyError(f"{name!r} is not of the form module:callable")
    try:
        found = attrgetter(attribute)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise StudyError(f"{name} cannot be imported: {error}") from error
    if not callable(found):
        raise StudyError(f"{name} must be callable, got {type(found).__name__}")
    return found


def call(make: Callable[..., Any], name: str, *args: Any, **arguments: Any) -> Any:
    """``make(*args, **arguments)``, with a refusal of the arguments explained."""
    try:
        return make(*args, **arguments)
    except (TypeError, ValueError) as error:
        given = ", ".join(arguments) or "none"
        raise StudyError(f"{name} refuses its arguments ({given}): {error}") from error
