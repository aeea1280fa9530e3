"""Executes the remaining runs of a study, and records each as soon as it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from cdgrad.messages import first_few
from cdgrad.study import StudyError
from cdgrad.study.callables import check_importable, modules_beside
from cdgrad.study.files import CHECKPOINTS
from cdgrad.study.plan.job import Job, run_name
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records.code import changed_files
from cdgrad.study.records.run import FailedRun, Run
from cdgrad.study.records.store import Store, StoreLockedError
from cdgrad.study.run import logs
from cdgrad.study.run.engine import Engine, EpochDone
from cdgrad.study.run.execute import users_callables
from cdgrad.study.run.local_engine import run_all
from cdgrad.study.run.progress import Display, display
from cdgrad.study.spec import Spec
from cdgrad.study.statistics.stopping import enough


def run_study(
    spec: Spec,
    folder: Path,
    workers: int,
    engine: Engine | None = None,
    before: Callable[[Plan, list[Run]], None] | None = None,
    *,
    allow_code_change: bool = False,
    allow_data_change: bool = False,
    keep_going: bool = False,
) -> list[Run]:
    """Execute the remaining runs of `spec` in `folder`; seeds and arms may have been added since.

    Trials come first, and the final runs of an arm in a cell as soon as all its trials there are done. With
    ``seeds = { until, most }``, a cell ends as soon as its comparisons are decided.

    Args:
        spec: the study.
        folder: the folder of its records.
        workers: number of runs at once.
        engine: what executes them; None: processes of this machine, of one thread each.
        before: called with the plan and the recorded runs before the first run is executed, if any remains.
        allow_code_change: add runs of changed modules of the user to those recorded; the report says so.
        allow_data_change: add runs of other images to those recorded; the report says so.
        keep_going: execute the other runs, too, after one raised an exception. Otherwise that run is the
            last: an error in the user's code would repeat in each. Neither a run that diverged, which is a
            result, nor a killed worker ends the study.

    Returns:
        The runs executed now.

    Raises:
        StudyError: the folder holds runs of another specification or of other code, or cannot be used; or
            the workers could not import what the specification names.
        KeyboardInterrupt: all finished runs are kept.
    """
    with Store(folder, write=True) as store:
        recorded = store.runs()
        plan = Plan(spec, recorded, str(folder), enough)
        if plan.done < plan.total and _is_local(engine):
            _check_importable(plan)
        if plan.done < plan.total and not allow_code_change:
            _check_code(spec, [run for run in recorded if run.status != "failed"], folder)
        spec_hash = store.use_spec(spec.name, spec.text)
        executed: list[Run] = []
        engine = engine or partial(run_all, checkpoints=folder.absolute() / CHECKPOINTS)
        remaining = plan.total - plan.done
        workers = min(workers, remaining)
        # Nothing is shown where no run remains: the last driver may have been killed after the last run.
        if remaining:
            if before is not None:
                before(plan, recorded)
            images = _Images(recorded)
            take = plan.take if allow_data_change else partial(images.take, plan)
            with display(plan, workers) as shown, closing(engine(take, workers)) as events:
                for event in events:
                    if isinstance(event, EpochDone):
                        shown.epoch(event)
                        continue
                    add_when_unlocked(store, event.run, spec_hash, shown)
                    logs.keep(folder, event.run)
                    if event.run.status != "failed":
                        _remove(folder / CHECKPOINTS, event.job.file("*"))
                        images.add(event.run)
                    plan.add(event.run)
                    executed.append(event.run)
                    shown.run(event)
                    if isinstance(event.run, FailedRun) and not keep_going:
                        break
        if plan.done == plan.total:  # the remaining files belong to runs that the study no longer has
            _clear(folder / CHECKPOINTS)
        return executed


def add_when_unlocked(store: Store, run: Run, spec_hash: str, shown: Display) -> None:
    """Record a run; where another program has the records locked, wait until it has not, and say so."""
    for attempt in count():
        try:
            store.add(run, spec_hash)
        except StoreLockedError as error:
            if not attempt:
                shown.remark(f"waiting with {run_name(run)}: {error}")
        else:
            return


def _is_local(engine: Engine | None) -> bool:
    """Whether processes of this machine execute the runs; the nodes of a cluster may have other modules."""
    return engine is None or getattr(engine, "func", engine) is run_all


def _check_importable(plan: Plan) -> None:
    """Refuse a network, optimizer or entry that workers cannot import, before one of them is started."""
    with modules_beside(plan.spec.folder):
        for name in dict.fromkeys(name for setting in plan.settings for name in users_callables(setting)):
            check_importable(name)


def _check_code(spec: Spec, recorded: list[Run], folder: Path) -> None:
    """Refuse to add runs of changed code to recorded ones: they are not comparable."""
    codes = [run.environment["code"] for run in recorded if run.environment.get("code")]
    if changed := changed_files(codes, spec.folder):
        raise StudyError(
            f"{first_few(changed)} changed since {folder} recorded {len(codes)} runs, and further runs would "
            f"not be comparable; choose another --out, or add --allow-code-change if the change cannot matter"
        )


class _Images:
    """The identities of the images that the recorded runs of each cell had, which further runs must have."""

    def __init__(self, recorded: list[Run]) -> None:
        self._of = dict[str, frozenset[str]]()
        for run in recorded:
            if run.status != "failed":
                self.add(run)

    def add(self, run: Run) -> None:
        if name := run.environment.get("data"):
            self._of[run.cell] = self._of.get(run.cell, frozenset()) | {name}

    def take(self, plan: Plan) -> Job | None:
        job = plan.take()
        return job and replace(job, images=self._of.get(job.cell, frozenset()))


def _remove(checkpoints: Path, *patterns: str) -> None:
    with suppress(OSError):
        for file in (file for pattern in patterns for file in checkpoints.glob(pattern)):
            file.unlink()


def _clear(checkpoints: Path) -> None:
    """Remove the checkpoints of runs, and the folder unless it holds something else."""
    _remove(checkpoints, "*.pt", "*.pt.part")
    with suppress(OSError):
        checkpoints.rmdir()
