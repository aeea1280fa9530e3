"""The state of an unfinished run in one file, so that a killed run resumes.

A file is replaced whole or not at all. It holds tensors and plain values alone and is read with
``weights_only=True``: loading runs no code from it.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch

from cdgrad.study import StudyError, data
from cdgrad.study.files import is_own, replace
from cdgrad.study.spec import Setting

_FORMAT = "cdgrad run 1"


class Checkpoint:
    """Where a run saves its state, and how often.

    Args:
        path: the file. Its folder is created.
        setting: the run's setting, whose fingerprint the file carries, and which images it had.
        seed: the run's seed.
        device: the type of the device, whose generators' states are kept.
        every: least number of seconds between two saves, so that short runs have no overhead.
    """

    def __init__(self, path: Path, setting: Setting, seed: int, device: str, every: float) -> None:
        self.path = path
        self._mark = {
            "format": _FORMAT,
            "fingerprint": setting.fingerprint,
            "seed": seed,
            "device": device,
            "data": data.identity(setting.tables()[0]),
        }
        self._every = every
        self._saved = time.monotonic()
        self._ours = False  # whether the file is known to be this run's

    def load(self) -> dict[str, Any] | None:
        """The state saved last; None where there is no file, or one that cannot be read.

        Raises:
            StudyError: the file may not be read, is of another run, or is not a checkpoint; it is left as
                it is.

        Warns:
            UserWarning: the file is in a study's own folder and damaged, and the run starts over.
        """
        try:
            os.lstat(self.path)
            if not self.path.is_file():
                raise StudyError(f"{self.path} is not a regular file; name another one for the checkpoint")
            content: Any = torch.load(self.path, map_location="cpu", weights_only=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except StudyError:
            raise
        except PermissionError as error:
            raise StudyError(
                f"{self.path} cannot be read: {error.strerror}; change its permissions, or move it away"
            ) from error
        except Exception as error:  # torch raises many kinds, some with pages of advice
            kind = type(error).__name__
            if not is_own(self.path):  # it may be anything of the user's
                raise StudyError(
                    f"{self.path} is not the checkpoint of a run ({kind}), and is left as it is; move it "
                    "away, or name another file"
                ) from error
            warnings.warn(f"{self.path} cannot be read ({kind}), so the run starts over", stacklevel=2)
            return None
        if not isinstance(content, dict) or "format" not in content:
            raise StudyError(
                f"{self.path} is not the checkpoint of a run; move it away, or name another file"
            )
        saved = cast(dict[str, Any], content)
        for key, own in self._mark.items():
            # Older files do not say which images they had.
            if saved.get(key, own if key == "data" else None) != own:
                raise StudyError(
                    f"{self.path} is the checkpoint of another run ({key} {saved.get(key)!r:.60} is not "
                    f"{own!r:.60}); move it away, or name another file"
                )
        if not isinstance(saved.get("state"), dict):
            raise StudyError(f"{self.path} holds no state of a run; move it away, or name another file")
        self._ours = True
        return saved["state"]

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._every

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file, durably.

        Raises:
            StudyError: it cannot be written; the file saved before is still whole.
        """
        buffer = io.BytesIO()
        torch.save({**self._mark, "state": state}, buffer)
        if not self._ours and os.path.lexists(self.path) and not is_own(self.path):
            raise StudyError(f"{self.path} appeared during the run, and is left as it is; name another file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace(self.path, buffer.getbuffer())
            self._ours = True
        except OSError as error:
            raise StudyError(
                f"the checkpoint {self.path} cannot be written: {error.strerror or error}; free some space, "
                "or name another file"
            ) from error
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the run is over."""
        if self._ours:
            self.path.unlink(missing_ok=True)
