"""The store of a study: one SQLite file, one row a run, committed as soon as the run ends.

SQLite's rollback journal makes each row atomic and durable, leaves a single file at rest, and lets
`cdgrad report` read while a study writes. One driver writes at a time, which holds `.cdgrad-lock`.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdgrad.study import StudyError, files
from cdgrad.study.records import schema
from cdgrad.study.records.environment import renamed
from cdgrad.study.records.run import COLUMNS, Run, to_json, with_nan

FILE = "study.sqlite"
LOCK = f"{files.OWN}lock"
_ATTEMPT = 2000  # milliseconds of an attempt to add a run: SQLite's own wait does not hear Ctrl-C


class StoreLockedError(StudyError):
    """Another program keeps the records locked; what was to be written was not."""


class Store:
    """The records in a study's folder. Close it, or use it in a ``with`` statement.

    Args:
        folder: the study's folder.
        write: create what is missing, and be the only writer. Otherwise read what is there.

    Raises:
        StudyError: no study there, another driver running, a newer schema, a damaged or unwritable file.
    """

    def __init__(self, folder: Path, *, write: bool) -> None:
        self.path = folder / FILE
        self._lock: sqlite3.Connection | None = None
        if write:
            self._lock = _locked(folder)
        elif not self.path.is_file():
            raise StudyError(
                f"{folder} holds no study ({FILE} is missing); run cdgrad study SPEC --out {folder}"
            )
        try:
            self._db, self._version = self._opened(write)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def _opened(self, write: bool) -> tuple[sqlite3.Connection, int]:
        """The file, complete and of a version that is known."""
        with self._explained():
            if write and not os.path.lexists(self.path):  # a link to what is absent now is kept
                files.Manifest(self.path.parent, FILE).start()
                schema.create(self.path)
            # A reader, too, must be able to roll back what a killed writer left half-written.
            db = schema.connect(self.path, "rw")
            try:
                return db, self._checked(db, write)
            except BaseException:
                db.close()  # else an update that failed would keep the file locked, and on Windows in use
                raise

    def _checked(self, db: sqlite3.Connection, write: bool) -> int:
        """The version of the file, if it is whole; a writer brings an older one up to date."""
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            raise sqlite3.DatabaseError("malformed: it has no tables")
        if version > schema.VERSION:
            raise StudyError(
                f"{self.path} has schema version {version}, this cdgrad reads 1 to {schema.VERSION}; "
                f"use the cdgrad that wrote it, or another --out"
            )
        missing = schema.size(db) - self.path.stat().st_size
        if missing > 0:
            raise sqlite3.DatabaseError(f"malformed: {missing} bytes are missing at its end")
        schema.check(db, version)
        if write and version < schema.VERSION:
            schema.update(db)
            return schema.VERSION
        return version

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def use_spec(self, name: str, text: str) -> str:
        """Make `text` the study's present specification; returns its hash, which runs refer to."""
        with self._explained():
            last = max((spec.last_used for spec in self._specifications()), default=0)
            spec = schema.Specification.of(name, text, last + 1)
            self._db.execute(
                "INSERT INTO specs (hash, name, text, last_used, digest) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (hash) DO UPDATE SET name = excluded.name, last_used = excluded.last_used, "
                "digest = excluded.digest",
                (spec.hash, spec.name, spec.text, spec.last_used, spec.digest),
            )
        return spec.hash

    def earlier_specs(self) -> list[tuple[str, str]]:
        """Name and text of the specifications that were used before the present one, with recorded runs.

        In the order of their first use, which stays when one is used again: the first is what was planned.
        """
        with self._explained():
            used = {row[0] for row in self._db.execute("SELECT DISTINCT spec FROM runs")}
            specs = {spec.hash: spec for spec in self._specifications()}
            first_used = [row[0] for row in self._db.execute("SELECT hash FROM specs ORDER BY rowid")]
            before = first_used[: first_used.index([*specs][-1])] if specs else []
            return [(specs[key].name, specs[key].text) for key in before if key in used]

    def spec(self) -> tuple[str, str]:
        """Name and text of the present specification.

        Raises:
            StudyError: there is none yet, or it is damaged.
        """
        with self._explained():
            specs = self._specifications()
        if not specs:
            raise StudyError(
                f"{self.path} holds no study yet; run cdgrad study SPEC --out {self.path.parent}"
            )
        return specs[-1].name, specs[-1].text

    def _specifications(self) -> list[schema.Specification]:
        return schema.specifications(self._db, self._version)

    def add(self, run: Run, spec_hash: str) -> None:
        """Keep a run, durably, before returning. One of the same key is replaced.

        A failed run does not replace a finished one, which takes its message instead.

        Raises:
            StoreLockedError: another program has the file locked; try again.
            StudyError: it is a trial that read the test split, or the file cannot be written.
        """
        with self._explained():
            self._db.execute(f"PRAGMA busy_timeout = {_ATTEMPT}")
            for kept in self._rows(schema.FINISHED, run.key) if run.status == "failed" else ():
                run, spec_hash = replace(_run(kept), message=run.message), kept[-2]
            values = [(column, getattr(run, column.name)) for column in COLUMNS]
            row = (*(to_json(value) if column.json else value for column, value in values), spec_hash)
            self._db.execute(schema.INSERT, (*row, schema.digest(row)))

    def runs(self) -> list[Run]:
        """All runs, by cell, arm, trial (final runs first) and seed."""
        with self._explained():
            return [_run(row) for row in self._rows("ORDER BY 1, 2, 3, 4")]  # the key's columns

    def _rows(self, clause: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of ``runs``, checked: the values of `COLUMNS`, the specification's hash and the digest."""
        select = f"SELECT {schema.columns(self._version)} FROM runs {clause}"
        rows = self._db.execute(select, values).fetchall()
        for row in rows:
            schema.check_row(row, self._version)
        return rows

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError, AttributeError) as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY_DBMOVED":
                raise StudyError(
                    f"{self.path} was moved or deleted while it was in use, and what was to be written was "
                    "not; move it back, and run the same command again"
                ) from error
            if isinstance(error, sqlite3.Error) and (denied := _denied(self.path, error)):
                raise StudyError(
                    f"{self.path} may not be {denied} by this user; change its permissions, or ask its owner"
                ) from error
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise StoreLockedError(
                    f"{self.path} is locked by another program ({error}); close it there"
                ) from error
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            why = "the disk is full" if full else str(error)
            raise StudyError(
                f"the records in {self.path} cannot be used: {why}{_remedy(error, why)}"
            ) from error


def _locked(folder: Path) -> sqlite3.Connection:
    """The lock of a folder, which is created; see `files.lock`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"cannot create the folder {folder}: {error.strerror}; choose another --out"
        ) from error
    try:
        return files.lock(folder / LOCK)
    except OSError as error:
        raise StudyError(f"cannot write in {folder}: {error.strerror}; choose another --out") from error
    except sqlite3.Error as error:
        if "locked" in str(error):
            message = f"another cdgrad study is running in {folder}; wait for it, or stop it"
        else:
            message = f"cannot write in {folder}: {error}; choose another --out"
        raise StudyError(message) from error


def _denied(path: Path, error: sqlite3.Error) -> str:
    """What SQLite was not permitted to do with a file; empty where that was not the error."""
    if "unable to open" in str(error) and path.exists() and not os.access(path, os.R_OK):
        return "read"
    return "written" if "readonly" in str(error) and not os.access(path, os.W_OK) else ""


def _remedy(error: Exception, why: str) -> str:
    if "full" in why or "disk I/O" in why:
        return "; free some space and run the same command again"
    if "malformed" in why or "not a database" in why or not isinstance(error, sqlite3.Error | OSError):
        return "; the file is damaged: restore a copy, or move it away to start again"
    return ""


def _run(row: tuple[Any, ...]) -> Run:
    pairs = zip(COLUMNS, row[: len(COLUMNS)], strict=True)
    values: dict[str, Any] = {c.name: json.loads(value) if c.json else value for c, value in pairs}
    values["epochs"] = [with_nan(epoch) for epoch in values["epochs"]]
    values["measures"] = with_nan(values["measures"])
    values["environment"] = renamed(values["environment"])
    return Run(**values)
