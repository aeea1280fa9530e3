"""The gain at 40 % wrong labels, examined: on new seeds, over the rates of both methods, with searches anew."""

from __future__ import annotations

import numpy as np

from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results
from evidence.build import tables
from evidence.build.loading import studies

LABELS = ("labels-rates", "labels-again")
_CHOSEN = ("rw-0.02", "none")  # the two settings that regimes-labels chose


def section() -> dict[str, str]:
    """The parts of the page; what was not run is said."""
    recorded = {study.spec.name: study for study in studies(LABELS)}
    rates, again = (recorded.get(name) for name in LABELS)
    words = [_rates(rates)] if rates else []
    words += [_again(again)] if again else ["Searches anew on new seeds: not run."]
    return {"labels_text": "\n\n".join(words), "labels_verdict": _verdict(rates, again)}


def _verdict(rates: Results | None, again: Results | None) -> str:
    """In a sentence or two, what is left of the gain."""
    if rates is None:
        return "It was not repeated."
    same, divided = _difference(rates, *_CHOSEN), _difference(rates, _CHOSEN[0], "divided")
    pooled = _pooled(same)
    low, high = divided.interval
    left = "no difference is shown" if low <= 0 <= high else "a difference is left"
    text = (
        f"With 40 % wrong labels, {left} against the ordinary gradient with the learning rate of the convolutions "
        f"divided by lam ({tables.difference(divided)}). Repeated with the same settings, the difference to the "
        f"tuned baseline is {tables.difference(same)} on {same.pairs} new seeds, {tables.difference(pooled)} over all {pooled.pairs}"
    )
    if again is not None:
        ((_, searched),) = again.replicated.items()
        text += f"; with settings from {len(searched.means)} new searches it is {tables.plus_minus(searched.mean, searched.interval)}"
    return f"{text}."


def _pooled(new: stats.Comparison) -> stats.Comparison:
    """The two chosen settings on the seeds of regimes-labels and on the new ones: no trial used either."""
    (first,) = studies(["regimes-labels"])
    old = first.comparisons["noise-40", "reweighted"].comparison
    differences = np.concatenate([old.differences, new.differences])
    return stats.compare(differences, np.zeros_like(differences))


def _difference(study: Results, arm: str, other: str) -> stats.Comparison:
    (cell,) = study.spec.cells
    return stats.compare(study.errors(cell, arm), study.errors(cell, other))


def _methods(study: Results) -> tuple[list[str], list[str]]:
    """The arms of the re-weighted metric and those of the baseline, each at its rates."""
    arms = list(study.spec.arms)
    return (
        [arm for arm in arms if arm.startswith("rw-")],
        [arm for arm in arms if arm == "none" or arm.startswith("lr-")],
    )


def _best(study: Results) -> tuple[str, str]:
    """The arm of the smallest mean error of either method."""
    (cell,) = study.spec.cells
    reweighted, baseline = (
        min(arms, key=lambda arm: float(np.mean(study.errors(cell, arm)))) for arms in _methods(study)
    )
    return reweighted, baseline


def _rates(study: Results) -> str:
    (cell,) = study.spec.cells
    reweighted, baseline = _methods(study)
    best = _best(study)
    lines = [
        _line(study, cell, arm, label, best[1])
        for arms, label in (
            (baseline, "ordinary gradient"),
            (reweighted, "re-weighted, lam = 4.4"),
            (["divided"], "ordinary gradient, the rate of convolutions divided by 4.4"),
        )
        for arm in arms
    ]
    same = _difference(study, *_CHOSEN)
    pooled = _pooled(same)
    chosen = _difference(study, *best)
    divided = _difference(study, _CHOSEN[0], "divided")
    if not divided.interval.low <= 0 <= divided.interval.high:
        raise ValueError(
            "the metric differs from its control: evidence/build/labels.py must say something else"
        )
    head = ["method", "learning rate", "error (SD), %", "minus the baseline at its best rate", "MDD"]
    return (
        f"**On {same.pairs} new seeds**, at 40 % wrong labels, the two chosen settings differ by {_shown(same)}; over all\n"
        f"{pooled.pairs} seeds, which no trial used, by {_shown(pooled)}. Over four learning rates of each method, chosen\n"
        f"before these runs, the best of one minus the best of the other is {_shown(chosen)} (both chosen by these\n"
        "errors). The control is the ordinary gradient with the learning rate of all convolutions divided by lam, which is the\n"
        f"metric without its special mode, the mean: the metric minus the control is {_shown(divided)}. So these\n"
        "seeds show no gain beyond that of convolutions that learn more slowly than the rest; one smaller than the MDD they would\n"
        "have missed.\n\n" + tables.markdown(head, lines, right=1)
    )


def _line(study: Results, cell: str, arm: str, label: str, best: str) -> list[str]:
    errors = study.errors(cell, arm)
    against = stats.compare(errors, study.errors(cell, best))
    rate = study.spec.setting(cell, arm).tables()[3].lr
    return [
        label,
        f"{rate:.3g}",
        f"{np.mean(errors):.2f} ({stats.standard_deviation(errors):.2f})",
        "" if arm == best else tables.difference(against),
        "" if arm == best else tables.number(stats.detectable_difference(against.pairs, against.sd)),
    ]


def _shown(c: stats.Comparison) -> str:
    return (
        f"{tables.difference(c)} points (p = {tables.probability(c.p)}, MDD "
        f"{tables.number(stats.detectable_difference(c.pairs, c.sd))})"
    )


def _again(study: Results) -> str:
    ((_, searched),) = study.replicated.items()
    settings = [_chosen(study, "none"), _chosen(study, "reweighted")]
    tuning = study.spec.tuning
    assert tuning is not None
    return (
        f"**{len(searched.means)} searches anew**, each of {tuning.trials} trials of {len(tuning.seeds_of(0))} seeds and compared on\n"
        f"{len(study.spec.seeds) // len(searched.means)} final seeds, all new; the first tries the same points as the search above, the others "
        f"points of their own. Re-weighted minus ordinary, search by search, {', '.join(f'{mean:+.2f}' for mean in searched.means)} points; "
        f"over the searches\n{tables.plus_minus(searched.mean, searched.interval)}. The searches chose, for the baseline, "
        f"{settings[0]}; for the metric, {settings[1]}."
    )


def _chosen(study: Results, arm: str) -> str:
    """The settings that the searches chose."""
    (cell,) = study.spec.cells
    return "; ".join(tables.chosen(study.values(cell, arm, k)) for k in range(study.spec.replicates))
