"""Which of the user's own modules a run used, by the hashes of their files, and which packages those use.

A network or an entry that was edited between two calls of a study gives runs that are not comparable, and
nothing in the specification shows it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Generator, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import FunctionType, ModuleType

import cdgrad
from cdgrad.study.records.environment import PACKAGES

_OWN = os.path.dirname(os.path.abspath(cdgrad.__file__))
_FOLDERS = tuple(
    os.path.join(os.path.normcase(folder), "") for folder in (_OWN, sysconfig.get_path("stdlib"))
)
_INSTALLED = tuple(f"{os.sep}{kind}-packages{os.sep}" for kind in ("site", "dist"))
_SEEN: dict[str, str] = {}  # a module stays as it was imported, whatever becomes of its file


def user_code(folder: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """The imported modules whose files lie below `folder` or the working directory, each with a hash.

    With `names`, those of the modules of these names alone. Installed packages and cdgrad are left out:
    records have their versions. Call it soon after an import.
    """
    hashes: dict[str, str] = {}
    for _, name, path in _user_modules(folder, names):
        if value := _SEEN.get(str(path)) or _hash(path):
            hashes[name] = _SEEN[str(path)] = value
    return hashes


def used_packages(folder: str, callables: Iterable[str]) -> dict[str, str]:
    """The versions of the installed packages that `callables` name, or that the user's modules import.

    Args:
        folder: as of `user_code`.
        callables: names such as ``timm:resnet18``, whose part before the colon is a module.
    """
    used = {name.partition(":")[0] for name in callables}
    for module, _, _ in _user_modules(folder):
        for value in list(vars(module).values()):
            if isinstance(value, ModuleType):
                used.add(value.__name__)
            elif isinstance(value, type | FunctionType):
                used.add(value.__module__)
    packages = {each for name in used for each in _distributions().get(name.partition(".")[0], ())}
    return {package: version(package) for package in sorted(packages - {"cdgrad", *PACKAGES})}


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    """The installed packages of each top-level module; looking them up takes a quarter of a second."""
    return packages_distributions()


def _user_modules(folder: str, names: Iterable[str] | None = None) -> Generator[tuple[ModuleType, str, Path]]:
    """The user's imported modules, each with its file's place below the folder, and its file."""
    for module in [*map(sys.modules.get, names)] if names is not None else list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if module is None or not isinstance(file, str) or not file.endswith(".py"):
            continue
        # As text: as paths, thousands of modules would take a tenth of a short run.
        place = os.path.normcase(os.path.abspath(file))
        if place.startswith(_FOLDERS) or any(packages in place for packages in _INSTALLED):
            continue
        path = Path(file).absolute()
        if name := _name(path, folder):
            yield module, name, path


def changed_files(recorded: Iterable[Mapping[str, str]], folder: str) -> list[str]:
    """The files that are now others than those of some recorded run, or missing."""
    roots = [Path(root) for root in (folder, os.getcwd()) if root]
    names = {(name, value) for code in recorded for name, value in code.items()}
    return sorted({name for name, value in names if value not in {_hash(root / name) for root in roots}})


def _name(path: Path, folder: str) -> str | None:
    for root in filter(None, (folder, os.getcwd())):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return None


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return None
