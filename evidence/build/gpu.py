"""The studies for a GPU: their results where there are records, and where there are none that they were not run."""

from __future__ import annotations

from collections.abc import Sequence

from cdgrad.metrics import ReweightedL2, Sobolev, parse_metric
from cdgrad.study.report.words import enumerated
from cdgrad.study.spec import Spec, load
from cdgrad.study.spec.setting import Arm
from cdgrad.study.statistics.results import Results
from evidence.build import loading, tables
from evidence.build.loading import ROOT, Row, rows

FOLDER = ROOT / "evidence" / "gpu"
CHANCE = 90.0  # percent: the error of naming one class of CIFAR-10 for every image


def section() -> dict[str, str]:
    """The parts of the page."""
    names = sorted(path.stem for path in FOLDER.glob("*.toml"))
    recorded = {
        name: loading.recorded(FOLDER / f"{name}.toml", path)
        for name in names
        if (path := FOLDER / "records" / f"{name}.parquet").is_file()
    }
    missing = [name for name in names if name not in recorded]
    parts = [_table(study) for study in recorded.values()]
    if missing:
        specs = [load(str(FOLDER / f"{name}.toml")) for name in missing]
        listed = "\n".join(f"- `{spec.name}`: {_about(spec)}" for spec in specs)
        parts.append(f"Specified and rehearsed on a CPU, not run:\n\n{listed}")
    return {
        "gpu_results": "\n\n".join(parts),
        "gpu_runs": str(sum(len(study.runs) for study in recorded.values())),
        "gpu_not_run": enumerated([f"`{name}`" for name in missing]) or "none",
    }


def _about(spec: Spec) -> str:
    runs = len(spec.arms) * len(spec.seeds)
    return f"{spec.title}; {len(spec.arms)} arms, {len(spec.seeds)} seeds, {runs} runs after trials."


def _table(study: Results) -> str:
    spec = study.spec
    table = rows([study], spec.tested_contrasts)
    floor = [
        study.comparisons["", arm].comparison for arm in spec.rounding_arms if ("", arm) in study.comparisons
    ]
    beside = "".join(f" Rounding alone: {tables.difference(c)} points." for c in floor)
    unfinished = (
        " The table is provisional: its few seeds decide nothing." if study.count < study.total else ""
    )
    base = study.errors("", spec.baseline)
    lines = [_line(spec.arms[row.arm], row) for row in table]
    head = ["arm", "difference, points", "MDD", "error (SD), %", "seeds", "of them at chance"]
    return (
        f"{spec.title}, {study.count} of {study.total} final runs.{unfinished}{beside} The baseline's trials chose the\n"
        f"rate {study.values('', spec.baseline)['optimizer.lr']:g}; its error is {sum(base) / len(base):.2f} % on {len(base)} seeds. "
        f"The runs were made at {_commits(study)}. "
        f"A difference is shown for: {_shown(table)}.\nRuns at chance, 90 %, learned nothing: mean and SD of their arm describe no run.\n\n"
        + tables.markdown(head, lines, right=1)
    )


def _commits(study: Results) -> str:
    """The commits of the runs; a checkout that differed from its commit says so."""
    found = dict.fromkeys(str(run.environment["commit"]).partition(" ") for run in study.runs)
    return enumerated([f"`{commit[:7]}` {rest}".strip() for commit, _, rest in found])


def _shown(table: Sequence[Row]) -> str:
    return enumerated([row.arm for row in table if row.differs]) or "none"


def _line(arm: Arm, row: Row) -> list[str]:
    return [
        _described(arm),
        tables.difference(row.comparison, row.differs),
        tables.number(row.mdd),
        f"{row.error:.2f} ({row.sd:.2f})",
        str(row.comparison.pairs),
        str(sum(error >= CHANCE for error in row.errors)),
    ]


def _described(arm: Arm) -> str:
    """What an arm does, in words."""
    if arm.centralize:
        return "gradient centralization"
    metric = parse_metric(arm.metric)
    if not isinstance(metric, ReweightedL2 | Sobolev):
        raise TypeError(f"evidence/build/gpu.py has no words for {arm.metric}")
    kind = "re-weighted" if isinstance(metric, ReweightedL2) else "Sobolev"
    rate = f", {arm.lr_factor:g} times the rate" if arm.lr_factor != 1 else ""
    return f"{kind}, lam = {metric.lam:.2g}{rate}"
