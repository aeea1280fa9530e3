"""Reports of studies with several cells and with tuning, from made-up runs."""

import csv
import dataclasses
import io
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import cdgrad
from cdgrad.study.records import Run, parquet
from cdgrad.study.report import compose as report
from cdgrad.study.report import html_page as page
from cdgrad.study.report import paper
from cdgrad.study.report import text as render
from cdgrad.study.report.figures import curves
from cdgrad.study.report.figures import differences as plots
from cdgrad.study.report.figures import settings as searches
from cdgrad.study.report.remarks import remarks
from cdgrad.study.spec import Measure, parse
from cdgrad.study.spec.space import Dimension
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results

SPEC = """
title = "Two cells"
baseline = "sgd"
seeds = 8

[task]
data = "fake"
train = 48
validation = 32

[model]
name = "small-cnn"

[schedule]
epochs = 3
batch = 16

[optimizer]
name = "torch.optim:SGD"
lr = 0.1

[cells.one]

[cells.two-with-a-name-of-forty-characters-xxxx]
optimizer = { name = "torch.optim:Adam", lr = 1e-3 }

[arms.sgd]

[arms.re]
metric = "reweighted:lam=3"

[arms.fixed]
metric = "reweighted:lam=3"
tuning = "baseline"

[tuning]
trials = 4
seeds = [100, 101]
[tuning.space]
"optimizer.lr" = { low = 0.01, high = 1.0, log = true }
[tuning.arms.re]
direction = { choices = ["output", "input"] }
"""
TWO = "two-with-a-name-of-forty-characters-xxxx"


@pytest.fixture
def spec():
    return parse(SPEC, "cells")


def run_of(cell, arm, trial, seed, error, values, **changes):
    about = {
        "status": "ok",
        "evaluated": "test" if trial is None else "validation",
        "epochs": [
            {"validation_error": (error or 0) + 9 / k, "norm_ratio": 0.5, "cosine": 0.9} for k in (1, 2, 3)
        ],
        "measures": {"calibration": 0.25},
        "config": {},
        "fingerprint": "f",
        "environment": {"torch": "2.0"},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
    }
    return Run(cell=cell, arm=arm, trial=trial, seed=seed, error=error, values=values, **about | changes)


@pytest.fixture
def runs(spec):
    """All runs of the study: "re" is 1 point better in cell one, and its best trial is the last."""
    rng, recorded = np.random.default_rng(1), []
    for cell in spec.cells:
        rates = [{"optimizer.lr": lr} for lr in (0.02, 0.1, 0.4, 0.9)]
        directions = ("output", "input", "output", "input")
        turned = [rate | {"direction": direction} for rate, direction in zip(rates, directions, strict=True)]
        tried = {"sgd": rates, "re": turned}
        for arm, points in tried.items():
            best = 1 if arm == "sgd" else 3
            for trial, values in enumerate(points):
                recorded += [
                    run_of(cell, arm, trial, seed, 9.0 + abs(trial - best) + seed / 1000, values)
                    for seed in (100, 101)
                ]
        chosen = {"sgd": tried["sgd"][1], "re": tried["re"][3], "fixed": tried["sgd"][1]}
        for seed in spec.seeds:
            base = 8 + rng.normal()
            for arm in spec.arms:
                effect = -1.0 if (cell, arm) == ("one", "re") else 0.0
                error = base + effect + (0.2 * rng.normal() if arm != "sgd" else 0)
                recorded.append(run_of(cell, arm, None, seed, error, chosen[arm]))
    return recorded


def shown(results, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    render.to_terminal(report.document(results), console)
    return console.file.getvalue()


def words(text):
    return " ".join(text.split())


def test_holm_corrects_over_all_cells_and_arms(spec, runs):
    results = Results.of(spec, runs)
    assert list(results.comparisons) == [(cell, arm) for cell in spec.cells for arm in ("re", "fixed")]
    raw = [comparison.p for comparison, _ in results.comparisons.values()]
    assert [p for _, p in results.comparisons.values()] == stats.holm(raw)
    comparison, p = results.comparisons["one", "re"]
    assert comparison.mean == pytest.approx(-1, abs=0.3)
    assert p == pytest.approx(4 * stats.smallest_p(8))
    text = shown(results)
    assert "corrected for all 4 comparisons" in words(text)
    assert "re against sgd, 2 cells: better in 1 (one), worse in 0, no difference shown in 1" in words(text)


def test_a_planned_comparison_counts_before_any_of_its_runs_has_finished(spec, runs):
    comparisons = Results.of(spec, runs).comparisons
    partial = Results.of(spec, [run for run in runs if run.arm != "fixed"]).comparisons
    assert list(partial) == [(cell, "re") for cell in spec.cells]
    assert partial["one", "re"].p == comparisons["one", "re"].p == pytest.approx(4 * stats.smallest_p(8))


def test_an_export_has_a_file_for_every_table_of_every_cell(spec, runs):
    document = report.document(Results.of(spec, runs))
    files = paper.table_files(document.sections)
    tables = [table for section in document.sections for table in section.tables]
    assert list(map(id, files.values())) == list(map(id, tables))
    assert {"one-error-on-the-test-images", "every-run-trials-of-re-one"} <= files.keys()
    twice = paper.table_files([document.sections[-1]] * 2)
    assert len(twice) == 2 * len(document.sections[-1].tables)


def test_the_order_of_the_records_does_not_matter(spec, runs):
    assert Results.of(spec, runs[::-1]) == dataclasses.replace(Results.of(spec, runs), runs=runs[::-1])


def test_the_widest_names_fit_80_columns(spec, runs):
    text = shown(Results.of(spec, runs))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for title in ("one", TWO, "Tuning"):
        assert re.search(rf"^{title} ─+$", text, re.MULTILINE)


def test_the_tuning_table_has_the_budget_the_choice_and_its_error(spec, runs):
    text = shown(Results.of(spec, runs))
    assert re.search(r"one +sgd +4 +8 +9\.10 +lr 0\.1 ", text)
    assert re.search(r" re +4 +8 +9\.10 +direction input, ", text)
    assert re.search(r" fixed +0 +0 +- +as for sgd", text)
    assert "re in one: the chosen optimizer.lr = 0.9 is the highest of 4 tried" in words(text)
    assert "sgd in one: the chosen" not in words(text)


def test_a_search_that_is_not_over_has_chosen_nothing(spec, runs):
    unfinished = [run for run in runs if run.trial in (0, 1) and run.cell == "one"]
    results = Results.of(spec, unfinished)
    assert [search.chosen for search in results.searches.values()] == [None] * 4
    text = words(shown(results))
    assert "cells: 0 of 48 runs finished, 8 of 32 runs of trials: provisional" in text
    assert "not yet: 4 of 8" in text
    assert "72 runs remain: run the same command again" in text
    assert {figure.name for figure in report.document(results).figures} == {"tuning-one"}


def test_the_record_proves_that_final_runs_alone_read_the_test_images(spec, runs):
    results = Results.of(spec, runs)
    assert "test images were read by 48 final runs, once each, at their end" in words(shown(results))
    text = render.markdown(report.document(results))
    assert "| final runs | 48 | 0 | 0 |" in text
    assert "| trials | 0 | 32 | 0 |" in text
    # The store refuses such a record; runs from elsewhere may hold one.
    leak = dataclasses.replace(runs[0], evaluated="test")
    text = words(shown(Results.of(spec, [leak, *runs[1:]])))
    assert "read by 1 trials: this study's test errors are not valid" in text


def test_the_report_says_where_no_p_can_be_small_enough(spec, runs):
    few = [run for run in runs if run.seed < 4 or run.trial is not None]
    text = words(shown(Results.of(spec, few)))
    assert "With 4 seeds so far and 4 comparisons no Holm p can be below 0.5, so that no" in text
    assert "however large, can be shown yet." in text
    assert "however large" not in words(shown(Results.of(spec, runs)))


def test_a_diverged_run_counts_and_the_median_is_given_beside_the_mean(spec, runs):
    changed = [
        dataclasses.replace(run, status="diverged", error=None, epochs=run.epochs[:1])
        if (run.cell, run.arm, run.trial, run.seed) == ("one", "re", None, 3)
        else run
        for run in runs
    ]
    results = Results.of(spec, changed)
    comparison, _ = results.comparisons["one", "re"]
    assert comparison.mean > 5  # 100 % where nothing was measured
    text = words(shown(results))
    assert "re in one: 1 of 8 runs diverged (seed 3)" in text
    assert re.search(r"the median difference to sgd is -\d\.\d\d points \(95 % interval -", text)
    drawn = plots.paired_differences(results, "one")
    low, high = drawn.figure.axes[0].get_xlim()
    assert -3 < low < high < 3, "it hides no other run"
    assert "runs diverged" in drawn.caption


def test_the_images_are_compared_within_a_cell(spec, runs):
    def on(images):
        changed = [dataclasses.replace(run, environment={"data": images(run)}) for run in runs]
        return [remark for remark in remarks(Results.of(spec, changed)) if "data" in remark]

    assert on(lambda run: f"set-{run.cell}") == []
    (remark,) = on(lambda run: "new" if run.key == (TWO, "re", None, 3) else "old")
    assert remark.startswith(f"The runs differ in data in {TWO} (new, old): the images changed")
    (remark,) = on(lambda run: "old" if run.key == ("one", "sgd", 0, 100) else "new")
    assert "data in one" in remark, "what a trial saw decided the setting"


def test_trials_on_images_that_others_test_on_are_remarked(spec, runs):
    def said(split, spec=spec):
        changed = [dataclasses.replace(run, environment={"test_split": split(run)}) for run in runs]
        return [remark for remark in remarks(Results.of(spec, changed)) if "test split of its own" in remark]

    assert len(said(lambda run: "drawn")) == len(spec.cells) == 2
    (remark,) = said(lambda run: "drawn" if run.cell == "one" else "official")
    assert "the trials in one saw" in remark
    assert said(lambda run: "official") == []
    assert said(lambda run: "drawn" if run.trial is None else "official") == []
    assert said(lambda run: "drawn", dataclasses.replace(spec, evaluate="validation")) == []


def test_choices_of_words_and_numbers_have_no_ends(tiny_text):
    tuned = """
    [tuning]
    trials = 3
    seeds = [100]
    [tuning.space]
    "optimizer.momentum" = { choices = ["auto", 1, 2] }
    """
    spec = parse(tiny_text + tuned, "mixed")
    recorded = [
        run_of("", arm, trial, 100, 5.0 - trial, {"optimizer.momentum": tried})
        for arm in spec.arms
        for trial, tried in enumerate(("auto", 1, 2))
    ]
    assert not any("may lie beyond" in remark for remark in remarks(Results.of(spec, recorded)))


@pytest.mark.parametrize(
    ("common", "own", "ticks"),
    [
        ("{ choices = [0.5, 0.9] }", "{ low = 0.0, high = 0.9 }", ["0.5", "0.9", "0.125", "0.7"]),
        ("{ low = 0.1, high = 0.9, log = true }", "{ low = 0.0, high = 0.9 }", None),
    ],
)
def test_arms_may_search_a_key_in_different_ways(tiny_text, common, own, ticks):
    tuned = f"""
    [tuning]
    trials = 2
    seeds = [100]
    [tuning.space]
    "optimizer.momentum" = {common}
    [tuning.arms.directed]
    "optimizer.momentum" = {own}
    """
    spec = parse(tiny_text + tuned, "ways")
    tried = {"sgd": (0.5, 0.9), "directed": (0.125, 0.7)}
    recorded = [
        run_of("", arm, trial, 100, 5.0, {"optimizer.momentum": tried[arm][trial]})
        for arm in spec.arms
        for trial in range(2)
    ]
    axes = searches.tuning_scatter(Results.of(spec, recorded), "").figure.axes[0]
    if ticks:
        assert [label.get_text() for label in axes.get_xticklabels()] == ticks
    else:
        assert axes.get_xscale() == "linear", "the other would not show 0"


def test_the_files_hold_every_seed_and_every_trial(spec, runs, tmp_path, no_figures):
    results = Results.of(spec, runs)
    names = {path.name for path in report.write(results, tmp_path)}
    assert {"report.html", "report.md", "runs.csv", "trials.csv", "overview.png", "tuning-one.png"} <= names
    with (tmp_path / "runs.csv").open(newline="") as file:
        final = list(csv.DictReader(file))
    assert list(final[0])[:3] == ["arm", "seed", "error"]
    assert [(row["cell"], row["arm"], int(row["seed"]), float(row["error"])) for row in final] == [
        (cell, arm, seed, error)
        for cell, arm in results.finished
        for seed, error in zip(spec.seeds, results.errors(cell, arm), strict=True)
    ]
    assert {row["measure.calibration"] for row in final} == {"0.25"}
    assert {row["value.optimizer.lr"] for row in final if row["arm"] == "re"} == {"0.9"}
    with (tmp_path / "trials.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 32
    assert {(row["trial"], row["evaluated"]) for row in trials} == {
        (str(trial), "validation") for trial in range(4)
    }
    text = (tmp_path / "report.md").read_text()
    for seed in spec.seeds:
        row = [f"{results.errors('one', arm)[seed]:.2f}" for arm in spec.arms]
        assert f"| {seed} | {' | '.join(row)} |" in text
    assert "Trials of re, one" in text
    assert "| 3 \\* | 9.10 |" in text


def test_runs_kept_as_parquet_give_the_same_report(spec, runs, tmp_path, no_figures):
    parquet.to_parquet(runs, tmp_path / "runs.parquet")
    results, again = (Results.of(spec, r) for r in (runs, parquet.from_parquet(tmp_path / "runs.parquet")))
    assert page.html(report.document(again)) == page.html(report.document(results))
    assert (again.finished, again.searches) == (results.finished, results.searches)


class Outline(HTMLParser):
    """The ids, the links and the tags that are still open of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.open = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.ids |= {about["id"]} if "id" in about else set()
        self.links |= {about["href"]} if "href" in about else set()
        self.open += [] if tag in ("meta", "img") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_its_contents_lead_somewhere(spec, runs):
    outline = Outline(page.html(report.document(Results.of(spec, runs))))
    assert outline.open == []
    assert len(outline.links) == 7  # all cells, two cells, tuning, every run, environment, specification
    assert {link.removeprefix("#") for link in outline.links} <= outline.ids


HOSTILE = '<img src=x onerror="alert(1)">\x1b[2J`](http://x)|&lt;$\\frac{\n# h'


def test_what_users_and_exceptions_wrote_stays_text(spec, runs):
    choices = {"direction": Dimension(choices=("output", HOSTILE))}
    tuning = dataclasses.replace(spec.tuning, arms={"re": choices})
    text = SPEC + "\n# ```` <script>\n"
    hostile = dataclasses.replace(spec, title=HOSTILE, tuning=tuning, text=text)
    trials = [
        dataclasses.replace(run, values=run.values | {"direction": HOSTILE}) if run.arm == "re" else run
        for run in runs
        if run.trial is not None
    ]
    failed = run_of("one", "sgd", None, 0, None, {}, status="failed", message=HOSTILE, epochs=[])
    doc = report.document(Results.of(hostile, [*trials, failed]))
    text = page.html(doc)
    assert "<img src=x" not in text
    assert "<script" not in text
    assert text.count("&lt;img src=x") >= 4  # title twice, the failure, a table
    assert Outline(text).open == []
    printed = io.StringIO()
    render.to_terminal(doc, Console(file=printed, width=80, highlight=False))
    assert "\x1b" not in printed.getvalue()
    written = render.markdown(doc)
    assert written.startswith('# \\<img src=x onerror="alert(1)"\\> \\[2J\\`\\](http://x)\\|\\&lt;$')
    assert "\x1b" not in written
    assert written.rstrip().endswith("\n`````"), "a fence longer than any in the text"


def test_the_lam_sweep_joins_the_arms_that_differ_in_lam_alone(tiny_text):
    arms = {f"s{k}": f'metric = "sobolev:lam={lam}"' for k, lam in enumerate((0.1, 0.001, 0.01))}
    arms["other"] = 'metric = "sobolev:lam=0.2,boundary=periodic"'
    text = tiny_text + "".join(f"[arms.{arm}]\n{line}\n" for arm, line in arms.items())
    spec = parse(text, "sweep")
    recorded = [
        run_of("", arm, None, seed, 3.0 + seed + k, {}) for k, arm in enumerate(spec.arms) for seed in (0, 1)
    ]
    drawing = searches.lam_sweep(Results.of(spec, recorded), "")
    axes = drawing.figure.axes[0]
    (sweep,) = axes.containers
    line = sweep.lines[0]
    assert line.get_xdata().tolist() == [0.001, 0.01, 0.1]
    assert line.get_ydata().tolist() == [6.5, 7.5, 5.5]
    two = [run for run in recorded if run.arm != "s1"]
    assert searches.lam_sweep(Results.of(spec, two), "") is None


def test_a_curve_goes_on_where_a_diverged_run_ended(tiny, make_run):
    recorded = [
        make_run("sgd", 0, 5.0, epochs=[{"validation_error": error} for error in (9.0, 7.0, 5.0)]),
        make_run("sgd", 1, 90.0, epochs=[{"validation_error": 90.0}], status="diverged"),
    ]
    axes = curves.learning_curves(Results.of(tiny, recorded), "").figure.axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axes.lines[0].get_ydata().tolist() == [49.5, 48.5, 47.5]


@pytest.mark.parametrize("epochs", [[], [{"validation_error": math.nan, "cosine": math.inf}]])
def test_runs_that_measured_no_epochs_have_no_curves(tiny, make_run, epochs):
    recorded = [make_run(arm, seed, 3.0, epochs=epochs) for arm in tiny.arms for seed in (0, 1)]
    names = [figure.name for figure in report.document(Results.of(tiny, recorded)).figures]
    assert names == ["paired_differences", "levels"]


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class NoTorch(MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError("torch is not installed", name="torch")

sys.meta_path.insert(0, NoTorch())
from cdgrad.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_report_needs_no_torch(finished, tmp_path):
    finished(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "report", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(cdgrad.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tiny: 4 of 4 runs finished" in done.stdout
    assert (tmp_path / "report.html").is_file()


def test_all_cells_come_to_a_probability_and_a_profile(spec, runs):
    results = Results.of(spec, runs)
    section = report.document(results).sections[0]
    table = next(table for table in section.tables if "probability of improvement" in table.title)
    rows = {row[0]: row for row in table.rows}
    cells = [results.pairs(cell, "re")[1:] for cell in spec.cells]
    assert float(rows["re"][1]) == pytest.approx(
        np.mean([np.mean(np.subtract(*cell)) for cell in cells]), abs=0.01
    )
    better = [np.mean([[a < b for b in theirs] for a in ours]) for ours, theirs in cells]
    assert rows["re"][3] == f"{100 * np.mean(better):.0f} %"
    assert rows["re"][5] == "2"
    (profile,) = [figure for figure in section.figures if figure.name == "performance_profile"]
    axes = profile.figure.axes[0]
    assert (axes.get_title("left"), axes.get_title("right")) == ("← better", "worse →")
    for line in axes.lines[1:]:
        assert np.all(np.diff(line.get_ydata()) >= 0)


def test_where_large_values_are_better_the_probability_follows(spec, runs):
    spec = dataclasses.replace(spec, tuning=None)  # another direction would choose other trials
    larger = dataclasses.replace(spec, measure=Measure("accuracy", "max", percent=True))
    (table, opposite) = (report.document(Results.of(of, runs)).sections[0].tables[1] for of in (spec, larger))
    shares = [[int(row[3].removesuffix(" %")) for row in shown.rows] for shown in (table, opposite)]
    assert [sum(pair) for pair in zip(*shares, strict=True)] == [100, 100]
