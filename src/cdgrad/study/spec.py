"""What a study is, as frozen values read from TOML and checked key by key.

A `Spec` names the arms and seeds; a `Setting` is everything that decides the numbers of one arm's
runs, so that its fingerprint tells whether a record belongs to the study.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cdgrad.metrics import parse_metric
from cdgrad.study import StudyError
from cdgrad.study.fields import (
    POSITIVE,
    as_table,
    at_least,
    check_keys,
    error_at,
    one_of,
    read,
    seeds,
    some_of,
    within,
)
from cdgrad.study.tuning import Tuning, Values, read_tuning

DATA = ("digits", "fake")
MODELS = (
    "small-cnn",
    "resnet8",
    "resnet20",
    "resnet56",
    "resnet18",
    "preact-resnet164",
    "wide-resnet16-4",
    "wide-resnet28-10",
    "vgg11-bn",
    "vgg16-bn",
    "densenet-bc",
    "mobilenet-v2",
)
AUGMENTATIONS = ("pad-crop", "flip", "cutout")
DIRECTIONS = ("output", "input", "height", "width")
RESCALES = ("none", "norm")
TUNINGS = ("own", "baseline", "none")
BASELINE_METRIC = "none"

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,15}")
_CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,39}")


@dataclass(frozen=True)
class Task:
    """Images of classes, and how many of them a seed draws to train, to validate and to test.

    Attributes:
        data: ``"digits"``, ``"fake"``, a local folder, or a name on the Hugging Face hub.
        train: count of training images, or ``"all"`` that are left.
        validation: count of validation images; never from an official test split.
        test: count of test images, or ``"all"``: the official test split, or what is left of the only one.
        train_split, test_split: names of the splits, where they are not ``train`` and ``test`` (or
            ``validation``, where there is no test).
        image, label: names of the columns, where there is more than one of images or labels.
        size: side in pixels that all images are resized to, cropped to a square; 0: as they are.
        augment: random changes of training images, in this order.
    """

    data: str
    train: int | str = field(metadata=at_least(1, or_all=True))
    validation: int = field(metadata=at_least(1))
    test: int | str = field(default="all", metadata=at_least(1, or_all=True))
    train_split: str = ""
    test_split: str = ""
    image: str = ""
    label: str = ""
    size: int = field(default=0, metadata=at_least(0))
    augment: tuple[str, ...] = field(default=(), metadata=some_of(*AUGMENTATIONS))


@dataclass(frozen=True)
class Model:
    """A built-in network or ``module:callable``, with its keyword arguments."""

    name: str = field(metadata=one_of(*MODELS, importable=True))
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Schedule:
    """How to train, the same in all arms.

    Attributes:
        epochs: passes over the training images.
        batch: images per step of the optimizer.
        warmup: epochs in which the learning rate rises linearly to its initial value.
        decay: what it does afterwards: fall to 0 along a ``"cosine"``, or stay (``"none"``).
        label_smoothing: share of the target spread evenly over all classes.
        ema: decay per step of the exponential moving average whose weights are evaluated; 0: none.
        accumulate: micro-batches that a batch is cut into; their gradients add up to the batch's.
        clip: largest L2 norm of the whole gradient, after the arm's operator; 0: unlimited.
        precision: of the forward pass; ``"bfloat16"`` by autocast, the weights stay float32.
        compile: run the network through torch.compile.
        channels_last: keep images and weights in that memory format.
    """

    epochs: int = field(metadata=at_least(1))
    batch: int = field(metadata=at_least(1))
    warmup: int = field(default=0, metadata=at_least(0))
    decay: str = field(default="cosine", metadata=one_of("cosine", "none"))
    label_smoothing: float = field(default=0.0, metadata=within(0, 1))
    ema: float = field(default=0.0, metadata=within(0, 1))
    accumulate: int = field(default=1, metadata=at_least(1))
    clip: float = field(default=0.0, metadata=within(0, math.inf))
    precision: str = field(default="float32", metadata=one_of("float32", "bfloat16"))
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must be below epochs = {self.epochs}; got {self.warmup}")
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate must be at most batch = {self.batch}; got {self.accumulate}")


@dataclass(frozen=True)
class Optimizer:
    """``module:callable``, its initial learning rate, and its other keyword arguments."""

    name: str = field(metadata=one_of(importable=True))
    lr: float = field(metadata=POSITIVE)
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Arm:
    """One thing to compare: what is done to the gradient, and changes to the optimizer.

    Attributes:
        metric: a metric, or ``none``: nothing attached.
        direction, rescale, linear: as in `cdgrad.attach`.
        permute: apply the metric to the channels in a random order, fixed by the run's seed.
        centralize: subtract the mean of each output filter's gradient first.
        optimizer: keys that replace those of the study's optimizer.
        values: what the user's own training code (`entry`) reads of the arm.
        tuning: where the arm's setting comes from in a study with tuning: trials of its ``"own"``,
            the values chosen for the ``"baseline"``, or ``"none"``: it is as the specification says.
    """

    metric: str = BASELINE_METRIC
    direction: str = field(default="output", metadata=one_of(*DIRECTIONS))
    rescale: str = field(default="none", metadata=one_of(*RESCALES))
    linear: bool = False
    permute: bool = False
    centralize: bool = False
    optimizer: dict[str, Any] = field(default_factory=dict[str, Any])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    tuning: str = field(default="own", metadata=one_of(*TUNINGS))

    def __post_init__(self) -> None:
        if self.metric in (BASELINE_METRIC, "l2"):
            for key in ("direction", "rescale", "linear", "permute"):
                if getattr(self, key) != getattr(Arm, key):
                    raise ValueError(
                        f"{key} changes nothing under metric {self.metric}; give a metric, such as "
                        f"sobolev:lam=0.01, or leave it out"
                    )
        if self.permute and self.direction in ("height", "width"):
            raise ValueError(
                f"permute is of channels, and direction is {self.direction}; use output or input"
            )


@dataclass(frozen=True)
class Setting:
    """All that decides the numbers of a run, besides its seed.

    With an `entry`, the user's own training code, the four tables are None and `values` holds what
    that code reads of the arm, under dotted keys; otherwise `values` is empty.
    """

    task: Task | None
    model: Model | None
    schedule: Schedule | None
    optimizer: Optimizer | None
    metric: str
    direction: str
    rescale: str
    linear: bool
    evaluate: str
    permute: bool = False
    centralize: bool = False
    entry: str = ""
    values: dict[str, Any] = field(default_factory=dict[str, Any])

    def tables(self) -> tuple[Task, Model, Schedule, Optimizer]:
        """The four tables of a run by the built-in training loop.

        Raises:
            StudyError: the run is of the user's own training code.
        """
        if self.task and self.model and self.schedule and self.optimizer:
            return self.task, self.model, self.schedule, self.optimizer
        raise StudyError(f"{self.entry} trains by itself: it has no task, model, schedule or optimizer table")

    @property
    def fingerprint(self) -> str:
        """Equal for two settings exactly where all their values are."""
        return hashlib.sha256(json.dumps(as_json(self), sort_keys=True).encode()).hexdigest()


def as_json(setting: Setting) -> dict[str, Any]:
    """The setting as a record keeps it: tuples are lists."""
    return json.loads(json.dumps(asdict(setting)))


Tables = Mapping[str, Mapping[str, Any]]
_TABLES = {"task": Task, "model": Model, "schedule": Schedule, "optimizer": Optimizer}
_NOTHING: Values = MappingProxyType({})
_OPTIONS = ("direction", "rescale", "linear", "permute", "centralize")
_TUNABLE = (*_OPTIONS, "lam")


@dataclass(frozen=True)
class Spec:
    """A study. `text` is the TOML it was read from, kept in the records.

    `cells` holds, for each combination in which the arms are compared, its tables ``task``, ``model``,
    ``schedule`` and ``optimizer`` as read; a study without cells has one, named ``""``. `entry` is the
    user's own training code, ``module:callable``, or empty; with it there is one cell without tables.
    `evaluate` is ``"test"``, or ``"validation"`` for a study that never reads a test set.
    """

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    evaluate: str
    workers: int
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
            self.cells[cell] if self.entry else _changed(self.cells[cell], {"optimizer": options.optimizer})
        )
        own = dict(_dotted(options.values))
        for key, value in values.items():
            table, _, inner = key.partition(".")
            if self.entry and key not in _TUNABLE:
                own[key] = value
            elif inner and table in ("model", "schedule", "optimizer"):
                tables = _changed(tables, {table: {inner: value}})
            else:
                options = _with_option(options, key, value, self.name)
        places = {"optimizer": f"arms.{arm}."} if options.optimizer else {}
        typed = dict.fromkeys(_TABLES) if self.entry else _read_tables(tables, places, self.name)
        return Setting(
            **typed,
            **{key: getattr(options, key) for key in _OPTIONS},
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
    tables = () if head.entry else (*_TABLES, "cells")
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
        entry=head.entry,
        cells={"": {}} if head.entry else _cells(table, name),
        arms=arms,
        tuning=_tuning(table, head.baseline, arms, final_seeds, name),
        text=text,
    )
    _check_settings(spec)
    return spec


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The first key at which two configurations differ, with both values; empty where none does."""
    for key in sorted({*old, *new}):
        a, b, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := first_difference(a, b, f"{path}."):  # pyright: ignore[reportUnknownArgumentType]
                return inner
        elif a != b:
            return f"{path} was {a!r} and is {b!r}"
    return ""


@dataclass(frozen=True)
class _Head:
    """The keys of a specification that stand outside any table."""

    baseline: str
    title: str = ""
    evaluate: str = field(default="test", metadata=one_of("test", "validation"))
    workers: int = field(default=2, metadata=at_least(1))
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


def _cells(table: Mapping[str, Any], name: str) -> dict[str, Tables]:
    """The tables of each cell: the specification's own, with the cell's changes."""
    common = {key: as_table(table[key], key, name) for key in _TABLES if key in table}
    if "cells" not in table:
        _read_tables(common, {}, name)
        return {"": common}
    cells: dict[str, Tables] = {}
    for cell, value in as_table(table["cells"], "cells", name).items():
        if not _CELL_NAME.fullmatch(cell):
            raise StudyError(
                f"{name}: cell name {cell!r} is not allowed; use 1 to 40 letters, digits and . _ + = -"
            )
        changes = as_table(value, f"cells.{cell}", name)
        check_keys(changes, _TABLES, (), f"cells.{cell}.", name)
        changes = {key: as_table(changes[key], f"cells.{cell}.{key}", name) for key in changes}
        cells[cell] = _changed(common, changes)
        _read_tables(cells[cell], dict.fromkeys(changes, f"cells.{cell}."), name)
    if not cells:
        raise StudyError(f"{name}: cells has no cell; give it one, or leave it out")
    return cells


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


def _changed(tables: Tables, changes: Tables) -> Tables:
    """`tables` with the keys of `changes`.

    A network or optimizer of another name starts anew: the arguments of the one are not the other's.
    """
    merged = dict(tables)
    for key, change in changes.items():
        old = tables.get(key, {})
        renamed = "name" in change and change["name"] != old.get("name")
        merged[key] = dict(change) if renamed else {**old, **change}
    return merged


def _read_tables(tables: Tables, places: Mapping[str, str], name: str) -> dict[str, Any]:
    """The four typed tables; `places` says in front of which of them a message names another place."""
    for key in _TABLES:
        if key not in tables:
            raise StudyError(f"{name}: {key} is missing")
    return {
        key: read(kind, tables[key], f"{places.get(key, '')}{key}", name) for key, kind in _TABLES.items()
    }


def _with_option(arm: Arm, key: str, value: Any, name: str) -> Arm:
    """An arm with another value of an option; ``lam`` is its metric's."""
    if key in _OPTIONS:
        return read(Arm, asdict(arm) | {key: value}, "arm", name)
    metric = None if arm.metric == BASELINE_METRIC else parse_metric(arm.metric)
    if key != "lam":
        known = [*_TUNABLE, "model.KEY", "schedule.KEY", "optimizer.KEY"]
        check_keys({key: value}, known, (), "", name)
    if metric is None or not any(f.name == "lam" for f in fields(metric)):
        raise StudyError(f"{name}: metric {arm.metric} has no lam")
    try:
        return replace(arm, metric=str(replace(metric, lam=value)))  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError) as error:
        raise StudyError(f"{name}: {error}") from None


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
