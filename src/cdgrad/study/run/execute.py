"""The execution of one run, in the process that an engine provides."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgrad.study import StudyError
from cdgrad.study.callables import load_callable, modules_beside, traceback_of
from cdgrad.study.files import SAVE_EVERY
from cdgrad.study.plan.job import Job
from cdgrad.study.records.code import user_code
from cdgrad.study.records.environment import environment, folder_commit
from cdgrad.study.records.run import FailedRun, Run
from cdgrad.study.shown import named, one_line
from cdgrad.study.spec import EntrySetting, Setting

if TYPE_CHECKING:
    from cdgrad.study.train.outcome import OnEpoch, Outcome


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
    started, clock, traceback = datetime.now(UTC), time.perf_counter(), ""
    # Before training: the commit and the images may change during the run.
    conditions = environment(device) | {"threads": torch.get_num_threads()}
    try:
        with modules_beside(job.folder):
            _import_callables(job.setting)
            conditions |= _code(job.folder) | _data(job.setting)
            place = tensorboard and tensorboard / job.place
            with _process_restored(), curves(place, job.setting.fingerprint) as log:
                checkpoint = checkpoints and checkpoints / job.file(device)
                outcome = _outcome(job, _both(log, on_epoch), device, checkpoint, save_every)
        # What was imported only during the run, too.
        conditions |= _code(job.folder) | outcome.environment
        measured = {key: getattr(outcome, key) for key in ("status", "error", "epochs", "measures")}
        result = measured | outcome.columns
    except Exception as error:
        of_the_gpu = explained(error)
        result = _failed(of_the_gpu or one_line(error if isinstance(error, StudyError) else named(error)))
        traceback = "" if of_the_gpu else traceback_of(error)
    seconds = round(time.perf_counter() - clock, 3)
    run = job.run(started, environment=conditions, seconds=seconds, **result)
    return FailedRun(**vars(run), traceback=traceback) if traceback else run


@contextmanager
def _process_restored() -> Generator[None]:
    """What a run's own code changes of its process is afterwards as before, for the next run."""
    import torch

    dtype, threads, folder = torch.get_default_dtype(), torch.get_num_threads(), ""
    with suppress(FileNotFoundError):  # the working directory was removed
        folder = os.getcwd()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        with suppress(OSError):
            os.chdir(folder)


def _both(first: OnEpoch, second: OnEpoch) -> OnEpoch:
    def on_epoch(epoch: int, measured: dict[str, float]) -> None:
        first(epoch, measured)
        second(epoch, measured)

    return on_epoch


def _failed(message: str) -> dict[str, Any]:
    """What the record of a failed run has in the place of measurements."""
    return {"status": "failed", "error": None, "epochs": [], "measures": {}, "message": message}


def _outcome(job: Job, on_epoch: OnEpoch, device: str, checkpoint: Path | None, save_every: float) -> Outcome:
    """Train by the built-in loop or by the user's own code."""
    from cdgrad.study.train.entry import run_entry
    from cdgrad.study.train.loop import train

    if isinstance(job.setting, EntrySetting):
        return run_entry(job.arm, job.setting, job.seed, on_epoch, tuned=job.values)
    return train(job.setting, job.seed, on_epoch, device=device, checkpoint=checkpoint, every=save_every)


def _import_callables(setting: Setting) -> None:
    """Import the user's modules first: they are recorded as they were when the run began."""
    for name in users_callables(setting):
        load_callable(name)


def users_callables(setting: Setting) -> list[str]:
    """The ``module:callable`` names of a setting, but for those of libraries that cdgrad knows."""
    if isinstance(setting, EntrySetting):
        names = [setting.entry]
    else:
        _, model, _, optimizer = setting.tables()
        names = [model.name, optimizer.name]
    return [n for n in names if ":" in n and not n.startswith(("timm:", "torchvision:", "torch."))]


def _code(folder: str) -> dict[str, Any]:
    code = user_code(folder)
    if not code:
        return {}
    return {"code": code, "code_commit": folder_commit(folder or ".")}


def _data(setting: Setting) -> dict[str, Any]:
    """Which images the run had: a folder may change while its path in the specification stays."""
    from cdgrad.study import data

    if isinstance(setting, EntrySetting):
        return {}
    task = setting.tables()[0]
    test = "official" if data.has_test_split(task) else "drawn"
    sizes = data.split_sizes(task) | {"repeated": data.repeated(task)}
    return {"data": data.identity(task), "test_split": test, "splits": sizes}
