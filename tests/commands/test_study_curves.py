"""``cdgrad study --tensorboard``: the curves of every run, in a folder of its own."""

import sys

import pytest
from tiny_study import TINY

from cdgrad import cli
from cdgrad.study.records import Store


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    return ["study", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]


@pytest.mark.usefixtures("no_figures")
def test_every_run_of_a_study_writes_its_curves(arguments, tmp_path, capsys):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "tb"
    assert cli.main([*arguments, "--workers", "1", "--tensorboard", str(folder)]) == 0
    with Store(tmp_path / "out", write=False) as store:
        runs = store.runs()
    assert len(runs) == 4
    assert {path.parent.relative_to(folder).as_posix() for path in folder.rglob("events.*")} == {
        f"{run.arm}/final-seed-{run.seed}" for run in runs
    }
    for run in runs:
        kept = events.EventAccumulator(str(folder / run.arm / f"final-seed-{run.seed}")).Reload()
        (loss,) = kept.Scalars("loss")
        assert loss.value == pytest.approx(run.epochs[0]["loss"], rel=1e-6)


def test_curves_of_two_studies_are_not_joined(arguments, tmp_path, capsys, no_workers, no_figures):
    pytest.importorskip("tensorboard")
    curves = ["--tensorboard", str(tmp_path / "tb")]
    assert cli.main([*arguments, *curves]) == 0
    (tmp_path / "other" / "tiny.toml").parent.mkdir()
    (tmp_path / "other" / "tiny.toml").write_text(TINY.replace("lr = 0.1", "lr = 0.2"))
    capsys.readouterr()
    other = ["study", str(tmp_path / "other" / "tiny.toml"), "--out", str(tmp_path / "other" / "out")]
    assert cli.main([*other, *curves]) == 1
    assert "final-seed-0 has the curves of a run with another setting; name" in capsys.readouterr().err


def test_a_study_without_tensorboard_ends_before_its_first_run(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert cli.main([*arguments, "--tensorboard", str(tmp_path / "tb")]) == 1
    assert "in a clone of cdgrad, run pip install '.[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tasks_of_a_cluster_write_no_curves(arguments, capsys):
    assert cli.main([*arguments, "--tensorboard", "tb", "--engine", "ray"]) == 2
    assert "--tensorboard needs --engine local" in capsys.readouterr().err
