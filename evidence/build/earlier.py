"""Studies that were run anew as a whole: what their earlier records gave, beside what the present ones give.

``python -m evidence.build.earlier COMMIT STUDY ...`` reads the records of these studies at COMMIT from the repository's
history and writes ``evidence/records/earlier.json``; the page reads that file, because a clone may have no history.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from cdgrad.study.records import Run
from cdgrad.study.records.parquet import from_parquet
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results
from evidence.build import tables
from evidence.build.loading import RECORDS, ROOT, studies

FILE = RECORDS / "earlier.json"


class Earlier(NamedTuple):
    """An arm against the baseline in an earlier record, and how many of its runs the present record has again."""

    study: str
    cell: str
    arm: str
    pairs: int
    mean: float
    low: float
    high: float
    runs: int
    """Final runs of the arm that both records have, at the same settings."""
    same: int
    """Those of them that have the same error."""

    @property
    def interval(self) -> stats.Interval:
        """Of the mean, by Student's t."""
        return stats.Interval(self.low, self.high)


def comparisons(study: Results, earlier: Iterable[Run]) -> Iterator[Earlier]:
    """Every comparison with the baseline that the earlier runs of a study hold."""
    before = Results.of(study.spec, earlier)
    for place, compared in before.comparisons.items():
        c, now = compared.comparison, study.finished[place]
        both = [(run, now[seed]) for seed, run in before.finished[place].items() if seed in now]
        both = [(run, again) for run, again in both if run.values == again.values]
        same = sum(run.error == again.error for run, again in both)
        low, high = c.interval
        yield Earlier(study.spec.name, *place, c.pairs, c.mean, low, high, len(both), same)


def read() -> tuple[str, list[Earlier]]:
    """The commit whose records were the earlier ones, and what they gave."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return content["commit"], [Earlier(**row) for row in content["comparisons"]]


def section() -> dict[str, str]:
    """The parts of the page."""
    commit, rows = read()
    by_name = {study.spec.name: study for study in studies(dict.fromkeys(row.study for row in rows))}
    now = [by_name[row.study].comparisons[row.cell, row.arm].comparison for row in rows]
    moved = [abs(row.mean - new.mean) for row, new in zip(rows, now, strict=True)]
    within = sum(row.low <= new.mean <= row.high for row, new in zip(rows, now, strict=True))
    lines = [
        [
            row.study,
            row.cell or "-",
            row.arm,
            f"{tables.plus_minus(row.mean, row.interval)} ({row.pairs})",
            f"{tables.difference(new)} ({new.pairs})",
            f"{row.same} of {row.runs}" if row.runs else "other settings",
        ]
        for row, new in zip(rows, now, strict=True)
    ]
    head = ["study", "cell", "arm", "earlier difference (seeds)", "now (seeds)", "runs with the same error"]
    return {
        "earlier_commit": f"`{commit[:7]}`",
        "earlier_studies": ", ".join(f"`{name}`" for name in by_name),
        "earlier_count": str(len(rows)),
        "earlier_within": str(within),
        "earlier_moved": f"{max(moved):.2f}",
        "earlier_other": str(sum(not row.runs for row in rows)),
        "earlier_table": tables.markdown(head, lines, right=3),
    }


def main() -> None:
    """Read the records of the named studies at a commit, and write the file."""
    name, *names = sys.argv[1:]
    commit = _git("rev-parse", name).decode().strip()
    rows: list[Earlier] = []
    with TemporaryDirectory() as folder:
        for study in studies(names):
            path = Path(folder) / f"{study.spec.name}.parquet"
            path.write_bytes(_git("show", f"{commit}:evidence/records/{path.name}"))
            rows += comparisons(study, from_parquet(path))
    content = {"commit": commit, "comparisons": [row._asdict() for row in rows]}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
