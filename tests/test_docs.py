"""Documents are tests: their code runs, and their numbers are those of the committed records."""

import csv
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cdgrad.study.stats import compare

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "document",
    [pytest.param(d, id=d.name) for d in DOCUMENTS if blocks(d, "python")],
)
def test_python_blocks_run_in_order(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(document, "python"):
        exec(compile(block, document.name, "exec"), namespace)


def test_the_two_commands_of_the_readme_are_targets():
    (commands,) = blocks(ROOT / "README.md", "sh")
    lines = [line.partition("#")[0].strip() for line in commands.splitlines()]
    assert lines == ["make quickstart", "make test"]
    for line in lines:
        subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_numbers_of_the_readme_are_those_of_its_runs():
    with (ROOT / "docs/quickstart/runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    errors = {arm: [float(r["error"]) for r in runs if r["arm"] == arm] for arm in ("reweighted", "sgd")}
    found = compare(errors["reweighted"], errors["sgd"])
    low, high = found.interval
    sentence = (
        f"over {found.pairs} seeds the paired difference of the re-weighted metric to SGD is "
        f"{found.mean:+.2f} points of error (95 % interval {low:+.2f} to {high:+.2f}, p = {found.p:.2g})"
    )
    assert sentence in " ".join((ROOT / "README.md").read_text().split())
    assert low < 0 < high, "and so it may be called a null"


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
