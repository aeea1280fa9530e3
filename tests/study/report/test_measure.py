"""Reports of studies whose results are not errors in percent: all their words and directions follow."""

import dataclasses
import io
import math
import re

import pytest
from rich.console import Console

from cdgrad.study import StudyError
from cdgrad.study.records import Run
from cdgrad.study.report import compose, further, html_page, paper, text, times
from cdgrad.study.report.figures import curves
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.verdicts import across_cells, verdicts
from cdgrad.study.report.words import words
from cdgrad.study.spec import as_json, parse
from cdgrad.study.statistics import Results

SPEC = """
title = "Own"
baseline = "adam"
seeds = 8
entry = "mine:run"
[metric]
name = "{name}"
direction = "{direction}"
{more}
[arms.adam]
values.lr = 0.05
[arms.lion]
values.lr = 0.1
[arms.sgd]
"""
FOREIGN = re.compile(
    r"\bimages?\b|\bgradients?\b|\bpoints?\b|\berrors?\b|\bmetrics?\b|no metric", re.IGNORECASE
)


def results_of(name="perplexity", direction="min", more="", shift=-3.0, scale=1.0):
    """A study in which lion's results are those of adam plus `shift`, and noise."""
    spec = parse(SPEC.format(name=name, direction=direction, more=more), "own")
    runs = []
    for arm, effect in {"adam": 0.0, "lion": shift, "sgd": 0.1}.items():
        for seed in spec.seeds:
            value = scale * (40 + seed + effect + 0.1 * ((seed * 7 + 3 * len(arm) + ord(arm[0])) % 5))
            setting = spec.setting("", arm)
            curve = [{f"validation_{name}": value + 9 / k, "loss": 1 / k} for k in (1, 2, 3)]
            runs.append(
                Run(
                    cell="",
                    arm=arm,
                    trial=None,
                    seed=seed,
                    status="ok",
                    error=value,
                    evaluated="test",
                    values={},
                    epochs=curve,
                    measures={"loss": value / 7},
                    config=as_json(setting),
                    fingerprint=setting.fingerprint,
                    environment={},
                    started="2026-01-01T00:00:00+00:00",
                    seconds=2.0,
                )
            )
    return Results.of(spec, runs)


def everything_said(results, folder):
    """The text of all that a report or an export writes, figures included, without the specification."""
    document = dataclasses.replace(compose.document(results), spec="")
    console = Console(file=io.StringIO(), width=80, highlight=False)
    text.to_terminal(document, console)
    drawn = [
        f"{axes.get_xlabel()} {axes.get_ylabel()} {axes.get_title('left')} {axes.get_title('right')}"
        for figure in document.figures
        for axes in figure.figure.axes
    ]
    page = re.sub(r"<style>.*?</style>|<[^>]*>", " ", html_page.html(document), flags=re.DOTALL)
    files = paper.write(results, document, folder)
    written = [path.read_text() for path in files if path.suffix in (".md", ".tex", ".bib", ".csv")]
    captions = [f"{figure.alt} {figure.caption}" for figure in document.figures]
    return "\n".join([console.file.getvalue(), text.markdown(document), page, *drawn, *captions, *written])


def test_nothing_speaks_of_errors_images_or_gradients(tmp_path):
    said = everything_said(results_of(), tmp_path)
    assert not FOREIGN.findall(said)
    assert "perplexity on the test data" in said
    assert "Perplexity" not in said


@pytest.mark.parametrize(("direction", "shift"), [("min", -3.0), ("max", 3.0), ("min", 3.0), ("max", -3.0)])
def test_better_and_worse_follow_the_direction(direction, shift):
    results = results_of(direction=direction, shift=shift)
    better = (shift < 0) == (direction == "min")
    (sentence, _) = verdicts(results, "")
    assert sentence.startswith(f"lion is {'better' if better else 'worse'} than adam: its perplexity is ")
    assert f" {'lower' if shift < 0 else 'higher'} (mean difference {'-' if shift < 0 else '+'}" in sentence
    assert results.comparisons["", "lion"].comparison.win_rate == better
    assert f"better in {int(better)}" in across_cells(results)[0]
    figure = next(f for f in compose.document(results).figures if f.name == "paired_differences")
    left = figure.figure.axes[0].get_title("left")
    assert left.endswith("better" if direction == "min" else "worse")


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_the_bound_over_cells_is_the_farther_end_of_the_interval(shift):
    results = results_of(shift=shift)
    low, high = results.comparisons["", "lion"].comparison.interval
    assert low < 0 < high
    assert (-low > high) == (shift < 0)
    bound = words(results).rounded_up(max(-low, high))
    assert f"where no difference larger than {bound} is supported" in across_cells(results)[0]


def test_numbers_have_two_digits_of_the_standard_deviation_and_the_unit():
    coarse, fine = (
        " ".join(verdicts(results_of("loss", more='unit = "nats"', scale=scale), "")) for scale in (1, 1e-3)
    )
    assert re.search(r"its loss is \d\.\d\d nats lower \(mean difference -\d\.\d\d nats", coarse)
    assert re.search(r"its loss is 0\.003\d{2} nats lower", fine)


def test_the_reference_is_any_arm_and_all_pairs_are_corrected_together():
    results = results_of().compared_with("lion")
    assert list(results.comparisons) == [("", "adam"), ("", "sgd")]
    assert results.comparisons["", "adam"].comparison.mean == pytest.approx(3, abs=0.3)
    assert "is worse than lion" in verdicts(results, "")[0]
    assert "compares with adam; this report compares with lion, 2 in all" in " ".join(remarks(results))
    every = results_of().compared_with("", all_pairs=True)
    assert list(every.comparisons) == [("", "lion vs. adam"), ("", "sgd vs. adam"), ("", "sgd vs. lion")]
    table = compose.document(every).sections[0].tables[0]
    assert "corrected for all 3 comparisons" in table.note
    assert table.header[0] == "pair"
    with pytest.raises(StudyError, match="own has no arm 'none'; it has adam, lion, sgd"):
        results_of().compared_with("none")


def test_shares_where_percent_is_expected_are_asked_about_first():
    sentences = remarks(results_of("accuracy", "max", "percent = true", scale=0.01))
    assert "is the entry's accuracy a share from 0 to 1?" in sentences[0]


def test_further_measures_are_described_without_a_p_and_without_better_or_worse():
    results = results_of()
    table = further.further_table(results, "")
    assert table.title == "Further measures, not tested"
    assert [row[:2] for row in table.rows] == [("loss", "lion"), ("", "sgd")]
    # The loss is the result over 7, and so are its differences.
    sevenths = results.comparisons["", "lion"].comparison.mean / 7
    assert float(table.rows[0][3]) == pytest.approx(sevenths, abs=0.01)
    assert "p" not in table.header
    drawing = further.further_figure(results, "")
    assert not any(axes.get_title("right") for axes in drawing.figure.axes)


def test_a_count_has_no_decimals_however_large_it_is():
    results = results_of()
    counted = [dataclasses.replace(run, measures={"weights": 16032.0}) for run in results.runs]
    row = further.further_table(Results.of(results.spec, counted), "").rows[0]
    assert row == ("weights", "lion", "16032", "+0", "+0 to +0", "8")


def test_the_table_of_dates_names_only_the_columns_that_it_has():
    results = results_of()
    dated = [table.title for table in compose.document(results).sections[-1].tables if "date" in table.header]
    assert dated == ["Date of the runs of each arm"]


def test_a_measure_that_a_run_lacks_leaves_its_pair_out():
    results = results_of()
    lacking = [
        dataclasses.replace(run, measures={"loss": math.nan}) if run.seed == 3 and run.arm == "lion" else run
        for run in results.runs
    ]
    table = further.further_table(Results.of(results.spec, lacking), "")
    assert [row[-1] for row in table.rows] == ["7", "8"]


@pytest.mark.parametrize(("direction", "target", "epochs"), [("min", 44.0, "3"), ("max", 52.0, "1")])
def test_the_time_to_a_target_follows_the_direction(direction, target, epochs):
    # The curve of a run falls to its result: by 9, 4.5 and 3 above it in its three epochs of 2/3 s.
    results = results_of(direction=direction, shift=0.0)
    table = times.time_to_target(results, "", target)
    (adam, lion, _) = table.rows
    assert adam[2] == epochs
    assert float(adam[3]) == pytest.approx(2 * int(epochs) / 3, abs=0.05)
    reached = sum(
        any((run.error + 9 / k - target) * (1 if direction == "min" else -1) <= 0 for k in (1, 2, 3))
        for run in results.finished["", "adam"].values()
    )
    assert 0 < reached < 8
    assert adam[1] == f"{reached} of 8"
    assert adam[4:] == ("-", "-", "-")
    assert lion[4] != "-"


def test_without_a_curve_there_is_no_time_to_a_target():
    results = results_of()
    bare = Results.of(results.spec, [dataclasses.replace(run, epochs=[]) for run in results.runs])
    with pytest.raises(StudyError, match=r"no curve of its perplexity.*validation_perplexity="):
        compose.document(bare, 40.0)
    table = compose.document(results, 40.0).sections[0].tables[2]
    assert table.title == "Time to a validation perplexity of 40"


def test_the_time_of_runs_is_reported_per_arm_and_in_all():
    document = compose.document(results_of())
    assert document.environment[:2] == ["date: 2026-01-01 (UTC)", "time: 48 s in all, of 24 runs"]
    table = next(
        table
        for section in document.sections
        for table in section.tables
        if table.title == "Time that the runs of each arm took"
    )
    assert table.rows[0] == ("adam", "8", "0", "0", "0", "2.0", "0.0", "16")


def test_no_two_curves_of_all_pairs_look_alike():
    results = results_of().compared_with("", all_pairs=True)
    axes = curves.difference_curves(results, "").figure.axes[0]
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["lion vs. adam", "sgd vs. adam", "sgd vs. lion"]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3
    assert len({line.get_color() for line in lines}) == 3
