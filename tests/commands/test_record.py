"""``cdgrad record`` writes what the evidence reads, and replaces nothing."""

import shutil

from tiny_study import in_this_process

from cdgrad import cli
from cdgrad.study.records.parquet import from_parquet
from cdgrad.study.run.driver import run_study
from cdgrad.study.spec import parse
from cdgrad.study.statistics import results

SPEC = """
baseline = "sgd"
seeds = 2
[task]
data = "fake"
train = 20
validation = 20
[model]
name = "small-cnn"
width = 2
[schedule]
epochs = 1
batch = 10
[optimizer]
name = "torch.optim:SGD"
lr = 0.1
[arms.sgd]
[arms.reweighted]
metric = "reweighted:lam=3"
"""


def test_the_record_has_every_run_and_an_existing_file_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_study(parse(SPEC, "small"), tmp_path / "runs", 1, in_this_process)
    assert cli.main(["record", "runs", "--to", "small.parquet"]) == 0
    assert "4 runs written to small.parquet" in capsys.readouterr().out
    kept = (tmp_path / "small.parquet").read_bytes()
    assert from_parquet(tmp_path / "small.parquet") == results.read(tmp_path / "runs").runs

    assert cli.main(["record", "runs", "--to", "small.parquet"]) == 2
    assert "--to small.parquet exists already" in capsys.readouterr().err
    assert (tmp_path / "small.parquet").read_bytes() == kept
    shutil.rmtree(tmp_path / "runs")
    assert cli.main(["record", "runs", "--to", "other.parquet"]) != 0
    assert not (tmp_path / "other.parquet").exists()
