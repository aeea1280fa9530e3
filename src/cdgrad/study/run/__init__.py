"""All runs of a study. Names are imported on first use: a worker process needs few of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdgrad.lazy import lazy_names

if TYPE_CHECKING:
    from cdgrad.study.run.driver import run_study
    from cdgrad.study.run.engine import Engine, EpochDone, RunDone

__all__ = ["Engine", "EpochDone", "RunDone", "run_study"]
__getattr__ = lazy_names(
    __name__,
    {
        "Engine": "cdgrad.study.run.engine",
        "EpochDone": "cdgrad.study.run.engine",
        "RunDone": "cdgrad.study.run.engine",
        "run_study": "cdgrad.study.run.driver",
    },
)
