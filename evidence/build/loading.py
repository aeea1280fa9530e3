"""The committed records: studies by name, and their comparisons as rows of the page's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from cdgrad.study.records import Run
from cdgrad.study.records.parquet import from_parquet
from cdgrad.study.shown import published_values
from cdgrad.study.spec import as_json, load
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "evidence" / "studies"
RECORDS = ROOT / "evidence" / "records"
CLAIMS = ("claims-momentum", "claims-small-cnn", "claims-plain", "claims-resnet8")
RATES = (
    "rates-momentum",
    "rates-attempts",
    "rates-small-cnn",
    "rates-adaptive",
    "rates-cifar10",
    "rates-regimes",
)
PHOTOS = ("cifar10-jpeg", "cifar10-momentum", "cifar10-adamw", "tiny-imagenet-50")
ELSEWHERE = (
    "axes",
    "depth",
    "regimes-labels",
    "regimes-batch",
    "regimes-training",
    "regimes-long",
    "regimes-cifar10",
)
OTHERS = ("controls", *PHOTOS, *ELSEWHERE, "best-effort-sgd", "best-effort-adamw")


@dataclass(frozen=True)
class Row:
    """An arm in a cell against the cell's baseline; `p` is Holm-corrected over the table."""

    study: str
    cell: str
    arm: str
    comparison: stats.Comparison
    p: float
    errors: list[float]
    error: float
    sd: float
    chosen: dict[str, Any]
    diverged: int

    @property
    def differs(self) -> bool:
        """Whether a difference is shown."""
        return stats.is_shown(self.comparison, self.p)

    @property
    def better(self) -> bool:
        """Whether fewer errors than the baseline's are shown."""
        return self.differs and self.comparison.mean < 0

    @property
    def worse(self) -> bool:
        """Whether more errors than the baseline's are shown."""
        return self.differs and self.comparison.mean > 0

    @property
    def mdd(self) -> float:
        """The smallest true difference, in points, that these seeds would show with 80 % power."""
        return stats.detectable_difference(self.comparison.pairs, self.comparison.sd)


def studies(names: Iterable[str]) -> list[Results]:
    """The studies of `names` that have records."""
    return [
        recorded(STUDIES / f"{name}.toml", path)
        for name in names
        if (path := RECORDS / f"{name}.parquet").is_file()
    ]


def recorded(specification: Path, record: Path) -> Results:
    """A specification with its committed runs, read once: several sections of the page compare the same ones.

    Raises:
        ValueError: the runs of an arm are of another specification; a file's name alone does not say whose
            they are.
    """
    return _recorded(specification, record, from_parquet)


@lru_cache
def _recorded(specification: Path, record: Path, read: Callable[[Path], list[Run]]) -> Results:
    spec, runs = load(str(specification)), read(record)
    for (cell, arm), run in {(run.cell, run.arm): run for run in runs}.items():
        known = cell in spec.cells and arm in spec.arms
        setting = spec.setting(cell, arm, run.values, trial=run.trial is not None) if known else None
        if not setting or not holds(run.config, published_values(as_json(setting))):
            raise ValueError(
                f"{record.name} holds runs of arm {arm}{cell and f' in cell {cell}'} under another "
                f"specification than {specification.name}; give the file its own specification's name"
            )
    return Results.of(spec, runs)


def holds(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a recorded configuration is that of `now`, but for keys that did not exist yet."""
    return all(
        holds(cast(dict[str, Any], value), now[key]) if isinstance(value, dict) else value == now[key]
        for key, value in recorded.items()
    )


def rows(results: Iterable[Results], arms: Iterable[str] = ()) -> list[Row]:
    """All comparisons, or those of `arms`, of several studies as one table: one correction over all."""
    wanted = set(arms)
    comparisons = [
        (study, cell, arm, compared.comparison)
        for study in results
        for (cell, arm), compared in study.comparisons.items()
        if not wanted or arm in wanted
    ]
    adjusted = stats.holm([comparison.p for *_, comparison in comparisons])
    return [
        Row(
            study.spec.name,
            cell,
            arm,
            comparison,
            p,
            errors=study.errors(cell, arm),
            error=float(np.mean(study.errors(cell, arm))),
            sd=stats.standard_deviation(study.errors(cell, arm)),
            chosen=dict(study.values(cell, arm)),
            diverged=sum(run.status == "diverged" for run in study.finished[cell, arm].values()),
        )
        for (study, cell, arm, comparison), p in zip(comparisons, adjusted, strict=True)
    ]


def average(table: Iterable[Row], arm: str) -> stats.Comparison:
    """The arm's difference averaged over the cells, seed by seed, as one comparison.

    The cells share their seeds, so each seed gives one average, and the seeds are independent.
    """
    differences = np.mean([row.comparison.differences for row in table if row.arm == arm], axis=0)
    return stats.compare(differences, np.zeros_like(differences))


def baselines(results: Iterable[Results]) -> dict[str, tuple[float, float]]:
    """Mean error and SD of the baseline of every cell, in percent."""
    return {
        cell: (
            float(np.mean(study.errors(cell, study.spec.baseline))),
            stats.standard_deviation(study.errors(cell, study.spec.baseline)),
        )
        for study in results
        for cell in study.spec.cells
    }


def runs_of(results: Iterable[Results]) -> dict[str, Any]:
    """What the studies' records add up to: runs, software, commits."""
    runs = [run for study in results for run in study.runs]
    keys = ("commit", "torch", "python", "cpu")
    return {
        "runs": len(runs),
        "failed": sum(run.status == "failed" for run in runs),
        "diverged": sum(run.status == "diverged" for run in runs),
        **{key: sorted({str(run.environment.get(key)) for run in runs}) for key in keys},
    }
