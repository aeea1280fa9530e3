"""The search for an arm's setting: what may vary, the trials, and which of them is best.

The points come from a Sobol sequence with a fixed scrambling (Optuna's `QMCSampler`), so the trials of
a study are known before its first run, and two arms with the same space try the same points.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cdgrad.study import StudyError
from cdgrad.study.spec.rules import as_table, at_least, check_keys, error_at, is_a, read, seeds

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One key's range: the numbers from `low` to `high`, both included, or else `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def corners(self) -> Sequence[Any]:
        """Values that are allowed where all of the range is: its ends, or every choice."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class Tuning:
    """How the arms' settings are chosen: `trials` points for each, every one run on all of `seeds`.

    `space` holds for every arm, `arms` adds to it or replaces keys of it. Keys are those of a setting, such
    as ``optimizer.lr``; ``lam`` is the one of the arm's metric.
    """

    trials: int
    seeds: tuple[int, ...]
    space: dict[str, Dimension]
    arms: dict[str, dict[str, Dimension]]

    def of(self, arm: str) -> dict[str, Dimension]:
        """The arm's space."""
        return self.space | self.arms.get(arm, {})

    def points(self, arm: str) -> list[dict[str, Any]]:
        """The values of the arm's trials, in order; more trials begin with the same points."""
        return _sobol(self.of(arm), self.trials)


@dataclass(frozen=True)
class _Head:
    trials: int = field(metadata=at_least(1))


def read_tuning(value: Any, final_seeds: Sequence[int], arms: Sequence[str], name: str) -> Tuning:
    """The table ``[tuning]``; `arms` are those that may have a space of their own.

    Raises:
        StudyError: a key is unknown, missing or out of range, or a seed is used by final runs, too.
    """
    table = as_table(value, "tuning", name)
    check_keys(table, ("trials", "seeds", "space", "arms"), ("trials", "seeds"), "tuning.", name)
    head = read(_Head, {"trials": table["trials"]}, "tuning", name)
    own = seeds(table["seeds"], "tuning.seeds", name)
    if both := sorted({*own} & {*final_seeds}):
        raise StudyError(
            f"{name}: tuning.seeds must be disjoint from seeds, so that final runs use seeds that "
            f"tuning has not seen; "
            f"both have {', '.join(map(str, both[:5]))}"
        )
    of_arms = as_table(table.get("arms", {}), "tuning.arms", name)
    check_keys(of_arms, arms, (), "tuning.arms.", name)
    tuning = Tuning(
        head.trials,
        own,
        _space(table.get("space", {}), "tuning.space", name),
        {arm: _space(space, f"tuning.arms.{arm}", name) for arm, space in of_arms.items()},
    )
    for arm in arms:
        if not tuning.of(arm):
            raise StudyError(
                f"{name}: arm {arm} has nothing to tune: give tuning.space or tuning.arms.{arm} a key, "
                f'or the arm tuning = "none"'
            )
    return tuning


def _space(value: Any, where: str, name: str) -> dict[str, Dimension]:
    table = _flat(as_table(value, where, name), where, name)
    return {key: _dimension(about, f'{where}."{key}"', name) for key, about in table.items()}


_KEYS = ("low", "high", "log", "integer", "choices")


def _flat(table: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
    """Keys joined by dots: TOML's ``optimizer.lr = {..}`` and ``"optimizer.lr" = {..}`` are one."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = as_table(value, f"{where}.{key}", name)
        if not inner or set(inner) & set(_KEYS):
            flat[key] = inner
        else:
            flat |= {f"{key}.{k}": v for k, v in _flat(inner, f"{where}.{key}", name).items()}
    return flat


def _dimension(table: Any, where: str, name: str) -> Dimension:
    about = as_table(table, where, name)
    if "choices" in about:
        check_keys(about, ("choices",), (), f"{where}.", name)
        return Dimension(choices=_choices(about["choices"], f"{where}.choices", name))
    check_keys(about, _KEYS, ("low", "high"), f"{where}.", name)
    log, integer = about.get("log", False), about.get("integer", False)
    for key, flag in (("log", log), ("integer", integer)):
        if not is_a(flag, bool):
            raise error_at(name, f"{where}.{key}", flag, "true or false")
    low, high = (_number(about[key], integer, f"{where}.{key}", name) for key in ("low", "high"))
    if low >= high:
        raise error_at(name, f"{where}.high", high, f"above low, which is {low!r}")
    if log and low <= 0:
        raise error_at(name, f"{where}.low", low, "positive where log = true")
    return Dimension(low, high, log, integer)


def _choices(value: Any, where: str, name: str) -> tuple[Any, ...]:
    given = cast(list[Any], value) if isinstance(value, list) else []
    if len(set(map(repr, given))) < max(len(given), 2) or not all(
        isinstance(choice, str | int | float) for choice in given
    ):
        raise error_at(name, where, value, "a list of at least 2 different strings, numbers or truth values")
    return tuple(given)


def _number(value: Any, integer: bool, where: str, name: str) -> float:
    if integer and not is_a(value, int):
        raise error_at(name, where, value, "an integer where integer = true")
    if not (is_a(value, int) or is_a(value, float)) or not math.isfinite(value):
        raise error_at(name, where, value, "a finite number")
    return value if integer else float(value)


def _sobol(space: Mapping[str, Dimension], trials: int) -> list[dict[str, Any]]:
    """The first points of the sequence; its scrambling is fixed, so they depend on the space alone."""
    import optuna  # half a second, which a study without tuning does not spend

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a study of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=0)
        study = optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)
    # `study.ask` would draw the first trial at random, by another sampler: ask the sequence itself.
    trial = optuna.trial.create_trial(value=0.0)
    distributions = {key: _distribution(about) for key, about in sorted(space.items())}
    return [sampler.sample_relative(study, trial, distributions) for _ in range(trials)]


def _distribution(about: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if about.choices:
        return CategoricalDistribution(about.choices)
    if about.integer:
        return IntDistribution(int(about.low), int(about.high), log=about.log)
    return FloatDistribution(about.low, about.high, log=about.log)
