"""What a study is, as frozen values read from TOML and checked key by key.

A `Spec` names the cells, arms and seeds, and makes of each the `Setting` of its runs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cdgrad.metrics import parse_metric
from cdgrad.study import StudyError
from cdgrad.study.cells import OPTIONS, TABLES, TUNABLE, Tables, changed, read_cells, read_tables, with_option
from cdgrad.study.fields import as_table, at_least, check_keys, error_at, one_of, read, seeds
from cdgrad.study.setting import (
    AUGMENTATIONS,
    BASELINE_METRIC,
    DATA,
    DIRECTIONS,
    MODELS,
    RESCALES,
    TUNINGS,
    Arm,
    Model,
    Optimizer,
    Schedule,
    Setting,
    Task,
    as_json,
    first_difference,
)
from cdgrad.study.tuning import Tuning, Values, read_tuning

__all__ = [  # a specification and all the values in it, whichever file defines them
    "AUGMENTATIONS",
    "BASELINE_METRIC",
    "DATA",
    "DIRECTIONS",
    "MODELS",
    "RESCALES",
    "TUNINGS",
    "Arm",
    "Model",
    "Optimizer",
    "Schedule",
    "Setting",
    "Spec",
    "Tables",
    "Task",
    "as_json",
    "builtin_names",
    "first_difference",
    "load",
    "parse",
]

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,15}")
_NOTHING: Values = MappingProxyType({})


@dataclass(frozen=True)
class Spec:
    """A study. `text` is the TOML it was read from, kept in the records.

    `cells` holds, for each combination in which the arms are compared, its tables ``task``, ``model``,
    ``schedule`` and ``optimizer`` as read; a study without cells has one, named ``""``. `entry` is the
    user's own training code, ``module:callable``, or empty; with it there is one cell without tables.
    `out` is the folder of its records, relative to where the command runs. `evaluate` is ``"test"``, or
    ``"validation"`` for a study that never reads a test set.
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

    def setting(self, cell: str, arm: str, values: Values = _NOTHING, *, trial: bool = False) -> Setting:
        """The setting of an arm in a cell: the cell's own, with the arm's changes, with `values`.

        Args:
            cell: one of `cells`.
            arm: one of `arms`.
            values: what a trial tries, or what was chosen, by the keys of a search space.
            trial: whether it is a trial's: those never read the test part.

        Raises:
            StudyError: a value is not allowed, or its key names nothing.
        """
        options = self.arms[arm]
        tables = (
            self.cells[cell] if self.entry else changed(self.cells[cell], {"optimizer": options.optimizer})
        )
        own = dict(_dotted(options.values))
        changes: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            table, _, inner = key.partition(".")
            if self.entry and key not in TUNABLE:
                own[key] = value
            elif inner and table in ("model", "schedule", "optimizer"):
                changes.setdefault(table, {})[inner] = value
            else:
                options = with_option(options, key, value, self.name)
        # A table's at once: another name starts it anew, and must not drop what came before the name.
        tables = changed(tables, changes)
        places = {"optimizer": f"arms.{arm}."} if options.optimizer else {}
        typed = dict.fromkeys(TABLES) if self.entry else read_tables(tables, places, self.name)
        return Setting(
            **typed,
            **{key: getattr(options, key) for key in OPTIONS},
            metric=options.metric,
            evaluate="validation" if trial else self.evaluate,
            entry=self.entry,
            values=own,
        )


def builtin_names() -> list[str]:
    """The studies that ship with cdgrad."""
    return sorted(p.name.removesuffix(".toml") for p in _builtin().iterdir() if p.name.endswith(".toml"))


def load(source: str) -> Spec:
    """The study in a TOML file, or a built-in one by its name.

    Raises:
        FileNotFoundError: neither a file nor a built-in name.
        StudyError: the file is not a valid specification.
    """
    if source in builtin_names():
        return parse((_builtin() / f"{source}.toml").read_text(encoding="utf-8"), source)
    path = Path(source)
    if not path.is_file():
        known = ", ".join(builtin_names())
        raise FileNotFoundError(f"no study {source!r}: neither a TOML file nor one of the built-in {known}")
    try:
        return parse(path.read_text(encoding="utf-8"), path.stem)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{source} cannot be read: {error}") from None


def parse(text: str, name: str) -> Spec:
    """The study that TOML `text` describes; `name` is used in messages.

    Raises:
        StudyError: not TOML; or a key that is unknown, missing, of the wrong type or out of range.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{name}: not valid TOML: {error}") from None
    head = read(_Head, {k: v for k, v in table.items() if k in _HEAD}, "", name)
    tables = () if head.entry else (*TABLES, "cells")
    check_keys(table, (*_HEAD, "seeds", "arms", *tables, "tuning"), ("seeds", "arms"), "", name)
    arms = {
        str(arm): _arm(str(arm), value, name, entry=bool(head.entry))
        for arm, value in as_table(table["arms"], "arms", name).items()
    }
    if head.baseline not in arms:
        raise error_at(name, "baseline", head.baseline, f"one of the arms: {', '.join(arms) or 'none given'}")
    final_seeds = seeds(table["seeds"], "seeds", name)
    spec = Spec(
        name=name,
        title=head.title or name,
        baseline=head.baseline,
        seeds=final_seeds,
        evaluate=head.evaluate,
        workers=head.workers,
        out=head.out or f"runs/{name}",
        entry=head.entry,
        cells={"": {}} if head.entry else read_cells(table, name),
        arms=arms,
        tuning=_tuning(table, head.baseline, arms, final_seeds, name),
        text=text,
    )
    _check_settings(spec)
    return spec


@dataclass(frozen=True)
class _Head:
    """The keys of a specification that stand outside any table.

    Attributes:
        baseline: the arm that all others are compared with.
        title: of the report; the file's name unless given.
        evaluate: which part the reported error is of; with ``"validation"`` no test image is ever read.
        workers: how many runs at once.
        out: folder of the records, unless the command names one; runs/NAME unless given.
        entry: your own training code, in place of the tables `task`, `model`, `schedule`, `optimizer`.
    """

    baseline: str
    title: str = ""
    evaluate: str = field(default="test", metadata=one_of("test", "validation"))
    workers: int = field(default=2, metadata=at_least(1))
    out: str = ""
    entry: str = field(default="", metadata=one_of(importable=True))


_HEAD = tuple(f.name for f in fields(_Head))


def _arm(title: str, value: Any, name: str, *, entry: bool) -> Arm:
    where = f"arms.{title}"
    if not _ARM_NAME.fullmatch(title):
        raise StudyError(
            f"{name}: arm name {title!r} is not allowed; use 1 to 16 letters, digits and . _ + = - "
            f"(it heads a table column)"
        )
    arm = read(Arm, value, where, name)
    if arm.optimizer and entry:
        raise StudyError(f"{name}: {where}.optimizer means nothing to an entry; use {where}.values")
    if arm.values and not entry:
        raise StudyError(f"{name}: {where}.values is read by an entry, and there is none; use optimizer")
    if arm.metric == BASELINE_METRIC:
        return arm
    try:
        return replace(arm, metric=str(parse_metric(arm.metric)))
    except ValueError as error:
        raise StudyError(f"{name}: {where}.metric: {error}") from None


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables under keys such as ``optimizer.lr``."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield prefix + key, value


def _tuning(
    table: Mapping[str, Any], baseline: str, arms: Mapping[str, Arm], final_seeds: Sequence[int], name: str
) -> Tuning | None:
    for arm, about in arms.items():
        if "tuning" not in table and about.tuning != "own":
            raise StudyError(f"{name}: arms.{arm}.tuning has no meaning without a table tuning")
        if about.tuning == "baseline" and arms[baseline].tuning != "own":
            raise StudyError(
                f'{name}: arms.{arm}.tuning = "baseline" needs a baseline that is tuned itself; '
                f"{baseline} is not"
            )
    own = [arm for arm, about in arms.items() if about.tuning == "own"]
    return read_tuning(table["tuning"], final_seeds, own, name) if "tuning" in table else None


def _check_settings(spec: Spec) -> None:
    """Every setting that the study can come to: each arm in each cell, at the corners of its space."""
    for arm, about in spec.arms.items():
        for cell in spec.cells:
            spec.setting(cell, arm)
            if spec.tuning is not None and about.tuning != "none":
                searched = arm if about.tuning == "own" else spec.baseline
                _check_space(spec, spec.tuning, cell, arm, searched)


def _check_space(spec: Spec, tuning: Tuning, cell: str, arm: str, searched: str) -> None:
    for key, about in tuning.of(searched).items():
        for value in about.corners:
            try:
                spec.setting(cell, arm, {key: value})
            except StudyError as error:
                table = f"arms.{searched}" if key in tuning.arms.get(searched, {}) else "space"
                place = f" in cell {cell}" if cell else ""
                raise StudyError(
                    f'{spec.name}: tuning.{table}."{key}" = {value!r} is not possible for arm {arm}{place}: '
                    f"{str(error).removeprefix(f'{spec.name}: ')}"
                ) from None


def _builtin() -> Any:
    return resources.files("cdgrad.study") / "specs"
