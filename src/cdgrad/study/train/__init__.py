"""One run: build, train, measure. Its names are imported on first use, because they import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdgrad.study.train.entry import EntryArm, run_entry
    from cdgrad.study.train.loop import train
    from cdgrad.study.train.outcome import Epoch, OnEpoch, Outcome
    from cdgrad.study.train.ranks import Ranks

__all__ = ["EntryArm", "Epoch", "OnEpoch", "Outcome", "Ranks", "run_entry", "train"]
_HOME = {
    "EntryArm": "entry",
    "Epoch": "outcome",
    "OnEpoch": "outcome",
    "Outcome": "outcome",
    "Ranks": "ranks",
    "run_entry": "entry",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
