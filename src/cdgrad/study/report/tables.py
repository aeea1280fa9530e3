"""The tables of a cell: arms, paired differences and what they can show. Numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cdgrad.study.report.changes import has_later_margin
from cdgrad.study.report.document import Table
from cdgrad.study.report.words import Words, on_its_side, words
from cdgrad.study.spec import NO_METRIC, OPTIONS, EntrySetting, LoopSetting, Spec
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.equivalence import anytime_equivalence, equivalence
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p, fewest_pairs

_SIZES = (0.1, 0.2, 0.5)  # points, for the number of seeds needed
_ANYTIME = (
    "valid after a look at every seed, by the mixture sequential t-test (arXiv 2310.03722) with a correction "
    "for skewness (Hall 1992)"
)
FIXED = "; all of a fixed number of seeds: the anytime-valid interval needs more"


def errors(results: Results, cell: str) -> Table:
    """An arm a row: what it is, and the error, or the study's other measure, of its final runs."""
    spec, w = results.spec, words(results)
    diverged = any(r.status == "diverged" for arm in spec.arms for r in results.finished[cell, arm].values())
    rows: list[Sequence[str]] = []
    for arm in spec.arms:
        values, runs = results.errors(cell, arm), results.finished[cell, arm].values()
        count = [str(sum(run.status == "diverged" for run in runs))] if diverged else []
        numbers = ["-", "-", "-"]
        if values:
            sd = w.number(paired.standard_deviation(values))
            numbers = [w.number(mean(values)), w.interval(results.mean_interval(cell, arm)), sd]
        rows.append((arm, *numbers, str(len(values)), *count, what(results, cell, arm)))
    return Table(
        f"{spec.measure.title} on the {spec.evaluate} {w.data}{w.in_unit}",
        ("arm", "mean", "95 % interval", "SD", "seeds", *(["div."] if diverged else []), "what"),
        rows,
        "mean over the seeds, its interval by Student's t, standard deviation of a run"
        + "; an interval ends at 0 and 100 %" * _is_cut(results, cell)
        + f"; div.: runs that diverged, which count with the {spec.measure.name} they ended with" * diverged,
        align="lrrrr" + "r" * diverged + "p",
    )


def _is_cut(results: Results, cell: str) -> bool:
    """Whether an arm's interval would reach beyond what a percentage can be."""
    return any(
        results.mean_interval(cell, arm) != paired.mean_interval(values)
        for arm in results.spec.arms
        if len(values := results.errors(cell, arm)) > 1
    )


def differences(results: Results, cell: str) -> Table:
    """A comparison a row: its paired difference, and how sure it is."""
    w, compared, tested = words(results), results.in_cell(cell), results.spec.tested_contrasts
    several, untested = results.spec.tests > 1, [name for name in compared if name not in tested]
    copy = "a pair with the baseline's copy of" if results.spec.all_pairs else "the baseline with"
    rows = [
        (
            name,
            w.number(c.mean, "+"),
            _interval(w, c, c.interval),
            p_value(c.p if name in tested else math.nan),
            *([p_value(adjusted)] if several else []),
            f"{100 * c.win_rate:.0f} %",
            "-" if math.isnan(c.correlation) else f"{c.correlation:.2f}",
            f"{c.pairs}",
        )
        for name, (c, adjusted) in compared.items()
    ]
    kind = interval_name(results)
    units = "searches" if results.spec.replicates > 1 else "pairs"
    valid = f", {_ANYTIME}" if results.spec.until else ""
    note = f"95 % {kind}: interval of the mean{valid}, uncorrected; p: {_test_name(results)}; "
    if several:
        note += f"Holm p: corrected for all {results.spec.tests} comparisons of the study; "
    return Table(
        difference_title(results.spec, w),
        (row_name(results), "mean", f"95 % {kind}", "p", *(["Holm p"] * several), "win rate", "corr.", units),
        rows,
        f"{note}win rate: share of seeds on which {_winner(results)} is better, ties half; "
        "corr.: correlation of the two arms over the seeds"
        + f"; {', '.join(untested)}: {copy} other rounding errors, not a test"
        * bool(untested),
        align="l" + "r" * (6 + several),
    )


def difference_title(spec: Spec, w: Words) -> str:
    """The title of a table of paired differences."""
    if spec.all_pairs:
        return f"Paired differences of all pairs of arms{w.in_points}: first minus second, {w.better_sign}"
    return f"Paired difference to {spec.reference_arm}{w.in_points}: {w.better_sign}"


def row_name(results: Results) -> str:
    """What a row of comparisons is: an arm, or a pair of arms."""
    return "pair" if results.spec.all_pairs else "arm"


def _winner(results: Results) -> str:
    return "the first arm of the pair" if results.spec.all_pairs else "the arm"


def interval_name(results: Results) -> str:
    """Which interval the comparisons have: Student's t, or the anytime-valid one."""
    return "anytime" if results.spec.until else "t"


def _test_name(results: Results) -> str:
    if results.spec.until:
        return "sequential t-test"
    return "t-test over the searches" if results.spec.replicates > 1 else "sign-flip test"


def certainty(results: Results, cell: str) -> Table:
    """A comparison a row: what holds after any number of looks, and whether the arms are equivalent.

    Without rows where neither is asked for: with ``seeds = { until, most }`` the differences' table has the
    anytime-valid intervals.
    """
    w, margin, until = words(results), results.spec.margin, results.spec.until
    looks = () if until else ("95 % anytime", "anytime p")
    tests = () if not margin else ("margin p", "equivalent") if until else ("90 % t", "TOST p", "equivalent")
    intervals = {name: anytime_interval(c.differences) for name, (c, _) in results.in_cell(cell).items()}
    rows: list[Sequence[str]] = []
    for name, (c, _) in results.in_cell(cell).items():
        row = [name]
        row += [w.interval(intervals[name], "+"), p_value(anytime_p(c.differences))] if looks else []
        row += _equivalence(results, w, c) if margin else []
        rows.append(row)
    notes: list[str] = []
    if looks:
        sampled = _ANYTIME.replace("seed", results.sampled)
        notes.append(f"anytime: {sampled}, each comparison on its own")
    if looks and any(math.isnan(interval.low) for interval in intervals.values()):
        plural = "searches" if results.sampled == "search" else "seeds"
        notes.append(f"a dash: fewer than {fewest_pairs()} {plural}, or equal differences")
    if margin:
        notes.append(_equivalence_note(w.amount(margin), until=bool(until)))
    titles = ["After any number of looks"] * bool(looks) + ["equivalence"] * bool(tests)
    title = ", and ".join(titles)
    return Table(
        title[:1].upper() + title[1:],
        (row_name(results), *looks, *tests),
        rows if looks or tests else (),
        "; ".join(notes),
        align="l" + "r" * len(looks + tests),
    )


def _equivalence(results: Results, w: Words, c: paired.Comparison) -> list[str]:
    """The interval, the p and the outcome of the test of equivalence."""
    test = (anytime_equivalence if results.spec.until else equivalence)(c.differences, results.spec.margin)
    shown = test.shown and c.sd > 0 and not has_later_margin(results)
    return [
        *([] if results.spec.until else [_interval(w, c, test.interval)]),
        p_value(test.p if c.sd else math.nan),
        "yes" if shown else "not shown",
    ]


def _equivalence_note(margin: str, *, until: bool) -> str:
    how = (
        "the anytime-valid interval, which lies within the margin where its p is below 0.05"
        if until
        else "two one-sided t-tests at 5 %, which hold where neither the margin nor the number of seeds "
        "followed from the results"
    )
    return (
        f"equivalence: the mean difference is smaller than the margin of {margin}, by {how}, each comparison "
        "on its own; equal differences show none"
    )


def power(results: Results, cell: str) -> Table:
    """A comparison a row: the minimum detectable difference, and the seeds needed for smaller ones."""
    w, compared = words(results), {n: c for n, (c, _) in results.in_cell(cell).items() if c.pairs > 1}
    sizes = true_differences(w, max((c.sd for c in compared.values()), default=math.nan))
    searches = results.sampled == "search"
    plural = "searches" if searches else "seeds"
    rows = [
        (
            name,
            *([] if searches else [_interval(w, c, c.bootstrap)]),
            w.number(c.sd),
            w.number(paired.detectable_difference(c.pairs, c.sd) if c.sd else math.nan),
            *(pairs_needed(results.spec, size, c.sd) if c.sd else "-" for size in sizes),
        )
        for name, c in compared.items()
    ]
    unit = f" in {w.of_difference}" if w.of_difference else ""
    bootstrap = () if searches else ("95 % BCa",)
    sampled = "the mean difference of a search" if searches else "a difference"
    return Table(
        f"Statistical power: detectable difference, and {plural} needed",
        (row_name(results), *bootstrap, "SD", "MDD", *(f"for {size:g}" for size in sizes)),
        rows,
        "BCa: bootstrap interval of the mean difference, too narrow below about 30 pairs; "
        * bool(bootstrap)
        + f"SD: standard deviation of {sampled}; MDD: the smallest true difference{unit} shown with "
        f"{100 * paired.POWER:.0f} % power by a two-sided paired t-test at 5 %; for x: {plural} that would "
        f"detect {f'x {w.of_difference}'.rstrip()} with that power, at this SD"
        + at_least(results.spec) * bool(sizes)
        + FIXED * bool(results.spec.until),
        align="lrr" + "r" * len((*bootstrap, *sizes)),
    )


def pairs_needed(spec: Spec, size: float, sd: float) -> str:
    """The fewest seeds, or searches, that detect a true difference, and with which p can show one at all."""
    fewest = 2 if spec.until or spec.replicates > 1 else paired.fewest_tested_pairs(spec.tests)
    return "-" if fewest is None else f"{max(fewest, paired.required_pairs(size, sd)):,}"


def at_least(spec: Spec) -> str:
    """A clause of a note: below which number of seeds no p is small enough; empty where there is none."""
    fewest = None if spec.until or spec.replicates > 1 else paired.fewest_tested_pairs(spec.tests)
    label = "Holm p" if spec.tests > 1 else "p"
    return "" if fewest is None else f", at least {fewest}: with fewer no {label} can be below 0.05"


def true_differences(w: Words, sd: float, sizes: Sequence[float] = _SIZES) -> Sequence[float]:
    """Differences for which the seeds needed are of interest: `sizes` in points, or of the order of `sd`."""
    if w.measure.percent:
        return sizes
    if not (math.isfinite(sd) and sd > 0):
        return ()
    order = 10.0 ** math.floor(math.log10(sd))
    return [float(f"{size * order:.1g}") for size in (1, 2, 5)]


def summary(results: Results) -> Table:
    """A comparison a row, over all cells."""
    w, rows, before = words(results), list[Sequence[str]](), ""
    for (cell, name), (c, adjusted) in results.comparisons.items():
        shown, before = ("" if cell == before else cell), cell
        interval = _interval(w, c, c.interval)
        rows.append(
            (shown, name, w.number(c.mean, "+"), interval, p_value(adjusted), f"{100 * c.win_rate:.0f} %")
        )
    return Table(
        difference_title(results.spec, w),
        ("cell", row_name(results), "mean", f"95 % {interval_name(results)}", "Holm p", "win rate"),
        rows,
        f"Holm p: {_test_name(results)}, corrected for all {results.spec.tests} comparisons; "
        f"win rate: share of seeds on which {_winner(results)} is better, ties half",
        align="llrrrr",
        grouped=True,
    )


def values(chosen: Mapping[str, object]) -> str:
    """A trial's values in words."""
    pairs = sorted(chosen.items())
    return ", ".join(f"{key.removeprefix('optimizer.')} {one_value(value)}" for key, value in pairs)


def one_value(value: object) -> str:
    """A value of a search space or a specification."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def mean(numbers: Sequence[float]) -> float:
    """The arithmetic mean; one value at least."""
    return math.fsum(numbers) / len(numbers)


def _interval(w: Words, c: paired.Comparison, interval: paired.Interval) -> str:
    """An interval of a comparison; a dash where all differences are equal, which estimate nothing."""
    return w.interval(interval, "+") if c.sd != 0 else "-"


def p_value(value: float) -> str:
    """A p in three decimals, more beside 0.05, on whose side the text is; a dash for nan."""
    if math.isnan(value):
        return "-"
    return on_its_side(value, 3, "f") if value >= 0.001 else "<.001"


def searched_keys(spec: Spec, arm: str) -> list[str]:
    """The keys whose values trials choose for an arm."""
    tuning = spec.arms[arm].tuning
    if spec.tuning is None or tuning == "none":
        return []
    return sorted(spec.tuning.of(arm if tuning == "own" else spec.baseline))


def _metric(text: str, *, with_lam: bool) -> str:
    """A metric with its parameters apart, which a narrow column can break; a tuned lam in three digits."""
    family, _, parameters = text.partition(":")
    pairs = [parameter.split("=") for parameter in parameters.split(",") if parameter]
    pairs = [pair for pair in pairs if with_lam or pair[0] != "lam"]
    return ", ".join(
        [family, *(f"{key} {float(v):.3g}" if key == "lam" else f"{key} {v}" for key, v in pairs)]
    )


def what(results: Results, cell: str, arm: str) -> str:
    """An arm in words: what is done to the gradient, its learning rate, and how it differs otherwise."""
    spec = results.spec
    chosen = results.values(cell, arm)
    setting = spec.setting(cell, arm, chosen)
    # What is not the same in all of the arm's runs, or not known yet, is named without a value.
    searched = [] if chosen and spec.replicates == 1 else searched_keys(spec, arm)
    parts = [_metric(setting.metric, with_lam="lam" not in searched)] if setting.metric != NO_METRIC else []
    parts += ["no metric"] if not parts and words(results).metrics else []
    parts += setting.words()
    own = {f"optimizer.{key}": value for key, value in spec.arms_in(cell)[arm].optimizer.items()}
    own |= setting.values if isinstance(setting, EntrySetting) else {}
    own |= {key: value for key, value in chosen.items() if key not in ("lam", *OPTIONS)}
    if isinstance(setting, LoopSetting):
        own |= {"optimizer.lr": setting.optimizer.lr}
    if searched:
        own = {key: value for key, value in own.items() if key.removeprefix("values.") not in searched}
        by = f"each of {spec.replicates} searches" if spec.replicates > 1 else "trials"
        parts.append(f"{'' if chosen else 'to be '}chosen by {by}: {', '.join(searched)}")
    if "optimizer.name" in own:  # a key is shown by its last part
        own = {"optimizer": own.pop("optimizer.name"), **own}
    return ", ".join([*parts, *([values(own)] if own else [])])
