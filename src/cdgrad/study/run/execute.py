"""The execution of one run, in the process that an engine provides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgrad.study import StudyError
from cdgrad.study.callables import modules_beside, traceback_of
from cdgrad.study.files import SAVE_EVERY
from cdgrad.study.plan.job import Job
from cdgrad.study.records.code import used_packages, user_code
from cdgrad.study.records.environment import environment, folder_commit
from cdgrad.study.records.run import FailedRun, Run
from cdgrad.study.run import flags
from cdgrad.study.shown import named, one_line
from cdgrad.study.spec import EntrySetting, Setting

if TYPE_CHECKING:
    from cdgrad.study.train.outcome import OnEpoch, Outcome

_LONGEST = 2_000  # characters of a message; the traceback has all


def execute(
    job: Job,
    on_epoch: Callable[[int, dict[str, float]], None],
    *,
    device: str = "cpu",
    checkpoints: Path | None = None,
    save_every: float = SAVE_EVERY,
    tensorboard: Path | None = None,
) -> Run:
    """Execute one run in this process. An exception of the run becomes a `FailedRun`.

    An error of the GPU, such as full memory, is a failed run like that of a worker that was killed.

    Args:
        job: the run.
        on_epoch: called after each epoch with its number from 1 and what was measured in it.
        device: where to train, ``"cpu"`` or ``"cuda"``; the user's own training code chooses its own.
        checkpoints: a folder in which a long run saves its state, so that it resumes after it was killed.
        save_every: least number of seconds between two saves.
        tensorboard: a folder for the curves of runs, each in a folder of its own.

    Raises:
        ValueError: it is a trial that would read the test split; nothing was executed.
    """
    import torch  # here, because the driver imports this module and needs no torch

    from cdgrad.study.train.curves import curves
    from cdgrad.study.train.device import explained

    if job.trial is not None and job.setting.evaluate == "test":
        raise ValueError(f"trial {job.trial} of arm {job.arm} would read the test split")
    started, clock, traceback, earlier = datetime.now(UTC), time.perf_counter(), "", 0.0
    # Before training: the commit and the images may change during the run.
    conditions = environment(device) | {"threads": torch.get_num_threads()}
    try:
        # The user's modules first: they are recorded as they were when the run began.
        with modules_beside(job.folder), flags.of_modules(users_callables(job.setting), job.folder):
            conditions |= {"threads": torch.get_num_threads()} | _code(job) | _data(job.setting)
            _check_images(job, conditions)
            _import_what_trains(job.setting)
            clock = time.perf_counter()  # so far, a worker's first run takes seconds longer than its others
            place = tensorboard and tensorboard / job.place
            with curves(place, job.setting.fingerprint) as log:
                checkpoint = checkpoints and checkpoints / job.file(device)
                outcome = _outcome(job, _both(log, on_epoch), device, checkpoint, save_every)
        # What was imported only during the run, too.
        conditions |= _code(job) | outcome.environment
        earlier = outcome.earlier
        measured = {key: getattr(outcome, key) for key in ("status", "error", "epochs", "measures")}
        result = measured | outcome.columns
    except Exception as error:
        of_the_gpu = explained(error)
        what = of_the_gpu or one_line(error if isinstance(error, StudyError) else named(error))
        result = _failed(what if len(what) <= _LONGEST else f"{what[:_LONGEST]} ...")
        traceback = "" if of_the_gpu else traceback_of(error)
    seconds = round(earlier + time.perf_counter() - clock, 3)
    run = job.run(started, environment=conditions, seconds=seconds, **result)
    return FailedRun(**vars(run), traceback=traceback) if traceback else run


def _both(first: OnEpoch, second: OnEpoch) -> OnEpoch:
    def on_epoch(epoch: int, measured: dict[str, float]) -> None:
        first(epoch, measured)
        second(epoch, measured)

    return on_epoch


def _failed(message: str) -> dict[str, Any]:
    """What the record of a failed run has in the place of measurements."""
    return {"status": "failed", "error": None, "epochs": [], "measures": {}, "message": message}


def _import_what_trains(setting: Setting) -> None:
    own = ("cdgrad.study.train.entry",)
    built_in = ("cdgrad.study.train.loop", "torch._dynamo")  # which torch imports for its first optimizer
    for module in own if isinstance(setting, EntrySetting) else built_in:
        import_module(module)


def _outcome(job: Job, on_epoch: OnEpoch, device: str, checkpoint: Path | None, save_every: float) -> Outcome:
    """Train by the built-in loop or by the user's own code."""
    if isinstance(job.setting, EntrySetting):
        from cdgrad.study.train.entry import run_entry

        return run_entry(job.arm, job.setting, job.seed, on_epoch, tuned=job.values)
    from cdgrad.study.train.loop import train

    return train(job.setting, job.seed, on_epoch, device=device, checkpoint=checkpoint, every=save_every)


def users_callables(setting: Setting) -> list[str]:
    """The ``module:callable`` names of a setting, but for those of libraries that cdgrad knows."""
    return [n for n in _callables(setting) if not n.startswith(("timm:", "torchvision:", "torch."))]


def _callables(setting: Setting) -> list[str]:
    """The names of a setting's network and optimizer, or entry, that are of no built-in one."""
    if isinstance(setting, EntrySetting):
        return [setting.entry]
    _, model, _, optimizer = setting.tables()
    return [name for name in (model.name, optimizer.name) if ":" in name]


def _code(job: Job) -> dict[str, Any]:
    """The user's modules, and the packages that they or the setting name."""
    code, named = user_code(job.folder), _callables(job.setting)
    known: dict[str, Any] = {"packages": used_packages(named)} if code or named else {}
    return known | ({"code": code, "code_commit": folder_commit(job.folder or ".")} if code else {})


def _check_images(job: Job, conditions: Mapping[str, Any]) -> None:
    """Refuse to add a run to recorded ones that had other images: they are not comparable."""
    if job.images and (own := conditions.get("data")) not in {None, *job.images}:
        raise StudyError(
            f"{job.setting.tables()[0].data} has other images ({own}) than the recorded runs of the study "
            f"({', '.join(sorted(job.images))}), and a further run would not be comparable; restore them, "
            "choose another --out, or add --allow-data-change if the change cannot matter"
        )


def _data(setting: Setting) -> dict[str, Any]:
    """Which images the run had: a folder may change while its path in the specification stays."""
    from cdgrad.study import data

    if isinstance(setting, EntrySetting):
        return {}
    task = setting.tables()[0]
    test = "official" if data.has_test_split(task) else "drawn"
    sizes = data.split_sizes(task) | {"repeated": data.repeated(task)}
    return {"data": data.identity(task), "test_split": test, "splits": sizes}
