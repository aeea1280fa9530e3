"""``cdgrad train``: one run of a study by the same code, shown epoch by epoch, without a record."""

from __future__ import annotations

import sys
import tomllib
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdgrad.metrics import parse_metric
from cdgrad.study import StudyError
from cdgrad.study.entry import run_entry
from cdgrad.study.parallel import ALONE, Ranks
from cdgrad.study.spec import BASELINE_METRIC, Setting, Spec
from cdgrad.study.train import Epoch, OnEpoch, Outcome, train


def setting_of(spec: Spec, cell: str, arm: str, overrides: Sequence[str]) -> Setting:
    """The setting of an arm in a cell with ``key=value`` overrides, such as ``schedule.epochs=3``.

    Keys are those of a search space, and ``task.KEY`` and ``metric``; values are read as TOML, and
    what is not TOML is text. For an `entry`, all but the arm's own keys are its values.

    Raises:
        StudyError: an override without ``=``, of an unknown key, or with a value that is not allowed.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise StudyError(f"--set takes key=value, such as schedule.epochs=3; got {text!r}")
        values[key.strip()] = _toml(value.strip())
    of_task = [] if spec.entry else [key for key in values if key.startswith("task.")]
    task = {key.removeprefix("task."): values.pop(key) for key in of_task}
    if task:
        tables = {**spec.cells[cell], "task": {**spec.cells[cell].get("task", {}), **task}}
        spec = replace(spec, cells={**spec.cells, cell: tables})
    if "metric" in values:
        metric = str(values.pop("metric"))
        try:
            metric = metric if metric == BASELINE_METRIC else str(parse_metric(metric))
            spec = replace(spec, arms={**spec.arms, arm: replace(spec.arms[arm], metric=metric)})
        except ValueError as error:
            raise StudyError(f"--set metric: {error}") from None
    return spec.setting(cell, arm, values)


def run_single(
    arm: str,
    setting: Setting,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    tensorboard: Path | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Make the run, printing a line an epoch; see `cdgrad.study.train.train` for the arguments.

    Args:
        arm: its name.
        setting: what to run.
        seed: as in a study.
        device: where to train.
        checkpoint: go on from there, and keep the state there after every epoch.
        tensorboard: a folder for the curves.
        ranks: the processes that train together; the first one alone prints and writes.
    """
    first = ranks.rank == 0
    with _lines_for_warnings(), _curves(tensorboard if first else None) as log:

        def show(epoch: int, measured: Epoch) -> None:
            if not first:
                return
            log(epoch, measured)
            titles = ["epoch", *(_short(key).rjust(7) for key in measured)]
            if not shown:
                print("  ".join(titles))
            shown.append(epoch)
            cells = [str(epoch), *(f"{value:.4g}" for value in measured.values())]
            print("  ".join(map(str.rjust, cells, map(len, titles))), flush=True)

        shown: list[int] = []
        if setting.entry:
            if checkpoint or device != "cpu" or ranks.kind:
                raise StudyError(
                    f"{setting.entry} trains by itself: --checkpoint, --device and --parallel are not for it"
                )
            return run_entry(arm, setting, seed, show)
        return train(setting, seed, show, device=device, checkpoint=checkpoint, every=0, ranks=ranks)


def _short(key: str) -> str:
    """A heading that lets the usual columns fit in 80 characters."""
    return key.replace("_", " ").replace("validation", "val").replace("error", "err")


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


@contextmanager
def _curves(folder: Path | None) -> Generator[OnEpoch]:
    """What writes each epoch's numbers for TensorBoard, or does nothing."""
    if folder is None:
        yield lambda epoch, measured: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StudyError("tensorboard is not installed; run pip install 'cdgrad[tensorboard]'") from None
    try:
        opened = SummaryWriter(str(folder))
    except OSError as error:
        raise StudyError(f"--tensorboard {folder} cannot be written: {error.strerror}") from error
    with opened as writer:

        def log(epoch: int, measured: Epoch) -> None:
            for key, value in measured.items():
                writer.add_scalar(key, value, epoch)  # pyright: ignore[reportUnknownMemberType]

        yield log


@contextmanager
def _lines_for_warnings() -> Generator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"cdgrad: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
