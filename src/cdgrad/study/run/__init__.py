"""All runs of a study. Names are imported on first use: a worker process needs few of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdgrad.study.run.driver import run_study
    from cdgrad.study.run.engine import Engine, EpochDone, RunDone

__all__ = ["Engine", "EpochDone", "RunDone", "run_study"]
_HOME = {
    "Engine": "engine",
    "EpochDone": "engine",
    "RunDone": "engine",
    "run_study": "driver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
