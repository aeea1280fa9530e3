"""What a reader must know before believing a study's tables, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from cdgrad.messages import first_few
from cdgrad.study.plan.job import run_name
from cdgrad.study.report.changes import changed_later, left_out
from cdgrad.study.report.environments import environment_remarks
from cdgrad.study.report.split_sizes import nothing_learned, repeated_images, split_sizes
from cdgrad.study.report.tuning_remarks import tuning_remarks
from cdgrad.study.report.verdicts import why_equal
from cdgrad.study.report.words import counted, in_cell, words
from cdgrad.study.shown import published
from cdgrad.study.spec import ERROR
from cdgrad.study.statistics import paired
from cdgrad.study.statistics.results import Results


def remarks(results: Results) -> list[str]:
    """All that applies to `results`."""
    return [
        *_shares(results),
        *_evaluated(results),
        *split_sizes(results),
        *repeated_images(results),
        *nothing_learned(results),
        *_reference(results),
        *_unreachable(results),
        *_diverged(results),
        *_rounding(results),
        *_looks(results),
        *_replicates(results),
        *changed_later(results),
        *tuning_remarks(results),
        *_shared_images(results),
        *environment_remarks(results),
        *_unread(results),
        *_graphs(results),
        *_identical(results),
        *left_out(results),
        *_unfinished(results),
    ]


def _evaluated(results: Results) -> Iterator[str]:
    """Who read the test data: from the records of all runs, not from the specification."""
    data = words(results).data
    none, were = "No test image was read", "images were"
    if data != "images":  # the user's own code, which may have read what it was not asked for
        none, were = "No result on test data was asked for", "data was"
    read = [run for run in results.completed if run.evaluated == "test"]
    trials = [run for run in results.completed if run.trial is not None]
    if not read:
        yield f"{none}: all {len(results.completed)} recorded runs were evaluated on validation {data}."
    elif wrong := [run for run in read if run.trial is not None]:
        what = "test errors" if results.spec.measure == ERROR else "results on test data"
        yield f"The test {were} read by {len(wrong)} trials: this study's {what} are not valid."
    else:
        final, of_trials = "", ""
        if trials:
            final, of_trials = (
                "final ",
                f"; the {len(trials)} runs of trials were evaluated on validation {data}",
            )
        yield f"The test {were} read by {len(read)} {final}runs, {when_tested(results)}{of_trials}."


def when_tested(results: Results) -> str:
    """When the runs read the test data; the user's own training code may read it whenever it likes."""
    if results.spec.entry:
        return f"at the times that {results.spec.entry} chose"
    read = [run for run in results.completed if run.evaluated == "test"]
    schedules: list[dict[str, object]] = [run.config.get("schedule") or {} for run in read]
    often = sum(schedule.get("test_every_epoch") is True for schedule in schedules)
    if not often:
        return "once each, at their end"
    which = "" if often == len(read) else f"{often} of them "
    others = "" if often == len(read) else ", the others once, at their end"
    return f"{which}after every epoch, with the last one as the result{others}"


def _reference(results: Results) -> Iterator[str]:
    """Whether the report was asked for other comparisons than those that the study planned."""
    spec, planned = results.spec, results.planned
    if planned is None or planned.contrasts == spec.contrasts:
        return
    before = "all pairs of arms" if planned.all_pairs else f"with {planned.reference_arm}"
    yield (
        f"The specification compares {before}; this report compares "
        + ("all pairs of arms" if spec.all_pairs else f"with {spec.reference_arm}")
        + f", {len(results.comparisons)} in all: comparisons chosen after results were seen are shown too "
        "often."
    )


def _rounding(results: Results) -> Iterator[str]:
    """How far arms that are identical in exact arithmetic differ, beside how far the others do."""
    spec, w = results.spec, words(results)

    def size(c: paired.Comparison) -> str:
        return w.number(float(abs(c.differences).mean()))

    for cell in spec.cells:
        compared = {name: c for name, (c, _) in results.in_cell(cell).items() if c.pairs > 1}
        floor = [name for name in compared if name in spec.noise_floor]
        beside = ", ".join(f"{name} {size(c)}" for name, c in compared.items() if name not in floor)
        for name in floor:
            arm, reference = spec.contrasts[name]
            others = "the other pairs differ" if spec.all_pairs else f"the others differ from {reference}"
            yield (
                f"{arm} is {reference} with other rounding errors{in_cell(cell)}: it differs from it by "
                f"{size(compared[name])} points in a seed, on average of absolute values, and by "
                f"{w.number(compared[name].mean, '+')} in the mean."
                + (f" In a seed, {others} by: {beside}." if beside else "")
            )


def _looks(results: Results) -> Iterator[str]:
    spec = results.spec
    if spec.until and results.comparisons:
        until = words(results).amount(spec.until)
        yield (
            "The number of seeds followed from the results: a cell ends once each of its comparisons is "
            f"shown or its interval is narrower than {until}, at {len(spec.seeds)} seeds at "
            "the latest. Anytime intervals and their p are valid after any number of looks; t intervals, "
            "bootstrap and power are not."
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
    pairs = [c.pairs for c, _ in results.comparisons.values() if c.pairs > 1]
    if not pairs or not results.spec.tests or results.spec.until or results.spec.replicates > 1:
        return
    tests, planned = results.spec.tests, len(results.spec.seeds)
    enough_planned = paired.smallest_p(planned) * tests < 1 - paired.LEVEL
    seeds = max(pairs) if enough_planned else planned
    smallest = paired.smallest_p(seeds) * tests
    if smallest >= 1 - paired.LEVEL:
        yield (
            f"With {seeds} seeds{' so far' * enough_planned} and {counted(tests, 'comparison')} no "
            f"{'Holm ' * (tests > 1)}p can be below {min(smallest, 1):.2g}, so that no difference, however "
            f"large, can be shown{' yet' if enough_planned else '; add seeds'}."
        )


def _diverged(results: Results) -> Iterator[str]:
    """Diverged runs are results; where they rule the mean, the median says what the others did."""
    measure, given = results.spec.measure, set[tuple[str, str]]()
    for (cell, arm), runs in results.finished.items():
        seeds = sorted(seed for seed, run in runs.items() if run.status == "diverged")
        if not seeds:
            continue
        sentence = (
            f"{arm}{in_cell(cell)}: {len(seeds)} of {counted(len(runs), 'run')} diverged "
            f"(seed{'s' * (len(seeds) > 1)} {first_few(seeds, 10)}) and "
            f"{'is' if len(seeds) == 1 else 'are'} included with the final {measure.name}"
            + "; predictions that are not finite count as errors"
            * (measure == ERROR and not results.spec.entry)
            + "."
        )
        if medians := _medians(results, cell, arm, given):
            what = "errors" if measure == ERROR else "values"
            sentence += f" Such {what} dominate a mean and its interval; the median difference{medians}."
        yield sentence


def _medians(results: Results, cell: str, arm: str, given: set[tuple[str, str]]) -> str:
    """The median differences of an arm's comparisons; empty where it has none that is not in `given`."""
    w, medians = words(results), list[str]()
    for name, (c, _) in results.in_cell(cell).items():
        contrast = results.spec.contrasts[name]
        if arm in contrast and c.pairs > 1 and (cell, name) not in given:
            given.add((cell, name))
            interval = w.interval(c.median_interval, "+")
            between = "" if interval == "-" else f" (95 % interval {interval})"
            of = "" if arm == contrast.arm else f" of {contrast.arm}"
            medians.append(f"{of} to {contrast.reference} is {w.difference(c.median)}{between}")
    return ",".join(medians)


def _shared_images(results: Results) -> Iterator[str]:
    """Whether trials may have seen images that final runs test on."""
    if results.spec.evaluate != "test":
        return
    trials = [run for run in results.completed if run.trial is not None]
    drawn = {run.cell for run in trials if run.environment.get("test_split") == "drawn"}
    for cell in filter(drawn.__contains__, results.spec.cells):
        yield (
            "The data has no test split of its own, so every seed draws one: in every arm, the "
            f"trials{in_cell(cell)} saw images that final runs are tested on."
        )


def _unread(results: Results) -> Iterator[str]:
    """Whether the user's training code never read some of an arm's values: a typing error changes nothing."""
    unread: dict[str, set[str]] = {}
    for run in results.final_runs:
        unread.setdefault(run.arm, set()).update(run.environment.get("unread", ()))
    for arm, keys in unread.items():
        if keys:
            names = ", ".join(sorted(keys))
            yield f"{results.spec.entry} never read {names} of arm {arm}: the values changed nothing."


def _graphs(results: Results) -> Iterator[str]:
    """Why runs on a GPU were not CUDA graphs, where graphs were not switched off."""
    graphs = [str(run.environment.get("graph", "")) for run in results.completed]
    reasons = [graph.partition("not captured: ")[2] for graph in graphs]
    for reason in sorted({*reasons} - {"", "schedule.graph is false"}):
        executed = counted(reasons.count(reason), "run")
        yield (
            f"The steps of {executed} were not CUDA graphs, which are faster on a GPU: {published(reason)}."
        )


def _identical(results: Results) -> Iterator[str]:
    """Whether an arm has its reference's results: then it probably changes nothing."""
    w = words(results)
    for (cell, name), (c, _) in results.comparisons.items():
        if c.pairs > 1 and c.sd == 0:
            arm, reference = results.spec.contrasts[name]
            yield (
                f"{arm}{in_cell(cell)} differs from {reference} by {w.difference(c.mean, '')} in every "
                f"{results.sampled}: {why_equal(c)}; nothing is estimated from this."
            )


def _shares(results: Results) -> Iterator[str]:
    """Whether percentages look like shares."""
    measure, runs = results.spec.measure, results.final_runs
    values = [run.error for run in runs if run.error is not None]
    if results.spec.entry and measure.percent and len(values) > 1 and 0 < max(values) <= 1:
        what = "errors" if measure == ERROR else f"values of {measure.name}"
        yield (
            f"All {what} are at most {max(values):.3g} %: is the entry's {measure.name} a share from 0 to 1? "
            "It is taken for percent; return 100 times the share."
        )


def _unfinished(results: Results) -> Iterator[str]:
    """What is left to execute; a failed run of a cell that ended without it is not."""
    failed = [run for run in results.failed if run.trial is not None or run.cell not in results.ended]
    if failed:
        first = failed[0]
        yield (
            f"{counted(len(failed), 'run')} failed and {'is' if len(failed) == 1 else 'are'} left out, the "
            f"first {run_name(first)}: {published(first.message)}; run the same command to try again."
        )
        if final := [run for run in failed if run.trial is None]:
            arms = dict.fromkeys(run.arm for run in final)
            listed = ", ".join(f"{arm} ({sum(run.arm == arm for run in final)})" for arm in arms)
            yield (
                f"Failed final runs by arm: {listed}. Comparisons leave out the seeds on which one of their "
                "arms failed, so an arm that fails where it would have a bad result looks better than it is."
            )
    planned = results.total + results.trials_total
    if left := planned - results.count - results.trials_finished - len(failed):
        runs = "At most " * bool(results.spec.until) + counted(left, "run")
        again = "run the same command again to complete them"
        yield f"{runs} {'remains' if left == 1 else 'remain'}: {again}; until then, results are provisional."
