"""How many images train, validate and test, in sentences: from the records, not from the specification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cdgrad.study.shown import published
from cdgrad.study.statistics.results import Results


def split_sizes(results: Results) -> Iterator[str]:
    """A sentence for each size that a cell's runs had; none for training code of the user's."""
    said: dict[str, list[str]] = {}
    for cell in results.spec.cells:
        for run in results.runs:
            if run.cell == cell and run.status != "failed" and (sizes := run.environment.get("splits")):
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
