"""What a reader must know of the searches before believing a comparison, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from cdgrad.study.plan.job import run_name
from cdgrad.study.report.words import counted, in_cell
from cdgrad.study.shown import published
from cdgrad.study.statistics.results import Results


def tuning_remarks(results: Results) -> Iterator[str]:
    """All that applies to `results`."""
    yield from _searched(results)
    yield from _equal_trials(results)
    yield from _unequal_tuning(results)
    yield from _failed_repeats(results)


def _searched(results: Results) -> Iterator[str]:
    """Whether the searches were wide enough."""
    for (cell, *_), search in results.searches.items():
        if search.chosen is None:
            continue
        for key, value in search.values[search.chosen].items():
            tried = {values[key] for values in search.values.values()}
            # Only numbers have a lowest and a highest value.
            if len(tried) < 3 or any(isinstance(t, str | bool) for t in tried):
                continue
            if min(tried) < value < max(tried):
                continue
            end = "lowest" if value == min(tried) else "highest"
            chosen = f"the chosen {key} = {value:.3g} is the {end} of {len(tried)} tried"
            yield f"{search.title}{in_cell(cell)}: {chosen}, so that a better one may lie beyond."


def _equal_trials(results: Results) -> Iterator[str]:
    """Whether a search found no difference at all: then its keys probably change nothing."""
    for (cell, *_), search in results.searches.items():
        runs = {t: {s: run.error for s, run in by_seed.items()} for t, by_seed in search.runs.items()}
        seeds = {seed for by_seed in runs.values() for seed in by_seed}
        equal = all(len({by_seed[s] for by_seed in runs.values() if s in by_seed}) == 1 for s in seeds)
        if len(runs) > 1 and seeds and equal:
            which = f"{search.title}{in_cell(cell)}"
            yield f"All {len(runs)} trials of {which} have equal results: check that the tuned keys are used."


def _unequal_tuning(results: Results) -> Iterator[str]:
    """Whether some of the compared arms were searched for and others not: a difference may be due to that."""
    spec = results.spec
    if spec.tuning is None:
        return
    compared = {arm for contrast in spec.tested_contrasts.values() for arm in contrast}
    how = {
        "own": f"tuned by {counted(spec.tuning.trials, 'trial')}",
        "baseline": f"at what the trials of {spec.baseline} chose",
        "none": "not tuned",
    }
    groups = {kind: [a for a, o in spec.arms.items() if a in compared and o.tuning == kind] for kind in how}
    if sum(map(bool, groups.values())) > 1:
        each = "; ".join(f"{', '.join(arms)} {how[kind]}" for kind, arms in groups.items() if arms)
        yield f"The compared arms were not tuned alike ({each}): a difference may be due to the tuning alone."


def _failed_repeats(results: Results) -> Iterator[str]:
    """Finished runs that are to be repeated with what further trials chose, and whose repeat failed."""
    kept = [
        run
        for run in results.completed
        if run.message
        and run.seed in results.spec.seeds
        and run.seed not in results.finished.get((run.cell, run.arm), {run.seed})
    ]
    if kept:
        yield (
            f"{counted(len(kept), 'repeated run')} failed, the first {run_name(kept[0])}: "
            f"{published(kept[0].message)}. The earlier results, with what fewer trials chose, are kept and "
            "left out here; cdgrad log DIR has the tracebacks."
        )
