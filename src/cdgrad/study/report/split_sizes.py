"""How many images train, validate and test, how many repeat, and what they show at all, in sentences.

From the records, not from the specification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import Any

from cdgrad.study.report.words import in_cell
from cdgrad.study.shown import published
from cdgrad.study.spec import ERROR
from cdgrad.study.statistics.results import Results


def split_sizes(results: Results) -> Iterator[str]:
    """A sentence for each size that a cell's runs had; none for training code of the user's."""
    said: dict[str, list[str]] = {}
    for cell in results.spec.cells:
        for run in results.completed:
            if run.cell == cell and (sizes := run.environment.get("splits")):
                cells = said.setdefault(_sentence(sizes, run.environment.get("test_split")), [])
                cells += [cell] if cell not in cells else []
    for sentence, cells in said.items():
        where = f" in {', '.join(cells)}" if any(cells) and len(cells) < len(results.spec.cells) else ""
        yield f"Images of each run{where}: {sentence}"


def _sentence(sizes: dict[str, Any], test_split: str | None) -> str:
    titles = {role: published(str(title)) for role, title in sizes["titles"].items()}
    drawn = f"{sizes['train']:,} for training and {sizes['validation']:,} for validation"
    if test_split == "official":
        return (
            f"{drawn}, which the seed draws from the split {titles['train']}, and {sizes['test']:,} of the "
            f"data's own split {titles['test']} for the test."
        )
    return (
        f"{drawn}, and {sizes['test']:,} for the test, all drawn by the seed from one set of images: the "
        "data has no test split of its own."
    )


def repeated_images(results: Results) -> Iterator[str]:
    """Whether test images are also among those that training draws from."""
    for cell in results.spec.cells:
        runs = [run for run in results.completed if run.cell == cell]
        most = max((_repeated(run.environment) for run in runs), default=(0, ""))
        if most[0]:
            what = f"{most[1]}{in_cell(cell)}"
            yield f"{what}: the error is partly that of images which the network may have seen."


def nothing_learned(results: Results) -> Iterator[str]:
    """Arms whose typical run is no better than a network that names one class for every image.

    Within two standard errors of an error that is counted on so many images: a difference to such an arm is
    one between networks that did not train.
    """
    spec = results.spec
    for cell in spec.cells:
        arms: list[str] = []
        constant = images = 0.0
        for arm in spec.arms:
            runs = results.finished[cell, arm].values()
            recorded: list[dict[str, Any]] = [run.environment.get("splits") or {} for run in runs]
            sizes = next((sizes for sizes in recorded if "constant_error" in sizes), None)
            if sizes is None or spec.measure != ERROR:
                continue
            constant, images = sizes["constant_error"][spec.evaluate], sizes[spec.evaluate]
            deviation = math.sqrt(constant * (100 - constant) / images)
            if median(results.errors(cell, arm)) >= constant - 2 * deviation:
                arms.append(arm)
        if arms:
            yield (
                f"{', '.join(arms)}{in_cell(cell)}: half of the runs or more have learned nothing. Their "
                f"error is that of naming one class for every image, {constant:.1f} %, as far as {images:,} "
                "images can tell; comparisons with them say nothing about training."
            )


def _repeated(environment: dict[str, Any]) -> tuple[int, str]:
    """How many images repeat in the data of a run, and a clause that says so."""
    sizes: dict[str, Any] = environment.get("splits") or {}
    count: int = sizes.get("repeated") or 0
    if environment.get("test_split") != "official":
        return (
            count,
            f"{count:,} images of the data equal another one, so that test images may equal training images",
        )
    split = published(str(sizes["titles"]["train"])) if count else ""
    are = "image is" if count == 1 else "images are"
    return (
        count,
        f"{count:,} test {are} also in the split {split}, from which the seed draws the training images",
    )
