"""Every generated part of README and docs, in one registry: ``make pages`` writes them all from the records.

A part is a file, the name of a marker and the function that computes the text. The text stands between
``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; a part without a marker is the whole file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tools import benchmarks, coverage, notebook, quickstart

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    """A generated text: where it stands, and what computes it."""

    file: str
    marker: str
    compute: Callable[[], str | bytes]


PARTS = (
    Part("README.md", "quickstart", quickstart.readme),
    Part("README.md", "cost", benchmarks.cost_sentence),
    Part("README.md", "optimizers", benchmarks.optimizer_count),
    Part("docs/index.md", "cost", benchmarks.cost_sentence),
    Part("docs/start.md", "quickstart", quickstart.start),
    Part("docs/quickstart/paired_differences.svg", "", quickstart.figure),
    Part("docs/quickstart/paired_differences-narrow.svg", "", partial(quickstart.figure, 4)),
    Part("docs/start.ipynb", "", notebook.start),
    Part("docs/cost.md", "cost", benchmarks.cost),
    Part("docs/statistics.md", "looks", coverage.looks),
    Part("docs/statistics.md", "searches", coverage.searches),
    Part("docs/statistics.md", "bootstrap", coverage.bootstrap),
    Part("docs/cost.md", "gpu", benchmarks.gpu),
    Part("docs/cost.md", "gpu-floor", benchmarks.gpu_floor),
    Part("docs/theory.md", "accuracy", benchmarks.accuracy),
    Part("docs/optimizers.md", "optimizers", benchmarks.optimizers),
)


def evidence() -> Iterator[Part]:
    """The parts that need all records of the evidence, which takes seconds."""
    from evidence.build import pages

    texts, sentences, figures = pages.build()
    for name, text in texts.items():
        yield Part(f"docs/{name}", "", partial(str, text))
    for drawing in figures:
        yield Part(f"docs/evidence/{drawing.name}.svg", "", drawing.svg)
    yield Part("README.md", "verdict", partial(str, sentences.readme))
    yield Part("README.md", "claim", partial(str, sentences.claim))
    yield Part("docs/index.md", "verdict", partial(str, sentences.front))
    yield Part("docs/card.md", "quickstart", partial(quickstart.card, sentences.card))


def expected(part: Part, text: str) -> str:
    """The file's `text` with the part as computed now.

    Raises:
        ValueError: the file lacks the markers.
    """
    content = part.compute()
    assert isinstance(content, str)  # a figure, which is bytes, is a whole file
    if not part.marker:
        return content
    begin, end = (f"<!-- {part.marker}:{place} -->" for place in ("begin", "end"))
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{part.file} needs {begin} and {end} once, each on a line of its own")
    return pattern.sub(lambda _: f"{begin}\n{content}{end}", text)


def write(part: Part, root: Path = ROOT) -> bool:
    """Write the part into its file; returns whether the file changed."""
    path = root / part.file
    old = path.read_bytes() if path.exists() else b""
    if part.marker or path.suffix == ".md":
        new = expected(part, old.decode()).encode()
    else:
        content = part.compute()
        new = content if isinstance(content, bytes) else content.encode()
    if new != old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(new)
    return new != old


def main() -> None:
    """Write every part; print the files that changed."""
    changed = dict.fromkeys(part.file for part in (*PARTS, *evidence()) if write(part))
    print("\n".join(changed) or "all generated parts are up to date", file=sys.stderr)


if __name__ == "__main__":
    main()
