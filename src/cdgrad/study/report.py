"""What a study says, from its records alone: tables, plain sentences, and the files that hold them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdgrad.study import StudyError, plots, render, stats
from cdgrad.study.records import Run, Store
from cdgrad.study.render import Document, Figure, Table
from cdgrad.study.spec import BASELINE_METRIC, Spec, parse

_SIZES = (0.1, 0.2, 0.5)  # points, for the number of seeds needed
_ENVIRONMENT = ("torch", "numpy", "numba", "cdgrad", "commit", "python", "processor", "threads")


@dataclass(frozen=True)
class Results:
    """The finished runs of a study's present arms and seeds; failed ones are apart."""

    spec: Spec
    finished: dict[str, dict[int, Run]]
    failed: list[Run]

    @property
    def count(self) -> int:
        """Number of finished runs."""
        return sum(map(len, self.finished.values()))

    @property
    def total(self) -> int:
        """Number of runs in the study."""
        return len(self.spec.arms) * len(self.spec.seeds)

    def errors(self, arm: str) -> list[float]:
        """The arm's errors in percent, in the order of the seeds."""
        return [_error(run) for run in self.finished[arm].values()]

    def pairs(self, arm: str) -> tuple[list[int], list[float], list[float]]:
        """Seeds that the arm shares with the baseline, its errors, and the baseline's."""
        mine, base = self.finished[arm], self.finished[self.spec.baseline]
        seeds = [seed for seed in self.spec.seeds if seed in mine and seed in base]
        return seeds, [_error(mine[s]) for s in seeds], [_error(base[s]) for s in seeds]

    def comparisons(self) -> dict[str, tuple[stats.Comparison, float]]:
        """Every other arm that shares a seed with the baseline, and its p after Holm's correction."""
        paired = {arm: self.pairs(arm) for arm in self.spec.arms if arm != self.spec.baseline}
        found = {arm: stats.compare(mine, base) for arm, (seeds, mine, base) in paired.items() if seeds}
        adjusted = stats.holm([c.p for c in found.values()])
        return {arm: (c, p) for (arm, c), p in zip(found.items(), adjusted, strict=True)}


def read(folder: Path) -> Results:
    """The results in a study's folder.

    Raises:
        StudyError: no study there, or nothing finished yet.
    """
    with Store(folder, write=False) as store:
        name, text = store.spec()
        runs = store.runs()
    spec = parse(text, name)
    cell = next(iter(spec.cells))
    by_key = {(run.arm, run.seed): run for run in runs if run.trial is None and run.cell == cell}
    finished: dict[str, dict[int, Run]] = {arm: {} for arm in spec.arms}
    failed: list[Run] = []
    for arm in spec.arms:
        for seed in spec.seeds:
            run = by_key.get((arm, seed))
            if run is not None and run.status == "failed":
                failed.append(run)
            elif run is not None:
                finished[arm][seed] = run
    results = Results(spec, finished, failed)
    if not results.count:
        why = f", {len(failed)} failed: {failed[0].message}" if failed else ""
        raise StudyError(f"{folder} has no finished run yet{why}")
    return results


def document(results: Results) -> Document:
    """The study in tables and sentences."""
    spec = results.spec
    comparisons = results.comparisons()
    tables = [_arms_table(results)]
    if comparisons:
        tables += [_differences_table(spec, comparisons), _seeds_table(comparisons)]
    sentences = [
        stats.verdict(arm, spec.baseline, comparison, p) for arm, (comparison, p) in comparisons.items()
    ]
    return Document(
        title=spec.title,
        summary=f"{spec.name}: {results.count} of {results.total} runs finished",
        tables=tables,
        sentences=sentences + _remarks(results),
        environment=[f"{key}: {' and '.join(values)}" for key, values in _environment(results).items()],
        spec=spec.text,
    )


def write(results: Results, folder: Path) -> list[Path]:
    """Write report.md, report.html, runs.csv and the plots; the paths, most useful first.

    Raises:
        StudyError: a file cannot be written.
    """
    doc = document(results)
    drawn = [plots.learning_curves(results.spec, results.finished)]
    if results.comparisons():
        drawn.insert(0, plots.paired_differences(results.spec, results.comparisons()))
    try:
        figures = [Figure(f"{d.name}.png", d.alt, d.caption, d.svg()) for d in drawn]
        for d in drawn:
            (folder / f"{d.name}.png").write_bytes(d.png())
        (folder / "report.md").write_text(render.markdown(doc, figures), encoding="utf-8")
        (folder / "report.html").write_text(render.html(doc, figures), encoding="utf-8")
        _write_csv(results, folder / "runs.csv")
    except OSError as error:
        raise StudyError(f"cannot write the report in {folder}: {error.strerror}") from error
    return [folder / name for name in ("report.html", "report.md", "runs.csv", *(f.name for f in figures))]


def _arms_table(results: Results) -> Table:
    spec = results.spec
    rows: list[Sequence[str]] = []
    for arm in spec.arms:
        errors = results.errors(arm)
        if errors:
            mean, interval = f"{sum(errors) / len(errors):.2f}", _interval(stats.mean_interval(errors), "")
            rows.append(
                (arm, _what(spec, arm), str(len(errors)), mean, interval, _number(stats.spread(errors)))
            )
        else:
            rows.append((arm, _what(spec, arm), "0", "-", "-", "-"))
    return Table(
        f"Error on the {spec.evaluate} images, in percent",
        ("arm", "what", "seeds", "mean", "95 % interval", "spread"),
        rows,
        "mean over the seeds, its interval by Student's t, standard deviation of a run",
    )


def _differences_table(spec: Spec, comparisons: dict[str, tuple[stats.Comparison, float]]) -> Table:
    p_name, test = (
        ("p", "sign-flip test") if len(comparisons) == 1 else ("Holm p", "sign-flip test, corrected")
    )
    rows = [
        (
            arm,
            _number(c.mean, "+"),
            _interval(c.interval, "+"),
            _interval(c.bootstrap, "+"),
            _p(p),
            f"{100 * c.wins:.0f} %",
            _number(c.correlation),
        )
        for arm, (c, p) in comparisons.items()
    ]
    return Table(
        f"Paired difference to {spec.baseline}, in points: negative is fewer errors",
        ("arm", "mean", "95 % t", "95 % BCa", p_name, "wins", "corr."),
        rows,
        f"{p_name}: {test}; wins: share of seeds; corr.: of the pairs",
    )


def _seeds_table(comparisons: dict[str, tuple[stats.Comparison, float]]) -> Table:
    rows = [
        (arm, str(c.pairs), *(f"{stats.required_pairs(size, c.sd):,}" for size in _SIZES))
        for arm, (c, _) in comparisons.items()
        if c.pairs > 1
    ]
    return Table(
        f"Seeds needed to show a difference, with {100 * stats.POWER:.0f} % power at the observed spread",
        ("arm", "seeds now", *(f"{size} points" for size in _SIZES)),
        rows,
        "paired t-test, two-sided, at 5 %",
    )


def _remarks(results: Results) -> list[str]:
    """What a reader must know before believing the tables."""
    remarks: list[str] = []
    if results.spec.evaluate == "validation":
        remarks.append("This study chooses settings: it never read a test set.")
    diverged = {
        arm: sorted(seed for seed, run in runs.items() if run.status == "diverged")
        for arm, runs in results.finished.items()
    }
    remarks += [
        f"{arm}: {len(seeds)} of {len(results.finished[arm])} runs diverged and count with their last error "
        f"(seeds {', '.join(map(str, seeds))})."
        for arm, seeds in diverged.items()
        if seeds
    ]
    # Training is chaotic: a changed rounding error moves a single run by as much as a changed seed.
    remarks += [
        f"The runs differ in {key} ({', '.join(values)}), so arms may differ in more than their setting."
        for key, values in _environment(results).items()
        if len(values) > 1
    ]
    if results.failed:
        first = results.failed[0]
        remarks.append(
            f"{len(results.failed)} runs failed and are left out, the first {first.arm}, seed {first.seed}: "
            f"{first.message}; the same command tries them again."
        )
    if left := results.total - results.count - len(results.failed):
        remarks.append(f"{left} runs are still to be made: the same command makes them.")
    return remarks


def _environment(results: Results) -> dict[str, list[str]]:
    """What a repetition needs; several values where runs differ in it."""
    runs = [run for of_arm in results.finished.values() for run in of_arm.values()]
    return {key: sorted({str(run.environment.get(key)) for run in runs}) for key in _ENVIRONMENT}


def _write_csv(results: Results, path: Path) -> None:
    runs = [*(r for of_arm in results.finished.values() for r in of_arm.values()), *results.failed]
    measured = sorted({key for run in runs for epoch in run.epochs for key in epoch})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "arm",
                "seed",
                "error",
                "status",
                *measured,
                "epochs",
                "seconds",
                "started",
                "fingerprint",
                "message",
            ]
        )
        for run in runs:
            last = run.epochs[-1] if run.epochs else {}
            writer.writerow(
                [
                    run.arm,
                    run.seed,
                    "" if run.error is None else repr(run.error),
                    run.status,
                    *("" if key not in last else repr(last[key]) for key in measured),
                    len(run.epochs),
                    run.seconds,
                    run.started,
                    run.fingerprint,
                    run.message,
                ]
            )


def _what(spec: Spec, arm: str) -> str:
    """An arm in words: the metric, and what differs from the study's optimizer."""
    change = spec.arms[arm]
    parts = ["no metric" if change.metric == BASELINE_METRIC else change.metric]
    parts += [f"along {change.direction}"] if change.direction != "output" else []
    parts += [f"rescale {change.rescale}"] if change.rescale != "none" else []
    parts += ["linear too"] if change.linear else []
    parts += ["channels permuted"] if change.permute else []
    parts += ["centralized"] if change.centralize else []
    setting = spec.setting(next(iter(spec.cells)), arm)
    values = {"lr": setting.optimizer.lr} if setting.optimizer else setting.values
    return ", ".join([*parts, *(f"{key} {value}" for key, value in {**values, **change.optimizer}.items())])


def _error(run: Run) -> float:
    return math.nan if run.error is None else run.error


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.2f}"


def _interval(interval: stats.Interval, sign: str) -> str:
    low, high = interval
    return "-" if math.isnan(low) else f"{low:{sign}.2f} to {high:{sign}.2f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
