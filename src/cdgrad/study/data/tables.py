"""Image classification sets read by the package ``datasets``: a local folder, or a name on the hub.

A local folder never asks the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.data.choice import choose_columns, choose_splits
from cdgrad.study.data.files import IMAGES, TABLES, Contents, describes_images, is_data, listed, printable
from cdgrad.study.data.source import ImageFile, Source, SourceSplit, hub_name, image_file
from cdgrad.study.shown import one_line
from cdgrad.study.spec import Task


def read(task: Task, library: Any, contents: Contents | None, arrow: Path) -> Source:
    """The splits of a data set, with all that is not read of it.

    Args:
        task: what to read, and which columns and splits.
        library: the package ``datasets``.
        contents: of the local folder; None for a name on the hub.
        arrow: an empty folder for what ``datasets`` writes of a local folder.

    Raises:
        StudyError: no such name, no network, or contents that do not fit; the message says what was
            looked for.
    """
    loaded, files = _open(task, library, contents, arrow)
    roles = choose_splits(task, loaded)
    features: Mapping[str, object] = loaded[roles["train"]].features
    image, label = choose_columns(task, {name: type(kind).__name__ for name, kind in features.items()})
    for name in roles.values():
        if missing := {image, label} - {*loaded[name].features}:
            raise StudyError(
                f"{task.data}: split {name} has no column {', '.join(sorted(missing))}, which the training "
                "split has; name others as task.image and task.label, or another split"
            )
    images = {name: _images(task, library, loaded[name], image) for name in roles.values()}
    notes = [
        f"the {len(loaded[name])} images of split {name} are not read"
        for name in loaded
        if name not in roles.values()
    ]
    if contents is not None:
        _check_class_names(task, library, files, label)
        notes += _unread(contents, files, sum(map(len, loaded.values())))
        notes += _in_several_folders(contents, {name: files.get(name, []) for name in roles.values()})
        for name in roles.values():
            notes += _outside(images[name], image, (contents.folder, arrow.resolve()))
    splits = {role: _split(loaded[name], images[name], name, image, label) for role, name in roles.items()}
    return Source(splits, roles, tuple(notes))


def _open(
    task: Task, library: Any, contents: Contents | None, arrow: Path
) -> tuple[Mapping[str, Any], dict[str, list[Path]]]:
    """The data set's splits by name, and the local files that each was read from."""
    shown_before, verbosity = library.is_progress_bar_enabled(), library.logging.get_verbosity()
    library.disable_progress_bars()  # they would break the study's own display, as lines of its log would
    library.logging.set_verbosity(logging.CRITICAL)
    try:
        if contents is None:
            return dict(library.load_dataset(hub_name(task.data))), {}
        place: dict[str, Any] = {"path": str(contents.folder), "cache_dir": str(arrow)}
        files = _files(library.load_dataset_builder(**place))
        visible = {contents.folder / path for path in contents.data}
        kept = {split: [path for path in paths if path in visible] for split, paths in files.items()}
        if kept != files:  # a study's records lie there, which `datasets` takes for data
            files = {split: paths for split, paths in kept.items() if paths}
            place["data_files"] = {split: [str(path) for path in paths] for split, paths in files.items()}
        return dict(library.load_dataset(**place)), files
    except Exception as error:  # whatever the files or the network lead it to
        reason = (one_line(error) or type(error).__name__).rstrip(".")
        if contents is not None:
            raise StudyError(
                f"task.data: {printable(contents.folder)} is not a folder that datasets.load_dataset reads, "
                f"of Parquet files or of images in a folder per class: {reason}"
            ) from error
        raise StudyError(
            f"task.data: {hub_name(task.data)!r} cannot be loaded from the Hugging Face hub: {reason}; "
            "check the name and the network, or name a local folder"
        ) from error
    finally:
        library.logging.set_verbosity(verbosity)
        if shown_before:
            library.enable_progress_bars()


def _files(builder: Any) -> dict[str, list[Path]]:
    data_files: Mapping[Any, Any] = builder.config.data_files or {}
    return {str(split): [Path(str(path)) for path in paths] for split, paths in data_files.items()}


def _check_class_names(task: Task, library: Any, files: Mapping[str, list[Path]], label: str) -> None:
    """`datasets` takes the classes' names from one Parquet file and reads all others' numbers by them."""
    parquet: Any = import_module("pyarrow.parquet")
    first: tuple[Path, list[str]] | None = None
    for path in (path for paths in files.values() for path in paths if path.suffix == ".parquet"):
        features = library.Features.from_arrow_schema(parquet.read_schema(path))
        names = getattr(features.get(label), "names", None)
        if names is None:
            continue
        if first is None:
            first = path, names
        elif names != first[1]:
            raise StudyError(
                f"{task.data}: column {label} numbers its classes differently in {printable(first[0].name)} "
                f"({listed(first[1])}) and {printable(path.name)} ({listed(names)}); write all "
                f"files with one list of classes, or the classes' names instead of numbers"
            )


def _unread(contents: Contents, files: Mapping[str, list[Path]], rows: int) -> list[str]:
    """What lies in the folder and `datasets` does not read: files in no split, images in no table."""
    loaded = {path for paths in files.values() for path in paths}
    beyond = [path for path in contents.data if contents.folder / path not in loaded and is_data(path)]
    notes: list[str] = []
    if beyond:
        notes.append(f"{len(beyond)} files are not read: no split has their names ({listed(beyond)})")
    images = sum(path.suffix.lower() in IMAGES for path in loaded)
    if images > rows:
        notes.append(f"{images - rows} images are not read: the table does not name them")
    return notes


def _in_several_folders(contents: Contents, files: Mapping[str, list[Path]]) -> Iterator[str]:
    """Splits that `datasets` reads from the tables of several folders, which may be several data sets."""
    for split, paths in files.items():
        tables = [path for path in paths if path.suffix.lower() in TABLES and not describes_images(path)]
        folders = sorted({path.parent.relative_to(contents.folder) for path in tables})
        if len(folders) > 1:
            yield f"split {split} is read from the tables of {len(folders)} folders ({listed(folders)})"


def _outside(split: Any, image: str, inside: tuple[Path, ...]) -> list[str]:
    """Images that a table names and that lie elsewhere: no hash covers them."""
    compute: Any = import_module("pyarrow.compute")
    column = split.data.column(image)
    without_bytes = compute.is_null(compute.struct_field(column, "bytes"))
    paths = compute.filter(compute.struct_field(column, "path"), without_bytes).drop_null().to_pylist()
    beyond = [p for p in paths if not any(Path(p).absolute().is_relative_to(folder) for folder in inside)]
    if not beyond:
        return []
    what = f"the {len(beyond)} images outside the folder are not part of its hash ({listed(beyond)})"
    return [f"{what}: no record would show that they changed"]


def _images(task: Task, library: Any, split: Any, image: str) -> Any:
    """The column of images, each as its bytes or the path of its file, which a column of text may hold."""
    try:
        return split.select_columns([image]).cast_column(image, library.Image(decode=False))
    except Exception as error:  # whatever pyarrow raises for the kind of the column
        kind = getattr(split.features[image], "dtype", type(split.features[image]).__name__)
        raise StudyError(
            f"{task.data}: column {image} holds values of type {kind}, neither images nor the paths of image "
            "files; name another as task.image"
        ) from error


def _split(split: Any, files: Any, name: str, image: str, label: str) -> SourceSplit:
    def images() -> Iterator[tuple[str, ImageFile]]:
        for row, content in enumerate(files):
            yield f"row {row} of split {name}", image_file(content[image])

    names = getattr(split.features[label], "names", None)
    return SourceSplit(split[label][:], images, tuple(names) if names else None, label)
