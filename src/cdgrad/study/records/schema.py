"""The tables of a study's store, how a new file comes about, and how an old one is brought up to date."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdgrad.study.files import OWN
from cdgrad.study.records.run import COLUMNS

_DIGEST_SINCE = 3
_SPEC_DIGEST_SINCE = 6  # of specifications; and the digest of a run then covers its specification
VERSION = max(_SPEC_DIGEST_SINCE, *(column.since for column in COLUMNS))
_SPECS = """
CREATE TABLE specs (
    hash TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    last_used INTEGER NOT NULL,      -- counts up; the highest is the study's present specification
    digest TEXT NOT NULL DEFAULT ''  -- of hash, name and last_used; schema 5 and older had none
) STRICT;
"""
_NAMES = ", ".join(f'"{column.name}"' for column in COLUMNS)
_DECLARED = "\n".join(f'    "{c.name}" {c.sql},' + f" -- {c.comment}" * bool(c.comment) for c in COLUMNS)
_RUNS = f"""
CREATE TABLE runs (
{_DECLARED}
    spec TEXT NOT NULL REFERENCES specs (hash),
    digest TEXT NOT NULL DEFAULT '', -- of the columns above; schema 2 and older had none
    CHECK (trial IS NULL OR evaluated = 'validation') -- settings are never chosen by the test split
) STRICT;
CREATE UNIQUE INDEX runs_key ON runs (cell, arm, ifnull(trial, -1), seed);
"""
SCHEMA = _SPECS + _RUNS
INSERT = (
    f"INSERT OR REPLACE INTO runs ({_NAMES}, spec, digest) VALUES ({', '.join('?' * (len(COLUMNS) + 2))})"
)
FINISHED = "WHERE cell = ? AND arm = ? AND trial IS ? AND seed = ? AND status != 'failed'"


def columns(version: int) -> str:
    """What to select from ``runs`` so that rows of any version are alike: `COLUMNS`, spec and digest."""
    own = ", ".join(f'"{c.name}"' if c.since <= version else c.before for c in COLUMNS)
    return own + ", spec, " + ("digest" if version >= _DIGEST_SINCE else "''")


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to an existing file; `mode` is that of SQLite's URIs."""
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)


def size(db: sqlite3.Connection) -> int:
    """Bytes that the file should have; SQLite would read zeros for the last ones."""
    return db.execute("PRAGMA page_size").fetchone()[0] * db.execute("PRAGMA page_count").fetchone()[0]


def create(path: Path) -> None:
    """A new file with empty tables: there at once or not at all, so that an empty file is a damaged one."""
    draft = path.with_name(f"{OWN}{path.name}.new")
    for leftover in (draft, draft.with_name(draft.name + "-journal")):
        leftover.unlink(missing_ok=True)
    db = connect(draft, "rwc")
    try:
        db.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
    finally:
        db.close()
    os.replace(draft, path)


def update(db: sqlite3.Connection) -> None:
    """Bring the tables of an older version to the present one, in one transaction; no value is lost.

    Raises:
        sqlite3.DatabaseError: a row differs from its digest.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    rows = db.execute(f"SELECT {columns(version)} FROM runs").fetchall()
    for row in rows:
        check_row(row, version)
    specs = specifications(db, version)
    db.executescript(
        f"BEGIN;ALTER TABLE runs RENAME TO runs_old;DROP INDEX IF EXISTS runs_key;{_RUNS}DROP TABLE runs_old;"
    )
    db.executemany(INSERT, [(*row[:-1], digest(row[:-1])) for row in rows])
    if version < _SPEC_DIGEST_SINCE:
        db.execute("ALTER TABLE specs ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    db.executemany("UPDATE specs SET digest = ? WHERE hash = ?", [(spec.digest, spec.hash) for spec in specs])
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def check(db: sqlite3.Connection, version: int) -> None:
    """Raise sqlite3.DatabaseError unless file and tables are whole, and of that version."""
    (damage,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if damage != "ok":
        raise sqlite3.DatabaseError(f"malformed: {damage}")
    present = {row[1] for row in db.execute("PRAGMA table_info(runs)")}
    expected = {column.name for column in COLUMNS if column.since <= version} | {"spec"}
    expected |= {"digest"} if version >= _DIGEST_SINCE else set()
    if present != expected:
        raise sqlite3.DatabaseError(f"malformed: its table of runs is not that of schema {version}")


def check_row(row: Sequence[object], version: int) -> None:
    """Raise sqlite3.DatabaseError unless the last value of a row is the digest of the others, or empty."""
    if row[-1] and digest(row[:-1], version) != row[-1]:
        cell, arm, trial, seed = row[:4]
        which = [f"cell {cell}"] if cell else []
        which += [f"arm {arm}", *([] if trial is None else [f"trial {trial}"]), f"seed {seed}"]
        raise sqlite3.DatabaseError(f"malformed: the row of {', '.join(which)} differs from its digest")


def digest(row: Sequence[object], version: int = VERSION) -> str:
    """A hash of what a schema version has of a row: the values of `COLUMNS`, and the specification's hash."""
    *measured, spec = row
    numbers = [
        float(value) if column.kind == "REAL" and isinstance(value, int | float) else value
        for column, value in zip(COLUMNS, measured, strict=True)
        if column.since <= version
    ]
    values = [None if number != number else number for number in numbers]  # SQLite keeps nan as NULL
    return _hash([*values, spec] if version >= _SPEC_DIGEST_SINCE else values)


@dataclass(frozen=True)
class Specification:
    """A row of ``specs``; `name` stands in for a missing title; the study's present one was used last."""

    hash: str
    name: str
    text: str
    last_used: int

    @staticmethod
    def of(name: str, text: str, last_used: int) -> Specification:
        """A new row."""
        return Specification(hashlib.sha256(text.encode()).hexdigest(), name, text, last_used)

    @property
    def digest(self) -> str:
        """A hash of all but `text`, which `hash` is of."""
        return _hash([self.hash, self.name, self.last_used])


def specifications(db: sqlite3.Connection, version: int) -> list[Specification]:
    """The specifications of a study in the order of their last use.

    Raises:
        sqlite3.DatabaseError: one differs from its digests.
    """
    kept = "digest" if version >= _SPEC_DIGEST_SINCE else "''"
    rows = db.execute(f"SELECT hash, name, text, last_used, {kept} FROM specs ORDER BY last_used").fetchall()
    specs = [Specification(*row[:-1]) for row in rows]
    for spec, (*_, expected) in zip(specs, rows, strict=True):
        # The first version had other hashes.
        changed = len(spec.hash) == 64 and hashlib.sha256(spec.text.encode()).hexdigest() != spec.hash
        if changed or (expected and spec.digest != expected):
            raise sqlite3.DatabaseError("malformed: the specification differs from its digest")
    return specs


def _hash(values: list[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
