"""A study as a value: what is compared, and the setting of every run that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from cdgrad.metrics import lam_of, parse_metric, with_lam
from cdgrad.study import StudyError
from cdgrad.study.spec.measure import ERROR, Measure
from cdgrad.study.spec.rules import check_keys, dotted, read, unique
from cdgrad.study.spec.setting import (
    NO_METRIC,
    OPTIONS,
    Arm,
    ArmOptions,
    EntrySetting,
    LoopSetting,
    Model,
    Optimizer,
    Schedule,
    Setting,
    Task,
)
from cdgrad.study.spec.space import Tuning, Values

_NOTHING: Values = MappingProxyType({})


class Contrast(NamedTuple):
    """Two arms that are compared. A difference is the result of `arm` minus that of `reference`."""

    arm: str
    reference: str


@dataclass(frozen=True)
class Spec:
    """A study.

    Attributes:
        cells: for each combination in which the arms are compared, its tables ``task``, ``model``,
            ``schedule`` and ``optimizer`` as read; a study without cells has one, named ``""``.
        entry: the user's own training code, ``module:callable``, or empty; with it there is one cell without
            tables.
        evaluate: ``"test"``, or ``"validation"`` for a study that never reads the test split.
        out: the output directory, relative to where the command runs.
        text: the TOML that it was read from, kept in the records.
        folder: the folder of the TOML file, in which modules that it names are looked for; empty for a study
            that is not read from a file.
        until: 0 where all `seeds` run; otherwise a cell ends earlier, once the anytime-valid interval of each
            of its comparisons is narrower than that, or shows a difference. In points, or in the unit of
            `measure`, like `margin`.
        margin: the difference below which two arms count as equivalent; 0: none.
        measure: what the runs' results are.
        reference: the arm that the others are compared with; empty: the baseline.
        all_pairs: whether every two arms are compared.
        arms_of_cells: arms whose options differ between the cells, by cell; only of several studies reported
            as one.
        stored: whether it is that of recorded runs, which may have what no new run may begin with.
    """

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    evaluate: str
    workers: int
    out: str
    entry: str
    cells: dict[str, Tables]
    arms: dict[str, Arm]
    tuning: Tuning | None
    text: str
    folder: str = ""
    until: float = 0.0
    margin: float = 0.0
    measure: Measure = ERROR
    reference: str = ""
    all_pairs: bool = False
    arms_of_cells: Mapping[str, Mapping[str, Arm]] = field(default_factory=dict[str, Mapping[str, Arm]])
    stored: bool = False

    def arms_in(self, cell: str) -> Mapping[str, Arm]:
        """The arms with their options in a cell."""
        return self.arms_of_cells.get(cell, self.arms)

    @property
    def reference_arm(self) -> str:
        """The arm that the others are compared with."""
        return self.reference or self.baseline

    @property
    def contrasts(self) -> dict[str, Contrast]:
        """What is compared, by its name: every other arm with the reference, or all pairs of arms."""
        if not self.all_pairs:
            reference = self.reference_arm
            return {arm: Contrast(arm, reference) for arm in self.arms if arm != reference}
        first = self.reference_arm
        pairs = combinations([first, *(arm for arm in self.arms if arm != first)], 2)
        return {f"{arm} vs. {reference}": Contrast(arm, reference) for reference, arm in pairs}

    @property
    def replicates(self) -> int:
        """Number of independent searches for each arm's setting; 1 in a study without tuning, too."""
        return self.tuning.replicates if self.tuning else 1

    def replicate(self, seed: int) -> int:
        """The search that a seed of final runs or of trials belongs to: they are assigned round-robin."""
        if self.replicates == 1 or self.tuning is None:
            return 0
        return (self.seeds if seed in self.seeds else self.tuning.seeds).index(seed) % self.replicates

    @property
    def rounding_arms(self) -> list[str]:
        """Arms that are the baseline in exact arithmetic: they differ by noise, which is not tested."""
        base = self.arms[self.baseline]
        alike = replace(base, rounding=1, tuning="own")
        return [
            name
            for name, arm in self.arms.items()
            if arm.rounding != base.rounding
            and replace(arm, rounding=1, tuning="own") == alike
            and (self.tuning is None or arm.tuning == "baseline" or arm.tuning == base.tuning == "none")
        ]

    @property
    def tested_contrasts(self) -> dict[str, Contrast]:
        """The contrasts that are tested: all but the noise floor, and those that repeat another.

        An arm of `rounding_arms` is no method of its own: among all pairs its difference to another arm asks
        what the baseline's does, so that testing both would correct each for the other.
        """
        copies = {*self.rounding_arms} if self.all_pairs else set[str]()
        return {
            name: contrast
            for name, contrast in self.contrasts.items()
            if name not in self.noise_floor and copies.isdisjoint(contrast)
        }

    @property
    def noise_floor(self) -> dict[str, Contrast]:
        """The contrasts of two arms that are equal in exact arithmetic."""
        alike = {self.baseline, *self.rounding_arms}
        return {name: contrast for name, contrast in self.contrasts.items() if alike.issuperset(contrast)}

    @property
    def tests(self) -> int:
        """Number of tests that Holm's correction is for: tested contrasts of all cells, finished or not."""
        return len(self.cells) * len(self.tested_contrasts)

    def setting(self, cell: str, arm: str, values: Values = _NOTHING, *, trial: bool = False) -> Setting:
        """The setting of an arm in a cell: the cell's own, with the arm's changes, with `values`.

        Args:
            cell: one of `cells`.
            arm: one of `arms`.
            values: what a trial tries, or what was chosen, by the keys of a search space.
            trial: whether it is a trial's setting, which never reads the test split.

        Raises:
            StudyError: a value is not allowed, or its key names nothing.
        """
        options = self.arms_in(cell)[arm]
        tables = (
            self.cells[cell] if self.entry else changed(self.cells[cell], {"optimizer": options.optimizer})
        )
        own = unique(dotted(options.values), f"arms.{arm}.values", self.name)
        changes: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            table, _, inner = key.partition(".")
            if self.entry and key not in TUNABLE:
                own[self._of_entry(key, values)] = value
            elif inner and table in ("model", "schedule", "optimizer"):
                changes.setdefault(table, {})[inner] = value
            else:
                options = with_option(options, key, value, self.name, stored=self.stored)
        # All changes of a table at once: a new name discards the old arguments, in any order of the keys.
        tables = changed(tables, changes)
        places = {"optimizer": f"arms.{arm}."} if options.optimizer else {}
        common: dict[str, Any] = {option.name: getattr(options, option.name) for option in fields(ArmOptions)}
        common["evaluate"] = "validation" if trial else self.evaluate
        common["measure"] = self.measure.name
        if self.entry:
            percent = self.measure.percent
            return EntrySetting(**common, entry=self.entry, values=own, percent=percent)
        typed = read_tables(tables, places, self.name, stored=self.stored)
        lr = typed["optimizer"].lr * options.lr_factor
        if not (0 < lr < math.inf or self.stored):
            raise StudyError(
                f"{self.name}: arms.{arm}.lr_factor = {options.lr_factor!r} makes the learning rate "
                f"{typed['optimizer'].lr!r} {lr!r}, which is no positive number; change one of them"
            )
        typed["optimizer"] = replace(typed["optimizer"], lr=lr)
        return LoopSetting(**common, **typed)

    def _of_entry(self, key: str, values: Values) -> str:
        """The key under which the user's own training code reads the value of `key`, one of `values`."""
        name = key.removeprefix("values.")
        if name != key and name in values and name not in TUNABLE and not self.stored:
            raise StudyError(
                f"{self.name}: {name} and {key} are one value of {self.entry}; leave one of them"
            )
        return name


Tables = Mapping[str, Mapping[str, Any]]
TABLES = {"task": Task, "model": Model, "schedule": Schedule, "optimizer": Optimizer}
TUNABLE = (*OPTIONS, "lam")


def changed(tables: Tables, changes: Tables) -> Tables:
    """`tables` with the keys of `changes`.

    A network or optimizer of another name keeps none of the old arguments.
    """
    merged = dict(tables)
    for key, change in changes.items():
        old = tables.get(key, {})
        renamed = "name" in change and change["name"] != old.get("name")
        merged[key] = dict(change) if renamed else {**old, **change}
    return merged


def read_tables(
    tables: Tables, places: Mapping[str, str], name: str, *, stored: bool = False
) -> dict[str, Any]:
    """The four typed tables; `places` holds the prefixes that messages put before some of them.

    Raises:
        StudyError: a table is missing or not allowed.
    """
    for key in TABLES:
        if key not in tables:
            raise StudyError(f"{name}: {key} is missing")
    return {
        key: read(kind, tables[key], f"{places.get(key, '')}{key}", name, stored=stored)
        for key, kind in TABLES.items()
    }


def apart_from_lam(metric: str) -> tuple[float, str]:
    """The lam of a metric's text, nan where it has none, and a text equal for metrics that differ in lam."""
    parsed = None if metric == NO_METRIC else parse_metric(metric)
    lam = None if parsed is None else lam_of(parsed)
    return (math.nan, metric) if parsed is None or lam is None else (lam, str(with_lam(parsed, 1.0)))


def with_option(arm: Arm, key: str, value: Any, name: str, *, stored: bool = False) -> Arm:
    """An arm with another value of an option; ``lam`` is its metric's.

    Raises:
        StudyError: there is no such option, or the value is not allowed.
    """
    if key in OPTIONS:
        return read(Arm, asdict(arm) | {key: value}, "arm", name, stored=stored)
    metric = None if arm.metric == NO_METRIC else parse_metric(arm.metric)
    if key != "lam":
        known = [*TUNABLE, "model.KEY", "schedule.KEY", "optimizer.KEY"]
        if key == "lr":
            raise StudyError(f"{name}: unknown key lr; did you mean optimizer.lr?")
        check_keys({key: value}, known, (), "", name)
    if metric is None or lam_of(metric) is None:
        raise StudyError(f"{name}: metric {arm.metric} has no lam; choose a metric with one, or another key")
    try:
        return replace(arm, metric=str(with_lam(metric, value)))
    except (TypeError, ValueError) as error:
        raise StudyError(f"{name}: {error}") from None
