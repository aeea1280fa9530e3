"""Several studies as one: the cells of all, the arms that they share, one correction."""

import dataclasses
import re
from urllib.parse import unquote

import pytest

from cdgrad.study import StudyError
from cdgrad.study.report import compose
from cdgrad.study.report.tables import what
from cdgrad.study.spec import Measure, parse
from cdgrad.study.statistics import Results
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.together import together

MORE = '[arms.more]\nmetric = "sobolev:lam=0.01"\n'


@pytest.fixture
def studies(tiny_text, make_run):
    """Two studies of 8 and 6 seeds that share two of their three arms."""
    results = {}
    for name, seeds, text in (("one", 8, tiny_text + MORE), ("two", 6, tiny_text)):
        spec = parse(text.replace("seeds = 2", f"seeds = {seeds}"), name)
        runs = [
            dataclasses.replace(make_run("sgd", seed, 5.0 + seed - k * (1 + seed / 9)), arm=arm)
            for k, arm in enumerate(spec.arms)
            for seed in spec.seeds
        ]
        results[name] = Results.of(spec, runs)
    return results


def test_the_shared_comparisons_are_those_of_each_study_under_one_correction(studies):
    results = together(studies)
    assert list(results.comparisons) == [("one", "directed"), ("two", "directed")]
    raw = []
    for name, study in studies.items():
        comparison = study.comparisons["", "directed"].comparison
        assert (
            results.comparisons[name, "directed"].comparison.differences.tolist()
            == comparison.differences.tolist()
        )
        raw.append(comparison.p)
    assert [p for _, p in results.comparisons.values()] == stats.holm(raw)


def test_the_report_of_several_has_their_remarks_and_all_their_cells(studies):
    _, document = compose.together(studies)
    titles = [section.title for section in document.sections]
    assert titles == ["All cells", "one", "two", "Every run"]
    assert all(sentence.startswith(("one: ", "two: ")) for sentence in document.remarks)
    assert document.summary == "one: 24 of 24 runs finished; two: 12 of 12 runs finished"
    assert not any(sentence.startswith("Provisional") for sentence in document.verdicts)
    unfinished = Results.of(studies["two"].spec, [run for run in studies["two"].runs if run.seed])
    _, document = compose.together(studies | {"two": unfinished})
    assert all(sentence.startswith("Provisional") for sentence in document.verdicts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": Measure("loss", "min")}, r"differ in what they measure \(error, % and loss\)"),
        ({"evaluate": "validation"}, r"differ in the split \(test and validation\)"),
        ({"baseline": "directed"}, "differ in the arm that others are compared with"),
    ],
)
def test_studies_of_different_kinds_are_refused(studies, changes, message):
    other = dataclasses.replace(studies["two"], spec=dataclasses.replace(studies["two"].spec, **changes))
    with pytest.raises(StudyError, match=f"one and two {message}"):
        together(studies | {"two": other})


def test_arms_of_one_name_with_other_metrics_are_refused(studies, tiny_text):
    spec = parse(tiny_text.replace("reweighted:lam=3", "reweighted:lam=5"), "two")
    with pytest.raises(StudyError, match="differ in the metric of directed"):
        together(studies | {"two": dataclasses.replace(studies["two"], spec=spec)})


def test_studies_of_one_title_are_told_apart(studies):
    assert {study.spec.title for study in studies.values()} == {"Tiny"}
    assert together(studies).spec.title == "Tiny (one) and Tiny (two)"
    other = dataclasses.replace(studies["two"], spec=dataclasses.replace(studies["two"].spec, title="Wide"))
    assert together(studies | {"two": other}).spec.title == "Tiny and Wide"


def test_cells_that_would_have_one_name_are_refused(studies, tiny_text, make_run):
    spec = parse(tiny_text.replace("[arms.sgd]", '[cells."b"]\n[arms.sgd]'), "one")
    runs = [make_run(arm, 0, 3.0, cell="b") for arm in spec.arms]
    with pytest.raises(StudyError, match="one, one B have cells of one name, up to letter case; rename"):
        together({"one": Results.of(spec, runs), "one B": studies["two"]})


def test_studies_named_after_paths_have_figures_with_names_of_files(studies, tmp_path, no_figures):
    names = ("runs/a b", "runs_a b", "..\\a/\ub200", "x" * 300)
    results, document = compose.together(dict.fromkeys(names, studies["two"]))
    files = [path.name for path in compose.write(results, tmp_path, document) if path.suffix == ".png"]
    levels = sorted(name for name in files if name.startswith("levels-"))
    assert "levels-runs_a b.png" in levels
    assert len(levels) == 4
    assert all(len(name) < 150 and re.fullmatch(r"[A-Za-z0-9._ -]+", name) for name in files)
    assert set(files) == {path.name for path in tmp_path.glob("*.png")}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert sorted(unquote(link) for link in re.findall(r"\]\((\S+\.png)\)", text)) == sorted(files)


def test_arms_keep_the_options_of_their_study_and_margins_must_agree(studies, tiny_text, make_run):
    text = tiny_text.replace("lr = 0.3", "lr = 0.7")
    spec = parse(text.replace("seeds = 2", "seeds = 6"), "two")
    other = dataclasses.replace(studies["two"], spec=dataclasses.replace(spec, margin=0.5))
    stated = dataclasses.replace(studies["one"], spec=dataclasses.replace(studies["one"].spec, margin=0.5))
    results = together({"one": stated, "two": other})
    assert [what(results, cell, "directed") for cell in ("one", "two")] == [
        "reweighted, lam 3, lr 0.3",
        "reweighted, lam 3, lr 0.7",
    ]
    assert results.spec.margin == 0.5
    assert together(studies | {"two": other}).spec.margin == 0
    _, document = compose.together(studies | {"two": other})
    assert "one: Not in all of the studies, and left out here: arm more." in document.remarks
    assert "two: Equivalence within its margin of 0.5 points is not tested here" in " ".join(document.remarks)
