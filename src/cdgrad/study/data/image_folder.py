"""Images in a folder for each class, those in a folder for each split or not.

The folder in which an image lies is its class. Folders above that one are splits where all names of a level
are: ``train``, ``Testing``, ``my_val``. Any other level above the classes has one folder in each split: the
images of several are of several data sets, or of classes that would be pooled. A file's name decides nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.data.choice import choose_splits
from cdgrad.study.data.files import ARCHIVES, TABLES, Contents, listed, normalized, printable
from cdgrad.study.data.source import ImageFile, Source, SourceSplit
from cdgrad.study.spec import Task

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}


def read(task: Task, contents: Contents) -> Source:
    """The splits and classes that the folders' names say.

    Raises:
        StudyError: images lie at different depths, it is not clear which folders are splits, or classes lie
            in several folders that are none.
    """
    _check_depths(task, contents)
    splits = _splits(task, contents.data)
    roles = choose_splits(task, splits)
    for name in roles.values():
        _check_one_folder(task, splits[name])
    unread = [name for name in splits if name not in roles.values()]
    notes = [f"the {len(splits[name])} images of split {printable(name)} are not read" for name in unread]
    if others := [path for path in contents.others if _is_noteworthy(path)]:
        notes.append(f"{len(others)} files without the name of an image are not read ({listed(others)})")
    return Source(
        {role: _split(contents.folder, splits[name]) for role, name in roles.items()},
        {role: printable(name) for role, name in roles.items()},
        tuple(notes),
    )


def _split(folder: Path, paths: Sequence[Path]) -> SourceSplit:
    def images() -> Iterator[tuple[str, ImageFile]]:
        return ((printable(path), folder / path) for path in paths)

    labels = [printable(normalized(path)[-2]) for path in paths]
    return SourceSplit(labels, images, None, "folder")


def _check_depths(task: Task, contents: Contents) -> None:
    """All images lie equally deep, in a class folder each: otherwise some would be in a class by mistake."""
    depths = Counter(len(path.parts) for path in contents.data)
    usual = max(depths, key=lambda depth: (depths[depth], depth))
    example = next(path for path in contents.data if len(path.parts) == usual)
    if strange := [path for path in contents.data if len(path.parts) != usual]:
        raise StudyError(
            f"{task.data}: {listed(strange)} {'does' if len(strange) == 1 else 'do'} not lie in a class "
            f"folder as {printable(example)} does; move or remove {'it' if len(strange) == 1 else 'them'}"
        )


def _splits(task: Task, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The images of each split, by the split's name; all of them as ``train`` where no folder is a split."""
    named = [name for name in (task.train_split, task.test_split) if name]
    for level in range(len(paths[0].parts) - 2):
        folders = sorted({path.parts[level] for path in paths})
        kinds = {folder: _kind(folder) for folder in folders}
        if all(kinds.values()) or any(_is_named(name, folder) for name in named for folder in folders):
            return _grouped(task, paths, level, kinds)
        if "train" in kinds.values() and {"test", "validation"} & {*kinds.values()}:
            others = [folder for folder, kind in kinds.items() if not kind]
            raise StudyError(
                f"{task.data} has the folders {listed(folders, 8)}: name the splits to read as "
                f"task.train_split and task.test_split, or move {listed(others)} elsewhere"
            )
    classes = sorted({path.parts[-2] for path in paths})
    if len(classes) > 1 and all(map(_kind, classes)):
        raise StudyError(
            f"{task.data} has the folders {listed(classes)}, and their images are in no folders of classes; "
            f"put each image into a folder named after its class"
        )
    return {"train": list(paths)}


def _check_one_folder(task: Task, paths: Sequence[Path]) -> None:
    """The folders of the classes of a split lie in one folder: those of several would be pooled by name."""
    above = sorted({path.parts[:-2] for path in paths})
    if len(above) == 1:
        return
    classes = sorted({path.parts[-2] for path in paths})
    folders = listed([Path(*parts) for parts in above], 4)
    raise StudyError(
        f"{task.data} has folders of classes ({listed(classes)}) in {folders}, which are no splits by their "
        "names; expected are CLASS/IMAGE or SPLIT/CLASS/IMAGE: move the classes into one folder, or name the "
        "folders to read as task.train_split and task.test_split"
    )


def _grouped(
    task: Task, paths: Iterable[Path], level: int, kinds: dict[str, str | None]
) -> dict[str, list[Path]]:
    """Each folder of a level as a split, under the name that the specification or custom gives it."""
    kept = Counter(kinds.values())
    titles: dict[str, str] = {}
    for folder, kind in kinds.items():
        by_name = [name for name in (task.train_split, task.test_split) if _is_named(name, folder)]
        titles[folder] = by_name[0] if by_name else kind or folder
        if kind and kept[kind] > 1 and not by_name:
            same = [other for other, k in kinds.items() if k == kind]
            raise StudyError(
                f"{task.data} has several splits for {kind}, the folders {listed(same)}: put their images "
                f"into one, or name the one to read as task.{'train' if kind == 'train' else 'test'}_split"
            )
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(titles[path.parts[level]], []).append(path)
    return groups


def _is_named(name: str, folder: str) -> bool:
    return bool(name) and name in (folder, _kind(folder))


def _kind(folder: str) -> str | None:
    """The split that a folder's name stands for, if it stands for exactly one."""
    words = re.split(r"[-._ 0-9]+", folder.lower())
    kinds = {_WORDS[word] for word in words if word in _WORDS}
    return kinds.pop() if len(kinds) == 1 else None


def _is_noteworthy(path: Path) -> bool:
    """Whether leaving a file out must be said: it lies among the images, or holds data by its name."""
    return bool(path.parent.parts) or path.suffix.lower() in TABLES | ARCHIVES
