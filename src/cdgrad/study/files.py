"""Files that cdgrad writes, without ever replacing or removing a file of the user.

Names that begin with ``.cdgrad-`` are cdgrad's own, and so is all that a folder of such a name holds. A file
under any other name is replaced only where `Manifest` has the hash of its content, which says that cdgrad
wrote it and that nobody changed it since.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import cast

from cdgrad.study import StudyError

OWN = ".cdgrad-"
CHECKPOINTS = f"{OWN}checkpoints"  # the folder of a study's unfinished runs, in the study's own
SAVE_EVERY = 30.0  # least number of seconds between two checkpoints of a run
LOGS = f"{OWN}logs"  # the folder of the tracebacks of failed runs, in the study's own
MANIFEST = f"{OWN}files.json"
REPORT_LOCK = f"{OWN}report-lock"
REPORT = ("report.html", "report.md", "runs.csv", "trials.csv")


def is_own(path: Path) -> bool:
    """Whether the name of a file, or of its folder, is one that only cdgrad uses."""
    return path.name.startswith(OWN) or path.absolute().parent.name.startswith(OWN)


def lock(path: Path, wait: float = 0.0) -> sqlite3.Connection:
    """Hold a lock until the result is closed: an exclusive transaction on a file of its own.

    The system ends it with the process, even killed. Waits at most `wait` seconds.

    Raises:
        OSError: the file cannot be written.
        sqlite3.OperationalError: it is locked.
    """
    path.open("ab").close()  # SQLite would lock a file that it cannot write
    connection = sqlite3.connect(path, timeout=wait, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except BaseException:
        connection.close()
        raise
    return connection


def replace(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, durably; what was at `path` is replaced.

    Raises:
        OSError: it cannot be written; what was there is still whole.
    """
    part = path.with_name(f"{path.name if is_own(path) else OWN + path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def obstacle(path: Path) -> str:
    """Why no new file can be created at `path`, in words; empty where it can. Leaves nothing behind."""
    if os.path.isdir(path):  # false, not an error, for a name that is too long
        return "is a folder; name a file"
    if os.path.lexists(path):
        kind = "exists already" if os.path.isfile(path) else "exists and is not a regular file"
        return f"{kind}, and is never overwritten; move it away, or name another file"
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"cannot be written: there is no folder {path.parent}; create it first"
    try:
        path.stat()  # a name that is too long, or a path that may not be searched
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    try:
        file, name = tempfile.mkstemp(prefix=OWN, dir=parent)
    except OSError as error:
        return f"cannot be written: {error.strerror}; name a file in another folder"
    os.close(file)
    Path(name).unlink()
    return ""


class Manifest:
    """The files that cdgrad wrote in a folder under names not its own, with hashes of their contents.

    A folder of records that has no manifest was made before there were any: its reports are cdgrad's.

    Args:
        folder: the folder of a study.
        records: the name of the file that holds the study's records.
    """

    def __init__(self, folder: Path, records: str) -> None:
        self._folder = folder
        self._path = folder / MANIFEST
        self._older = not self._path.exists() and (folder / records).is_file()

    def start(self) -> None:
        """Begin an empty manifest, before the first records.

        Raises:
            StudyError: a file is in the place of one that a report would write.
            OSError: it cannot be written.
        """
        if self._path.exists():
            return
        for name in REPORT:
            if os.path.lexists(self._folder / name):
                raise StudyError(
                    f"{self._folder / name} exists already and was not written by a study; choose another "
                    "--out"
                )
        replace(self._path, b"{}\n")

    def foreign(self, names: list[str]) -> str:
        """The first of `names` at which there is something that is not cdgrad's; empty for none.

        Raises:
            OSError: the manifest, or one of the files, cannot be read.
        """
        known = self._read()
        return next((name for name in names if not self._may_replace(name, known.get(name, []))), "")

    def write(self, name: str, content: bytes) -> None:
        """Write a file that `foreign` does not name, and remember it.

        Raises:
            OSError: it cannot be written.
        """
        known, path = self._read(), self._folder / name
        new = hashlib.sha256(content).hexdigest()
        if known.get(name) == [new] and path.is_file() and _digest(path) == new:
            return
        old = known.get(name, [])
        if self._older and not known:  # the other reports of an older study are cdgrad's, too
            known = {
                each: [_digest(self._folder / each)] for each in REPORT if (self._folder / each).is_file()
            }
        # Both hashes stand there until the file is replaced, for a process that is killed in between.
        self._store(known | {name: [*old, new]})
        replace(path, content)
        self._store(known | {name: [new]})

    def _may_replace(self, name: str, hashes: list[str]) -> bool:
        path = self._folder / name
        if not os.path.lexists(path):
            return True
        if path.is_symlink() or not path.is_file():
            return False
        return self._older or _digest(path) in hashes

    def _read(self) -> dict[str, list[str]]:
        try:
            content: object = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):  # damaged: then no file of the folder counts as cdgrad's
            return {}
        if not isinstance(content, dict):
            return {}
        table = cast(dict[str, object], content)
        return {name: cast(list[str], given) for name, given in table.items() if isinstance(given, list)}

    def _store(self, known: dict[str, list[str]]) -> None:
        replace(self._path, json.dumps(known, indent=1, sort_keys=True).encode() + b"\n")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
