"""A study's records as CSV, for other tools: final runs and trials in separate files.

One row a run. The columns: arm, seed, error in percent (or, under its own name, the study's other measure);
status (ok, diverged, failed); cell; trial; evaluated, the split that it is of; ``value.KEY``, what was tried
or chosen; ``measure.KEY``, what else was measured at the end; what the last epoch measured, under its own
names, or after ``epoch.`` where that is another column's; the number of epochs; peak bytes of a GPU; images
seen; parameters; seconds; started; fingerprint of the setting; message of a failure. Numbers have full
precision.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from cdgrad.study.records.run import COLUMNS, OPTIONAL, Run, left_out
from cdgrad.study.shown import one_line, published

_FIRST = ("arm", "seed", "error", "status", "cell", "trial", "evaluated")
_PLAIN = [column.name for column in COLUMNS if not column.json]


def csv_text(runs: Sequence[Run], measure: str = "error") -> str:
    """`runs` in their order, as the text of a CSV file; `measure` is the column of their results."""
    first = [measure if name == "error" else name for name in _FIRST]
    rows = [_row(run, measure) for run in runs]
    unused = left_out(runs, measure)
    last = ["epochs", *(name for name in reversed(_PLAIN) if name not in (*_FIRST, *unused, measure))]
    others = {key for row in rows for key in row} - {*first, *last, *OPTIONAL}
    kinds = ("value.", "measure.")
    middle = sorted(others, key=lambda key: ([not key.startswith(kind) for kind in kinds], key))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*first, *middle, *last], restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(run: Run, measure: str) -> dict[str, object]:
    ended: Mapping[str, float] = run.epochs[-1] if run.epochs else {}
    return {
        **{_of_epoch(str(_text(key)), measure): _exact(value) for key, value in ended.items()},
        **{one_line(f"value.{key}"): _exact(value) for key, value in run.values.items()},
        **{one_line(f"measure.{key}"): _exact(value) for key, value in run.measures.items()},
        **{name: _exact(getattr(run, name)) for name in _PLAIN if name != "error"},
        "epochs": len(run.epochs),
        "message": _text(published(run.message)),
        measure: _exact(run.error),  # last: a measure may be called "memory", which is a column, too
    }


def _of_epoch(key: str, measure: str) -> str:
    """The column of what an epoch measured: its own name, unless that is another column's."""
    known = key in (measure, "epochs", *(name for name in _PLAIN if name != "error"))
    return f"epoch.{key}" if known or key.startswith(("value.", "measure.", "epoch.")) else key


def _exact(value: object) -> object:
    """A number that reads back as itself; nothing for None."""
    return "" if value is None else repr(value) if isinstance(value, float) else _text(value)


def _text(value: object) -> object:
    """Text on one line that steers no terminal and that a spreadsheet does not take for a formula."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line
