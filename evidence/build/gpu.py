"""The studies for a GPU: their results where there are records, and where there are none that they were not run."""

from __future__ import annotations

from cdgrad.study.spec import Spec, load
from cdgrad.study.statistics.results import Results
from evidence.build import loading, tables
from evidence.build.loading import ROOT, rows

FOLDER = ROOT / "evidence" / "gpu"


def section() -> dict[str, str]:
    """The parts of the page."""
    names = sorted(path.stem for path in FOLDER.glob("*.toml"))
    recorded = {name: path for name in names if (path := FOLDER / "records" / f"{name}.parquet").is_file()}
    missing = [name for name in names if name not in recorded]
    parts = [_table(loading.recorded(FOLDER / f"{name}.toml", path)) for name, path in recorded.items()]
    if missing:
        specs = [load(str(FOLDER / f"{name}.toml")) for name in missing]
        listed = "\n".join(f"- `{spec.name}`: {_about(spec)}" for spec in specs)
        parts.append(f"Specified and rehearsed on a CPU, not run:\n\n{listed}")
    return {"gpu_results": "\n\n".join(parts)}


def _about(spec: Spec) -> str:
    runs = len(spec.arms) * len(spec.seeds)
    return f"{spec.title}; {len(spec.arms)} arms, {len(spec.seeds)} seeds, {runs} runs after trials."


def _table(study: Results) -> str:
    names = {arm: arm for arm in study.spec.tested_contrasts}
    floor = [
        study.comparisons["", arm].comparison
        for arm in study.spec.rounding_arms
        if ("", arm) in study.comparisons
    ]
    beside = "".join(f" Rounding alone: {tables.difference(c)} points." for c in floor)
    listed = tables.listing(rows([study], names), names)
    unfinished = (
        " The table is provisional: its few seeds decide nothing." if study.count < study.total else ""
    )
    runs = f"{study.count} of {study.total} final runs.{unfinished}"
    return f"{study.spec.title}, {runs}{beside}\n\n{listed}"
