"""The tables of a study's store, how a new file comes about, and how an old one is brought up to date."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdgrad.study.files import OWN

VERSION = 3
SCHEMA = """
CREATE TABLE specs (
    hash TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    last_used INTEGER NOT NULL       -- counts up; the highest is the study's present specification
) STRICT;
CREATE TABLE runs (
    cell TEXT NOT NULL,
    arm TEXT NOT NULL,
    trial INTEGER CHECK (trial >= 0), -- NULL: a final run
    seed INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed')),
    message TEXT NOT NULL,           -- why a run failed
    error REAL,                      -- percent; NULL if failed
    evaluated TEXT NOT NULL CHECK (evaluated IN ('validation', 'test')), -- the part that error is of
    "values" TEXT NOT NULL,          -- JSON: what the trial tried, or what was chosen for a final run
    epochs TEXT NOT NULL,            -- JSON: a list of what was measured, one object an epoch
    measures TEXT NOT NULL,          -- JSON: what else was measured at the end
    config TEXT NOT NULL,            -- JSON: all that decides the numbers, besides the seed
    fingerprint TEXT NOT NULL,       -- of config
    environment TEXT NOT NULL,       -- JSON: versions, processor, commit, threads
    started TEXT NOT NULL,           -- ISO 8601, UTC
    seconds REAL NOT NULL,
    spec TEXT NOT NULL REFERENCES specs (hash),
    digest TEXT NOT NULL DEFAULT '', -- of the columns up to seconds; empty in rows from before schema 3
    CHECK (trial IS NULL OR evaluated = 'validation') -- settings are never chosen by the test part
) STRICT;
CREATE UNIQUE INDEX runs_key ON runs (cell, arm, ifnull(trial, -1), seed);
"""
# Schema 1 had one cell and no trials, and kept what a run evaluated in its configuration alone.
OLD = {
    "cell": "''",
    "trial": "NULL",
    "evaluated": "json_extract(config, '$.evaluate')",
    '"values"': "'{}'",
    "measures": "'{}'",
}
COLUMNS = (
    "cell",
    "arm",
    "trial",
    "seed",
    "status",
    "message",
    "error",
    "evaluated",
    '"values"',
    "epochs",
    "measures",
    "config",
    "fingerprint",
    "environment",
    "started",
    "seconds",
)
MIGRATION = f"""
ALTER TABLE runs RENAME TO runs_1;
{SCHEMA[SCHEMA.index("CREATE TABLE runs") :]}
INSERT INTO runs SELECT {", ".join(OLD.get(c, c) for c in COLUMNS)}, spec, '' FROM runs_1;
DROP TABLE runs_1;
"""


def columns(version: int) -> str:
    """What to select from ``runs`` so that rows of any version are alike."""
    own = ", ".join(OLD.get(column, column) if version == 1 else column for column in COLUMNS)
    return own + (", digest" if version > 2 else ", ''")


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
    """Bring the tables of an older version to the present one, in one transaction; no value is lost."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    change = MIGRATION if version == 1 else "ALTER TABLE runs ADD COLUMN digest TEXT NOT NULL DEFAULT '';"
    db.executescript(f"BEGIN;{change}PRAGMA user_version = {VERSION};COMMIT;")


def check(db: sqlite3.Connection, version: int) -> None:
    """Raise sqlite3.DatabaseError unless file and tables are whole, and of that version."""
    (damage,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if damage != "ok":
        raise sqlite3.DatabaseError(f"malformed: {damage}")
    present = {row[1] for row in db.execute("PRAGMA table_info(runs)")}
    expected = {column.strip('"') for column in COLUMNS if version > 1 or column not in OLD} | {"spec"}
    expected |= {"digest"} if version > 2 else set()
    if present != expected:
        raise sqlite3.DatabaseError(f"malformed: its table of runs is not that of schema {version}")


def digest(row: Sequence[Any]) -> str:
    """A hash of a row's values, in the order of `COLUMNS`."""
    values = [
        None
        if value != value
        else float(value)
        if column in ("error", "seconds") and value is not None
        else value
        for column, value in zip(COLUMNS, row, strict=True)
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
