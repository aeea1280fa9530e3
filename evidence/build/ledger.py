"""What all records add up to, and the tables of the second page."""

from __future__ import annotations

from evidence.build import claims, labels, tables
from evidence.build.loading import CLAIMS, OTHERS, RATES, RECORDS, STUDIES, rows, runs_of, studies


def section() -> dict[str, str]:
    """What all records add up to; and the tables of the second page."""
    results = studies((*CLAIMS, *RATES, *OTHERS, *labels.LABELS, "searches", "cifar10-tuned"))
    origin = runs_of(results)
    named = ", ".join(f"`{name}`" for name in CLAIMS)
    groups = {
        f"The metrics, tuned\n\n{named}": rows(studies(CLAIMS), claims.METHODS),
        f"The metrics at a fixed lam and the baseline's rate\n\n{named}": rows(studies(CLAIMS), claims.FIXED),
        f"The tuned metrics against the baseline at their rates\n\n{named} and the baselines of `rates-*`": (
            claims.rows_at_equal_rates()
        ),
        **{
            f"{study.spec.title}\n\n`{name}`": rows([study])
            for name in (*OTHERS, labels.LABELS[0], "cifar10-tuned")
            for study in studies([name])
        },
    }
    listed = [f"## {title}\n\n{tables.full(table)}" for title, table in groups.items() if table]
    return {
        "ledger_not_run": ", ".join(f"`{name}`" for name in _not_run()) or "none",
        "ledger_runs": f"{origin['runs']:,}",
        "ledger_failed": str(origin["failed"]),
        "ledger_diverged": str(origin["diverged"]),
        "ledger_commits": ", ".join(f"`{commit[:7]}`" for commit in origin["commit"]),
        "ledger_torch": ", ".join(origin["torch"]),
        "ledger_cpu": ", ".join(origin["cpu"]),
        "full_tables": "\n\n".join(listed),
    }


def _not_run() -> list[str]:
    """Specifications without records."""
    names = sorted(path.stem for path in STUDIES.glob("*.toml"))
    recorded = {path.stem.removesuffix("-modes") for path in RECORDS.glob("*.parquet")}
    return [name for name in names if name not in recorded]
