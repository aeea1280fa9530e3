"""Every generated part of README and docs is what its records give, and follows them."""

import csv
import json
import re
import shutil

import pytest

from cdgrad import cli
from cdgrad.study import spec
from tools import benchmarks, generated, quickstart


def test_every_generated_part_is_up_to_date():
    stale = []
    for part in (*generated.PARTS, *generated.evidence()):
        path = generated.ROOT / part.file
        expected = part.compute()
        if part.marker or path.suffix == ".md":
            expected = generated.expected(part, path.read_text(encoding="utf-8")).encode()
        elif isinstance(expected, str):
            expected = expected.encode()
        if path.read_bytes() != expected:
            stale.append(f"{part.file} {part.marker}")
    assert not stale, "run make pages"


def test_a_changed_run_of_the_quickstart_moves_the_number_on_the_page(tmp_path, monkeypatch):
    page = tmp_path / "docs/start.md"
    page.parent.mkdir()
    shutil.copy(generated.ROOT / "docs/start.md", page)
    (part,) = (part for part in generated.PARTS if part.file == "docs/start.md")
    with quickstart.RUNS.open() as file:
        rows = list(csv.DictReader(file))
    rows[0]["error"] = str(float(rows[0]["error"]) + 1)
    with (tmp_path / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    mean = quickstart.comparison().mean
    monkeypatch.setattr(quickstart, "RUNS", tmp_path / "runs.csv")
    assert generated.write(part, tmp_path)
    assert f"| paired difference, points | {mean - 0.1:+.2f} |" in page.read_text()


@pytest.mark.parametrize(
    ("name", "key", "text"),
    [("cost", ("steps", 1, "operator_over_step"), "50.00 %"), ("accuracy", ("rows", 0, "error"), "1.0e-01")],
)
def test_a_changed_benchmark_moves_its_page(name, key, text, tmp_path, monkeypatch):
    record = benchmarks.record(name)
    table, row, column = key
    record[table][row][column] = 0.5 if name == "cost" else 0.1
    (tmp_path / f"{name}.json").write_text(json.dumps(record))
    compute = getattr(benchmarks, name)
    assert text not in compute()
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    assert text in compute()


def test_the_first_cost_is_told_to_a_tenth_of_a_percent_and_for_single_launches_too():
    graph, eager, compiled = (benchmarks.gpu_steps(way).values() for way in ("graph", "eager", "compiled"))
    sentence = benchmarks.cost_sentence().replace("\n", " ")
    assert f"to {max(graph):.1f} % longer as one CUDA graph" in sentence
    assert f"to {max(*eager, *compiled):.0f} % longer launched one by one" in sentence


def test_the_quickstart_s_record_is_of_its_present_specification():
    study = spec.load("quickstart")
    with quickstart.RUNS.open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == len(study.arms) * len(study.seeds)
    for run in runs:
        assert run["fingerprint"] == study.setting("", run["arm"]).fingerprint, "remake the record"


def test_a_sample_of_the_quickstart_runs_again_to_its_record(capsys):
    """One seed of each: kernels and CPUs change single runs by some tenths of a point, mistakes by more."""
    recorded = quickstart.errors(quickstart.RUNS)
    assert recorded.keys() == {"sgd", "reweighted", "rounded"}
    for arm, errors in recorded.items():
        assert cli.main(["train", "quickstart", "--arm", arm, "--seed", "0"]) == 0
        printed = capsys.readouterr().out
        error = float(printed.rpartition("test error ")[2].partition(" %")[0])
        assert error == pytest.approx(errors[0], abs=1.5)


def test_a_file_without_the_markers_is_an_error():
    with pytest.raises(ValueError, match="needs <!-- cost:begin --> and"):
        generated.expected(generated.Part("README.md", "cost", lambda: "text"), "no markers")


def test_nothing_says_to_install_an_unpublished_package():
    files = [generated.ROOT / "README.md", generated.ROOT / "CONTRIBUTING.md"]
    files += (generated.ROOT / "src").rglob("*.py")
    files += [p for p in (generated.ROOT / "docs").rglob("*.md") if "_build" not in p.parts]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search("pip install '?cdgrad", text), file


def test_the_notebook_of_the_start_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((generated.ROOT / "docs/start.ipynb").read_text(encoding="utf-8"))
    namespace = {"__name__": "__main__"}
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for source in code:
        exec(compile(source, "start.ipynb", "exec"), namespace)
    assert "4.weight   32x16x3x3  0     1" in capsys.readouterr().out
    assert len(code) >= 4
