"""One run to execute, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cdgrad.study.records.run import Key, Run
from cdgrad.study.shown import published_values
from cdgrad.study.spec import Setting, as_json


@dataclass(frozen=True)
class Job:
    """One run to execute: a trial's, or a final one, where `trial` is None.

    `values` are those that a trial, or the choice among trials, sets; `folder` is the specification's
    folder, in which modules that it names are looked for; `replicate` the search that the run belongs
    to; `images` the identities of the data that recorded runs of the cell had, empty where any will do.
    """

    cell: str
    arm: str
    trial: int | None
    seed: int
    setting: Setting
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    folder: str = ""
    replicate: int = 0
    images: frozenset[str] = frozenset()

    @property
    def key(self) -> Key:
        """Which run of the study it is."""
        return self.cell, self.arm, self.trial, self.seed

    @property
    def place(self) -> str:
        """A relative folder of its own for each run: cell, arm, and trial and seed."""
        *where, trial = self._where
        return "/".join([*where, f"{trial}-seed-{self.seed}"])

    def file(self, device: str) -> str:
        """A file name that no other run of the study has, nor this run on another device or setting."""
        return "_".join([*self._where, str(self.seed), self.setting.fingerprint[:12], device]) + ".pt"

    @property
    def _where(self) -> list[str]:
        """Cell, arm and trial, for names of files."""
        trial = "final" if self.trial is None else f"trial-{self.trial}"
        return [*([self.cell] if self.cell else []), self.arm, trial]

    def run(self, started: datetime, **measured: Any) -> Run:
        """The record of this job, with what was found."""
        return Run(
            *self.key,
            evaluated=self.setting.evaluate,
            values=self.values,
            config=published_values(as_json(self.setting)),
            fingerprint=self.setting.fingerprint,
            started=started.isoformat(timespec="seconds"),
            replicate=self.replicate,
            **measured,
        )

    def lost(self, started: datetime, environment: dict[str, Any], message: str) -> Run:
        """The record of this job where its worker ended without returning one."""
        return self.run(
            started,
            status="failed",
            error=None,
            epochs=[],
            measures={},
            environment=environment,
            seconds=max(0.0, (datetime.now(UTC) - started).total_seconds()),  # a clock may be set back
            message=message,
        )


def run_name(run: Run | Job) -> str:
    """Cell, arm, trial and seed of a run, as far as it has them."""
    trial = [] if run.trial is None else [f"trial {run.trial}"]
    return ", ".join([*([run.cell] if run.cell else []), run.arm, *trial, f"seed {run.seed}"])
