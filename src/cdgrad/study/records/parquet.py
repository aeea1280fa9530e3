"""A study's runs as one Parquet file, for evidence that is kept and for other tools to read.

One row a run, in the order of its key. Columns are those of a `Run`, except that `values`, `measures`,
`config` and `environment` are JSON text, `epochs` is their number, and each measured curve is a column
``curve.NAME``, a list with one float64 an epoch: null where the run did not measure it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from cdgrad.study import StudyError
from cdgrad.study.files import replace as replace_file
from cdgrad.study.records.environment import renamed
from cdgrad.study.records.run import COLUMNS, Run, Status, left_out, order, to_json, with_nan
from cdgrad.study.shown import published, published_values

_JSON = [column.name for column in COLUMNS if column.json and column.name != "epochs"]
_CURVE = "curve."


def to_parquet(runs: Iterable[Run], path: Path, measure: str = "error") -> None:
    """Write `runs`, with messages and settings as they are published; equal runs give equal bytes under
    one pyarrow.

    `measure` is the name of the column of their results; `from_parquet` reads files where it is ``error``.
    With another name, columns are left out that say nothing of these runs.

    Raises:
        StudyError: the file cannot be written; what was there is still whole.
    """
    pa, pq = _pyarrow()
    rows = [
        replace(run, message=published(run.message), config=published_values(run.config))
        for run in sorted(runs, key=order)
    ]
    types = {"TEXT": pa.string(), "INTEGER": pa.int64(), "REAL": pa.float64()}
    columns: dict[str, Any] = {}
    unused = left_out(rows, measure)
    for column in COLUMNS:
        if column.name in (*unused, measure) and column.name != "error":  # a measure may be called "memory"
            continue
        values = [getattr(run, column.name) for run in rows]
        values = list(map(to_json, values)) if column.json else values
        columns[measure if column.name == "error" else column.name] = pa.array(values, types[column.kind])
    columns["epochs"] = pa.array([len(run.epochs) for run in rows], pa.int64())
    for name in sorted({name for run in rows for epoch in run.epochs for name in epoch}):
        curves = [[epoch.get(name) for epoch in run.epochs] for run in rows]
        known = name.encode("utf-8", "backslashreplace").decode()  # it may hold a file's name, which is bytes
        columns[_CURVE + known] = pa.array(curves, pa.list_(pa.float64()))
    content = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), content, compression="zstd", write_page_checksum=True)
    try:
        replace_file(path, memoryview(content.getvalue()))
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}; name another file") from error


def from_parquet(path: Path) -> list[Run]:
    """The runs that `to_parquet` wrote, equal to those it was given but for paths in messages and settings.

    Raises:
        StudyError: the file cannot be read, or is not one of those.
    """
    _, pq = _pyarrow()
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, page_checksum_verification=True).to_pylist()
        return [_run(row) for row in rows]
    except Exception as error:  # whatever the bytes lead pyarrow to
        raise StudyError(
            f"{path} cannot be read as the runs of a study: {error}; write it again with cdgrad record"
        ) from error


def _run(row: dict[str, Any]) -> Run:
    curves = {key.removeprefix(_CURVE): row.pop(key) for key in list(row) if key.startswith(_CURVE)}
    row["epochs"] = [
        {name: curve[epoch] for name, curve in curves.items() if curve[epoch] is not None}
        for epoch in range(row["epochs"])
    ]
    for key in _JSON:
        row[key] = json.loads(row[key])
    row["measures"] = with_nan(row["measures"])
    row["environment"] = renamed(row["environment"])
    run = Run(**row)
    if not (isinstance(run.arm, str) and isinstance(run.seed, int) and run.status in get_args(Status)):
        raise ValueError(f"not a run: arm {run.arm!r:.60}, seed {run.seed!r:.60}, status {run.status!r:.60}")
    return run


def _pyarrow() -> tuple[Any, Any]:
    return import_module("pyarrow"), import_module("pyarrow.parquet")  # they ship no types
