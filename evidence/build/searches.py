"""What one search hides, and what choosing an epoch by the test set gains, from one study of both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cdgrad.study.records.run import Run
from cdgrad.study.spec.measure import ERROR
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results
from evidence.build import tables
from evidence.build.loading import studies

METHODS = {"none": "none", "reweighted": "re-weighted", "sobolev": "Sobolev"}
_CHOICES = {"best epoch": "best_epoch_test_error", "mean of the last ten": "last_ten_epochs_test_error"}


def section() -> dict[str, str]:
    """The parts of the page."""
    (study,) = studies(["searches"])
    spec = study.spec
    assert spec.tuning is not None
    schedule = spec.setting("", spec.baseline).tables()[2]
    return {
        "searches_count": str(spec.replicates),
        "searches_seeds": str(len(spec.seeds) // spec.replicates),
        "searches_trials": str(spec.tuning.trials),
        "searches_trial_seeds": str(len(spec.tuning.seeds_of(0))),
        "searches_table": _searches(study),
        "epochs_count": str(schedule.epochs),
        "epochs_seeds": str(len(spec.seeds)),
        "epochs_gain": _gains(study),
        "epochs_table": _epochs(study),
        "epochs_differences": _differences(study),
    }


def _searches(study: Results) -> str:
    lines = [
        [
            METHODS[arm],
            ", ".join(f"{mean:+.2f}" for mean in replicated.means),
            tables.plus_minus(replicated.mean, replicated.interval),
            tables.plus_minus(float(np.mean(replicated.means)), replicated.one_search),
            tables.number(replicated.tuning_sd),
            tables.number(replicated.seed_sd),
        ]
        for (_, arm), replicated in study.replicated.items()
    ]
    head = [
        "arm",
        "difference of each search",
        "over the searches",
        "as if one search",
        "SD, tuning",
        "SD, seed",
    ]
    return tables.markdown(head, lines, right=2)


def _finished(study: Results) -> Mapping[str, Mapping[int, Run]]:
    """The final runs of each arm that measured the test error in every epoch, by seed."""
    return {
        arm: {seed: run for seed, run in study.finished["", arm].items() if run.measures}
        for arm in study.spec.arms
    }


def _chosen(runs: Mapping[int, Run], key: str) -> np.ndarray:
    return np.array([run.measures[key] for run in runs.values()])


def _last(runs: Mapping[int, Run]) -> np.ndarray:
    return np.array([ERROR.value(run.error) for run in runs.values()])


def _epochs(study: Results) -> str:
    """An arm a row: its error by each choice of an epoch, and what the choice gains."""
    lines: list[list[str]] = []
    for arm, runs in _finished(study).items():
        last = _last(runs)
        by_choice = [_chosen(runs, key) for key in _CHOICES.values()]
        gains = [values - last for values in by_choice]
        lines.append(
            [METHODS[arm], f"{last.mean():.2f}", *(f"{values.mean():.2f}" for values in by_choice)]
            + [tables.plus_minus(float(gain.mean()), stats.mean_interval(gain)) for gain in gains]
        )
    head = [
        "arm",
        "last epoch, %",
        *(f"{name}, %" for name in _CHOICES),
        *(f"{name} minus last" for name in _CHOICES),
    ]
    return tables.markdown(head, lines, right=1)


def _gains(study: Results) -> str:
    """The smallest and the largest gain of the best epoch over the arms, in points."""
    gains = [
        float((_last(runs) - _chosen(runs, "best_epoch_test_error")).mean())
        for runs in _finished(study).values()
    ]
    return f"{min(gains):.2f} to {max(gains):.2f}"


def _differences(study: Results) -> str:
    """An arm a row: its difference to the baseline by each choice, and the bias of the choice."""
    runs = _finished(study)
    base = runs[study.spec.baseline]
    lines: list[list[str]] = []
    for arm, own in runs.items():
        if arm == study.spec.baseline:
            continue
        last = _last(own) - _last(base)
        by_choice = [_chosen(own, key) - _chosen(base, key) for key in _CHOICES.values()]
        shown = [last, *by_choice, *(values - last for values in by_choice)]
        lines.append(
            [METHODS[arm], *(tables.plus_minus(float(v.mean()), stats.mean_interval(v)) for v in shown)]
        )
    head = ["arm", "last epoch", *_CHOICES, *(f"bias of the {name}" for name in _CHOICES)]
    return tables.markdown(head, lines, right=1)
