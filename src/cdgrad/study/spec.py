"""What a study is, as frozen values read from TOML and checked key by key.

A `Spec` names the arms and seeds; a `Setting` is everything that decides the numbers of one arm's
runs, so that its fingerprint tells whether a record belongs to the study.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from cdgrad.metrics import parse_metric
from cdgrad.study import StudyError
from cdgrad.study.fields import POSITIVE, as_table, at_least, check_keys, error_at, is_a, one_of, read

DATA = ("digits", "fake")
MODELS = ("small-cnn",)
DIRECTIONS = ("output", "input", "height", "width")
RESCALES = ("none", "norm")
BASELINE_METRIC = "none"

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,15}")


@dataclass(frozen=True)
class Task:
    """A data set, and how many of its images a seed draws for training and for validation."""

    data: str = field(metadata=one_of(*DATA))
    train: int = field(metadata=at_least(1))
    validation: int = field(metadata=at_least(1))


@dataclass(frozen=True)
class Model:
    """A built-in network or ``module:callable``, with its keyword arguments."""

    name: str = field(metadata=one_of(*MODELS, importable=True))
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Schedule:
    """Passes over the training images, images per step. The learning rate falls to 0 along a cosine."""

    epochs: int = field(metadata=at_least(1))
    batch: int = field(metadata=at_least(1))


@dataclass(frozen=True)
class Optimizer:
    """``module:callable``, its initial learning rate, and its other keyword arguments."""

    name: str = field(metadata=one_of(importable=True))
    lr: float = field(metadata=POSITIVE)
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a metric (or ``none``: nothing attached) and changes to the optimizer."""

    metric: str = BASELINE_METRIC
    direction: str = field(default="output", metadata=one_of(*DIRECTIONS))
    rescale: str = field(default="none", metadata=one_of(*RESCALES))
    linear: bool = False
    optimizer: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Setting:
    """All that decides the numbers of a run, besides its seed."""

    task: Task
    model: Model
    schedule: Schedule
    optimizer: Optimizer
    metric: str
    direction: str
    rescale: str
    linear: bool
    evaluate: str

    @property
    def fingerprint(self) -> str:
        """Equal for two settings exactly where all their values are."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Spec:
    """A study. `text` is the TOML it was read from, kept in the records.

    `evaluate` is ``"test"``, or ``"validation"`` for a study that chooses settings: it never reads a
    test set.
    """

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    evaluate: str
    workers: int
    task: Task
    model: Model
    schedule: Schedule
    optimizer: Optimizer
    arms: dict[str, Arm]
    text: str

    def setting(self, arm: str) -> Setting:
        """The setting of an arm: the study's own with the arm's changes."""
        change, base = self.arms[arm], self.optimizer
        merged = {"name": base.name, "lr": base.lr, **base.arguments, **change.optimizer}
        return Setting(
            task=self.task,
            model=self.model,
            schedule=self.schedule,
            optimizer=read(Optimizer, merged, f"arms.{arm}.optimizer", self.name),
            metric=change.metric,
            direction=change.direction,
            rescale=change.rescale,
            linear=change.linear,
            evaluate=self.evaluate,
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
    tables = {"task": Task, "model": Model, "schedule": Schedule, "optimizer": Optimizer}
    required = ("baseline", "seeds", *tables, "arms")
    check_keys(table, (*required, "title", "evaluate", "workers"), required, "", name)
    head = read(_Head, {k: v for k, v in table.items() if k in _HEAD}, "", name)
    arms = {
        str(arm): _arm(str(arm), value, name) for arm, value in as_table(table["arms"], "arms", name).items()
    }
    if head.baseline not in arms:
        raise error_at(name, "baseline", head.baseline, f"one of the arms: {', '.join(arms) or 'none given'}")
    spec = Spec(
        name=name,
        title=head.title or name,
        baseline=head.baseline,
        seeds=_seeds(table["seeds"], name),
        evaluate=head.evaluate,
        workers=head.workers,
        task=read(Task, table["task"], "task", name),
        model=read(Model, table["model"], "model", name),
        schedule=read(Schedule, table["schedule"], "schedule", name),
        optimizer=read(Optimizer, table["optimizer"], "optimizer", name),
        arms=arms,
        text=text,
    )
    for arm in arms:
        spec.setting(arm)
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


_HEAD = tuple(f.name for f in fields(_Head))


def _arm(title: str, value: Any, name: str) -> Arm:
    where = f"arms.{title}"
    if not _ARM_NAME.fullmatch(title):
        raise StudyError(
            f"{name}: arm name {title!r} is not allowed; use 1 to 16 letters, digits and . _ + = - "
            f"(it heads a table column)"
        )
    arm = read(Arm, value, where, name)
    if arm.metric == BASELINE_METRIC:
        return arm
    try:
        return replace(arm, metric=str(parse_metric(arm.metric)))
    except ValueError as error:
        raise StudyError(f"{name}: {where}.metric: {error}") from None


def _seeds(value: Any, name: str) -> tuple[int, ...]:
    """A count n for the seeds 0..n-1, or a list of them."""
    allowed = "a count of at least 1, or a list of different integers of at least 0"
    if is_a(value, int) and value >= 1:
        return tuple(range(value))
    if not isinstance(value, list) or not value:
        raise error_at(name, "seeds", value, allowed)
    seeds: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    if not all(is_a(s, int) and s >= 0 for s in seeds) or len(set(seeds)) < len(seeds):
        raise error_at(name, "seeds", seeds, allowed)
    return tuple(seeds)


def _builtin() -> Any:
    return resources.files("cdgrad.study") / "specs"
