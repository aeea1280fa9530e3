"""The points of a search: a scrambled Sobol sequence over a search space (Optuna's `QMCSampler`).

The scrambling is fixed, so the trials of a study are known before its first run, and two arms with the same
space try the same points.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdgrad.study.spec.space import Dimension


def sobol(space: Mapping[str, Dimension], trials: int, scramble: int = 0) -> list[dict[str, Any]]:
    """The first points of the sequence, which depend on the space and the number of its scrambling alone."""
    import optuna  # half a second, which a study without tuning does not spend

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a study of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=scramble)
        study = optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)
    # `study.ask` would draw the first trial at random, by another sampler: ask the sequence itself.
    trial = optuna.trial.create_trial(value=0.0)
    distributions = {key: _distribution(dimension) for key, dimension in sorted(space.items())}
    return [sampler.sample_relative(study, trial, distributions) for _ in range(trials)]


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
