"""Reads a study from TOML and checks it key by key.

A `Spec` names the cells, arms and seeds; the `Setting` of every run follows from it.
"""

from __future__ import annotations

import codecs
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from cdgrad.metrics import parse_metric
from cdgrad.study import StudyError
from cdgrad.study.spec.measure import ACCURACY, ERROR, Measure
from cdgrad.study.spec.rules import (
    Until,
    as_table,
    at_least,
    check_keys,
    check_values,
    error_at,
    one_of,
    read,
    seeds,
    within,
)
from cdgrad.study.spec.setting import NO_METRIC, Arm
from cdgrad.study.spec.space import Tuning, read_tuning
from cdgrad.study.spec.study import TABLES, Spec, Tables, changed, read_tables

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,15}")
_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)  # Windows takes these for no file


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
        name = path.stem.encode("utf-8", "backslashreplace").decode()  # it may be no UTF-8, as records are
        spec = parse(_decoded(path.read_bytes()), name)
    except OSError as error:
        raise StudyError(
            f"{source} cannot be read: {error.strerror or error}; change its permissions, or name another "
            "file"
        ) from None
    except UnicodeError as error:
        raise StudyError(f"{source} cannot be read: {error}; save it as UTF-8") from None
    return replace(spec, folder=str(path.absolute().parent))


def _decoded(content: bytes) -> str:
    """Text from an editor of any system: UTF-8, or UTF-16 with its mark, and either kind of line ends."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n")


def parse(text: str, name: str, *, stored: bool = False) -> Spec:
    """The study that TOML `text` describes; `name` is used in messages.

    A `stored` one, of recorded runs, may have what no new run may begin with, such as keys without effect.

    Raises:
        StudyError: not TOML; or a key that is unknown, missing, of the wrong type or out of range.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # its own, and int's for thousands of digits
        raise StudyError(f"{name}: not valid TOML: {error}") from None
    check_values(table, name)
    if "baseline" not in table and (names := as_table(table.get("arms", {}), "arms", name)):
        raise StudyError(f"{name}: baseline is missing; it must be one of the arms: {', '.join(names)}")
    head = read(Head, {k: v for k, v in table.items() if k in _HEAD_KEYS}, "", name)
    tables = () if head.entry else (*TABLES, "cells")
    check_keys(
        table, (*_HEAD_KEYS, "seeds", "arms", *tables, "metric", "tuning"), ("seeds", "arms"), "", name
    )
    arms = {
        str(arm): _arm(str(arm), value, name, entry=bool(head.entry), stored=stored)
        for arm, value in as_table(table["arms"], "arms", name).items()
    }
    if head.baseline not in arms:
        raise error_at(name, "baseline", head.baseline, f"one of the arms: {', '.join(arms) or 'none given'}")
    if head.reference and head.reference not in arms:
        raise error_at(name, "reference", head.reference, f"one of the arms: {', '.join(arms)}")
    until, final_seeds = _final_seeds(table["seeds"], name, stored=stored)
    spec = Spec(
        name=name,
        title=head.title or name,
        baseline=head.baseline,
        seeds=final_seeds,
        evaluate=head.evaluate,
        workers=head.workers,
        out=head.out or f"runs/{name}",
        entry=head.entry,
        cells={"": {}} if head.entry else read_cells(table, name, stored=stored),
        arms=arms,
        tuning=_tuning(table, head.baseline, arms, final_seeds, name, stored=stored),
        text=text,
        until=until,
        margin=head.margin,
        measure=_measure(table, head.entry, name, stored=stored),
        reference=head.reference,
        all_pairs=head.all_pairs,
        stored=stored,
    )
    if spec.until and spec.replicates > 1:
        raise StudyError(
            f"{name}: tuning.replicates > 1 needs a fixed number of seeds; set seeds to a number or a list"
        )
    _check_settings(spec)
    return spec


@dataclass(frozen=True)
class Head:
    """The keys of a specification that stand outside any table.

    Attributes:
        baseline: the arm that all others are compared with.
        title: title of the report; the file's name unless given.
        evaluate: the split of the reported error; with ``"validation"`` no test image is ever read.
        workers: number of runs at once.
        out: output directory, unless the command names one; runs/NAME unless given.
        margin: difference in points, or in the unit of ``[metric]``, below which two arms count as
            equivalent, written down before the results are known; the report then tests for equivalence.
            0: no test.
        reference: the arm that the report compares all others with; the baseline unless given.
        all_pairs: compare every two arms, in place of every arm with one.
        entry: your own training code, in place of the tables `task`, `model`, `schedule`, `optimizer`.
    """

    baseline: str
    title: str = ""
    evaluate: str = field(default="test", metadata=one_of("test", "validation"))
    workers: int = field(default=2, metadata=at_least(1))
    out: str = ""
    entry: str = field(default="", metadata=one_of(importable="mytrain:run"))
    margin: float = field(default=0.0, metadata=within(0, math.inf))
    reference: str = ""
    all_pairs: bool = False


_HEAD_KEYS = tuple(f.name for f in fields(Head))


def _measure(table: Mapping[str, object], entry: str, name: str, *, stored: bool) -> Measure:
    """What the runs' results are: the error in percent, unless a table ``[metric]`` says otherwise."""
    if "metric" not in table:
        return ERROR
    measure = read(Measure, table["metric"], "metric", name, stored=stored)
    if entry:
        return measure
    known = {(kind.name, kind.direction): kind for kind in (ERROR, ACCURACY)}
    if measure.unit or (measure.name, measure.direction) not in known:
        raise StudyError(
            f'{name}: the built-in training loop measures name = "error" with direction = "min", or name = '
            f'"accuracy" with direction = "max", in percent; got {measure.name}, {measure.direction}'
            f"{measure.unit and f', in {measure.unit}'}. Give an entry that returns what you measure (an "
            "arm's metric is arms.NAME.metric)"
        )
    return known[measure.name, measure.direction]


def _final_seeds(value: object, name: str, *, stored: bool) -> tuple[float, tuple[int, ...]]:
    """The width at which a cell may end early, 0 for never, and all seeds that it may have."""
    if not isinstance(value, dict):
        return 0.0, seeds(value, "seeds", name, stored=stored)
    rule = read(Until, cast(object, value), "seeds", name)
    return rule.until, tuple(range(rule.most))


def _arm(title: str, value: object, name: str, *, entry: bool, stored: bool) -> Arm:
    where = f"arms.{title}"
    if not _ARM_NAME.fullmatch(title):
        raise StudyError(
            f"{name}: arm name {title!r} is not allowed; use 1 to 16 letters, digits and . _ + = - "
            f"(it heads a table column)"
        )
    arm = read(Arm, value, where, name, stored=stored)
    if not stored:
        _check_kind(arm, where, name, entry=entry)
    if arm.metric == NO_METRIC:
        return arm
    try:
        return replace(arm, metric=str(parse_metric(arm.metric)))
    except ValueError as error:
        raise StudyError(f"{name}: {where}.metric: {error}") from None


def _check_kind(arm: Arm, where: str, name: str, *, entry: bool) -> None:
    """Refuse keys of an arm that are for the other kind of study, with an `entry` or without."""
    if arm.optimizer and entry:
        raise StudyError(f"{name}: {where}.optimizer has no effect with `entry`; use {where}.values")
    if arm.values and not entry:
        raise StudyError(f"{name}: {where}.values has no effect without `entry`; use {where}.optimizer")
    for key in ("rounding", "lr_factor"):
        if getattr(arm, key) != 1 and entry:
            raise StudyError(
                f"{name}: {where}.{key} has no effect with `entry`, only in the built-in loop; remove it"
            )


def _tuning(
    table: Mapping[str, object],
    baseline: str,
    arms: Mapping[str, Arm],
    final_seeds: Sequence[int],
    name: str,
    *,
    stored: bool,
) -> Tuning | None:
    for arm, options in arms.items():
        if "tuning" not in table and options.tuning != "own" and not stored:
            raise StudyError(
                f"{name}: arms.{arm}.tuning has no effect without a table tuning; add one, or remove it"
            )
        if options.tuning == "baseline" and arms[baseline].tuning != "own":
            raise StudyError(
                f'{name}: arms.{arm}.tuning = "baseline" needs a tuned baseline; {baseline} is not tuned'
            )
    own = [arm for arm, options in arms.items() if options.tuning == "own"]
    if "tuning" not in table or (stored and not own):
        return None
    if not own:
        raise StudyError(
            f"{name}: the table tuning has no effect where no arm is tuned; remove it, or tune an arm"
        )
    return read_tuning(table["tuning"], final_seeds, own, name, stored=stored)


def _check_settings(spec: Spec) -> None:
    """Check every setting that the study can have: each arm in each cell, at the ends of its search space."""
    if not spec.stored:
        _check_file_names("arm", spec.arms, spec.name)
        _check_file_names("cell", spec.cells, spec.name)
    for arm, options in spec.arms.items():
        for cell in spec.cells:
            spec.setting(cell, arm)
            if spec.tuning is not None and options.tuning != "none":
                searched = arm if options.tuning == "own" else spec.baseline
                _check_space(spec, spec.tuning, cell, arm, searched)


def _check_file_names(kind: str, names: Iterable[str], name: str) -> None:
    """Refuse names that Windows or macOS would give one file, or none: curves, figures and logs have them."""
    known: dict[str, str] = {}
    for given in names:
        if (other := known.setdefault(given.lower(), given)) != given:
            raise StudyError(
                f"{name}: {kind} names {other} and {given} differ in letter case alone, which files on "
                "Windows and macOS do not tell apart; rename one"
            )
        if given.endswith(".") or _DEVICE.fullmatch(given.partition(".")[0]):
            raise StudyError(
                f"{name}: {kind} name {given!r} is not allowed, because no file on Windows can have it; "
                "rename it"
            )


def _check_space(spec: Spec, tuning: Tuning, cell: str, arm: str, searched: str) -> None:
    space = tuning.of(searched)
    for key, dimension in space.items():
        for value in dimension.corners:
            try:
                spec.setting(cell, arm, {key: value})
            except StudyError as error:
                # Another optimizer may need a key that is searched, too, such as its learning rate.
                with suppress(StudyError):
                    spec.setting(cell, arm, {k: d.corners[0] for k, d in space.items()} | {key: value})
                    continue
                table = f"arms.{searched}" if key in tuning.arms.get(searched, {}) else "space"
                place = f" in cell {cell}" if cell else ""
                raise StudyError(
                    f'{spec.name}: tuning.{table}."{key}" = {value!r} is not possible for arm {arm}{place}: '
                    f"{str(error).removeprefix(f'{spec.name}: ')}"
                ) from None


def _builtin() -> Any:
    return resources.files("cdgrad.study.spec") / "builtin"


_CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,39}")


def read_cells(table: Mapping[str, object], name: str, *, stored: bool) -> dict[str, Tables]:
    """The tables of each cell: the specification's own, with the cell's changes.

    Raises:
        StudyError: a cell's name or one of its tables is not allowed.
    """
    common = {key: as_table(table[key], key, name) for key in TABLES if key in table}
    if "cells" not in table:
        read_tables(common, {}, name, stored=stored)
        return {"": common}
    cells: dict[str, Tables] = {}
    for cell, value in as_table(table["cells"], "cells", name).items():
        if not _CELL_NAME.fullmatch(cell):
            raise StudyError(
                f"{name}: cell name {cell!r} is not allowed; use 1 to 40 letters, digits and . _ + = -"
            )
        changes = as_table(value, f"cells.{cell}", name)
        check_keys(changes, TABLES, (), f"cells.{cell}.", name)
        changes = {key: as_table(changes[key], f"cells.{cell}.{key}", name) for key in changes}
        cells[cell] = changed(common, changes)
        read_tables(cells[cell], dict.fromkeys(changes, f"cells.{cell}."), name, stored=stored)
    if not cells:
        raise StudyError(f"{name}: the table cells is empty; add a cell, or remove the table")
    return cells
