"""Cells: a specification's tables, with the changes of a cell, an arm or a trial, and their types.

Tables stay as read until all changes are made; then each is checked as a whole, under the name of the
place that the change came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from cdgrad.metrics import parse_metric
from cdgrad.study import StudyError
from cdgrad.study.fields import as_table, check_keys, read
from cdgrad.study.setting import BASELINE_METRIC, Arm, Model, Optimizer, Schedule, Task

Tables = Mapping[str, Mapping[str, Any]]
TABLES = {"task": Task, "model": Model, "schedule": Schedule, "optimizer": Optimizer}
OPTIONS = ("direction", "rescale", "linear", "permute", "centralize")
TUNABLE = (*OPTIONS, "lam")
_CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,39}")


def read_cells(table: Mapping[str, Any], name: str) -> dict[str, Tables]:
    """The tables of each cell: the specification's own, with the cell's changes."""
    common = {key: as_table(table[key], key, name) for key in TABLES if key in table}
    if "cells" not in table:
        read_tables(common, {}, name)
        return {"": common}
    cells: dict[str, Tables] = {}
    for cell, value in as_table(table["cells"], "cells", name).items():
        if not _CELL_NAME.fullmatch(cell):
            raise StudyError(
                f"{name}: cell name {cell!r} is not allowed; use 1 to 40 letters, digits and . _ + = -"
            )
        changes = as_table(value, f"cells.{cell}", name)
        check_keys(changes, TABLES, (), f"cells.{cell}.", name)
        changes = {key: as_table(changes[key], f"cells.{cell}.{key}", name) for key in changes}
        cells[cell] = changed(common, changes)
        read_tables(cells[cell], dict.fromkeys(changes, f"cells.{cell}."), name)
    if not cells:
        raise StudyError(f"{name}: cells has no cell; give it one, or leave it out")
    return cells


def changed(tables: Tables, changes: Tables) -> Tables:
    """`tables` with the keys of `changes`.

    A network or optimizer of another name starts anew: the arguments of the one are not the other's.
    """
    merged = dict(tables)
    for key, change in changes.items():
        old = tables.get(key, {})
        renamed = "name" in change and change["name"] != old.get("name")
        merged[key] = dict(change) if renamed else {**old, **change}
    return merged


def read_tables(tables: Tables, places: Mapping[str, str], name: str) -> dict[str, Any]:
    """The four typed tables; `places` says in front of which of them a message names another place."""
    for key in TABLES:
        if key not in tables:
            raise StudyError(f"{name}: {key} is missing")
    return {key: read(kind, tables[key], f"{places.get(key, '')}{key}", name) for key, kind in TABLES.items()}


def with_option(arm: Arm, key: str, value: Any, name: str) -> Arm:
    """An arm with another value of an option; ``lam`` is its metric's."""
    if key in OPTIONS:
        return read(Arm, asdict(arm) | {key: value}, "arm", name)
    metric = None if arm.metric == BASELINE_METRIC else parse_metric(arm.metric)
    if key != "lam":
        known = [*TUNABLE, "model.KEY", "schedule.KEY", "optimizer.KEY"]
        check_keys({key: value}, known, (), "", name)
    if metric is None or not any(f.name == "lam" for f in fields(metric)):
        raise StudyError(f"{name}: metric {arm.metric} has no lam")
    try:
        return replace(arm, metric=str(replace(metric, lam=value)))  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError) as error:
        raise StudyError(f"{name}: {error}") from None
