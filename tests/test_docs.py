"""Documents are tests: their code runs, and their numbers are those of the committed records."""

import csv
import io
import json
import math
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cdgrad import cli
from cdgrad.study import spec
from cdgrad.study.statistics import paired as stats

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
DOCUMENTS = [ROOT / "README.md", *PAGES]
FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block; a comment right above it may hold a mark, ``not run: WHY`` or ``file: NAME``."""

    mark: str
    language: str
    code: str


def blocks(document):
    return [Block(*found) for found in FENCE.findall(document.read_text())]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
def test_every_block_runs_in_order(document, tmp_path, monkeypatch):
    """In an empty folder, as a reader would run them; a ``text`` block shows what the one before printed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "__main__"}, ""
    for mark, language, code in blocks(document):
        if re.fullmatch(r"not run: \S.*", mark):
            continue
        if mark.startswith("file: "):
            name = mark.removeprefix("file: ")
            assert f"`{name}`:\n\n<!-- {mark} -->" in document.read_text(), f"the reader must see {name}, too"
            Path(name).write_text(code)
        elif language == "python":
            with redirect_stdout(io.StringIO()) as output:
                exec(compile(code, document.name, "exec"), namespace)
            printed = output.getvalue()
        elif language == "sh":
            printed = "".join(map(run_command, code.splitlines()))
        elif language == "toml":
            spec.parse(code, document.name)
        elif language == "text":
            assert same_but_digits(code, printed), f"the page shows\n{code}\nand it printed\n{printed}"
        else:
            # test_distributed_docs runs what needs torchrun, and test_site the directives.
            assert re.fullmatch(r"python torchrun|bibtex|\{.*\}.*", language), f"how is {language!r} checked?"


def run_command(line):
    """What a line of a shell prints. `cdgrad` runs here, where torch is imported already."""
    program, *arguments = shlex.split(line)
    if program == "python":
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert program == "cdgrad", f"how is {line!r} checked?"
    with redirect_stdout(io.StringIO()) as output:
        assert cli.main(arguments) == 0, line
    return output.getvalue()


def same_but_digits(shown, printed):
    """The same lines but for spaces and the digits of fractions; a line ``...`` stands for any lines."""
    shown, printed = (
        [" ".join(re.sub(r"\d+\.\d+(e[+-]\d+)?", "#", line).split()) for line in text.strip().splitlines()]
        for text in (shown, printed)
    )
    pattern = "\n".join("(.|\n)*" if line == "..." else re.escape(line) for line in shown)
    return re.fullmatch(pattern, "\n".join(printed)) is not None


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("error 2.5 %, p = 0.01", "error 12.25 %,  p = 1.0e-05\n", True),
        ("10 seeds", "11 seeds", False),
        ("first\n...\nlast", "first\n1\n2\nlast", True),
        ("first\n...\nlast", "first\n1\n2", False),
    ],
)
def test_what_is_shown_is_compared_with_what_is_printed(shown, printed, same):
    assert same_but_digits(shown, printed) is same


def test_the_two_commands_of_the_readme_are_targets():
    (commands,) = (block.code for block in blocks(ROOT / "README.md") if block.language == "sh")
    lines = [line.partition("#")[0].strip() for line in commands.splitlines()]
    assert lines == ["make quickstart", "make test"]
    for line in lines:
        subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_numbers_of_the_quickstart_are_those_of_its_runs():
    with (ROOT / "docs/quickstart/runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    errors = {arm: [float(r["error"]) for r in runs if r["arm"] == arm] for arm in ("reweighted", "sgd")}
    found = stats.compare(errors["reweighted"], errors["sgd"])
    low, high = found.interval
    assert low < 0 < high, "and so it may be called a null"
    sentence = (
        f"over {found.pairs} seeds the paired difference of the re-weighted metric to SGD is "
        f"{found.mean:+.2f} points of error (95 % interval {low:+.2f} to {high:+.2f}, p = {found.p:.2g})"
    )
    assert sentence in " ".join((ROOT / "README.md").read_text().split())
    result = f"{found.mean:+.2f} ({sentence.partition('(')[2]}"
    assert f"| {result} | no difference is shown |" in (ROOT / "docs/card.md").read_text()

    start = " ".join((ROOT / "docs/start.md").read_text().split())
    for arm, values in errors.items():
        ends = stats.mean_interval(values)
        row = f"{np.mean(values):.2f} | {ends.low:.2f} to {ends.high:.2f} | {stats.spread(values):.2f}"
        assert f"| error of `{arm}`, % | {row} |" in start
    row = f"{found.mean:+.2f} | {low:+.2f} to {high:+.2f} | {found.sd:.2f}"
    assert f"| paired difference, points | {row} |" in start
    seen = math.ceil(100 * stats.detectable_difference(found.pairs, found.sd)) / 100
    for sentence in (
        f"Over {found.pairs} seeds `reweighted` made {-found.mean:.2f} points fewer errors",
        f"A sign-flip test gives p = {found.p:.2g}:",
        f"in favor of the metric beyond {-low:.2f} points, and against it beyond {high:.2f}, are",
        f"show a true difference of {seen} points in 80 %",
        f"0.2 points would need {stats.required_pairs(0.2, found.sd)} seeds",
        f"The correlation of the pairs is {found.correlation:.2f}:",
    ):
        assert sentence in start


def test_the_accuracy_table_is_the_record():
    record = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text())
    assert max(row["error"] for row in record["rows"]) < 1e-6
    written = (ROOT / "docs/theory.md").read_text()
    assert f"<!-- accuracy:begin -->\n{accuracy_table(record)}<!-- accuracy:end -->" in written


def accuracy_table(record):
    kinds = list(dict.fromkeys(row["columns"] for row in record["rows"]))
    lines = [f"| backend | metric | {' | '.join(kinds)} |", "| --- " * (2 + len(kinds)) + "|"]
    cells = {(r["backend"], r["metric"], r["columns"]): f"{r['error']:.1e}" for r in record["rows"]}
    for backend, metric in dict.fromkeys((r["backend"], r["metric"]) for r in record["rows"]):
        lines.append(f"| {backend} | {metric} | {' | '.join(cells[backend, metric, k] for k in kinds)} |")
    return "\n".join(lines) + "\n"


def test_every_relative_link_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
