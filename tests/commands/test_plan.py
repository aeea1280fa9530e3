"""`cdgrad plan`: runs, splits, time and power are known before the first run, and nothing is recorded."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdgrad import cli
from cdgrad.study import spec
from cdgrad.study.callables import load_callable
from cdgrad.study.plan import Plan
from cdgrad.study.report import preview
from cdgrad.study.statistics import paired

SMALL = """
baseline = "sgd"
seeds = 6
workers = 2
[task]
data = "digits"
train = 100
validation = 100
[model]
name = "small-cnn"
width = 4
[schedule]
epochs = 4
batch = 50
[optimizer]
name = "torch.optim:SGD"
lr = 0.1
[arms.sgd]
[arms.one]
metric = "reweighted:lam=3"
rescale = "norm"
[arms.two]
metric = "sobolev:lam=0.01"
optimizer.lr = 0.3
"""
TUNED = (
    SMALL.replace("seeds = 6", "seeds = 10")
    + """
[tuning]
trials = 4
seeds = [100, 101]
space."optimizer.lr" = { low = 0.01, high = 1.0, log = true }
"""
)


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(text, *arguments):
        Path("mine.toml").write_text(text)
        assert cli.main(["plan", "mine.toml", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    return run


def test_a_study_that_cannot_show_anything_is_warned_of(plan):
    out = plan(SMALL, "--no-timing")
    assert "With 6 seeds and 2 comparisons no p after Holm's correction can be below 0.062" in out
    assert "Use at least 7 seeds." in out
    assert list(preview.warnings(replace(spec.parse(SMALL, "mine"), seeds=tuple(range(7))))) == []


@pytest.mark.parametrize("command", ["plan", "study"])
def test_graphs_on_the_cpu_are_refused_before_anything_is_executed(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SMALL.replace("epochs = 4", "epochs = 4\ngraph = true"))
    assert cli.main([command, "mine.toml"]) == 2
    assert "schedule.graph = true needs a CUDA device" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"mine.toml"}
    assert cli.main(["plan", "mine.toml", "--device", "cuda", "--no-timing"]) == 0


def test_runs_and_splits_are_counted(plan):
    out = plan(TUNED, "--no-timing")
    assert "54 runs, 0 of them recorded in runs/mine, 54 remain" in out
    assert "trials 1 x 3 x 4 x 2 24" in out
    assert "final runs 1 x 3 x 10 30" in out
    assert "digits 100 100 1,597 drawn 0.0626" in out  # 1,797 digits, 100 / 1597 points an image


def test_the_minimum_detectable_difference_is_that_of_the_stated_sd(plan):
    out = plan(TUNED, "--no-timing", "--sd", "0.5")
    assert f"10 2 0.0039 0.50 {paired.detectable_difference(10, 0.5):.2f}" in out
    assert "not known yet; set it with --sd" in plan(TUNED, "--no-timing")


def test_time_is_estimated_from_a_timed_epoch_and_nothing_is_recorded(plan, tmp_path):
    out = plan(SMALL)
    assert re.search(
        r"estimated from one timed epoch of the baseline, and from [\d.]+ s for the start of a", out
    )
    assert {file.name for file in tmp_path.iterdir()} == {"mine.toml"}


@pytest.mark.usefixtures("no_workers", "no_figures")
def test_time_is_estimated_from_recorded_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SMALL.replace("seeds = 6", "seeds = 1").replace("epochs = 4", "epochs = 1"))
    assert cli.main(["study", "mine.toml"]) == 0
    out = " ".join(capsys.readouterr().err.split())
    assert "Plan of mine" in out  # the first screen
    assert "With 1 seed no interval" in out
    Path("mine.toml").write_text(SMALL.replace("epochs = 4", "epochs = 1"))
    Path("random.py").write_text("raise ImportError")  # which the timed process must not find
    assert cli.main(["plan", "mine.toml"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "18 runs, 3 of them recorded in runs/mine, 15 remain" in out
    assert "estimated from the mean of 3 recorded runs, and from" in out
    monkeypatch.setattr(preview.sys, "executable", "false")
    assert cli.main(["plan", "mine.toml"]) == 0
    assert "recorded runs, without the start of the workers" in " ".join(capsys.readouterr().out.split())


def test_search_ranges_and_pins_are_listed(plan):
    text = TUNED.replace('metric = "sobolev:lam=0.01"', 'metric = "sobolev:lam=0.01"\ntuning = "none"')
    text = text.replace('rescale = "norm"', 'rescale = "norm"\ntuning = "baseline"')
    out = plan(text, "--no-timing")
    assert "sgd optimizer.lr 0.01 to 1, logarithmic" in out
    assert "one optimizer.lr pinned by the choice for sgd" in out
    assert "two lr pinned by the specification" in out


def test_an_arm_whose_metric_changes_the_step_at_an_equal_rate_is_warned_of():
    text = SMALL.replace('rescale = "norm"', "")
    (_, warning) = preview.warnings(spec.parse(text, "mine"))
    assert warning.startswith("one has the baseline's learning rate, but its metric changes the size")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.34, "0.3 s"), (3, "3 s"), (89, "89 s"), (90, "1.5 min"), (7200, "2.0 h")]
)
def test_durations(seconds, words):
    assert preview.duration(seconds) == words


def test_the_timed_epoch_is_the_second_one_unless_the_first_is_long(monkeypatch):
    """What comes before the first epoch, imports and data and compilation, is no part of a run's epochs."""
    clock = iter([0.0, 50.0, 51.5, 100.0, 170.0])  # of two calls; the second stops after a long first epoch
    monkeypatch.setattr(preview.time, "perf_counter", lambda: next(clock))
    trained: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    threads = [8]

    def train(setting, seed, on_epoch, *, device):
        assert torch.get_num_threads() == 1  # as in a worker
        for epoch in range(1, setting.schedule.epochs + 1):
            trained.append(epoch)
            on_epoch(epoch, {})

    monkeypatch.setattr("cdgrad.study.train.train", train)
    study = spec.parse(SMALL, "own")
    first = preview.timed_seconds(study, "cpu")
    assert first.by_cell == {"": 4 * 1.5}
    assert first.start == 50.0 - 1.5  # which each worker spends once
    assert preview.timed_seconds(study, "cpu") == preview.Seconds(
        {"": 4 * 70.0}, "one timed epoch of the baseline", 0.0
    )
    assert trained == [1, 2, 1]
    assert threads == [8]

    clock = iter([0.0, 50.0, 50.5, 60.0, 60.75, 61.0, 61.5])  # short epochs: a second run, and its end
    short = preview.timed_seconds(study, "cpu")
    assert short.start == 50.0 - 0.5
    assert short.by_cell == {"": 1.0 + 4 * 0.25}  # of 1.5 s, two epochs took 0.5


def test_a_network_beside_the_specification_is_timed_from_any_folder(tmp_path, monkeypatch, capsys):
    def ends(setting, device):
        assert load_callable(setting.model.name).__module__ == "beside"
        return [0.0, 90.0]

    monkeypatch.setattr(preview, "_ends", ends)
    monkeypatch.chdir(tmp_path)
    Path("below").mkdir()
    Path("below", "beside.py").write_text("def build(classes): ...")
    Path("below", "mine.toml").write_text(SMALL.replace('"small-cnn"', '"beside:build"'))
    assert cli.main(["plan", "below/mine.toml"]) == 0
    assert "one timed epoch" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("seconds", "workers", "start", "until"),
    [
        ([10.0] * 3, 2, 4.0, 24.0),  # two rounds after the start, not 4 + 15
        ([10.0] * 4, 2, 4.0, 24.0),
        ([10.0], 8, 4.0, 14.0),
        ([1.0, 9.0, 1.0, 1.0], 2, 0.0, 9.0),
    ],
)
def test_a_study_takes_the_start_of_its_workers_and_as_long_as_the_last_of_them_is_busy(
    seconds, workers, start, until
):
    assert preview.makespan(seconds, workers, start) == until


def test_the_time_of_a_plan_contains_the_start_of_the_workers():
    study = spec.parse(SMALL, "own")
    plan = Plan(study, [], "runs/own")

    def time(start):
        seconds = preview.Seconds({"": 10.0}, "here", start)
        document = preview.preview(plan, [], workers=2, seconds=seconds, sd=None)
        (table,) = (t for t in document.sections[0].tables if t.title.startswith("Time"))
        return table.rows[0][0]

    assert time(None) == time(0.0) == "1.5 min"  # 18 runs of 10 s on 2 workers
    assert time(90.0) == "3.0 min"
