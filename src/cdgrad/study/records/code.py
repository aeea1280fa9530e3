"""Which of the user's own modules a run used, by the hashes of their files.

A network or an entry that was edited between two calls of a study gives runs that are not comparable, and
nothing in the specification shows it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import cdgrad

_OWN = os.path.dirname(os.path.abspath(cdgrad.__file__))
_FOLDERS = tuple(
    os.path.join(os.path.normcase(folder), "") for folder in (_OWN, sysconfig.get_path("stdlib"))
)
_PACKAGES = tuple(f"{os.sep}{kind}-packages{os.sep}" for kind in ("site", "dist"))
_SEEN: dict[str, str] = {}  # a module stays as it was imported, whatever becomes of its file


def user_code(folder: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """The imported modules whose files lie below `folder` or the working directory, each with a hash.

    With `names`, those of the modules of these names alone. Installed packages and cdgrad are left out:
    records have their versions. Call it soon after an import.
    """
    hashes: dict[str, str] = {}
    for module in [*map(sys.modules.get, names)] if names is not None else list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        # As text: as paths, thousands of modules would take a tenth of a short run.
        place = os.path.normcase(os.path.abspath(file))
        if place.startswith(_FOLDERS) or any(packages in place for packages in _PACKAGES):
            continue
        path = Path(file).absolute()
        if (name := _name(path, folder)) and (value := _SEEN.get(file) or _hash(path)):
            hashes[name] = _SEEN[file] = value
    return hashes


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
