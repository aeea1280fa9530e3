"""The curves of a run for TensorBoard (extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.files import OWN
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
def curves(folder: Path | None, setting: str = "") -> Generator[OnEpoch]:
    """A function that writes each epoch's numbers to `folder` for TensorBoard; without a folder, nothing.

    Args:
        folder: of one run, which TensorBoard shows as one curve.
        setting: the fingerprint of the run's setting, which the folder then carries; empty: any.

    Raises:
        StudyError: tensorboard is not installed, or the folder cannot be written or has the curves of another
            setting.
    """
    if folder is None:
        yield lambda epoch, measured: None
        return
    check_installed()
    from torch.utils.tensorboard import SummaryWriter

    try:
        if setting:
            _keep_apart(folder, setting)
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


def _keep_apart(folder: Path, setting: str) -> None:
    """Refuse to continue the curve of another setting, as of another study whose arms have the same names."""
    mark = folder / f"{OWN}setting"
    if not mark.exists():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(setting, encoding="ascii")
    elif mark.read_text(encoding="ascii") != setting:
        raise StudyError(
            f"--tensorboard {folder} has the curves of a run with another setting; name another folder"
        )
