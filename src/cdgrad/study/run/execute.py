"""The execution of one run, in whichever process an engine gives it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.callables import load_callable, modules_beside
from cdgrad.study.plan.job import Job
from cdgrad.study.records.code import user_code
from cdgrad.study.records.environment import environment, folder_commit
from cdgrad.study.records.run import Run, Status
from cdgrad.study.spec import Setting


def execute(
    job: Job,
    on_epoch: Callable[[int, dict[str, float]], None],
    *,
    device: str = "cpu",
    checkpoints: Path | None = None,
) -> Run:
    """Make one run in this process. What the run raises becomes a record of status "failed".

    Args:
        job: the run.
        on_epoch: called after each epoch with its number from 1 and what was measured in it.
        device: where to train, ``"cpu"`` or ``"cuda"``; the user's own training code sees to it itself.
        checkpoints: a folder in which a long run keeps its state, to go on from where one was killed.
    """
    import torch  # here, because the driver, which imports this module, does without

    from cdgrad.study.train.entry import run_entry
    from cdgrad.study.train.loop import train

    started, clock = datetime.now(UTC), time.perf_counter()
    status: Status = "failed"
    message, error, epochs, measures = "", None, list[dict[str, float]](), dict[str, Any]()
    # Before training: the commit and the images are those that the run began with.
    place = environment(device) | {"threads": torch.get_num_threads()}
    if job.trial is not None and job.setting.evaluate == "test":
        raise ValueError(f"trial {job.trial} of arm {job.arm} would read the test part")
    dtype = torch.get_default_dtype()
    try:
        with modules_beside(job.folder):
            _import_callables(job.setting)
            place |= _code(job.folder) | _data(job.setting)
            dtype = torch.get_default_dtype()
            if job.setting.entry:
                outcome = run_entry(job.arm, job.setting, job.seed, on_epoch, tuned=job.values)
            else:
                kept = checkpoints and checkpoints / job.file(device)
                outcome = train(job.setting, job.seed, on_epoch, device=device, checkpoint=kept)
        place |= _code(job.folder)  # what was imported only during the run, too
        status, error, epochs = outcome.status, outcome.error, outcome.epochs
        measures |= outcome.measures
    except ConnectionError:  # the driver is gone; nobody would hear of a failure
        raise
    except Exception as problem:
        message = str(problem) if isinstance(problem, StudyError) else f"{type(problem).__name__}: {problem}"
    finally:
        torch.set_default_dtype(dtype)  # the run's own code may have set another, which is not the next run's
    return job.run(
        started,
        status=status,
        error=error,
        epochs=epochs,
        measures=measures,
        environment=place,
        seconds=round(time.perf_counter() - clock, 3),
        message=" ".join(message.split()),
    )


def _import_callables(setting: Setting) -> None:
    """Import the user's modules first: they are recorded as they were when the run began."""
    model, optimizer = setting.model, setting.optimizer
    names = [setting.entry, model.name if model else "", optimizer.name if optimizer else ""]
    for name in names:
        if ":" in name and not name.startswith(("timm:", "torchvision:", "torch.")):
            load_callable(name)


def _code(folder: str) -> dict[str, Any]:
    code = user_code(folder)
    if not code:
        return {}
    return {"code": code, "code_commit": folder_commit(folder or ".")}


def _data(setting: Setting) -> dict[str, str]:
    """Which images the run had: a folder may change while its path in the specification stays."""
    from cdgrad.study import data

    if not setting.task:
        return {}
    test = "official" if data.has_test_split(setting.task) else "drawn"
    return {"data": data.identity(setting.task), "test_split": test}
