"""The search for an arm's setting: what may vary, and the trials' points.

The points are those that the specification lists, or else of a Sobol sequence with a fixed scrambling, so
that the trials of a study are known before its first run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.spec.rules import (
    MOST_SEEDS,
    SEEDED,
    as_list,
    as_table,
    at_least,
    check_keys,
    dotted,
    error_at,
    is_a,
    read,
    seeds,
    unique,
)
from cdgrad.study.spec.sobol import sobol

Values = Mapping[str, Any]
"""What a trial tries, or what was chosen, by the keys of a search space."""
Choice = str | int | float


@dataclass(frozen=True)
class Dimension:
    """One key's range: the numbers from `low` to `high`, both included, or else `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Choice, ...] = ()

    @property
    def corners(self) -> Sequence[Choice]:
        """Values that are allowed where all of the range is: its ends, or every choice."""
        return self.choices or (self.low, self.high)

    def __contains__(self, value: object) -> bool:
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        number = value if is_a(value, int) or is_a(value, float) else math.nan
        return self.low <= number <= self.high and (is_a(value, int) or not self.integer)

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}"

    def typed(self, value: Choice) -> Choice:
        """A value of the range as the sequence would give it: a real number is a float."""
        return value if self.choices or self.integer else float(value)


@dataclass(frozen=True)
class Tuning:
    """How the arms' settings are chosen: `trials` points for each, every one run on all seeds of a search.

    There are `replicates` independent searches: search r has a Sobol sequence of its own scrambling, and of
    `seeds` every `replicates`-th from number r on. `space` holds for every arm, `arms` adds to it or replaces
    keys of it. Keys are those of a setting, such as ``optimizer.lr``; ``lam`` is the one of the arm's metric.
    `listed` holds the points of arms whose trials the specification lists, search after search.
    """

    trials: int
    seeds: tuple[int, ...]
    space: dict[str, Dimension]
    arms: dict[str, dict[str, Dimension]]
    listed: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    replicates: int = 1

    def of(self, arm: str) -> dict[str, Dimension]:
        """The arm's space."""
        return self.space | self.arms.get(arm, {})

    def points(self, arm: str, replicate: int = 0) -> list[dict[str, Any]]:
        """The values of the arm's trials in a search, in order; more trials begin with the same points."""
        if arm in self.listed:
            return self.listed[arm][replicate * self.trials : (replicate + 1) * self.trials]
        return sobol(self.of(arm), self.trials, replicate)

    def seeds_of(self, replicate: int) -> tuple[int, ...]:
        """The seeds on which a search runs each of its trials."""
        return self.seeds[replicate :: self.replicates]


@dataclass(frozen=True)
class _Counts:
    trials: int = field(metadata=at_least(1, most=MOST_SEEDS))
    replicates: int = field(default=1, metadata=at_least(1))


def read_tuning(
    value: object, final_seeds: Sequence[int], arms: Sequence[str], name: str, *, stored: bool = False
) -> Tuning:
    """The table ``[tuning]``; `arms` are those that may have a space of their own.

    Raises:
        StudyError: a key is unknown, missing or out of range, or a seed is used by final runs, too.
    """
    table = as_table(value, "tuning", name)
    known = ("trials", "replicates", "seeds", "space", "arms", "points")
    check_keys(table, known, ("trials", "seeds"), "tuning.", name)
    counts = read(_Counts, {k: v for k, v in table.items() if k in ("trials", "replicates")}, "tuning", name)
    own, modulo = seeds(table["seeds"], "tuning.seeds", name, stored=stored), 2**63 if stored else SEEDED
    if both := sorted({seed % modulo for seed in own} & {seed % modulo for seed in final_seeds}):
        raise StudyError(
            f"{name}: tuning.seeds must be disjoint from seeds, so that final runs use seeds that "
            f"tuning has not seen; both have {', '.join(map(str, both[:5]))}"
        )
    for where, given in (("seeds", final_seeds), ("tuning.seeds", own)):
        if len(given) % counts.replicates:
            raise StudyError(
                f"{name}: {where} must divide equally among tuning.replicates = {counts.replicates} "
                f"searches, and there are {len(given)}; use a multiple of {counts.replicates}"
            )
    of_arms = as_table(table.get("arms", {}), "tuning.arms", name)
    check_keys(of_arms, arms, (), "tuning.arms.", name)
    tuning = Tuning(
        counts.trials,
        own,
        _space(table.get("space", {}), "tuning.space", name),
        {arm: _space(space, f"tuning.arms.{arm}", name) for arm, space in of_arms.items()},
        replicates=counts.replicates,
    )
    for arm in arms:
        if not tuning.of(arm):
            raise StudyError(
                f"{name}: arm {arm} has nothing to tune; add a key to tuning.space or tuning.arms.{arm}, "
                f'or set arms.{arm}.tuning = "none"'
            )
    return replace(tuning, listed=_listed(table.get("points", {}), tuning, arms, name))


def _listed(value: object, tuning: Tuning, arms: Sequence[str], name: str) -> dict[str, list[dict[str, Any]]]:
    """The table ``tuning.points``: for each arm in it, one table of values a trial."""
    table = as_table(value, "tuning.points", name)
    check_keys(table, arms, (), "tuning.points.", name)
    listed: dict[str, list[dict[str, Any]]] = {}
    for arm, given in table.items():
        where, rows = f"tuning.points.{arm}", as_list(given) or []
        if len(rows) != (count := tuning.trials * tuning.replicates):
            raise error_at(name, where, given, f"a list of {count} tables, one a trial")
        listed[arm] = [_point(row, tuning.of(arm), f"{where}[{k}]", name) for k, row in enumerate(rows)]
    return listed


def _point(value: object, space: Mapping[str, Dimension], where: str, name: str) -> dict[str, Any]:
    """The values of one trial: of each key of the space, and within it."""
    point = unique(dotted(as_table(value, where, name)), where, name)
    allowed = {key: f"in its space, {dimension}" for key, dimension in space.items()}
    check_keys(point, space, space, f"{where}.", name, allowed)
    for key, dimension in space.items():
        if point[key] not in dimension:
            raise error_at(name, f'{where}."{key}"', point[key], allowed[key])
    return {key: dimension.typed(point[key]) for key, dimension in sorted(space.items())}


def _space(value: object, where: str, name: str) -> dict[str, Dimension]:
    table = _flat(as_table(value, where, name), where, name)
    return {key: _dimension(dimension, f'{where}."{key}"', name) for key, dimension in table.items()}


_KEYS = ("low", "high", "log", "integer", "choices")


def _flat(table: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
    """Keys joined by dots: TOML's ``optimizer.lr = {..}`` and ``"optimizer.lr" = {..}`` are one."""
    pairs: list[tuple[str, Any]] = []
    for key, value in table.items():
        inner = as_table(value, f"{where}.{key}", name)
        if not inner or set(inner) & set(_KEYS):
            pairs.append((key, inner))
        else:
            pairs += [(f"{key}.{k}", v) for k, v in _flat(inner, f"{where}.{key}", name).items()]
    return unique(pairs, where, name)


def _dimension(table: object, where: str, name: str) -> Dimension:
    keys = as_table(table, where, name)
    if "choices" in keys:
        check_keys(keys, ("choices",), (), f"{where}.", name)
        return Dimension(choices=_choices(keys["choices"], f"{where}.choices", name))
    check_keys(keys, _KEYS, ("low", "high"), f"{where}.", name)
    log, integer = keys.get("log", False), keys.get("integer", False)
    for key, flag in (("log", log), ("integer", integer)):
        if not is_a(flag, bool):
            raise error_at(name, f"{where}.{key}", flag, "true or false")
    low, high = (_number(keys[key], integer, f"{where}.{key}", name) for key in ("low", "high"))
    if low >= high:
        raise error_at(name, f"{where}.high", high, f"above low, which is {low!r}")
    if not math.isfinite(float(high) - float(low)):  # of which the sequence would draw one end alone
        raise error_at(name, f"{where}.high", high, f"so close to low = {low!r} that high - low is finite")
    if log and low <= 0:
        raise error_at(name, f"{where}.low", low, "positive where log = true")
    return Dimension(low, high, log, integer)


def _choices(value: object, where: str, name: str) -> tuple[Choice, ...]:
    given = as_list(value) or []
    choices = [choice for choice in given if isinstance(choice, str | int | float)]
    if len(set(map(repr, choices))) < max(len(given), 2):
        raise error_at(name, where, value, "a list of at least 2 different strings, numbers or truth values")
    return tuple(choices)


def _number(value: object, integer: bool, where: str, name: str) -> float:
    if integer and not is_a(value, int):
        raise error_at(name, where, value, "an integer where integer = true")
    if not (is_a(value, int) or is_a(value, float)) or not math.isfinite(value):
        raise error_at(name, where, value, "a finite number")
    return value if integer else float(value)
