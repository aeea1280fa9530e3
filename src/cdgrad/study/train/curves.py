"""The curves of a run for TensorBoard (extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.train.outcome import Epoch, OnEpoch


def check_installed() -> None:
    """Raise StudyError unless curves can be written."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError:
        raise StudyError(
            "tensorboard is not installed; in a clone of cdgrad, run pip install '.[tensorboard]'"
        ) from None


@contextmanager
def curves(folder: Path | None) -> Generator[OnEpoch]:
    """A function that writes each epoch's numbers to `folder` for TensorBoard; without a folder, nothing.

    Raises:
        StudyError: tensorboard is not installed, or the folder cannot be written.
    """
    if folder is None:
        yield lambda epoch, measured: None
        return
    check_installed()
    from torch.utils.tensorboard import SummaryWriter

    try:
        opened = SummaryWriter(str(folder))
    except OSError as error:
        raise StudyError(
            f"--tensorboard {folder} cannot be written: {error.strerror}; name another folder"
        ) from error
    with opened as writer:

        def log(epoch: int, measured: Epoch) -> None:
            for key, value in measured.items():
                writer.add_scalar(key, value, epoch)

        yield log
