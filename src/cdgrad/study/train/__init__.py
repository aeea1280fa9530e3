"""One run: build, train, measure. Its names are imported on first use, because they import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdgrad.lazy import lazy_names

if TYPE_CHECKING:
    from cdgrad.study.train.entry import EntryArm, run_entry
    from cdgrad.study.train.loop import train
    from cdgrad.study.train.outcome import Epoch, OnEpoch, Outcome
    from cdgrad.study.train.ranks import Ranks

__all__ = ["EntryArm", "Epoch", "OnEpoch", "Outcome", "Ranks", "run_entry", "train"]
__getattr__ = lazy_names(
    __name__,
    {
        "EntryArm": "cdgrad.study.train.entry",
        "Epoch": "cdgrad.study.train.outcome",
        "OnEpoch": "cdgrad.study.train.outcome",
        "Outcome": "cdgrad.study.train.outcome",
        "Ranks": "cdgrad.study.train.ranks",
        "run_entry": "cdgrad.study.train.entry",
        "train": "cdgrad.study.train.loop",
    },
)
