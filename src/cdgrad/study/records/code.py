"""Which of the user's own modules a run used, by the hashes of their files, and which packages those use.

A network or an entry that was edited between two calls of a study gives runs that are not comparable, and
nothing in the specification shows it.

A module is the user's wherever it lies: beside the specification, in a folder of PYTHONPATH, or in a project
that is installed to be edited. Not the user's are Python's library, cdgrad, and what lies in a folder of
installed packages, of which records have the versions.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Generator, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType

import cdgrad
from cdgrad.study.records.environment import PACKAGES

_OWN = os.path.dirname(os.path.abspath(cdgrad.__file__))
_FOLDERS = tuple(
    os.path.join(os.path.normcase(folder), "") for folder in (_OWN, sysconfig.get_path("stdlib"))
)
_INSTALLED = tuple(f"{os.sep}{kind}-packages{os.sep}" for kind in ("site", "dist"))
# The modules of `PACKAGES`, even where they are built to be edited.
_VERSIONED = {"torch", "numpy", "numba", "sklearn", "datasets", "PIL"}
_SEEN: dict[str, str] = {}  # a module stays as it was imported, whatever becomes of its file
# Modules that are not the user's: looking at thousands again would take a tenth of a run.
_OTHERS = set[str]()


def user_code(folder: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """The user's imported modules, each with a hash of its file.

    One whose file lies below `folder` or the working directory has the place there as its name, such as
    ``nets/small.py``; another that of its import, such as ``mylib.nets``. With `names`, those modules alone.
    Call it soon after an import.
    """
    hashes: dict[str, str] = {}
    for name, _, path in _user_modules(names):
        if value := _SEEN.get(str(path)) or _hash(path):
            hashes[_place(path, folder) or name] = _SEEN[str(path)] = value
    return hashes


def used_packages(callables: Iterable[str]) -> dict[str, str]:
    """The versions of the installed packages that `callables` name, or that the user's modules import.

    Args:
        callables: names such as ``timm:resnet18``, whose part before the colon is a module.
    """
    used: set[object] = {name.partition(":")[0] for name in callables}
    for _, module, _ in _user_modules():
        values: list[object] = [*vars(module).values()]
        for value in values:
            # isinstance would ask a proxy for what it stands for.
            if issubclass(type(value), ModuleType):
                used.add(getattr(value, "__name__", None))
            elif issubclass(type(value), type | FunctionType):
                used.add(getattr(value, "__module__", None))
    tops = {name.partition(".")[0] for name in used if isinstance(name, str)}  # exec names no module
    packages = {each for top in tops for each in _distributions().get(top, ())}
    return {package: version(package) for package in sorted(packages - {"cdgrad", *PACKAGES})}


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    """The installed packages of each top-level module; looking them up takes a quarter of a second."""
    return packages_distributions()


def _user_modules(names: Iterable[str] | None = None) -> Generator[tuple[str, ModuleType, Path]]:
    """The names of the user's imported modules, of those in `names` or all, the modules, and their files."""
    for name in ({*sys.modules} if names is None else {*names}) - _OTHERS:
        module = sys.modules.get(name)
        if module is None:
            continue
        if path := _users_file(name, module):
            yield name, module, path
        else:
            _OTHERS.add(name)


def _users_file(name: str, module: ModuleType) -> Path | None:
    """The file of a module of the user's; None for one of another kind."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    place = os.path.normcase(os.path.abspath(file))
    if place.startswith(_FOLDERS) or any(packages in place for packages in _INSTALLED):
        return None
    path, (top, *rest) = Path(file).absolute(), name.split(".")
    if top in _VERSIONED or top == "__main__":
        return None
    folder = path.parents[min(len(rest) + (path.stem == "__init__"), len(path.parents) - 1)]
    return None if _holds_packages(folder) and top in _distributions() else path


@lru_cache
def _holds_packages(folder: Path) -> bool:
    """Whether packages were installed into a folder, as by ``pip install --target``."""
    return any(folder.glob("*.dist-info"))


def changed_files(recorded: Iterable[Mapping[str, str]], folder: str) -> list[str]:
    """The files and modules that are now others than those of some recorded run, or missing.

    A module outside `folder` and the working directory that Python finds no more is not among them: runs that
    import it fail, and a cluster's nodes may have modules that this machine has not.
    """
    roots = [Path(root) for root in (folder, os.getcwd()) if root]
    names = {(name, value) for code in recorded for name, value in code.items()}
    changed: set[str] = set()
    for name, value in names:
        imported = _module_files(name)
        files = [*(root / name for root in roots), *imported]
        if (imported or name.endswith(".py")) and value not in {_hash(file) for file in files}:
            changed.add(name)
    return sorted(changed)


def _module_files(name: str) -> list[Path]:
    """Where the file of a module is or would be; empty where its package is not found. Imports nothing."""
    top, *rest = name.split(".")
    try:
        found = find_spec(top)
    except ValueError:  # a name such as ".hidden", or a module without a file
        return []
    if not rest:
        return [Path(found.origin)] if found and found.origin else []
    places = [Path(folder, *rest) for folder in (found and found.submodule_search_locations) or ()]
    return [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]


def _place(path: Path, folder: str) -> str | None:
    """A file's place below the folder or the working directory; None elsewhere."""
    for root in filter(None, (folder, os.getcwd())):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return None


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return None
