"""The figure of levels: every seed's line, the means of the table, readable with 2 to 8 arms."""

from itertools import pairwise

import numpy as np
import pytest

from cdgrad.study import spec
from cdgrad.study.records import Run
from cdgrad.study.report import compose
from cdgrad.study.report.figures.levels import levels
from cdgrad.study.statistics import Results


def study(errors, metric=""):
    """A study of arms by name, each with its results by seed; None: not finished, above 50: diverged."""
    arms = "".join(f"[arms.{arm}]\nvalues.lr = 0.1\n" for arm in errors)
    seeds = max(map(len, errors.values()))
    text = f'baseline = "{next(iter(errors))}"\nseeds = {seeds}\nentry = "mine:run"\n{metric}{arms}'
    study_spec = spec.parse(text, "levels")
    runs = [run(study_spec, arm, seed, value) for arm, of in errors.items() for seed, value in enumerate(of)]
    return Results.of(study_spec, [each for each in runs if each.error is not None])


def run(study_spec, arm, seed, error):
    setting = study_spec.setting("", arm)
    status = "diverged" if error is not None and error > 50 else "ok"
    values = {"status": status, "error": error, "evaluated": "test", "values": {}, "epochs": []}
    values |= {"measures": {}, "config": spec.as_json(setting), "message": "", "environment": {}}
    values |= {"fingerprint": setting.fingerprint, "started": "2026-01-01", "seconds": 1.0}
    return Run("", arm, None, seed, **values)


def lines(axes):
    """The lines of the seeds: those that pass every column."""
    columns = len(axes.get_xticklabels())
    return [
        line.get_ydata() for line in axes.lines if line.get_zorder() == 1 and len(line.get_xdata()) == columns
    ]


def test_a_line_joins_the_results_of_a_seed_in_every_arm_the_reference_first():
    errors = {"a": [3.0, 4.0, 5.0], "b": [2.5, 4.5, 5.5], "c": [1.0, None, 2.0]}
    results = study(errors).compared_with("b")
    axes = levels(results, "").figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "a", "c"]
    np.testing.assert_array_equal(lines(axes), [[2.5, 3.0, 1.0], [4.5, 4.0, np.nan], [5.5, 5.0, 2.0]])


def test_bars_and_numbers_are_the_means_of_the_table():
    results = study({"a": [3.0, 4.0], "b": [2.5, 4.75]})
    axes = levels(results, "").figure.axes[0]
    above = axes.child_axes[0]
    table = next(
        each for each in compose.document(results).sections[0].tables if each.title.startswith("Error on")
    )
    assert [label.get_text() for label in above.get_xticklabels()] == [row[1] for row in table.rows]
    bars = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 3]
    np.testing.assert_allclose(bars, [3.5, 3.625])


def test_a_diverged_run_lies_on_the_frame_and_the_caption_says_so():
    results = study({"a": [3.0, 4.0, 5.0], "b": [2.0, 90.0, 5.5]})
    drawing = levels(results, "")
    axes = drawing.figure.axes[0]
    low, high = axes.get_ylim()
    assert 1.5 < low < 2.0
    assert 5.5 < high < 6.0
    assert lines(axes)[1][1] == high
    assert "Marks and bars on the frame lie farther out: runs diverged." in drawing.caption
    assert "frame" not in levels(study({"a": [3.0, 4.0], "b": [2.0, 5.5]}), "").caption


def test_no_figure_where_no_seed_has_finished_in_two_arms():
    assert levels(study({"a": [3.0, None], "b": [None, 2.0]}), "") is None
    assert levels(study({"a": [3.0, 4.0]}), "") is None


def test_the_caption_says_which_values_are_better_and_the_unit_of_the_measure():
    metric = '[metric]\nname = "accuracy"\ndirection = "max"\npercent = true\n'
    caption = levels(study({"a": [93.0, 94.0], "b": [92.0, 91.0]}, metric), "").caption
    assert caption.startswith("Accuracy on the test data, in percent, higher is better:")


@pytest.mark.parametrize("count", range(2, 9))
def test_names_of_sixteen_letters_and_means_do_not_overlap(count):
    drawing = levels(study({f"arm-of-16-{k:06}": [3.0, 4.0 + k] for k in range(count)}), "")
    drawing.figure.draw_without_rendering()
    axes = drawing.figure.axes[0]
    for row in (axes, axes.child_axes[0]):
        labels = [label for label in row.get_xticklabels() if label.get_text()]
        assert len(labels) == count
        boxes = [label.get_window_extent() for label in labels]
        if labels[
            0
        ].get_rotation():  # parallel slanted lines: apart where the columns are wider than a line is high
            ends = [box.x1 for box in boxes]
            height = labels[0].get_fontsize() / 72 * drawing.figure.dpi
            assert min(np.diff(ends)) * np.sin(np.radians(labels[0].get_rotation())) > height
        else:
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert min(box.x0 for box in boxes) >= 0


def test_the_report_shows_it_after_the_curves_as_a_vector_image():
    results = study({"a": [3.0, 4.0], "b": [2.5, 4.75]})
    document = compose.document(results)
    names = [figure.name for figure in document.figures]
    assert names.index("levels") > names.index("paired_differences")
    (drawing,) = (figure for figure in document.figures if figure.name == "levels")
    assert b"<image" not in drawing.svg()
