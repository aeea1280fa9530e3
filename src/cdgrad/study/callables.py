"""Callables that a specification names as ``module:callable``, and where their modules are found.

The folders of the specification and of the command are importable only while such a module is imported or its
callable runs, and after all others: a file beside a specification must not pass for a module of some package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from operator import attrgetter
from typing import Any

from cdgrad.study import StudyError

_FOLDER: ContextVar[str] = ContextVar("folder of the specification", default="")


@contextmanager
def modules_beside(folder: str) -> Generator[None]:
    """Inside, modules that a specification names are looked for in `folder`, too; empty: nowhere else."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


@contextmanager
def users_modules() -> Generator[None]:
    """Inside, the user's modules are importable: beside the specification, and in the working directory."""
    folders = [_FOLDER.get()] if _FOLDER.get() else []
    with suppress(FileNotFoundError):  # the working directory was removed
        folders.append(os.getcwd())
    added = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for folder in added:
            with suppress(ValueError):
                sys.path.remove(folder)


def load_callable(name: str) -> Callable[..., Any]:
    """The object that ``module:callable`` names; the callable may be a class's, such as ``nets:Net.small``.

    Raises:
        StudyError: there is none, or it cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        raise StudyError(f"{name!r} is not of the form module:callable")
    try:
        with users_modules():
            found = attrgetter(attribute)(import_module(module))
    except (ImportError, AttributeError) as error:
        file = getattr(sys.modules.get(module), "__file__", None)
        where = f" (the module is {file})" if file else ""
        raise StudyError(f"{name} cannot be imported: {error}{where}") from error
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise StudyError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise StudyError(f"{name} must be callable, got {type(found).__name__}")
    return found


def call(make: Callable[..., Any], name: str, *args: Any, **arguments: Any) -> Any:
    """``make(*args, **arguments)``, with a refusal of the arguments explained."""
    try:
        with users_modules():
            return make(*args, **arguments)
    except (TypeError, ValueError) as error:
        given = ", ".join(arguments) or "none"
        raise StudyError(f"{name} refuses its arguments ({given}): {error}") from error
    except (StudyError, KeyboardInterrupt):
        raise
    except (RuntimeError, ArithmeticError, LookupError, AttributeError, MemoryError) as error:
        raise StudyError(f"{name} failed: {type(error).__name__}: {error}") from error
    except SystemExit as error:
        raise StudyError(f"{name} ended the process (exit status {error.code!r})") from error
