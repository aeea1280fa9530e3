"""Callables that a specification names as ``module:callable``: where they are found, and how they are called.

The folders of the specification and of the command are importable only while such a module is imported or its
callable runs, and after all others: a file beside a specification must not pass for a module of some package.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.shown import named, one_line

_FOLDER: ContextVar[str] = ContextVar("folder of the specification", default="")
ENTRY = "run(seed, arm)"
NETWORK = "build(image_shape, classes, ...)"
_CLASSES = ("classes", "num_classes", "n_classes", "num_labels")
_CHANNELS = ("in_channels", "in_chans")
_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class UserCodeError(StudyError):
    """Code that a specification names raised an exception, which is the cause of this one."""


def traceback_of(error: BaseException) -> str:
    """The traceback of an error; of the user's own one where that is the cause."""
    own = error.__cause__ if isinstance(error, UserCodeError) else None
    return "".join(traceback.format_exception(own or error))


@contextmanager
def modules_beside(folder: str) -> Generator[None]:
    """Inside, modules that a specification names are looked for in `folder`, too; empty: nowhere else."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def specification_folder() -> str:
    """The folder that `modules_beside` was given; empty outside."""
    return _FOLDER.get()


@contextmanager
def users_modules() -> Generator[None]:
    """Inside, the user's modules are importable: beside the specification, and in the working directory."""
    added = [folder for folder in _folders() if folder not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for folder in added:
            with suppress(ValueError):
                sys.path.remove(folder)


def _folders() -> list[str]:
    folders = [_FOLDER.get()] if _FOLDER.get() else []
    with suppress(FileNotFoundError):  # the working directory was removed
        folders.append(os.getcwd())
    return list(dict.fromkeys(folders))


def load_callable(name: str) -> Callable[..., Any]:
    """The object that ``module:callable`` names; the callable may be a class's, such as ``nets:Net.small``.

    Raises:
        StudyError: there is none, or it cannot be called.
        UserCodeError: the module raised when it was imported.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        raise StudyError(f"{name!r} is not of the form module:callable, such as torch.optim:SGD; write it so")
    _refuse_elsewhere(name)
    try:
        with users_modules():
            loaded = attrgetter(attribute)(import_module(module))
    except (ImportError, AttributeError) as error:
        if module.partition(".")[0] in sys.modules and (file := _hidden(module)):
            raise StudyError(_rename(name, file, "that is installed")) from error
        file = getattr(sys.modules.get(module), "__file__", None)
        where = f" (the module is {file})" if file else ""
        absent = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or " ")
        kind = StudyError if absent or module in sys.modules else UserCodeError
        remedy = "; install it, or correct the import" if isinstance(error, ModuleNotFoundError) else ""
        remedy *= not absent  # a module of the user's imports it
        raise kind(f"{name} cannot be imported: {error}{where}{remedy}") from error
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise UserCodeError(f"{name} cannot be imported: {named(error)}") from error
    if not callable(loaded):
        raise StudyError(f"{name} must be callable, got {type(loaded).__name__}")
    return loaded


def check_importable(name: str) -> None:
    """Refuse a ``module:callable`` that no other process of this machine can import; nothing is executed.

    Raises:
        StudyError: it is defined in a notebook or a script, or its module is no file that Python finds.
    """
    _refuse_elsewhere(name)
    module, _, attribute = name.partition(":")
    top = module.partition(".")[0]
    try:
        with users_modules():
            found = find_spec(top) is not None
    except ValueError:  # a module that was made in this process, and has no file
        found = False
    if not found:
        places = " or ".join(dict.fromkeys(_folders()))
        raise StudyError(
            f"{name}: there is no module {top} in {places}, or installed; write {attribute} into {top}.py "
            f"there (%%writefile {top}.py in a notebook), or correct the name"
        )


def _refuse_elsewhere(name: str) -> None:
    """Refuse what only this process has, and a file that a module of Python's library hides."""
    module, _, attribute = name.partition(":")
    if module == "__main__":
        raise StudyError(
            f"{name}: a worker process cannot import what a notebook or a script defines; write {attribute} "
            f"into a file, such as mine.py (%%writefile mine.py in a notebook), and name it mine:{attribute}"
        )
    if module.partition(".")[0] in sys.stdlib_module_names and (file := _hidden(module)):
        raise StudyError(_rename(name, file, "of Python's library"))


def _hidden(module: str) -> Path | None:
    """The user's file that another module of the same name keeps from being imported."""
    top = module.partition(".")[0]
    imported = getattr(sys.modules.get(top), "__file__", None)
    for folder in map(Path, _folders()):
        for file in (folder / f"{top}.py", folder / top / "__init__.py"):
            if file.is_file() and not (imported and Path(imported).resolve() == file.resolve()):
                return file
    return None


def _rename(name: str, file: Path, kind: str) -> str:
    module, _, attribute = name.partition(":")
    return (
        f"{name} resolves to the module {module} {kind}, which precedes {file}; rename the file, such as to "
        f"my_{file.stem if file.stem != '__init__' else file.parent.name}.py, and name "
        f"my_{module}:{attribute}"
    )


def call(make: Callable[..., Any], name: str, *args: object, **arguments: object) -> Any:
    """``make(*args, **arguments)``, with a refusal of the arguments explained.

    Raises:
        UserCodeError: it raised an exception, or ended the process.
    """
    try:
        with users_modules():
            return make(*args, **arguments)
    except (StudyError, KeyboardInterrupt):
        raise
    except (TypeError, ValueError) as error:
        given = ", ".join(arguments) or "none"
        kind = StudyError if name.startswith("torch.") else UserCodeError
        raise kind(f"{name} refuses its arguments ({given}): {error}") from error
    except Exception as error:
        raise UserCodeError(f"{name} failed: {named(error)}") from error
    except SystemExit as error:
        raise UserCodeError(f"{name} ended the process (exit status {error.code!r})") from error


def call_network(
    make: Callable[..., Any],
    name: str,
    image_shape: tuple[int, int, int],
    classes: int,
    arguments: Mapping[str, object],
) -> Any:
    """A network by the one convention of ``study``, ``train`` and ``inspect``.

    A parameter called ``image_shape``, ``in_channels`` (or ``in_chans``), ``classes`` (or ``num_classes``,
    ``n_classes``, ``num_labels``) gets what its name says; where other parameters have no default, the first
    two get image_shape and classes; a callable that takes neither gets `arguments` alone.

    Args:
        make: a class or function.
        name: of `make`, for messages.
        image_shape: (channels, height, width).
        classes: number of outputs.
        arguments: further keyword arguments, which come before those above.

    Raises:
        StudyError: its signature fits none of these.
        UserCodeError: it raised an exception.
    """
    signature = _signature(make)
    known: dict[str, object] = {"image_shape": image_shape}
    known |= dict.fromkeys(_CLASSES, classes) | dict.fromkeys(_CHANNELS, image_shape[0])
    if signature is None:
        return call(make, name, image_shape, classes, **arguments)
    free = [p for p in signature.parameters.values() if p.name not in arguments and p.kind in _NAMED_KINDS]
    by_name = {p.name: known[p.name] for p in free if p.name in known}
    if by_name and _fits(signature, **by_name, **arguments):
        return call(make, name, **by_name, **arguments)
    if _fits(signature, image_shape, classes, **arguments):
        return call(make, name, image_shape, classes, **arguments)
    if _fits(signature, **arguments):
        return call(make, name, **arguments)
    raise StudyError(
        f"{name} refuses its arguments ({', '.join(arguments) or 'none'}): it is called as {NETWORK} with "
        f"the keys of [model], and takes {one_line(signature):.200}; name its parameters image_shape, "
        "in_channels or num_classes, or give the others as keys"
    )


def check_entry(run: Callable[..., object], name: str) -> None:
    """Refuse training code that cannot be called with a seed and an arm.

    Raises:
        StudyError: with its signature.
    """
    signature = _signature(run)
    if signature is not None and not _fits(signature, 0, None):
        raise StudyError(
            f"{name} is called as {ENTRY}, and takes {one_line(signature):.200}; let it take the seed and "
            "the arm, and read what else it needs from arm.values"
        )


def _signature(make: Callable[..., object]) -> inspect.Signature | None:
    try:
        return inspect.signature(make)
    except (TypeError, ValueError):  # some that are written in C have none
        return None


def _fits(signature: inspect.Signature, *args: object, **arguments: object) -> bool:
    try:
        signature.bind(*args, **arguments)
    except TypeError:
        return False
    return True
