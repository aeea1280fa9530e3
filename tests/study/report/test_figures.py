"""Figures are readable whatever the names, numbers and seeds are: nothing is cut off or drawn over."""

from itertools import combinations

import numpy as np
import pytest

from cdgrad.study import spec
from cdgrad.study.records import Run
from cdgrad.study.report.figures import curves
from cdgrad.study.report.figures.differences import paired_differences
from cdgrad.study.report.figures.levels import levels
from cdgrad.study.report.further import further_figure
from cdgrad.study.statistics import Results

WIDE, LONG, REVERSED = "W" * 16, "abcdefghijklmnop", "ponmlkjihgfedcba"
MEASURE = '[metric]\nname = "perplexity of the validation s"\ndirection = "min"\nunit = "bits a character"\n'
ENERGY = '[metric]\nname = "energy"\ndirection = "min"\nunit = "J"\n'
STUDIES = {
    "names": {"arms": (WIDE, LONG, REVERSED), "measure": MEASURE},
    "pairs": {"arms": (WIDE, LONG, REVERSED, "x"), "measure": MEASURE, "head": "all_pairs = true"},
    "large": {"measure": ENERGY, "scale": 1e12},
    "small": {"measure": ENERGY, "scale": 1e-4},
}


def study(*, arms=("a", "b", "c"), seeds=8, head="", measure="", scale=1.0):
    """Arms whose results are of the order of `scale`, with curves and further measures."""
    tables = "".join(f"[arms.{arm}]\nvalues.lr = 0.1\n" for arm in arms)
    text = f'baseline = "{arms[0]}"\nseeds = {seeds}\nentry = "mine:run"\n{head}\n{measure}{tables}'
    study_spec, rng = spec.parse(text, "figures"), np.random.default_rng(0)
    about = {"config": {}, "fingerprint": "f", "environment": {}, "started": "2026-01-01", "seconds": 3.0}
    runs = []
    for arm in arms:
        for seed, value in enumerate(scale * (5 + rng.normal(size=seeds))):
            epochs = [{f"validation_{study_spec.measure.key}": value * (1 + 3 / k)} for k in (1, 2, 9)]
            measures = {"calibration": value / scale / 1000, "energy": 1e9 * value / scale}
            ended = {"status": "ok", "error": value, "evaluated": "test", "values": {}, "epochs": epochs}
            runs.append(Run(cell="", arm=arm, trial=None, seed=seed, measures=measures, **ended, **about))
    return Results.of(study_spec, runs)


def texts(figure):
    """All that is written in a drawn figure: names, numbers at ticks inside the axes, titles, legends."""
    every = [axes for parent in figure.axes for axes in (parent, *parent.child_axes)]
    written = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in every:
        written += [axes._left_title, axes._right_title, axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            written += [axis.label, axis.get_offset_text()]
            written += [label for place, label in places if low <= place <= high]
    return [text for text in written if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("kind", STUDIES)
def test_no_text_is_cut_off_or_drawn_over_another(kind):
    results = study(**STUDIES[kind])
    figures = (paired_differences, levels, curves.difference_curves, curves.learning_curves, further_figure)
    for draw in figures:
        drawing = draw(results, "")
        figure = drawing.figure
        figure.draw_without_rendering()
        width, height = figure.get_size_inches() * figure.dpi
        boxes = {text: text.get_window_extent() for text in texts(figure)}
        for text, box in boxes.items():
            inside = min(box.x0, box.y0, width - box.x1, height - box.y1) > -1
            assert inside, f"{drawing.name}: {text.get_text()} is cut off"
        level = [text for text in boxes if text.get_rotation() % 90 == 0]  # slanted ones: see test_levels
        for one, other in combinations(level, 2):
            apart = not boxes[one].padded(-1).overlaps(boxes[other].padded(-1))
            assert apart, f"{drawing.name}: {one.get_text()} over {other.get_text()}"


def test_marks_of_many_seeds_stay_in_their_row():
    drawing = paired_differences(study(seeds=100), "")
    rows = [
        marks.get_offsets() for marks in drawing.figure.axes[0].collections if len(marks.get_offsets()) > 1
    ]
    assert len(rows) == 2
    for row, marks in enumerate(rows):
        assert len(marks) == 100
        assert row < marks[:, 1].min()
        assert marks[:, 1].max() < row + 0.65


def test_differences_over_the_epochs_have_a_unit():
    drawing = curves.difference_curves(study(), "")
    assert drawing.figure.axes[0].get_ylabel() == "difference to a, points"
