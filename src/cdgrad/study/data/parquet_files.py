"""Parquet files named by their split, as the Hugging Face hub stores a data set, read by pyarrow alone.

Used where the package ``datasets`` is not installed; it finds the same splits, columns and classes in such a
folder. Other folders and file names need ``datasets``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from cdgrad.study import StudyError
from cdgrad.study.data.choice import choose_columns, choose_splits
from cdgrad.study.data.files import Contents, is_data, printable
from cdgrad.study.data.source import ImageFile, Source, SourceSplit, image_file
from cdgrad.study.shown import one_line
from cdgrad.study.spec import Task

_SPLITS = ("train", "validation", "test")
_NAME = re.compile(rf"(?P<split>{'|'.join(_SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")


def are_named_by_split(contents: Contents) -> bool:
    """Whether all data of a folder are files such as ``train-00000-of-00001.parquet``, side by side."""
    data = [path for path in contents.data if is_data(path)]
    return bool(data) and all(not p.parent.parts and _NAME.fullmatch(p.name) for p in data)


def read(task: Task, contents: Contents) -> Source:
    """The splits of a folder for which `are_named_by_split` holds.

    Raises:
        StudyError: a file cannot be read, or splits and columns do not fit; the message says what was looked
            for.
    """
    files: dict[str, list[Path]] = {}
    for path in contents.data:
        if match := _NAME.fullmatch(path.name):
            files.setdefault(match["split"], []).append(contents.folder / path)
    files = {name: files[name] for name in sorted(files, key=_SPLITS.index)}
    roles = choose_splits(task, files)
    first = files[roles["train"]][0]
    features = columns_of(first)
    image, label = choose_columns(task, {name: kind.get("_type", "") for name, kind in features.items()})
    for path in (path for name in roles.values() for path in files[name]):
        _check_alike(task, path, first, image, label)
    names = features[label].get("names")
    splits = {role: _split(files[name], name, image, label, names) for role, name in roles.items()}
    unread = [name for name in files if name not in roles.values()]
    notes = [f"the {_rows(files[name])} images of split {name} are not read" for name in unread]
    return Source(splits, roles, tuple(notes))


def _parquet() -> Any:
    return import_module("pyarrow.parquet")  # it ships no types


def columns_of(path: Path) -> dict[str, dict[str, Any]]:
    """What the file says of its columns; those of images are recognized without it, too.

    Raises:
        StudyError: the file cannot be read.
    """
    with _explained(path):
        schema = _parquet().read_schema(path)
        metadata: dict[bytes, bytes] = schema.metadata or {}
        written = json.loads(metadata.get(b"huggingface", b"{}"))
        declared = written.get("info", {}).get("features", {})
        features = {field.name: declared.get(field.name) or _guess(field.type) for field in schema}
        for name, kind in features.items():
            names: Any = kind.get("names") or []
            if not isinstance(names, list) or {*map(type, cast(list[Any], names))} - {str}:
                raise ValueError(f"column {name} has names of classes that are no list of words")
    return features


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Inside, whatever damaged bytes lead pyarrow to names the file."""
    try:
        yield
    except Exception as error:
        raise StudyError(
            f"task.data: {printable(path)} cannot be read as Parquet: {one_line(error)}; replace it"
        ) from error


def _guess(kind: Any) -> dict[str, str]:
    fields = {kind.field(k).name for k in range(kind.num_fields)}
    return {"_type": "Image"} if fields == {"bytes", "path"} else {}


def _check_alike(task: Task, path: Path, first: Path, image: str, label: str) -> None:
    own, others = columns_of(path), columns_of(first)
    if missing := {image, label} - {*own}:
        raise StudyError(
            f"{task.data}: {printable(path.name)} has no column {', '.join(sorted(missing))}, which the "
            "training split has; write all files with the same columns"
        )
    if own[label].get("names") != others[label].get("names"):
        raise StudyError(
            f"{task.data}: column {label} numbers its classes differently in {printable(first.name)} and "
            f"{printable(path.name)}; write all files with one list of classes"
        )


def _split(
    files: Sequence[Path], name: str, image: str, label: str, names: Sequence[str] | None
) -> SourceSplit:
    labels: list[Any] = []
    for path in files:
        with _explained(path):
            labels += _parquet().read_table(path, columns=[label])[label].to_pylist()

    def images() -> Iterator[tuple[str, ImageFile]]:
        row = 0
        for path in files:
            for contents in _contents(path, image):
                for content in contents:
                    yield f"row {row} of split {name}", image_file(content)
                    row += 1

    return SourceSplit(labels, images, tuple(names) if names else None, label)


def _contents(path: Path, column: str) -> Iterator[list[Any]]:
    """The values of a column, a batch at a time."""
    with _explained(path):
        batches: Iterator[Any] = _parquet().ParquetFile(path).iter_batches(1024, columns=[column])
    while True:
        with _explained(path):
            if (batch := next(batches, None)) is None:
                return
            values: list[Any] = batch.column(0).to_pylist()
        yield values


def _rows(files: Sequence[Path]) -> int:
    return sum(_parquet().ParquetFile(path).metadata.num_rows for path in files)
