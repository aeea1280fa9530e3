"""Which splits and columns of a data set are read, and the number of each class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cdgrad.messages import first_few
from cdgrad.study import StudyError
from cdgrad.study.data.source import SourceSplit
from cdgrad.study.spec import Task

_TEST_SPLITS = ("test", "validation", "valid", "val")
_LABELS = ("label", "labels", "fine_label")  # CIFAR-100 has a coarse_label, too


def choose_splits(task: Task, available: Iterable[str]) -> dict[str, str]:
    """Which split serves as ``train``, and as ``test`` where there is one.

    Raises:
        StudyError: a named split does not exist, or none is named where it is not clear which is meant.
    """
    names = list(available)
    for key in ("train_split", "test_split"):
        if (named := getattr(task, key)) and named not in names:
            raise StudyError(f"task.{key}: {task.data} has the splits {', '.join(names)}; got {named!r}")
    train = task.train_split or (names[0] if len(names) == 1 else "train")
    if train not in names:
        raise StudyError(f"{task.data} has the splits {', '.join(names)}: name one as task.train_split")
    others = [name for name in names if name != train]
    test = task.test_split or next((name for name in _TEST_SPLITS if name in others), "")
    if others and not test:
        raise StudyError(f"{task.data} has the splits {', '.join(names)}: name one as task.test_split")
    if test == train:
        raise StudyError(f"task.test_split must differ from the training split; both are {train!r}")
    return {"train": train, "test": test} if test else {"train": train}


def choose_columns(task: Task, kinds: Mapping[str, str]) -> tuple[str, str]:
    """The columns of the images and the labels.

    Args:
        task: names them, or does not.
        kinds: of all columns, by the names of the classes of ``datasets``, such as ``"Image"``.

    Raises:
        StudyError: a named column does not exist, or none is named where it is not clear which is meant.
    """
    images = [name for name, kind in kinds.items() if kind == "Image"]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = [name for name in _LABELS if name in kinds] or classes
    if not labels and not task.label and [*kinds] == images:
        raise StudyError(
            f"{task.data} has images without classes; put each image into a folder named after its class, or "
            "write a table with a column of labels"
        )
    for key, named in (("image", task.image), ("label", task.label)):
        if named and named not in kinds:
            raise StudyError(f"task.{key}: {task.data} has the columns {', '.join(kinds)}; got {named!r}")
    image, label = task.image or (images[0] if len(images) == 1 else ""), task.label or next(iter(labels), "")
    if unclear := [f"task.{key}" for key, chosen in (("image", image), ("label", label)) if not chosen]:
        raise StudyError(
            f"{task.data} has the columns {', '.join(kinds)}: name one as {' and one as '.join(unclear)}"
        )
    return image, label


def number_classes(task: Task, splits: Mapping[str, SourceSplit]) -> tuple[dict[str, Any], int]:
    """Class numbers from 0 of the images of every split, and how many classes there are.

    Raises:
        StudyError: a label is missing or is no class, or two splits name their classes differently.
    """
    training = splits["train"]
    for role, split in splits.items():
        _check_labels(task, role, split)
        if split.names != training.names:
            raise StudyError(
                f"{task.data}: column {split.column} numbers other classes in the {role} images "
                f"({_first(split.names)}) than in the training images ({_first(training.names)}); write all "
                f"splits with one list of classes, or the classes' names instead of numbers"
            )
    names = training.names
    order: Sequence[Any] = range(len(names)) if names else sorted(set(training.labels))
    if len(order) < 2:
        raise StudyError(
            f"{task.data}: column {training.column} of the training images holds one class, "
            f"{(names or [*order])[0]!r}, and a study needs two at least; put each image into a folder named "
            "after its class, or name another column as task.label"
        )
    number = {value: index for index, value in enumerate(order)}
    for role, split in splits.items():
        for row, value in enumerate(split.labels):
            if value not in number:
                raise _refused(task, role, split, row, f"{value!r}, which is no class of the training images")
    return {role: np.array([number[v] for v in split.labels]) for role, split in splits.items()}, len(order)


def _check_labels(task: Task, role: str, split: SourceSplit) -> None:
    """Each label is an integer or a word, as a class is."""
    for row, value in enumerate(split.labels):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise _refused(task, role, split, row, "no label")
        if isinstance(value, float) and not value.is_integer():
            raise _refused(task, role, split, row, f"{value!r}, and a class is an integer or a word")
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise _refused(task, role, split, row, f"a {kind}, and a class is an integer or a word")
    if len({isinstance(value, str) for value in split.labels}) > 1:
        raise StudyError(
            f"{task.data}: column {split.column} of the {role} images mixes numbers and words; write all "
            "labels as one of them, or name another column as task.label"
        )


def _refused(task: Task, role: str, split: SourceSplit, row: int, what: str) -> StudyError:
    return StudyError(
        f"{task.data}: column {split.column} of the {role} images holds {what} (row {row}, counted from 0); "
        f"correct or remove such rows, or name another column as task.label or split as task.{role}_split"
    )


def _first(names: Sequence[str] | None) -> str:
    return "without names" if names is None else first_few(names)
