"""The tables of a report: numbers as text, from a study's results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cdgrad.study.plan.search import error_of
from cdgrad.study.report.document import Table
from cdgrad.study.spec import BASELINE_METRIC, OPTIONS, EntrySetting, LoopSetting
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.equivalence import equivalence
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p

_SIZES = (0.1, 0.2, 0.5)  # points, for the number of seeds needed


def errors(results: Results, cell: str) -> Table:
    """An arm a row: what it is, and the error of its final runs."""
    spec = results.spec
    diverged = any(r.status == "diverged" for arm in spec.arms for r in results.finished[cell, arm].values())
    rows: list[Sequence[str]] = []
    for arm in spec.arms:
        of_arm, runs = results.errors(cell, arm), results.finished[cell, arm].values()
        count = [str(sum(run.status == "diverged" for run in runs))] if diverged else []
        measured = ["-", "-", "-"]
        if of_arm:
            mean, interval = math.fsum(of_arm) / len(of_arm), paired.mean_interval(of_arm)
            measured = [number(mean), interval_text(interval, ""), number(paired.standard_deviation(of_arm))]
        rows.append((arm, *measured, str(len(of_arm)), *count, _what(results, cell, arm)))
    return Table(
        f"Error on the {spec.evaluate} images, in percent",
        ("arm", "mean", "95 % interval", "SD", "seeds", *(["div."] if diverged else []), "what"),
        rows,
        "mean over the seeds, its interval by Student's t, standard deviation of a run"
        + ("; div.: runs that diverged, which count with the error they ended with" if diverged else ""),
        align="lrrrr" + "r" * diverged + "p",
    )


def differences(results: Results, cell: str) -> Table:
    """An arm a row: its paired difference to the baseline, and how sure it is."""
    found = results.in_cell(cell)
    several, floor = results.tested > 1, results.spec.rounding_arms
    rows = [
        (
            arm,
            number(c.mean, "+"),
            interval_text(c.interval, "+"),
            _p(math.nan if arm in floor else c.p),
            *([_p(adjusted)] if several else []),
            f"{100 * c.win_rate:.0f} %",
            number(c.correlation),
            f"{c.pairs}",
        )
        for arm, (c, adjusted) in found.items()
    ]
    kind = interval_name(results)
    units = "searches" if results.spec.replicates > 1 else "pairs"
    note = f"95 % {kind}: interval of the mean, each for itself; p: {_test_name(results)}; "
    if several:
        note += f"Holm p: corrected for all {results.tested} comparisons of the study; "
    return Table(
        f"Paired difference to {results.spec.baseline}, in points: negative is fewer errors",
        ("arm", "mean", f"95 % {kind}", "p", *(["Holm p"] if several else []), "win rate", "corr.", units),
        rows,
        f"{note}win rate: share of seeds with fewer errors, ties half; corr.: of the pairs"
        + f"; {', '.join(floor)}: the baseline with other rounding errors, not a test" * bool(floor),
        align="l" + "r" * (6 + several),
    )


def interval_name(results: Results) -> str:
    """Which interval the comparisons have: Student's t, or the anytime-valid one."""
    return "anytime" if results.spec.until else "t"


def _test_name(results: Results) -> str:
    if results.spec.until:
        return "sequential t-test"
    return "t-test over the searches" if results.spec.replicates > 1 else "sign-flip test"


def certainty(results: Results, cell: str) -> Table:
    """An arm a row: what holds after any number of looks, and whether the arms are equivalent."""
    margin = results.spec.margin
    rows: list[Sequence[str]] = []
    for arm, (c, _) in results.in_cell(cell).items():
        d = c.differences
        row = [arm, interval_text(anytime_interval(d), "+"), _p(anytime_p(d))]
        if margin:
            found = equivalence(d, margin)
            row += [interval_text(found.interval, "+"), _p(found.p), "yes" if found.shown else "not shown"]
        rows.append(row)
    note = (
        f"anytime: valid after a look at every {results.sampled}, by the mixture sequential t-test "
        "(arXiv 2310.03722), each comparison for itself"
    )
    if margin:
        note += (
            f"; equivalence: the mean difference is smaller than the margin of {margin:g} points, by two "
            "one-sided t-tests at 5 %, which hold where neither the margin nor the number of seeds followed "
            "from the results"
        )
    columns = ("90 % t", "TOST p", "equivalent") if margin else ()
    return Table(
        "After any number of looks" + (", and equivalence" if margin else ""),
        ("arm", "95 % anytime", "anytime p", *columns),
        rows,
        note,
        align="lrr" + "r" * len(columns),
    )


def power(results: Results, cell: str) -> Table:
    """An arm a row: what the study could have seen, and how many seeds would see more."""
    plural = "searches" if results.sampled == "search" else "seeds"
    rows = [
        (
            arm,
            interval_text(c.bootstrap, "+"),
            number(c.sd),
            number(paired.detectable_difference(c.pairs, c.sd)),
            *(f"{paired.required_pairs(size, c.sd):,}" for size in _SIZES),
        )
        for arm, (c, _) in results.in_cell(cell).items()
        if c.pairs > 1
    ]
    return Table(
        f"Statistical power: detectable difference, and {plural} needed",
        ("arm", "95 % BCa", "SD", "MDD", *(f"for {size}" for size in _SIZES)),
        rows,
        "BCa: bootstrap interval of the mean difference, too narrow below some 30 pairs; SD: standard "
        f"deviation of a difference; MDD: the smallest true difference in points shown with "
        f"{100 * paired.POWER:.0f} % power by a two-sided paired t-test at 5 %; for x: {plural} that would "
        "show x points so, at this SD",
        align="lrrr" + "r" * len(_SIZES),
    )


def summary(results: Results) -> Table:
    """A comparison a row, over all cells."""
    rows: list[Sequence[str]] = []
    before = ""
    for (cell, arm), (c, adjusted) in results.comparisons.items():
        shown, before = ("" if cell == before else cell), cell
        mean, interval = number(c.mean, "+"), interval_text(c.interval, "+")
        rows.append((shown, arm, mean, interval, _p(adjusted), f"{100 * c.win_rate:.0f} %"))
    return Table(
        f"Paired difference to {results.spec.baseline}, in points: negative is fewer errors",
        ("cell", "arm", "mean", f"95 % {interval_name(results)}", "Holm p", "win rate"),
        rows,
        f"Holm p: {_test_name(results)}, corrected for all {results.tested} comparisons; "
        "win rate: share of seeds with fewer errors",
        align="llrrrr",
        grouped=True,
    )


def parts(results: Results) -> Table:
    """Which part of the data the recorded runs evaluated, counted over all records of the store."""
    rows: list[Sequence[str]] = []
    for title, trial in (("final runs", False), ("trials", True)):
        runs = [run for run in results.runs if (run.trial is not None) == trial]
        ended = [run for run in runs if run.status != "failed"]
        counts = [sum(run.evaluated == part for run in ended) for part in ("test", "validation")]
        rows.append((title, *map(str, counts), str(len(runs) - len(ended))))
    return Table(
        "What the recorded runs were evaluated on",
        ("part", "test images", "validation images", "failed"),
        rows,
        "all records of the study's folder, those of former arms and seeds included; the store refuses a "
        "trial that was evaluated on test images",
        align="lrrr",
    )


def seeds(results: Results, cell: str) -> Table:
    """A seed a row: every arm's error."""
    spec = results.spec
    rows = [
        (str(seed), *(_run_cell(results, cell, arm, seed) for arm in spec.arms))
        for seed in spec.seeds
        if any(seed in results.finished[cell, arm] for arm in spec.arms)
    ]
    return Table(
        f"Every seed's error on the {spec.evaluate} images, in percent" + in_cell(cell),
        ("seed", *spec.arms),
        rows,
        "* diverged",
        align="r" * (1 + len(spec.arms)),
    )


def values(chosen: Mapping[str, Any]) -> str:
    """A trial's values in words."""
    pairs = sorted(chosen.items())
    return ", ".join(f"{key.removeprefix('optimizer.')} {value_text(value)}" for key, value in pairs)


def number(value: float, sign: str = "") -> str:
    """Two decimals, one from 100 on; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:{sign}.{2 if abs(value) < 99.995 else 1}f}"


def interval_text(interval: paired.Interval, sign: str) -> str:
    low, high = interval
    return "-" if math.isnan(low) else f"{number(low, sign)} to {number(high, sign)}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "<.001"


def value_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def in_cell(cell: str) -> str:
    return f", {cell}" if cell else ""


def _run_cell(results: Results, cell: str, arm: str, seed: int) -> str:
    run = results.finished[cell, arm].get(seed)
    return "-" if run is None else number(error_of(run)) + (" *" if run.status == "diverged" else "")


def _metric(text: str) -> str:
    """A metric with its parameters apart, which a narrow column can break; a tuned lam in three digits."""
    family, _, parameters = text.partition(":")
    pairs = [parameter.split("=") for parameter in parameters.split(",") if parameter]
    return ", ".join(
        [family, *(f"{key} {float(v):.3g}" if key == "lam" else f"{key} {v}" for key, v in pairs)]
    )


def _what(results: Results, cell: str, arm: str) -> str:
    """An arm in words: what is done to the gradient, its learning rate, and how it differs otherwise."""
    spec = results.spec
    chosen = results.values(cell, arm)
    setting = spec.setting(cell, arm, chosen)
    metric = setting.metric if spec.replicates == 1 else spec.arms[arm].metric
    parts = ["no metric" if metric == BASELINE_METRIC else _metric(metric)]
    parts += setting.words()
    own = {f"optimizer.{key}": value for key, value in spec.arms[arm].optimizer.items()}
    own |= setting.values if isinstance(setting, EntrySetting) else {}
    own |= {key: value for key, value in chosen.items() if key not in ("lam", *OPTIONS)}
    if isinstance(setting, LoopSetting):
        own |= {"optimizer.lr": setting.optimizer.lr}
    if chosen and spec.replicates > 1:
        own = {key: value for key, value in own.items() if key not in chosen}
        parts.append(f"chosen by each of {spec.replicates} searches: {', '.join(sorted(chosen))}")
    return ", ".join([*parts, *([values(own)] if own else [])])
