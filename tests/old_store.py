"""A study's store as earlier versions of cdgrad left it."""

import sqlite3
from contextlib import closing

from cdgrad.study.records import schema
from cdgrad.study.records.run import COLUMNS


def as_schema(path, version):
    """Make a store what a schema version wrote: without its later columns, and with its own digests."""
    with closing(sqlite3.connect(path)) as db, db:
        rows = db.execute(f"SELECT {schema.columns(schema.VERSION)} FROM runs").fetchall()
        for column in (column.name for column in COLUMNS if column.since > version):
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        if version < 3:
            db.execute("ALTER TABLE runs DROP COLUMN digest")
        else:
            for row in rows:
                earlier = schema.digest(row[:-1], version)
                assert earlier != row[-1]
                db.execute("UPDATE runs SET digest = ? WHERE digest = ?", (earlier, row[-1]))
        if version < 6:
            db.execute("ALTER TABLE specs DROP COLUMN digest")
        db.execute(f"PRAGMA user_version = {version}")
