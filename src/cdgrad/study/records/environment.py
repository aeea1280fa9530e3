"""Where and with which software a run was executed: enough to repeat it, or to explain a difference."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cdgrad
from cdgrad.machine import cpu_name

PACKAGES = ("torch", "numpy", "numba", "scikit-learn", "datasets", "pillow")


@lru_cache(maxsize=2)
def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, machine, device and the commit of cdgrad, from the running process.

    A GPU is named by its model: `device` is ``"cuda"`` where this process trains on one.
    """
    return {
        "cdgrad": cdgrad.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "device": "cpu" if device == "cpu" else _gpu(),
        "cpu": cpu_name(),
    }


def _gpu() -> str:
    import torch

    try:
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    except (AssertionError, RuntimeError):  # for which the run fails, too: its record needs an environment
        return "no GPU"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that the package was run from, marked where files differ; None outside a checkout."""
    package = Path(cdgrad.__file__).parent
    try:
        # An installed package may lie in someone else's repository: ask whether this one tracks it.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(package, "status", "--porcelain", "--", ".")
        return _git(package, "rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=4)
def folder_commit(folder: str) -> str | None:
    """The commit of the user's own folder, marked where tracked files differ; None outside a checkout."""
    place = Path(folder)
    try:
        changed = _git(place, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(place, "rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def renamed(environment: dict[str, Any]) -> dict[str, Any]:
    """The environment of a record of any version under the present names: ``cpu`` was ``processor``."""
    return {"cpu" if key == "processor" else key: value for key, value in environment.items()}


def _git(folder: Path, *arguments: str) -> str:
    # Without optional locks: a status that refreshes the index could stop a commit that the user makes.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return done.stdout.decode(errors="replace").strip()  # names of files may be of any encoding
