"""A study's records as CSV, for other tools: final runs and trials apart, lest a mean mix them.

One row a run. The columns: arm, seed, error in percent; status (ok, diverged, failed); cell; trial;
evaluated, the split that the error is of; ``value.KEY``, what was tried or chosen; ``measure.KEY``, what
else was measured at the end; what the last epoch measured, under its own names; the number of epochs;
seconds; started; fingerprint of the setting; message of a failure. Numbers have full precision.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from cdgrad.study.records.run import COLUMNS, Run
from cdgrad.study.shown import published

_FIRST = ("arm", "seed", "error", "status", "cell", "trial", "evaluated")
_PLAIN = [column.name for column in COLUMNS if not column.json]


def csv_text(runs: Iterable[Run]) -> str:
    """`runs` in their order, as the text of a CSV file."""
    rows = [_row(run) for run in runs]
    last = ["epochs", *(name for name in reversed(_PLAIN) if name not in _FIRST)]
    others = {key for row in rows for key in row} - {*_FIRST, *last}
    kinds = ("value.", "measure.")
    middle = sorted(others, key=lambda key: ([not key.startswith(kind) for kind in kinds], key))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*_FIRST, *middle, *last], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(run: Run) -> dict[str, Any]:
    ended: Mapping[str, Any] = run.epochs[-1] if run.epochs else {}
    return {
        **{_text(key): _exact(value) for key, value in ended.items()},
        **{f"value.{key}": _exact(value) for key, value in run.values.items()},
        **{f"measure.{key}": _exact(value) for key, value in run.measures.items()},
        **{name: _exact(getattr(run, name)) for name in _PLAIN},
        "epochs": len(run.epochs),
        "message": _text(published(run.message)),
    }


def _exact(value: Any) -> Any:
    """A number that reads back as itself; nothing for None."""
    return "" if value is None else repr(value) if isinstance(value, float) else _text(value)


def _text(value: Any) -> Any:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
