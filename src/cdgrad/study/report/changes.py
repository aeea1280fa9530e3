"""How a study differs from what was planned before its first run: the changes may follow from results."""

from __future__ import annotations

from collections.abc import Iterator

from cdgrad.messages import first_few
from cdgrad.study.report.words import counted
from cdgrad.study.spec import Spec
from cdgrad.study.statistics.results import Results


def changed_later(results: Results) -> Iterator[str]:
    """What was added or changed after runs were recorded, and so perhaps after results were seen."""
    if results.unreadable:
        yield (
            f"{counted(results.unreadable, 'earlier specification')} of this study cannot be read by this "
            "version of cdgrad: what was changed since is not known."
        )
    spec = results.spec
    for planned in results.earlier[:1]:
        yield from _seeds(planned, spec)
        if spec.tuning and planned.tuning and spec.tuning.trials > planned.tuning.trials:
            yield (
                f"tuning.trials grew from {planned.tuning.trials} to {spec.tuning.trials} after runs were "
                "recorded: the decision to search further may depend on results."
            )
        for kind, now, before in (("Arm", spec.arms, planned.arms), ("Cell", spec.cells, planned.cells)):
            if added := [name for name in now if name and name not in before]:
                yield (
                    f"{kind} {', '.join(added)} was added after runs were recorded: the choice to add it, or "
                    "of what to compare, may depend on results."
                )
        yield from _comparisons(planned, results.planned or spec)


def _seeds(planned: Spec, spec: Spec) -> Iterator[str]:
    seeds = sorted({*spec.seeds} - {*planned.seeds})
    if seeds and not spec.until and set(planned.seeds) & set(spec.seeds):
        yield (
            f"{counted(len(seeds), 'seed')} ({first_few(seeds, 10)}) {'was' if len(seeds) == 1 else 'were'} "
            f"added to a study with recorded runs of {len(planned.seeds)} seeds: p and the intervals assume "
            "that their number was fixed before any result was seen; seeds = { until, most } allows it."
        )
    fewer = {*planned.seeds} - {*spec.seeds}
    if planned.until and not spec.until:
        yield (
            "The study was planned with seeds = { until, most }, and its number of seeds was fixed after "
            "runs were recorded: p and the intervals assume that it was fixed before any result was seen."
        )
    elif fewer and not seeds and not spec.until:
        yield (
            f"The number of seeds was reduced from {len(planned.seeds)} to {len(spec.seeds)} after runs were "
            "recorded: the decision to stop may depend on results."
        )


def has_later_margin(results: Results) -> bool:
    """Whether the margin of equivalence is not the one of the first specification."""
    return any(planned.margin != results.spec.margin for planned in results.earlier[:1])


def _comparisons(planned: Spec, spec: Spec) -> Iterator[str]:
    """Whether the specification states another margin or direction, or compares other arms."""
    if spec.measure.direction != planned.measure.direction:
        small, large = ("small", "large") if planned.measure.direction == "min" else ("large", "small")
        yield (
            f"{planned.measure.title}: {small} values were the better ones, and after runs were recorded "
            f"{large} ones are."
        )
    if spec.margin and spec.margin != planned.margin:
        before = f"it was {planned.margin:g}" if planned.margin else "there was none"
        yield (
            f"margin = {spec.margin:g} was set after runs were recorded ({before}): equivalence is shown "
            "only within a margin that was stated before any result was seen."
        )
    if spec.all_pairs and not planned.all_pairs:
        yield (
            f"The arms were to be compared with {planned.reference_arm}, and after runs were recorded in all "
            "pairs: the choice may depend on results."
        )
    elif spec.reference_arm != planned.reference_arm:
        yield (
            f"The arms were to be compared with {planned.reference_arm}, and after runs were recorded with "
            f"{spec.reference_arm}: the choice may depend on results."
        )


def left_out(results: Results) -> Iterator[str]:
    """Recorded cells, arms and seeds that the specification leaves out, perhaps after a look."""
    spec = results.spec
    final = [run for run in results.completed if run.trial is None]
    kinds = {
        "seed": sorted({run.seed for run in final} - {*spec.seeds}),
        "arm": sorted({run.arm for run in final} - {*spec.arms}),
        "cell": sorted({run.cell for run in final} - {*spec.cells}),
    }
    for kind, names in kinds.items():
        if names:
            yield f"Recorded but left out of this report: {kind} {first_few(names, 8)}."
