"""What a reader must know before believing a study's tables, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from cdgrad.study.shown import published
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results

_ENVIRONMENT = ("torch", "numpy", "numba", "cdgrad", "commit", "python", "device", "cpu", "threads")


def remarks(results: Results) -> list[str]:
    """All that applies to `results`."""
    return [
        *_evaluated(results),
        *_unreachable(results),
        *_diverged(results),
        *_rounding(results),
        *_looks(results),
        *_replicates(results),
        *_added_later(results),
        *_searched(results),
        *_shared_images(results),
        *_environment(results),
        *_images(results),
        *_code(results),
        *_identical(results),
        *_equal_trials(results),
        *_shares(results),
        *_not_in_the_study(results),
        *_unfinished(results),
    ]


def environments(results: Results) -> dict[str, list[str]]:
    """What a repetition needs; several values where final runs differ in it."""
    runs = [run for of_arm in results.finished.values() for run in of_arm.values()]
    runs = runs or [run for s in results.searches.values() for t in s.runs.values() for run in t.values()]
    found = {key: sorted({str(run.environment.get(key)) for run in runs}) for key in _ENVIRONMENT}
    return {key: values for key, values in found.items() if values != ["None"]}


def _evaluated(results: Results) -> Iterator[str]:
    """Who read the test images: from the records of all runs, not from the specification."""
    ended = [run for run in results.runs if run.status != "failed"]
    read = [run for run in ended if run.evaluated == "test"]
    trials = [run for run in ended if run.trial is not None]
    if not read:
        yield f"No test image was read: all {len(ended)} recorded runs were evaluated on validation images."
    elif wrong := [run for run in read if run.trial is not None]:
        yield f"The test images were read by {len(wrong)} trials: this study's test errors are not valid."
    elif trials:
        yield (
            f"The test images were read by {len(read)} final runs, once each, at their end; the "
            f"{len(trials)} runs of trials were evaluated on validation images."
        )
    else:
        yield f"The test images were read by {len(read)} runs, once each, at their end."


def _rounding(results: Results) -> Iterator[str]:
    """How far arms that are identical in exact arithmetic differ, beside how far the others do."""
    spec = results.spec
    for cell in spec.cells:
        compared = {arm: c for arm, (c, _) in results.in_cell(cell).items() if c.pairs > 1}
        floor = [arm for arm in compared if arm in spec.rounding_arms]
        beside = ", ".join(f"{arm} {_size(c)}" for arm, c in compared.items() if arm not in floor)
        for arm in floor:
            yield (
                f"{arm} is {spec.baseline} with other rounding errors{_in(cell)}: it differs from it by "
                f"{_size(compared[arm])} points in a seed, on average of absolute values, and by "
                f"{compared[arm].mean:+.2f} in the mean."
                + (f" In a seed, the others differ from {spec.baseline} by: {beside}." if beside else "")
            )


def _size(c: paired.Comparison) -> str:
    """The mean absolute difference of a seed, in points."""
    return f"{float(abs(c.differences).mean()):.2f}"


def _looks(results: Results) -> Iterator[str]:
    spec = results.spec
    if spec.until and results.comparisons:
        yield (
            "The number of seeds followed from the results: a cell ends once each of its comparisons is "
            f"shown or its interval is narrower than {spec.until:g} points, at {len(spec.seeds)} seeds at "
            "the latest. Intervals and p are valid after any number of looks; bootstrap and power are not."
        )


def _replicates(results: Results) -> Iterator[str]:
    searches = results.spec.replicates
    if searches > 1 and results.comparisons:
        yield (
            f"Each arm was tuned by {searches} independent searches, each with seeds of its own: intervals "
            f"and p are Student's t over the searches' means ({searches - 1} degrees of freedom) and contain "
            "the noise of tuning."
        )


def _unreachable(results: Results) -> Iterator[str]:
    """Whether the sign-flip test could show anything at all."""
    found = [c.pairs for c, _ in results.comparisons.values() if c.pairs > 1]
    if not found or not results.tested or results.spec.until or results.spec.replicates > 1:
        return
    smallest = paired.smallest_p(max(found)) * results.tested
    if smallest >= 1 - paired.LEVEL:
        yield (
            f"With {max(found)} seeds and {results.tested} comparisons no p can be below "
            f"{min(smallest, 1):.2g}, so that no difference, however large, can be shown: add seeds."
        )


def _diverged(results: Results) -> Iterator[str]:
    """Diverged runs are results; where they rule the mean, the median says what the others did."""
    for (cell, arm), runs in results.finished.items():
        seeds = sorted(seed for seed, run in runs.items() if run.status == "diverged")
        if not seeds:
            continue
        listed = ", ".join(map(str, seeds))
        sentence = (
            f"{arm}{_in(cell)}: {len(seeds)} of {_count(len(runs), 'run')} diverged (seed {listed}) and "
            f"counts like any other, with the error it ended with; what is not finite is an error."
        )
        compared = results.comparisons.get((cell, arm))
        if compared and compared.comparison.pairs > 1:
            c = compared.comparison
            low, high = c.median_interval
            between = "" if low != low else f" (95 % interval {low:+.2f} to {high:+.2f})"
            sentence += (
                f" Such errors rule a mean and its interval; the median difference to "
                f"{results.spec.baseline} is {c.median:+.2f} points{between}."
            )
        yield sentence


def _added_later(results: Results) -> Iterator[str]:
    """Seeds and arms that joined after runs were recorded, and so perhaps after a look at their results."""
    spec = results.spec
    for before in results.earlier[:1]:  # the oldest: what was planned
        seeds = sorted({*spec.seeds} - {*before.seeds})
        if seeds and not spec.until and set(before.seeds) & set(spec.seeds):
            listed = ", ".join(map(str, seeds[:10])) + ", ..." * (len(seeds) > 10)
            yield (
                f"{_count(len(seeds), 'seed')} ({listed}) joined a study that had recorded runs of "
                f"{len(before.seeds)}: p and the intervals assume that no result was seen before the number "
                "of seeds was set; seeds = { until, most } allows it."
            )
        if arms := [arm for arm in spec.arms if arm not in before.arms]:
            yield (
                f"Arm {', '.join(arms)} joined after runs were recorded: the choice to add it, or of what to "
                "compare, may rest on results."
            )


def _searched(results: Results) -> Iterator[str]:
    """Whether the searches were wide enough."""
    for (cell, *_), search in results.searches.items():
        if search.chosen is None:
            continue
        for key, value in search.values[search.chosen].items():
            tried = {values[key] for values in search.values.values()}
            # Words have no ends, nor have choices of words and numbers.
            if len(tried) < 3 or any(isinstance(t, str | bool) for t in tried):
                continue
            if min(tried) < value < max(tried):
                continue
            end = "lowest" if value == min(tried) else "highest"
            chosen = f"the chosen {key} = {value:.3g} is the {end} of {len(tried)} tried"
            yield f"{search.title}{_in(cell)}: {chosen}, so that a better one may lie beyond."


def _shared_images(results: Results) -> Iterator[str]:
    """Whether trials may have seen images that final runs test on."""
    if results.spec.evaluate != "test":
        return
    trials = [run for run in results.runs if run.trial is not None and run.status != "failed"]
    drawn = {run.cell for run in trials if run.environment.get("test_split") == "drawn"}
    for cell in filter(drawn.__contains__, results.spec.cells):
        yield (
            f"The data has no test split of its own, so that every seed draws one: the trials{_in(cell)} saw "
            "images that final runs test on, for every arm alike."
        )


def _environment(results: Results) -> Iterator[str]:
    # Training is chaotic: a changed rounding error moves a single run by as much as a changed seed.
    for key, values in environments(results).items():
        if len(values) > 1:
            listed = ", ".join(values)
            yield f"The runs differ in {key} ({listed}), so arms may differ in more than their setting."


def _images(results: Results) -> Iterator[str]:
    """Whether a folder of images changed between the runs of a cell; cells may differ in their data."""
    for cell in results.spec.cells:
        parts = [of_arm for (c, _), of_arm in results.finished.items() if c == cell]
        searches = [search for place, search in results.searches.items() if place.cell == cell]
        parts += [tried for search in searches for tried in search.runs.values()]
        environments = [run.environment for part in parts for run in part.values()]
        found = sorted({environment["data"] for environment in environments if "data" in environment})
        if len(found) > 1:
            yield (
                f"The runs differ in data{_in(cell)} ({', '.join(found)}): the images changed between them, "
                f"and they are not comparable; run the study again with another --out."
            )


def _code(results: Results) -> Iterator[str]:
    """Whether modules of the user changed between the runs."""
    runs = [*results.final_runs, *results.trial_runs]
    codes = [run.environment.get("code", {}) for run in runs if run.status != "failed"]
    files = sorted({name for code in codes for name in code})
    changed = [name for name in files if len({code[name] for code in codes if name in code}) > 1]
    if changed:
        yield (
            f"The code changed between the runs ({', '.join(changed)}): they are compared as if it "
            f"were the same."
        )


def _identical(results: Results) -> Iterator[str]:
    """Whether an arm made the baseline's errors: then it probably changes nothing."""
    for (cell, arm), (found, _) in results.comparisons.items():
        if found.pairs > 1 and found.sd == 0:
            yield (
                f"{arm}{_in(cell)} differs from {results.spec.baseline} by {found.mean:.2f} points in every "
                f"seed: check that the arm changes the training; nothing is estimated from this."
            )


def _equal_trials(results: Results) -> Iterator[str]:
    """Whether a search found no difference at all: then its keys probably change nothing."""
    for (cell, *_), search in results.searches.items():
        runs = {trial: {s: r.error for s, r in of.items()} for trial, of in search.runs.items()}
        seeds = {seed for of in runs.values() for seed in of}
        equal = all(len({of[s] for of in runs.values() if s in of}) == 1 for s in seeds)
        if len(runs) > 1 and seeds and equal:
            which = f"{search.title}{_in(cell)}"
            yield f"All {len(runs)} trials of {which} agree: check that the tuned keys are used."


def _shares(results: Results) -> Iterator[str]:
    """Whether errors look like shares instead of percent."""
    errors = [run.error for run in results.final_runs if run.error is not None]
    if results.spec.entry and len(errors) > 1 and 0 < max(errors) <= 1:
        yield (
            f"All errors are at most {max(errors):.3g} %: is the entry's error a share from 0 to 1? It is "
            f"taken for percent; return 100 times the share."
        )


def _not_in_the_study(results: Results) -> Iterator[str]:
    """Recorded seeds and arms that the present specification leaves out, perhaps after a look."""
    spec = results.spec
    final = [run for run in results.runs if run.trial is None and run.status != "failed"]
    if seeds := sorted({run.seed for run in final} - {*spec.seeds}):
        listed = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
        yield f"Recorded but left out of this report: seed {listed}."
    if arms := sorted({run.arm for run in final} - {*spec.arms}):
        yield f"Recorded but left out of this report: arm {', '.join(arms)}."


def _unfinished(results: Results) -> Iterator[str]:
    failed = results.failed
    if failed:
        first = failed[0]
        kind = "" if first.trial is None else f", trial {first.trial}"
        which = f"{first.arm}{_in(first.cell)}{kind}, seed {first.seed}"
        yield (
            f"{_count(len(failed), 'run')} failed and left out, the first {which}: "
            f"{published(first.message)}; the same command tries again."
        )
    planned = results.total + results.trials_total
    if left := planned - results.count - results.trials_finished - len(failed):
        runs = _count(left, "run")
        again = "run the same command again to complete them"
        yield f"{runs} {'remains' if left == 1 else 'remain'}: {again}; until then, results are provisional."


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _in(cell: str) -> str:
    return f" in {cell}" if cell else ""
