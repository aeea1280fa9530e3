"""One run's record, as a value."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Status = Literal["ok", "diverged", "failed"]


Key = tuple[str, str, int | None, int]


@dataclass(frozen=True)
class Run:
    """What is known of one run. Where it failed, `error` is None and `message` says why.

    Attributes:
        trial: the number of a trial, from 0; None for a final run.
        error: in percent, on the part that `evaluated` names, ``"validation"`` or ``"test"``.
        values: what the trial tries, or what was chosen for a final run, by the keys of the search space.
        epochs: what was measured, one dict an epoch.
        measures: what else was measured at the end.
        config: all that decides the numbers, besides the seed; `fingerprint` is of it.
    """

    cell: str
    arm: str
    trial: int | None
    seed: int
    status: Status
    error: float | None
    evaluated: str
    values: dict[str, Any]
    epochs: list[dict[str, float]]
    measures: dict[str, Any]
    config: dict[str, Any]
    fingerprint: str
    environment: dict[str, Any] = field(compare=False)
    started: str = field(compare=False)
    seconds: float = field(compare=False)
    message: str = ""

    @property
    def key(self) -> Key:
        """Which run of the study it is."""
        return self.cell, self.arm, self.trial, self.seed


def order(run: Run) -> tuple[str, str, int, int]:
    """Sorts runs by cell, arm, trial (final runs first) and seed."""
    return run.cell, run.arm, -1 if run.trial is None else run.trial, run.seed


def to_json(value: Any) -> str:
    """Values as the store keeps them: sorted keys, and None for what is not finite."""
    return json.dumps(_finite(value), sort_keys=True, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON knows no nan and no infinity: None stands for both."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_finite(v) for v in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(measured: dict[str, Any]) -> dict[str, Any]:
    """What `to_json` wrote of measured numbers, with nan again for what was not finite."""
    return {key: math.nan if value is None else value for key, value in measured.items()}
