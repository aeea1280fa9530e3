"""The store of a study: one SQLite file, one row a run, committed as soon as the run ends.

SQLite's rollback journal makes each row atomic and durable, leaves a single file at rest, and lets
`cdgrad report` read while a study writes. One driver writes at a time, which holds `driver.lock`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from cdgrad.study import StudyError

Status = Literal["ok", "diverged", "failed"]
FILE = "study.sqlite"
LOCK = "driver.lock"
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE specs (
    hash TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    last_used INTEGER NOT NULL       -- counts up; the highest is the study's present specification
) STRICT;
CREATE TABLE runs (
    arm TEXT NOT NULL,
    seed INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed')),
    message TEXT NOT NULL,           -- why a run failed
    error REAL,                      -- percent; NULL if failed
    epochs TEXT NOT NULL,            -- JSON: a list of what was measured, one object an epoch
    config TEXT NOT NULL,            -- JSON: all that decides the numbers, besides the seed
    fingerprint TEXT NOT NULL,       -- of config
    environment TEXT NOT NULL,       -- JSON: versions, processor, commit, threads
    started TEXT NOT NULL,           -- ISO 8601, UTC
    seconds REAL NOT NULL,
    spec TEXT NOT NULL REFERENCES specs (hash),
    PRIMARY KEY (arm, seed)
) STRICT;
"""


@dataclass(frozen=True)
class Run:
    """What is known of one run. Where it failed, `error` is None and `message` says why."""

    arm: str
    seed: int
    status: Status
    error: float | None
    epochs: list[dict[str, float]]
    config: dict[str, Any]
    fingerprint: str
    environment: dict[str, Any] = field(compare=False)
    started: str = field(compare=False)
    seconds: float = field(compare=False)
    message: str = ""


class Store:
    """The records in a study's folder. Close it, or use it in a ``with`` statement.

    Args:
        folder: the study's folder.
        write: create what is missing, and be the only writer. Otherwise read what is there.

    Raises:
        StudyError: no study there, another driver at work, a newer schema, a damaged or unwritable file.
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
        with self._explained():
            # A reader, too, must be able to roll back what a killed writer left half-written.
            mode = "rwc" if write else "rw"
            uri = f"{self.path.resolve().as_uri()}?mode={mode}"
            self._db = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0 and write:
                self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
                found = SCHEMA_VERSION
        if found != SCHEMA_VERSION:
            raise StudyError(
                f"{self.path} has schema version {found}, this cdgrad reads {SCHEMA_VERSION}; "
                f"use the cdgrad that wrote it, or another --out"
            )

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
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self._explained():
            self._db.execute(
                "INSERT INTO specs VALUES (?, ?, ?, (SELECT coalesce(max(last_used), 0) + 1 FROM specs)) "
                "ON CONFLICT (hash) DO UPDATE SET name = excluded.name, last_used = excluded.last_used",
                (digest, name, text),
            )
        return digest

    def spec(self) -> tuple[str, str]:
        """Name and text of the present specification."""
        with self._explained():
            row = self._db.execute("SELECT name, text FROM specs ORDER BY last_used DESC LIMIT 1").fetchone()
        if row is None:
            raise StudyError(
                f"{self.path} holds no study yet; run cdgrad study SPEC --out {self.path.parent}"
            )
        return cast(tuple[str, str], row)

    def add(self, run: Run, spec_hash: str) -> None:
        """Keep a run, durably, before returning. A run of the same arm and seed is replaced."""
        row = (
            run.arm,
            run.seed,
            run.status,
            run.message,
            run.error,
            _to_json(run.epochs),
            _to_json(run.config),
            run.fingerprint,
            _to_json(run.environment),
            run.started,
            run.seconds,
            spec_hash,
        )
        with self._explained():
            self._db.execute(f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(row))})", row)

    def runs(self) -> list[Run]:
        """All runs, by arm and seed."""
        columns = (
            "arm, seed, status, error, epochs, config, fingerprint, environment, started, seconds, message"
        )
        with self._explained():
            rows = self._db.execute(f"SELECT {columns} FROM runs ORDER BY arm, seed").fetchall()
            return [_run(row) for row in rows]

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, json.JSONDecodeError) as error:
            raise StudyError(f"the records in {self.path} cannot be used: {error}{_remedy(error)}") from error


def _locked(folder: Path) -> sqlite3.Connection:
    """An exclusive transaction on a file of its own: the system ends it with the process, even killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
    except OSError as error:
        raise StudyError(
            f"cannot create the folder {folder}: {error.strerror}; choose another --out"
        ) from error
    except sqlite3.Error as error:
        if "locked" in str(error):
            message = f"another cdgrad study is at work in {folder}; wait for it, or stop it"
        else:
            message = f"cannot write in {folder}: {error}; choose another --out"
        raise StudyError(message) from error
    return lock


def _remedy(error: Exception) -> str:
    if "full" in str(error):
        return "; make room and run the same command again"
    if "malformed" in str(error) or "not a database" in str(error) or isinstance(error, json.JSONDecodeError):
        return "; the file is damaged: restore a copy, or move it away to start anew"
    return ""


def _to_json(value: Any) -> str:
    return json.dumps(_finite(value), sort_keys=True, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON knows no nan and no infinity: None stands for both."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_finite(v) for v in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run(row: tuple[Any, ...]) -> Run:
    arm, seed, status, error, epochs, config, fingerprint, environment, started, seconds, message = row
    curves = [{k: math.nan if v is None else v for k, v in e.items()} for e in json.loads(epochs)]
    return Run(
        arm,
        seed,
        status,
        error,
        curves,
        json.loads(config),
        fingerprint,
        json.loads(environment),
        started,
        seconds,
        message,
    )
