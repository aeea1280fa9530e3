"""What a report says of studies that are not complete, add seeds, are tuned, or compare all pairs."""

import re
from dataclasses import replace

import pytest
from tiny_study import WITHOUT_ARMS

from cdgrad.study.plan import Plan
from cdgrad.study.records import Run
from cdgrad.study.report import preview
from cdgrad.study.report.further import further_table
from cdgrad.study.report.methods import methods
from cdgrad.study.report.remarks import remarks
from cdgrad.study.report.tables import certainty, differences, errors, power, what
from cdgrad.study.report.verdicts import across_cells, verdicts
from cdgrad.study.spec import parse
from cdgrad.study.statistics import Results

ARMS = """
[arms.sgd]
[arms.near]
metric = "reweighted:lam=3"
rescale = "norm"
[arms.far]
metric = "sobolev:lam=0.01"
optimizer.lr = 0.3
"""
CELLS = "[cells.one]\n[cells.two]\nmodel.width = 4\n"
TUNING = "[tuning]\ntrials = 2\nseeds = [100, 101, 102, 103]\nreplicates = 2\n"
SPACE = """[tuning.space]
"optimizer.lr" = { low = 0.01, high = 1.0 }
[tuning.arms.near]
lam = { low = 1, high = 4 }
"""
NEAR = [-0.3, 0.2, -0.1, 0.3, -0.2, 0.1, 0.2, -0.25]


def spec(text="", seeds="8"):
    head = WITHOUT_ARMS.replace("seeds = 2", f"seeds = {seeds}")
    return parse(head + ARMS + text, "said")


def run(cell, arm, seed, error, **changes):
    about = {"trial": None, "status": "ok", "evaluated": "test", "values": {}, "epochs": [], "measures": {}}
    about |= {"config": {}, "fingerprint": "f", "environment": {"test_split": "drawn"}, "seconds": 1.0}
    return Run(cell=cell, arm=arm, seed=seed, error=error, **about | {"started": "2026-01-01"} | changes)


def runs_of(study, *, seeds=8, left_out=lambda cell, arm: False):
    """Near differs from sgd by little, far by about 2 points."""
    base, effects = [5 + 0.4 * (k % 3) for k in range(8)], {"sgd": [0.0] * 8, "near": NEAR}
    effects["far"] = [2 + d for d in reversed(NEAR)]
    return [
        run(cell, arm, seed, base[seed] + effects[arm][seed])
        for cell in study.cells
        for arm in study.arms
        for seed in range(seeds)
        if not left_out(cell, arm)
    ]


def results(text="", spec_seeds="8", **options):
    study = spec(text, spec_seeds)
    return Results.of(study, runs_of(study, **options))


def test_a_comparison_without_a_pair_has_a_verdict():
    found = results(left_out=lambda _, arm: arm == "far")
    assert "far against sgd: no seed has finished in both arms." in verdicts(found, "")
    cells = across_cells(results(CELLS, left_out=lambda cell, arm: (cell, arm) == ("two", "far")))
    assert cells[1].startswith("far against sgd, 2 cells: better in 0, worse in 1 (one),")
    assert cells[1].endswith("; no seed has finished in both arms in 1 (two).")


def test_cells_whose_interval_excludes_0_are_named_where_no_difference_is_shown():
    found = across_cells(results(CELLS, seeds=5))
    assert "no difference shown in 2, where no difference larger than 2.3" in found[1]
    assert found[1].endswith("although the interval, uncorrected, excludes 0 in 2 (one, two).")
    assert "excludes" not in found[0]


def test_seeds_that_are_too_few_so_far_are_told_from_those_that_are_planned():
    so_far = next(remark for remark in remarks(results(seeds=5)) if "can be shown" in remark)
    assert so_far == (
        "With 5 seeds so far and 2 comparisons no Holm p can be below 0.12, so that no difference, however "
        "large, can be shown yet."
    )
    planned = next(remark for remark in remarks(results(spec_seeds="6", seeds=5)) if "can be shown" in remark)
    assert planned.startswith("With 6 seeds and 2 comparisons no Holm p can be below 0.062, so")
    assert planned.endswith("can be shown; add seeds.")


def test_a_study_that_adds_seeds_gives_mean_and_interval_and_each_table_once():
    found = results(spec_seeds="{ until = 0.1, most = 30 }")
    near, far = verdicts(found, "")
    interval = r" \(mean difference -0.01 points, 95 % anytime-valid interval -0.3\d to \+0.3\d, Holm p = 1\)"
    assert pytest.approx(0, abs=0.1) == found.comparisons["", "near"].comparison.mean
    assert re.search(f"no difference is shown{interval}; differences outside", near)
    assert "95 % anytime-valid interval" in far
    assert not certainty(found, "").rows, "they are those of the first table"
    assert "valid after a look at every seed, by the mixture sequential t-test" in differences(found, "").note
    assert "At most 66 runs remain" in " ".join(remarks(found))
    equal = Results.of(found.spec, [replace(each, error=5.0 + each.seed) for each in found.runs])
    assert "all 8 differences are +0.00 points" in verdicts(equal, "")[0]


def test_equivalence_is_not_shown_by_a_margin_that_was_set_later():
    study = spec("", "8\nmargin = 1")
    for earlier, shown in ((study, "yes"), (spec(), "not shown")):
        found = Results.of(study, runs_of(study), [earlier])
        sentence = verdicts(found, "")[2]
        assert certainty(found, "").rows[0][-1] == shown
        assert verdicts(found, "")[3].startswith("far and sgd: equivalence within 1 point is not shown (TOST")
        assert ("near and sgd are equivalent within 1 point" in sentence) == (shown == "yes")
        assert ("was set after runs were recorded, so that equivalence is not shown" in sentence) == (
            shown == "not shown"
        )


def test_environments_that_differ_between_seeds_are_told_from_those_that_differ_within():
    found = results()
    by_seed = [replace(each, environment={"torch": f"2.{each.seed % 2}"}) for each in found.runs]
    assert "The runs differ in torch (2.0, 2.1), but those of one seed do not:" in " ".join(
        remarks(Results.of(found.spec, by_seed))
    )
    within = [*by_seed[:-1], replace(by_seed[-1], environment={"torch": "2.9"})]
    assert "2.9), so arms may differ in more than their setting." in " ".join(
        remarks(Results.of(found.spec, within))
    )


def test_what_is_searched_has_no_value_before_it_is_chosen_or_where_searches_differ():
    tuned = spec(TUNING.replace("replicates = 2\n", "") + SPACE)
    unfinished = Results.of(tuned, [])
    assert (
        what(unfinished, "", "near") == "reweighted, rescale norm, to be chosen by trials: lam, optimizer.lr"
    )
    chosen = {"optimizer.lr": 0.25, "lam": 1.5}
    found = Results.of(tuned, [run("", "near", 0, 5.0, values=chosen)])
    assert what(found, "", "near") == "reweighted, lam 1.5, rescale norm, lr 0.25"
    searches = Results.of(spec(TUNING + SPACE), [run("", "near", 0, 5.0, values=chosen)])
    assert what(searches, "", "near") == (
        "reweighted, rescale norm, chosen by each of 2 searches: lam, optimizer.lr"
    )


def test_an_optimizer_of_an_arm_is_called_one(tiny_text):
    arm = '{ name = "torch.optim:Adam", lr = 1e-3 }'
    found = Results.of(parse(tiny_text.replace("{ lr = 0.3 }", arm), "tiny"), [])
    assert what(found, "", "directed") == "reweighted, lam 3, optimizer torch.optim:Adam, lr 0.001"


def test_tables_of_all_pairs_and_of_searches_have_no_empty_columns():
    found = results().compared_with("", all_pairs=True)
    measured = Results.of(found.spec, [replace(each, measures={"length": each.error}) for each in found.runs])
    further = further_table(measured, "")
    assert further.header == ("measure", "pair", "difference", "95 % t", "pairs")
    assert (
        "win rate: share of seeds on which the first arm of the pair is better" in differences(found, "").note
    )
    searches = spec(TUNING + SPACE)
    assert power(Results.of(searches, runs_of(searches)), "").header[:3] == ("arm", "SD", "MDD")


def test_differences_that_cancel_have_a_mean_of_0_without_a_sign():
    study = spec()
    errors = {"sgd": [4.9, 5.4, 5.8] * 2, "near": [5.1, 5.3, 5.7] * 2, "far": [6.0] * 6}
    found = Results.of(study, [run("", arm, k, e) for arm, of in errors.items() for k, e in enumerate(of)])
    assert found.comparisons["", "near"].comparison.differences.sum() < 0
    assert differences(found, "").rows[0][1] == "+0.00"
    assert found.comparisons["", "near"].comparison.mean == 0


def test_the_methods_paragraph_is_true_of_every_arm_and_of_an_unfinished_study():
    text = methods(results())
    assert "at an initial learning rate of 0.1 for sgd (batch size 16" in text
    assert (
        "The arms are sgd (no metric, lr 0.1), near (reweighted, lam 3, rescale norm, lr 0.1) and far "
        "(sobolev, lam 0.01, lr 0.3)."
    ) in text
    assert "A seed fixes the division into training, validation and test images, the init" in text
    assert "not complete" not in text
    half = methods(results(seeds=5, left_out=lambda _, arm: arm == "far"))
    assert "The comparisons have 0 to 5 seeds that both arms finished." in half
    assert "The study is not complete: 14 runs of it did not finish." in half
    later = Results.of(spec(), runs_of(spec()), [spec("", "6")])
    assert "2 seeds (6, 7) were added to a study with recorded runs of 6 seeds" in methods(later)


def test_seeds_needed_are_never_so_few_that_no_p_can_be_small_enough():
    table = power(results(), "")
    assert [row[-1] for row in table.rows] == ["7", "7"], "6 would detect 0.5 points by a t-test"
    assert "with that power, at this SD, at least 7: with fewer no Holm p can be below 0.05" in table.note
    assert "at least" not in power(results(spec_seeds="{ until = 0.1, most = 30 }"), "").note


def test_a_plan_promises_no_seeds_that_cannot_show_anything():
    plan = Plan(spec(), [], "here")
    tables = preview.preview(plan, [], workers=1, seconds=None, sd=0.2).sections[0].tables
    (row,) = next(table for table in tables if table.title.startswith("Statistical power")).rows
    assert row[-4:] == ["34", "10", "7", "7"]
    assert not any(table.title.startswith("What is searched") for table in tables)
    many = "".join(f"[cells.c{k}]\n" for k in range(1700))
    assert next(preview.warnings(spec(many))).endswith("can be shown. Compare fewer arms in fewer cells.")


def test_a_diverged_run_takes_no_decimals_from_the_others():
    text = 'baseline = "a"\nseeds = 4\nentry = "mine:run"\n[metric]\nname = "loss"\ndirection = "min"\n'
    study = parse(text + "[arms.a]\nvalues.lr = 0.1\n[arms.b]\nvalues.lr = 0.2\n", "diverged")
    kept = [run("", arm, k, 0.3 + 0.01 * k + k * k / 1e3 * (arm == "b")) for arm in "ab" for k in range(3)]
    diverged = run("", "b", 3, 1e30, status="diverged")
    found = Results.of(study, [*kept, run("", "a", 3, 0.33), diverged])
    assert errors(found, "").rows[0][:4] == ("a", "0.3150", "0.2945 to 0.3355", "0.0129")
    assert errors(found, "").rows[1][1] == "2.5e+29"
