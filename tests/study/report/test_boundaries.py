"""What a report says where a comparison is degenerate, or lies on a boundary."""

import dataclasses
import io
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from rich.console import Console

from cdgrad.study.report import compose, paper
from cdgrad.study.report.document import Document, Section, Table
from cdgrad.study.report.figures import curves, settings
from cdgrad.study.report.figures.differences import overview
from cdgrad.study.report.figures.drawing import look
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.tables import certainty, differences, errors, p_value, power
from cdgrad.study.report.text import to_terminal
from cdgrad.study.report.verdicts import across_cells, p_in_words, verdict, verdicts
from cdgrad.study.report.words import Words, words
from cdgrad.study.spec import parse
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.equivalence import anytime_equivalence
from cdgrad.study.statistics.results import Results
from cdgrad.study.statistics.sequential import anytime_interval, anytime_p

CELLS = "[cells.one]\n[cells.two]\n"
TUNING = '[tuning]\ntrials = 2\nseeds = [9]\nspace."optimizer.lr" = { low = 0.1, high = 1.0 }\n'


@pytest.fixture
def results(tiny_text, make_run):
    """Results of the tiny study with the given differences of each seed, in one cell or several."""

    def make(*differences, head="", cells=("",), more=""):
        seeds = max(map(len, differences))
        first, _, rest = tiny_text.partition("[task]")
        text = f"{first.replace('seeds = 2', f'seeds = {seeds}')}{head}\n[task]{rest}{more}"
        spec = parse(text, "tiny")
        runs = [
            dataclasses.replace(make_run(arm, seed, error + d * (arm == "directed")), cell=cell)
            for cell, of_cell in zip(cells, differences, strict=True)
            for seed, (error, d) in enumerate(zip(range(3, 40), of_cell, strict=False))
            for arm in ("sgd", "directed")
        ]
        return Results.of(spec, runs)

    return make


def test_differences_that_are_equal_but_for_rounding_show_nothing(results):
    arm, reference = np.array([5.3, 4.3, 3.3, 6.3, 7.3, 8.3]), np.array([5.2, 4.2, 3.2, 6.2, 7.2, 8.2])
    assert np.ptp(arm - reference) > 0
    compared = stats.compare(arm, reference)
    assert compared.sd == 0
    assert compared.p < 0.05
    assert not stats.is_shown(compared, compared.p)
    sentence = verdict("a", "b", compared, compared.p)
    assert (
        "all 6 differences are +0.10 points, so that nothing can be estimated; check that every seed"
        in sentence
    )
    found = results([0.1] * 6, head="margin = 0.5")
    assert power(found, "").rows[0][3:] == ("-", "-", "-", "-")
    assert power(found, "").rows[0][1] == differences(found, "").rows[0][2] == "-"
    assert [sentence for sentence in verdicts(found, "") if "equivalent" in sentence] == []
    assert certainty(found, "").rows[0][-1] == "not shown"


def test_a_value_that_differs_by_rounding_alone_is_a_tie():
    assert stats.compare([0.1 + 0.2, 1.0], [0.3, 2.0]).win_rate == 0.75


def test_the_bound_over_cells_is_not_of_cells_without_an_interval(results):
    (sentence,) = across_cells(results([0.1, -0.2, 0.1], [0.3], cells=("one", "two"), more=CELLS))
    assert "no difference shown in 1, where no difference larger than 0.44 points is supported" in sentence
    assert sentence.endswith("; too few seeds or equal differences in 1 (two).")
    (sentence,) = across_cells(results([0.1], [0.3], cells=("one", "two"), more=CELLS))
    assert "no difference shown in 0; too few" in sentence
    near, far = [0.1, -0.2, 0.1], [0.2, -0.4, 0.2]  # twice as far, so that the bound is twice as large
    (sentence,) = across_cells(results(near, far, cells=("one", "two"), more=CELLS))
    assert "no difference shown in 2, where no difference larger than 0.87 points is supported" in sentence


def test_the_cells_in_which_an_arm_is_better_are_not_those_in_which_it_is_worse(results):
    better = [-1.0, -1.1, -0.9, -1.2, -0.8, -1.0, -1.1, -0.9]
    found = results(better, [-d for d in better], cells=("one", "two"), more=CELLS)
    (sentence,) = across_cells(found)
    assert "better in 1 (one), worse in 1 (two), no difference shown in 0." in sentence


def test_an_interval_without_zero_and_a_large_p_are_said_together(results):
    (sentence,) = verdicts(results([-0.5, -0.6, -0.4, -0.5, -0.55]), "")
    assert (
        "no difference is shown: the interval, uncorrected, excludes 0, but p is not below 0.05" in sentence
    )
    assert "not supported" not in sentence


@pytest.mark.parametrize(
    ("p", "words", "cell"), [(0.0496, "0.0496", "0.0496"), (0.0504, "0.05", "0.050"), (0.2, "0.2", "0.200")]
)
def test_a_rounded_p_stays_on_its_side_of_5_percent(p, words, cell):
    assert (p_in_words(p), p_value(p)) == (words, cell)


def test_equivalence_after_looks_is_that_of_the_anytime_interval(results):
    d = np.random.default_rng(1).normal(0, 0.05, size=20)
    for margin in (0.02, 0.05, 0.06, 0.1, 0.3):
        test, (low, high) = anytime_equivalence(d, margin), anytime_interval(d)
        assert test.shown == (-margin < low and high < margin) == (test.p < 0.05)
    for shift in (-0.3, -0.08, 0.08, 0.3):  # beyond the margin, or within it with one end beyond
        test = anytime_equivalence(d + shift, 0.1)
        assert not test.shown
        assert test.p == (1 if abs(shift) > 0.1 else max(anytime_p(d + shift, m) for m in (-0.1, 0.1)))
        assert test.p > 0.05
    assert math.isnan(anytime_equivalence(d[:5], 0.3).p)
    found = results(d, head="margin = 0.3")
    found = Results.of(dataclasses.replace(found.spec, until=1e-6), found.runs)
    assert "equivalent within 0.3 points (anytime p =" in verdicts(found, "")[-1]
    assert certainty(found, "").header[-2:] == ("margin p", "equivalent")
    few = Results.of(dataclasses.replace(found.spec, seeds=found.spec.seeds[:3], margin=1.0), found.runs)
    assert verdicts(few, "")[-1].endswith("equivalence within 1 point is not shown (too few seeds).")


def test_an_export_has_every_table_though_names_differ_in_punctuation_alone(results, tmp_path):
    cells = ("lr+1", "lr-1", "lr=1")
    more = "".join(f'[cells."{cell}"]\n' for cell in cells)
    found = results([0.1, 0.3], [0.2, 0.1], [0.3, 0.5], cells=cells, more=more)
    document = compose.document(found)
    paper.write(found, dataclasses.replace(document, sections=_without_figures(document)), tmp_path / "paper")
    tables = [table for section in document.sections for table in section.tables]
    written = {path.read_text(encoding="utf-8") for path in (tmp_path / "paper/tables").glob("*.tex")}
    assert len(written) == len({paper.latex_table(table) for table in tables}) > 15
    assert {paper.latex_table(table) for table in tables} == written


def _without_figures(document):
    return [dataclasses.replace(section, parts=section.tables) for section in document.sections]


def test_failed_runs_are_counted_by_arm_because_survivors_look_better(results):
    found = results([0.1, 0.3, 0.2])
    runs = [
        dataclasses.replace(run, status="failed", error=None, message="no")
        if (run.arm, run.seed) in {("directed", 1), ("directed", 2)}
        else run
        for run in found.runs
    ]
    assert "Failed final runs by arm: directed (2). Comparisons leave out the seeds" in " ".join(
        remarks(Results.of(found.spec, runs))
    )


def test_a_mean_without_an_interval_lies_within_the_axis_of_the_overview(results):
    (axes, *_) = overview(results([-5.0], [-4.0], cells=("one", "two"), more=CELLS)).figure.axes
    low, high = axes.get_xlim()
    assert low < -5 < 0 < high


def test_a_diverged_baseline_has_medians_beside_the_means_too(results):
    found = results([-0.5, -0.4, -0.6])
    runs = [
        dataclasses.replace(run, status="diverged", error=90.0) if (run.arm, run.seed) == ("sgd", 0) else run
        for run in found.runs
    ]
    (sentence,) = [s for s in remarks(Results.of(found.spec, runs)) if "diverged" in s]
    assert sentence.endswith("; the median difference of directed to sgd is -0.60 points.")


def test_an_end_beside_zero_is_not_written_as_zero():
    assert Words().interval(stats.Interval(-0.0004, 0.0), "+") == "-0.0004 to +0.00"
    assert Words().interval(stats.Interval(0.004, 1.0), "+") == "+0.004 to +1.00"


def test_arms_of_one_color_differ_in_their_mark(results):
    more = "".join(f"[arms.a{k}]\noptimizer.lr = {k + 1}.0\n" for k in range(20))
    spec = results([0.1], more=more).spec
    looks = [look(spec, arm)[:2] for arm in spec.arms]
    assert len(set(looks)) == len(looks) == 22


def test_a_table_without_rows_is_left_out_and_a_mean_beyond_the_axis_has_an_arrow(results):
    found = results([0.2])
    assert not any(table.title.startswith("Statistical power") for table in _tables(compose.document(found)))
    runs = [
        dataclasses.replace(run, status="diverged", error=90.0) if run.arm == "directed" else run
        for run in found.runs
    ]
    drawn = overview(Results.of(found.spec, runs))
    assert "Arrows stand for values beyond the axis: runs diverged." in drawn.caption
    assert ">" in [line.get_marker() for line in drawn.figure.axes[0].lines]


def _tables(document):
    return [table for section in document.sections for table in section.tables]


def test_a_baseline_without_a_finished_run_is_said_to_be_missing(results):
    found = results([0.2, 0.1])
    alone = Results.of(found.spec, [run for run in found.runs if run.arm == "directed"])
    assert verdicts(alone, "") == ["Nothing is compared: no seed has finished in sgd and another arm."]


def test_no_number_is_folded_in_a_narrow_terminal():
    rows = [("an arm with a long name", *("1,234,567",) * 9)]
    table = Table("T", ("arm", *("n",) * 9), rows, "note", align="l" + "r" * 9)
    document = Document("t", "s", (), (), [Section("", (), [table])], (), "")
    console = Console(width=80, file=io.StringIO())
    to_terminal(document, console)
    assert console.file.getvalue().count("1,234,567") == 9
    assert "an arm with" in console.file.getvalue()


def test_arms_that_were_not_tuned_alike_are_named(tiny_text, make_run):
    text = tiny_text + TUNING
    alike = Results.of(parse(text, "tiny"), [make_run("sgd", 0, 5.0)])
    assert not any("tuned alike" in sentence for sentence in remarks(alike))
    pinned = parse(text.replace('lam=3"', 'lam=3"\ntuning = "baseline"'), "tiny")
    found = Results.of(pinned, [make_run("sgd", 0, 5.0)])
    how = "sgd tuned by 2 trials; directed at what the trials of sgd chose"
    assert f"The compared arms were not tuned alike ({how})" in " ".join(remarks(found))
    assert "directed used what was chosen for sgd." in paper.methods(found)


def test_small_percentages_have_the_decimals_that_show_their_spread(results):
    found = results([0.001, 0.002, 0.003])
    assert words(found).decimals == 4
    assert words(results([0.1, 0.2, 0.3])).decimals == 2


def test_a_curve_begins_and_ends_where_every_run_was_measured(make_run):
    often = make_run("sgd", 0, 5.0, epochs=[{"error": float(k)} for k in range(1, 5)])
    rarely = make_run("sgd", 1, 5.0, epochs=[{}, {"error": 20.0}, {}, {"error": 40.0}])
    ended = make_run("sgd", 2, 5.0, epochs=[{"error": 90.0}, {"error": 95.0}])
    epochs, values = curves._curves([often, rarely, ended], "error")
    assert epochs.tolist() == [2, 4]
    assert values.tolist() == [[2, 4], [20, 40], [95, 95]]


def test_verdicts_of_an_unfinished_study_are_marked(results):
    found = results([-0.1, -0.3, -0.2])
    (sentence,) = compose.document(found).verdicts
    some = Results.of(found.spec, [run for run in found.runs if run.seed < 2])
    (marked,) = compose.document(some).verdicts
    assert marked.startswith("Provisional: directed against sgd: no difference is shown")
    assert sentence.startswith("directed against sgd")
    ends_early = dataclasses.replace(some, spec=dataclasses.replace(some.spec, until=0.1))
    assert not compose.document(ends_early).verdicts[0].startswith("Provisional")


@pytest.fixture
def of_errors(tiny_text, make_run):
    """Results of which every arm has the same errors of seeds 0 and 1."""

    def make(first, second, text=tiny_text):
        spec = parse(text, "tiny")
        runs = [make_run("sgd", seed, error) for seed, error in enumerate((first, second))]
        return Results.of(spec, [dataclasses.replace(run, arm=arm) for run in runs for arm in spec.arms])

    return make


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [(99.0, 95.0, "71.59 to 100.0"), (0.0, 1.0, "0.00 to 6.85"), (50.0, 51.0, "44.15 to 56.85")],
)
def test_a_table_cuts_the_interval_where_no_error_can_be_and_says_so(of_errors, first, second, shown):
    table = errors(of_errors(first, second), "")
    assert table.rows[0][2] == shown
    assert ("an interval ends at 0 and 100 %" in table.note) is (first != 50)


def test_another_measure_has_no_such_ends(tiny_text, of_errors):
    text = (
        tiny_text.partition("[task]")[0]
        + '[metric]\nname = "loss"\ndirection = "min"\npercent = false\n[arms.sgd]\n[arms.directed]\n'
    )
    text = text.replace("seeds = 2", 'seeds = 2\nentry = "mine:run"')
    results = of_errors(0.0, 1.0, text)
    assert results.mean_interval("", "sgd") == stats.mean_interval([0.0, 1.0])
    assert "an interval ends" not in errors(results, "").note


def test_the_figure_has_the_ends_of_the_table(tiny_text, of_errors):
    sweep = "".join(f'[arms.l{lam}]\nmetric = "reweighted:lam={lam}"\n' for lam in (2, 4, 8))
    results = of_errors(99.0, 95.0, tiny_text + sweep)
    drawing = settings.lam_sweep(results, "")
    (bars,) = drawing.figure.axes[0].containers[0].lines[2]
    for segment in bars.get_segments():
        assert_allclose(segment[:, 1], results.mean_interval("", "sgd"))
    assert max(segment[1, 1] for segment in bars.get_segments()) == 100
