"""The state of an unfinished run in one file, so that a killed run resumes.

A file is replaced whole or not at all. It holds tensors and plain values alone and is read with
``weights_only=True``: loading runs no code from it.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from cdgrad.messages import first_few
from cdgrad.study import StudyError, data
from cdgrad.study.callables import specification_folder
from cdgrad.study.files import is_own, replace
from cdgrad.study.records.code import changed_files, user_code
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

    Attributes:
        earlier: seconds that the run took, up to the state that was loaded, in processes before this one.
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
        self.earlier = 0.0
        self._started = self._saved = time.monotonic()
        self._ours = False  # whether the file is known to be this run's

    def load(self) -> dict[str, Any] | None:
        """The state saved last; None where there is no file, or one that cannot be read.

        Raises:
            StudyError: the file may not be read, is of another run, or is not a checkpoint; it is left as
                it is.

        Warns:
            UserWarning: the file is in a study's own folder, and damaged or of other code or images: the run
                starts over.
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
        if is_own(self.path) and (change := self._change(saved)):
            warnings.warn(f"{change} since {self.path} was saved, so the run starts over", stacklevel=2)
            return None
        for key, own in self._mark.items():
            # Older files do not say which images they had.
            if saved.get(key, own if key == "data" else None) != own:
                raise StudyError(
                    f"{self.path} is the checkpoint of another run ({key} {saved.get(key)!r:.60} is not "
                    f"{own!r:.60}); move it away, or name another file"
                )
        if not isinstance(saved.get("state"), dict):
            raise StudyError(f"{self.path} holds no state of a run; move it away, or name another file")
        if change := self._change(saved):
            raise StudyError(
                f"{self.path} is the checkpoint of another run ({change} since it was saved); move it "
                "away, or name another file"
            )
        self._ours, self.earlier = True, float(saved.get("seconds", 0.0))
        return saved["state"]

    def _change(self, saved: Mapping[str, Any]) -> str:
        """What the run would be continued with that is not what it was begun with; empty for nothing."""
        # Older files lack the code.
        if files := changed_files([saved.get("code", {})], specification_folder()):
            return f"{first_few(files)} changed"
        return "the images changed" if saved.get("data", self._mark["data"]) != self._mark["data"] else ""

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
        mark = self._mark | {"code": user_code(specification_folder()), "seconds": self._seconds()}
        torch.save({**mark, "state": state}, buffer)
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

    def _seconds(self) -> float:
        return self.earlier + time.monotonic() - self._started

    def remove(self) -> None:
        """Delete the file: the run is over. One of a study stays until the study has recorded the run."""
        if self._ours and not is_own(self.path):
            self.path.unlink(missing_ok=True)
