"""Executes the remaining runs of a study, and records each as soon as it ends."""

from __future__ import annotations

from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from cdgrad.study.files import CHECKPOINTS
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records.run import Run
from cdgrad.study.records.store import Store
from cdgrad.study.run.engine import Engine, EpochDone
from cdgrad.study.run.local_engine import run_all
from cdgrad.study.run.progress import display
from cdgrad.study.spec import Spec


def run_study(spec: Spec, folder: Path, workers: int, engine: Engine | None = None) -> list[Run]:
    """Run what is missing of `spec` in `folder`; seeds and arms may have been added since.

    Trials come first, and the final runs of an arm in a cell as soon as all its trials there are done.

    Args:
        spec: the study.
        folder: where its records are, or will be.
        workers: how many runs at once.
        engine: what makes them; None: processes of this machine, of one thread each.

    Returns:
        The runs made now.

    Raises:
        StudyError: the folder holds runs of another specification, or cannot be used.
        KeyboardInterrupt: all finished runs are kept.
    """
    with Store(folder, write=True) as store:
        plan = Plan(spec, store.runs(), str(folder))
        spec_hash = store.use_spec(spec.name, spec.text)
        made: list[Run] = []
        engine = engine or partial(run_all, checkpoints=folder / CHECKPOINTS)
        remaining = len(plan.keys) - plan.done
        workers = min(workers, remaining)
        # Nothing is shown where no run remains: the last driver may have been killed after the last run.
        if remaining:
            with display(plan, workers) as shown, closing(engine(plan.take, workers)) as events:
                for event in events:
                    if isinstance(event, EpochDone):
                        shown.epoch(event)
                        continue
                    store.add(event.run, spec_hash)
                    plan.add(event.run)
                    made.append(event.run)
                    shown.run(event)
        if plan.done == len(plan.keys):  # what is left there is of runs that the study does not have
            _clear(folder / CHECKPOINTS)
        return made


def _clear(checkpoints: Path) -> None:
    """Remove the checkpoints of runs, and the folder unless it holds something else."""
    with suppress(OSError):
        for pattern in ("*.pt", "*.pt.part"):
            for file in checkpoints.glob(pattern):
                file.unlink()
        checkpoints.rmdir()
