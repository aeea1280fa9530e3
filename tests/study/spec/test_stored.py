"""A specification of recorded runs stays readable when new runs may no longer begin with it."""

import shutil

import pytest
from tiny_study import assert_refused

from cdgrad import cli
from cdgrad.study import StudyError
from cdgrad.study.records import Store
from cdgrad.study.records.parquet import from_parquet
from cdgrad.study.spec import parse
from cdgrad.study.statistics import results

TUNING = '[tuning]\ntrials = 2\nseeds = [7]\nspace."optimizer.lr" = { low = 0.01, high = 1.0 }\n'
REFUSED = [
    ("train = 48", "train = 48\nsize = 32", "task.size has no effect"),
    ("[model]", "[cells.a.task]\nsize = 32\n[model]", "cells.a.task.size has no effect"),
    ("batch = 16", "batch = 16\nstep_factor = 0.5", "step_factor has no effect"),
    ("[arms.sgd]", "[arms.sgd]\npermute = true", "arms.sgd.permute has no effect"),
    ("[arms.sgd]", "[arms.sgd]\nvalues.x = 1", "values has no effect"),
    ("[arms.sgd]", "[arms.sgd]\ntuning = 'none'", "tuning has no effect without a table tuning"),
    (
        "[arms.sgd]\n\n[arms.directed]",
        f"{TUNING}[arms.sgd]\ntuning = 'none'\n[arms.directed]\ntuning = 'none'",
        "the table tuning has no effect",
    ),
    ("[arms.sgd]", f"{TUNING}space.permute.choices = [false, true]\n[arms.sgd]", "has no effect with metric"),
    ("[arms.directed]", "[arms.SGD]", "arm names sgd and SGD differ in letter case alone"),
    ("[arms.directed]", "[arms.'sgd.']", "arm name 'sgd.' is not allowed, because no file on Windows"),
    ("[arms.directed]", "[arms.'Con.v2']", "arm name 'Con.v2' is not allowed, because no file on Windows"),
    ("[arms.sgd]", "[cells.a]\n[cells.A]\n[arms.sgd]", "cell names a and A differ in letter case alone"),
    ("[arms.sgd]", "[cells.lpt1]\n[arms.sgd]", "cell name 'lpt1' is not allowed"),
    ("seeds = 2", "seeds = [0, 4294967296]", "differ in their last 32 bits"),
    ("[arms.sgd]", f"{TUNING.replace('7', '4294967297')}[arms.sgd]", "tuning.seeds must be disjoint"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED)
def test_what_no_new_run_may_begin_with_may_be_stored(tiny_text, old, new, message):
    assert_refused(tiny_text, old, new, message)
    stored = parse(tiny_text.replace(old, new), "tiny", stored=True)
    values = {"permute": True} if "permute.choices" in new else {}
    assert [stored.setting(cell, arm, values).evaluate for cell in stored.cells for arm in stored.arms]


def test_keys_for_the_other_kind_of_study_and_a_measure_like_a_column_may_be_stored():
    text = (
        'baseline = "a"\nseeds = 2\nentry = "mytrain:run"\narms.a = { lr_factor = 2.0, optimizer.lr = 1.0 }\n'
    )
    for key, message in (("optimizer.lr = 1.0", "optimizer has no"), ("lr_factor = 2.0", "lr_factor has no")):
        assert_refused(text, "{ lr_factor = 2.0, optimizer.lr = 1.0 }", f"{{ {key} }}", message)
    named = f'{text}[metric]\nname = "values"\ndirection = "min"\n'
    assert_refused(
        named, "{ lr_factor = 2.0, optimizer.lr = 1.0 }", "{}", "metric.name must be 1 to 30 letters"
    )
    assert parse(named, "own", stored=True).measure.name == "values"


def test_what_is_wrong_in_another_way_is_no_specification_even_if_stored(tiny_text):
    with pytest.raises(StudyError, match="train must be an integer of at least 1"):
        parse(tiny_text.replace("train = 48", "train = 0"), "tiny", stored=True)


def test_every_command_reads_a_finished_study_with_keys_that_are_refused_now(
    tmp_path, tiny_text, make_run, no_figures, capsys
):
    before = tiny_text.replace("train = 48", "train = 48\nsize = 32")
    text = before.replace("batch = 16", "batch = 16\nstep_factor = 0.5").replace("seeds = 2", "seeds = 3")
    folder = tmp_path / "study"
    with Store(folder, write=True) as store:
        for seed, planned in enumerate((before, before, text)):
            digest = store.use_spec("tiny", planned)
            for arm in ("sgd", "directed"):
                store.add(make_run(arm, seed, 3.0 + seed), digest)
    shutil.copytree(folder, tmp_path / "other")
    assert cli.main(["report", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 of 6 runs finished" in shown
    assert "1 seed (2) was added to a study with recorded runs of 2 seeds" in shown  # the earlier one is read
    assert cli.main(["report", str(folder), str(tmp_path / "other")]) == 0
    assert cli.main(["export", str(folder), "--to", str(tmp_path / "paper")]) == 0
    assert cli.main(["record", str(folder), "--to", str(tmp_path / "tiny.parquet")]) == 0
    assert from_parquet(tmp_path / "tiny.parquet") == results.read(folder).runs
