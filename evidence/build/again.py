"""Do old records still hold? A sample of recorded runs, executed again by the present code.

``python -m evidence.build.again`` executes one seed of the baseline and of the first metric of every study whose
recorded runs took seconds, and writes ``evidence/records/again.json``; the page reads that file alone. Specifications
with photographs need their data where they say it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from cdgrad.study.plan.job import Job
from cdgrad.study.records.environment import environment
from cdgrad.study.records.run import Run
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import Spec, as_json
from cdgrad.study.statistics.results import Results
from evidence.build import tables
from evidence.build.loading import RECORDS, STUDIES, holds, recorded

FILE = RECORDS / "again.json"
_MOST_SECONDS = 15.0  # of a recorded run
ROUNDING = 0.01  # relative difference of the first epoch's loss below which only rounding differs


class Again(NamedTuple):
    """A recorded run beside the same run made again: errors in percent, mean losses of the first epoch."""

    study: str
    cell: str
    arm: str
    seed: int
    commit: str
    error: float
    error_now: float
    loss: float
    loss_now: float

    @property
    def same(self) -> bool:
        """Whether the error is the same, and the first epoch's loss to float32's last digits."""
        return self.error == self.error_now and abs(self.loss - self.loss_now) <= 1e-6 * abs(self.loss)

    @property
    def rounds(self) -> bool:
        """Whether the first epoch differs by rounding at most."""
        return abs(self.loss - self.loss_now) <= ROUNDING * abs(self.loss)


def sample(spec: Spec, runs: list[Run]) -> Iterator[Run]:
    """The recorded runs to execute again: the first seed of two arms in the first cell."""
    cell = next(iter(spec.cells))
    metrics = [arm for arm in spec.tested_contrasts if spec.arms[arm].metric != "none"]
    final = {(run.cell, run.arm): run for run in reversed(runs) if run.trial is None}
    for arm in (spec.baseline, *metrics[:1]):
        run = final[cell, arm]
        if run.status == "ok" and run.seconds < _MOST_SECONDS:
            yield run


def execute_again(spec: Spec, run: Run) -> Again:
    """Execute a recorded run by the present code."""
    setting = spec.setting(run.cell, run.arm, run.values)
    assert holds(run.config, as_json(setting)), f"{spec.name}, {run.arm}: the specification has changed"
    job = Job(run.cell, run.arm, None, run.seed, setting, dict(run.values), spec.folder)
    now = execute(job, lambda epoch, measured: None)
    if now.error is None or run.error is None:
        raise RuntimeError(f"{spec.name}, {run.arm}: {now.message}")
    losses = run.epochs[0]["loss"], now.epochs[0]["loss"]
    commit = str(run.environment.get("commit"))[:7]
    return Again(spec.name, run.cell, run.arm, run.seed, commit, run.error, now.error, *losses)


def read() -> tuple[list[Again], dict[str, Any]]:
    """The committed comparison, and with what it was made."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return [Again(**row) for row in content["runs"]], content["environment"]


def section() -> dict[str, str]:
    """The parts of the page."""
    repeats, where = read()
    same, rounded = [a for a in repeats if a.same], [a for a in repeats if a.rounds and not a.same]
    other = [a for a in repeats if not a.rounds]
    moved = [abs(a.error - a.error_now) for a in rounded]
    lines = [
        [
            a.study,
            a.cell,
            a.arm,
            f"`{a.commit}`",
            f"{a.error:.2f}",
            f"{a.error_now:.2f}",
            f"{abs(a.loss - a.loss_now) / abs(a.loss):.0e}",
            "the same" if a.same else "rounding" if a.rounds else "differs",
        ]
        for a in repeats
    ]
    head = [
        "study",
        "cell",
        "arm",
        "recorded at",
        "error, %",
        "error now, %",
        "first epoch's loss, relative change",
    ]
    return {
        "again_count": str(len(repeats)),
        "again_same": str(len(same)),
        "again_rounded": str(len(rounded)),
        "again_moved": f"{max(moved, default=0.0):.2f}",
        "again_left": ", ".join(f"`{name}`" for name in _not_executed(repeats)) or "none",
        "again_other": "; ".join(f"{a.study}, {a.arm}" for a in other) or "none",
        "again_commit": f"`{str(where['commit'])[:7]}`",
        "again_torch": str(where["torch"]),
        "again_cpu": str(where["cpu"]),
        "again_table": tables.markdown([*head, "result"], lines, right=4),
    }


def _not_executed(repeats: Iterable[Again]) -> list[str]:
    """The studies of which no sample was executed, although their runs take seconds: recorded since, for example."""
    done = {repeat.study for repeat in repeats}
    return [
        study.spec.name
        for study in _studies()
        if study.spec.name not in done and any(sample(study.spec, study.runs))
    ]


def _studies() -> Iterator[Results]:
    """All studies of the records; `width` holds measurements of other code."""
    for path in sorted(RECORDS.glob("*.parquet")):
        specification = STUDIES / f"{path.stem}.toml"
        if specification.is_file() and path.stem != "width":
            yield recorded(specification, path)


def main() -> None:
    """Execute the sample and write the file after every run; those of the present commit are not repeated."""
    where = {key: environment()[key] for key in ("commit", "torch", "python", "cpu")}
    repeats, before = read() if FILE.exists() else ([], where)
    repeats = repeats if before == where else []
    done = {(again.study, again.arm) for again in repeats}
    torch.set_num_threads(1)  # as many as a worker of a study has
    for study in _studies():
        for run in sample(study.spec, study.runs):
            if (study.spec.name, run.arm) not in done:
                repeats.append(execute_again(study.spec, run))
                print(repeats[-1], file=sys.stderr, flush=True)
                content = {"environment": where, "runs": [again._asdict() for again in repeats]}
                FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
