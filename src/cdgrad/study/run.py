"""Makes the runs of a study that are missing, and keeps each as soon as it ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.progress import display
from cdgrad.study.records import Run, Store
from cdgrad.study.spec import Spec, first_difference
from cdgrad.study.workers import EpochDone, Job, run_all


def run_study(spec: Spec, folder: Path, workers: int) -> list[Run]:
    """Run what is missing of `spec` in `folder`; seeds and arms may have been added since.

    Args:
        spec: the study.
        folder: where its records are, or will be.
        workers: number of processes, of one thread each.

    Returns:
        The runs made now.

    Raises:
        StudyError: the folder holds runs of another specification, or cannot be used.
        KeyboardInterrupt: all finished runs are kept.
    """
    with Store(folder, write=True) as store:
        jobs = missing(spec, store.runs(), folder)
        spec_hash = store.use_spec(spec.name, spec.text)
        total = len(spec.arms) * len(spec.seeds)
        made: list[Run] = []
        if not jobs:
            return made
        workers = min(workers, len(jobs))
        with (
            display(spec, total - len(jobs), workers) as shown,
            closing(run_all(jobs, workers)) as events,
        ):
            for event in events:
                if isinstance(event, EpochDone):
                    shown.epoch(event)
                    continue
                store.add(event.run, spec_hash)
                made.append(event.run)
                shown.run(event)
        return made


def missing(spec: Spec, runs: Sequence[Run], folder: Path) -> list[Job]:
    """The runs still to make: not recorded, or failed. Seed by seed, so that pairs complete early.

    Raises:
        StudyError: a run of one of the study's arms was made under another setting.
    """
    settings = {arm: spec.setting(arm) for arm in spec.arms}
    done: set[tuple[str, int]] = set()
    for run in runs:
        if run.arm not in settings or run.status == "failed":
            continue
        if run.fingerprint != settings[run.arm].fingerprint:
            change = first_difference(run.config, asdict(settings[run.arm]))
            raise StudyError(
                f"{folder} holds runs of arm {run.arm} under another specification ({change}); they are "
                f"not mixed: restore the specification, or choose another --out"
            )
        done.add((run.arm, run.seed))
    return [
        Job(arm, seed, settings[arm]) for seed in spec.seeds for arm in spec.arms if (arm, seed) not in done
    ]
