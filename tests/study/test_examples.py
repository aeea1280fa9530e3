"""The examples run as their users would run them, shorter."""

import sys
from pathlib import Path

import pytest

from cdgrad.study import spec
from cdgrad.study.plan.job import Job
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.execute import execute

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def lightning_study(monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.syspath_prepend(EXAMPLES)
    yield spec.load(str(EXAMPLES / "lightning.toml"))
    sys.modules.pop("lightning_study", None)


def test_the_lightning_study_runs_as_written_in_a_worker(lightning_study, tmp_path):
    text = lightning_study.text.replace("seeds = 10", "seeds = 1")
    short = spec.parse(text, "lightning")
    executed = run_study(short, tmp_path, workers=1)
    assert [run.message for run in executed] == [""] * 2
    assert {len(run.epochs) for run in executed} == {10}
    assert all(run.error < 75 for run in executed), "90 % would be chance"
    assert executed[0].measures["parameters"] > 1000
    assert len({run.error for run in executed}) > 1


def test_in_lightning_the_arm_acts_and_the_seed_pairs(lightning_study, monkeypatch):
    import lightning_study as code

    monkeypatch.setattr(code, "EPOCHS", 2)
    first, again, directed = (
        execute(Job("", arm, None, 3, lightning_study.setting("", arm)), lambda epoch, measured: None)
        for arm in ("sgd", "sgd", "reweighted")
    )
    assert first.message == directed.message == ""
    assert (first.error, first.epochs) == (again.error, again.epochs)
    assert first.epochs != directed.epochs
