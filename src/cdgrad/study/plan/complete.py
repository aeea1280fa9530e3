"""The seeds of a cell that every arm has finished, in the order in which they were planned."""

from __future__ import annotations

from collections.abc import Mapping

from cdgrad.study.records.run import Key, Run
from cdgrad.study.spec import Spec


def complete_seeds(spec: Spec, cell: str, runs: Mapping[Key, Run]) -> int:
    """How many of the first seeds all arms have finished in a cell.

    A rule that may end a study early looks at these only: a later seed whose runs end sooner than others'
    could be a seed of a special kind, such as one that diverges.
    """
    for count, seed in enumerate(spec.seeds):
        if any((cell, arm, None, seed) not in runs for arm in spec.arms):
            return count
    return len(spec.seeds)


def complete_differences(spec: Spec, cell: str, runs: Mapping[Key, Run]) -> list[list[float]]:
    """The paired differences of each of the study's comparisons over the complete seeds."""
    seeds = spec.seeds[: complete_seeds(spec, cell, runs)]

    def results(arm: str) -> list[float]:
        return [spec.measure.value(runs[cell, arm, None, seed].error) for seed in seeds]

    return [
        [a - b for a, b in zip(results(arm), results(reference), strict=True)]
        for arm, reference in spec.tested_contrasts.values()
    ]
