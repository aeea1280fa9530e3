"""A run that raises: where a study ends, and where its traceback is kept."""

import contextlib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny_study import in_this_process, without_workers

from cdgrad import cli
from cdgrad.commands import study
from cdgrad.study.files import LOGS
from cdgrad.study.plan.job import Job
from cdgrad.study.records import Store
from cdgrad.study.records.parquet import from_parquet, to_parquet
from cdgrad.study.records.run import FailedRun
from cdgrad.study.run import logs
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.engine import RunDone
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import load, parse

TEXT = 'baseline = "a"\nseeds = 4\nworkers = 1\nentry = "failing:run"\narms.a = {}\narms.b = {}\n'
CODE = """
def helper(seed):
    return 1 / (seed - 1)

def run(seed, arm):
    return {"error": abs(helper(seed))}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(TEXT)
    (tmp_path / "failing.py").write_text(CODE)
    return tmp_path


def keys(runs):
    return [(run.arm, run.seed, run.status) for run in runs]


def test_the_first_exception_is_the_studys_last_run(folder):
    executed = run_study(load("mine.toml"), folder / "out", 1, in_this_process)
    assert keys(executed) == [("a", 0, "ok"), ("b", 0, "ok"), ("a", 1, "failed")]
    assert isinstance(executed[-1], FailedRun)
    assert executed[-1].message == "failing:run failed: ZeroDivisionError: division by zero"


def test_keep_going_executes_the_others(folder):
    executed = run_study(load("mine.toml"), folder / "out", 1, in_this_process, keep_going=True)
    assert [run.seed for run in executed if run.status == "failed"] == [1, 1]
    assert len(executed) == 8


def test_neither_a_diverged_run_nor_a_lost_worker_ends_a_study(folder):
    (folder / "failing.py").write_text(
        "def run(seed, arm):\n    return {'error': 100, 'diverged': seed == 0}\n"
    )

    def lossy(take, workers):
        for event in in_this_process(take, workers):
            lost = event.job.key == ("", "b", None, 1)
            yield next(losing(iter([event.job]).__next__, 1)) if lost else event

    executed = run_study(load("mine.toml"), folder / "out", 1, lossy)
    assert len(executed) == 8
    assert {run.status for run in executed} == {"ok", "diverged", "failed"}


def test_the_traceback_is_the_users_and_stays_out_of_the_records(folder, tmp_path, capsys):
    (failed,) = run_study(
        parse(TEXT, "x"), folder / "out", 1, lambda take, workers: last(in_this_process, take)
    )
    assert "return 1 / (seed - 1)" in logs.kept_traceback(folder / "out", failed)
    assert (
        logs.kept_traceback(folder / "out", failed).splitlines()[-1] == "ZeroDivisionError: division by zero"
    )
    (file,) = (folder / "out" / LOGS).iterdir()
    assert file.name == "a, seed 1.txt"
    with Store(folder / "out", write=False) as store:
        assert "Traceback" not in repr(store.runs())
    to_parquet([failed], tmp_path / "runs.parquet")
    assert b"Traceback" not in (tmp_path / "runs.parquet").read_bytes()
    assert [run.message for run in from_parquet(tmp_path / "runs.parquet")] == [failed.message]


def losing(take, workers):
    """An engine whose workers are killed."""
    for job in iter(take, None):
        yield RunDone(0, job, job.lost(datetime.now(UTC), {}, "the worker was killed"))


def last(engine, take):
    """The failed run of an engine alone."""
    with contextlib.closing(engine(take, 1)) as events:
        yield next(event for event in events if event.run.status == "failed")


def test_no_traceback_is_promised_of_a_worker_that_was_killed(make_run, tmp_path):
    run = make_run("sgd", 0, None, status="failed", message="the worker process was killed")
    assert study._failure(tmp_path, run) == "sgd, seed 0 failed: the worker process was killed"
    raised = FailedRun(**vars(run), traceback="Traceback")
    assert study._failure(tmp_path, raised).endswith(
        f"cdgrad log {tmp_path} sgd, seed 0 prints its traceback"
    )


def test_a_run_that_then_ends_well_takes_its_traceback_away(folder):
    run_study(load("mine.toml"), folder / "out", 1, in_this_process)
    assert (folder / "out" / LOGS).is_dir()
    (folder / "failing.py").write_text(CODE.replace("seed - 1", "seed - 9"))
    sys.modules.pop("failing")
    executed = run_study(load("mine.toml"), folder / "out", 1, in_this_process, allow_code_change=True)
    assert {run.status for run in executed} == {"ok"}
    assert not (folder / "out" / LOGS).exists()


def test_the_commands_name_the_run_and_print_its_traceback(folder, monkeypatch, capsys, no_figures):
    assert cli.main(["study", "mine.toml", "--out", "out"]) == 1  # in a worker
    assert capsys.readouterr().err.splitlines()[-1] == (
        "cdgrad: a, seed 1 failed: failing:run failed: ZeroDivisionError: division by zero; cdgrad log out "
        "a, seed 1 prints its traceback; use --keep-going to execute the other runs"
    )
    assert cli.main(["log", "out", "a,", "seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ZeroDivisionError: division by zero"
    without_workers(monkeypatch)
    assert cli.main(["study", "mine.toml", "--out", "out", "--keep-going"]) == 1
    capsys.readouterr()
    assert cli.main(["log", "out"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a, seed 1: failing:run failed: ZeroDivisionError: division by zero",
        "b, seed 1: failing:run failed: ZeroDivisionError: division by zero",
        "2 failed runs; to print a traceback: cdgrad log out RUN",
    ]
    assert cli.main(["log", "out", "b"]) == 0
    assert "return 1 / (seed - 1)" in capsys.readouterr().out
    assert cli.main(["log", "out", "c"]) == 1
    assert capsys.readouterr().err == (
        "cdgrad: no failed run of out is named 'c'; failed: a, seed 1; b, seed 1\n"
    )


@pytest.mark.parametrize("start", [[], ["-"]], ids=["script", "standard input"])
def test_a_study_can_be_started_by_a_script_without_a_guard_or_a_file(folder, start):
    (folder / "failing.py").write_text("def run(seed, arm):\n    return {'error': seed}\n")
    code = (
        "from pathlib import Path\nfrom cdgrad.study.run import run_study\n"
        "from cdgrad.study.spec import load\n"
        "print([run.status for run in run_study(load('mine.toml'), Path('out'), 1)])\n"
    )
    (folder / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, *(start or ["script.py"])], input=code, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == f"{['ok'] * 8}\n", done.stderr


def test_a_connection_that_the_users_code_misses_is_a_failure_of_the_run(folder):
    (folder / "failing.py").write_text("def run(seed, arm):\n    raise ConnectionRefusedError('no server')\n")
    spec = load("mine.toml")
    run = execute(Job("", "a", None, 0, spec.setting("", "a"), folder=spec.folder), lambda *_: None)
    assert run.message == "failing:run failed: ConnectionRefusedError: no server"


def test_what_ended_workers_leave_is_freed_without_a_warning():
    code = (
        "import os, multiprocessing as m; from cdgrad.study.run import worker; "
        "worker._start_resource_tracker(); kept = m.get_context('spawn').Lock(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


TUNED = """
baseline = "a"
seeds = 2
entry = "repeated_entry:run"
arms.a = {}
[tuning]
trials = 2
seeds = [9]
space."values.lr" = { choices = [1, 2] }
points.a = [{ "values.lr" = 1 }, { "values.lr" = 2 }]
"""
REPEATED = """
def run(seed, arm):
    return {"error": (10 if seed == 9 else FINAL) / arm.values["lr"]}
"""


def test_a_failed_repeat_loses_no_finished_run(tmp_path, monkeypatch, capsys):
    """A second trial is better, and each final run fails with what it chose."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"

    def study(text, final, engine=in_this_process):
        Path("repeated_entry.py").write_text(REPEATED.replace("FINAL", final))
        sys.modules.pop("repeated_entry", None)
        return run_study(parse(text, "mine"), out, 1, engine, keep_going=True, allow_code_change=True)

    def said(*command):
        assert cli.main([*command]) == 0
        return " ".join(capsys.readouterr().out.split())

    study(TUNED.replace("trials = 2", "trials = 1").replace(', { "values.lr" = 2 }', ""), "8")
    executed = study(TUNED, "arm.values['absent']")
    assert [(run.trial, run.status) for run in executed] == [(1, "ok"), (None, "failed"), (None, "failed")]
    with Store(out, write=False) as store:
        assert [(run.trial, run.error) for run in store.runs()] == [(None, 8), (None, 8), (0, 10), (1, 5)]
    error = "repeated_entry:run failed: KeyError: 'absent'"
    assert "0 of 2 runs finished" in said("report", "out")
    assert f"2 repeated runs failed, the first a, seed 0: {error}. The earlier r" in said("report", "out")
    assert f"a, seed 1: {error}; this was a repeat, and the earlier result is kept 2 f" in said("log", "out")
    assert said("log", "out", "seed", "1").endswith("KeyError: 'absent'")
    study(TUNED, "8", losing)
    assert "a, seed 1: the worker was killed; this was a repeat, and the earlier" in said("log", "out")
    assert [run.error for run in study(TUNED, "8")] == [4, 4]
    assert not (out / LOGS).exists()
