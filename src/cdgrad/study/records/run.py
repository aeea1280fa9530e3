"""One run's record, as a value, and the columns that all formats of records have."""

# ruff: noqa: RUF009, `_column` calls dataclasses.field

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

Status = Literal["ok", "diverged", "failed"]
Key = tuple[str, str, int | None, int]


def _column(
    sql: str, comment: str = "", *, json: bool = False, since: int = 1, before: str = "", **options: Any
) -> Any:
    """A field of a run and the column of its records: in the store, in Parquet and, unless JSON, in CSV.

    Args:
        sql: its type in SQLite, ``TEXT``, ``INTEGER`` or ``REAL``, and its constraints.
        comment: for whoever reads the store's schema.
        json: whether its value is kept as JSON text.
        since: the schema version that added it; a new column takes the next number.
        before: an SQL expression for its value in rows of older versions.
        options: of `dataclasses.field`.
    """
    column = {"sql": sql, "comment": comment, "json": json, "since": since, "before": before}
    return field(metadata=column, **options)


def _measured(sql: str, comment: str, *, since: int) -> Any:
    """A column of what a run cost or had, NULL where that is not known; runs are equal without it."""
    return _column(sql, comment, since=since, before="NULL", default=None, compare=False, kw_only=True)


@dataclass(frozen=True)
class Run:
    """What is known of one run. Where it failed, `error` is None and `message` says why.

    Attributes:
        cell: the cell of the study, ``""`` in a study without cells.
        arm: the arm.
        trial: the number of a trial, from 0; None for a final run.
        replicate: the search that the run belongs to, from 0, where a study repeats its tuning.
        seed: the random seed.
        status: ``"ok"``, ``"diverged"`` or ``"failed"``.
        message: why the run failed; of a finished run, why its last repeat failed; else empty.
        error: the result: the error in percent, or the measure that the study's table ``[metric]`` names, on
            the split that `evaluated` names, ``"validation"`` or ``"test"``.
        evaluated: the split that `error` is of.
        values: what the trial tries, or what was chosen for a final run, by the keys of the search space.
        epochs: what was measured, one dict an epoch.
        measures: what else was measured at the end.
        config: all that decides the numbers, besides the seed; of an absolute path only its last part.
        fingerprint: the SHA-256 of `config` with whole paths.
        environment: versions, CPU, device, commit and threads.
        started: ISO 8601, UTC.
        seconds: from the beginning of its training, without what a process imports once; of a failed run, as
            far as it came.
        parameters: of the network, counted one by one; None, as in the next two, where it is not known.
        images: how many training images the run saw, those of repeated epochs again.
        memory: the most bytes that its tensors took of a GPU; None on the CPU, where what a process takes
            is mostly Python, torch and what earlier runs left to the allocator.
    """

    cell: str = _column("TEXT NOT NULL", since=2, before="''")
    arm: str = _column("TEXT NOT NULL")
    trial: int | None = _column("INTEGER CHECK (trial >= 0)", "NULL: a final run", since=2, before="NULL")
    seed: int = _column("INTEGER NOT NULL")
    status: Status = _column("TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed'))")
    message: str = _column("TEXT NOT NULL", "why a run, or its last repeat, failed", default="", kw_only=True)
    error: float | None = _column("REAL", "percent; NULL if failed")
    # Schema 1 had one cell and no trials, and kept what a run evaluated in its configuration alone.
    evaluated: str = _column(
        "TEXT NOT NULL CHECK (evaluated IN ('validation', 'test'))",
        "the split that error is of",
        since=2,
        before="json_extract(config, '$.evaluate')",
    )
    values: dict[str, Any] = _column(
        "TEXT NOT NULL",
        "JSON: what the trial tried, or what was chosen for a final run",
        json=True,
        since=2,
        before="'{}'",
    )
    epochs: list[dict[str, float]] = _column(
        "TEXT NOT NULL", "JSON: a list of what was measured, one object an epoch", json=True
    )
    measures: dict[str, Any] = _column(
        "TEXT NOT NULL", "JSON: what else was measured at the end", json=True, since=2, before="'{}'"
    )
    config: dict[str, Any] = _column(
        "TEXT NOT NULL", "JSON: all that decides the numbers, besides the seed", json=True
    )
    fingerprint: str = _column("TEXT NOT NULL", "of config")
    environment: dict[str, Any] = _column(
        "TEXT NOT NULL", "JSON: versions, CPU, commit, threads", json=True, compare=False
    )
    started: str = _column("TEXT NOT NULL", "ISO 8601, UTC", compare=False)
    seconds: float = _column("REAL NOT NULL", compare=False)
    parameters: int | None = _measured("INTEGER", "of the network", since=4)
    images: int | None = _measured("INTEGER", "training images seen", since=4)
    memory: int | None = _measured("INTEGER", "peak bytes of a GPU", since=4)
    replicate: int = _column(
        "INTEGER NOT NULL CHECK (replicate >= 0)",
        "the search that the run belongs to, where a study repeats its tuning",
        since=5,
        before="0",
        default=0,
    )

    @property
    def key(self) -> Key:
        """Which run of the study it is."""
        return self.cell, self.arm, self.trial, self.seed


@dataclass(frozen=True)
class FailedRun(Run):
    """A run that raised an exception. The traceback is no column: it names folders of the machine."""

    traceback: str = field(default="", kw_only=True, compare=False)


@dataclass(frozen=True)
class Column:
    """A column of the records; see `_column`."""

    name: str
    sql: str
    comment: str
    json: bool
    since: int
    before: str

    @property
    def kind(self) -> str:
        """``TEXT``, ``INTEGER`` or ``REAL``."""
        return self.sql.partition(" ")[0]


OPTIONAL = ("parameters", "images", "memory")  # columns that are empty where it is not known


def left_out(runs: Sequence[Run], measure: str) -> set[str]:
    """Columns that a published table of `runs` has no use for.

    Another measure than the error is of the user's own code, which need not know of images.
    """
    return set() if measure == "error" else {n for n in OPTIONAL if all(getattr(r, n) is None for r in runs)}


COLUMNS = tuple(Column(f.name, **f.metadata) for f in fields(Run))


def order(run: Run) -> tuple[str, str, int, int]:
    """Sorts runs by cell, arm, trial (final runs first) and seed."""
    return run.cell, run.arm, -1 if run.trial is None else run.trial, run.seed


def to_json(value: object) -> str:
    """Values as the store keeps them: sorted keys, and None for what is not finite."""
    return json.dumps(_finite(value), sort_keys=True, allow_nan=False)


def _finite(value: object) -> object:
    """JSON knows no nan and no infinity: None stands for both."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in cast(dict[str, object], value).items()}
    if isinstance(value, list):
        return [_finite(v) for v in cast(list[object], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(measured: dict[str, Any]) -> dict[str, Any]:
    """What `to_json` wrote of measured numbers, with nan again for what was not finite."""
    return {key: math.nan if value is None else value for key, value in measured.items()}
