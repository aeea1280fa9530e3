"""kill -9 at random moments and within a run: whatever was killed, the records come out the same.

CDGRAD_KILLS sets how often at random moments.
"""

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from tiny_study import in_this_process, without_workers

from cdgrad import cli
from cdgrad.study.files import CHECKPOINTS
from cdgrad.study.records import FILE
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.engine import EpochDone
from cdgrad.study.run.local_engine import run_all
from cdgrad.study.spec import load, parse

KILLS = int(os.environ.get("CDGRAD_KILLS", "2"))
TUNING = """
[tuning]
trials = 2
seeds = [10_000, 10_001]
[tuning.space]
"optimizer.lr" = { low = 0.01, high = 1.0, log = true }
"""


def results(folder: Path):
    """What decides and what came of every run, as the bytes that the file holds."""
    with sqlite3.connect(folder / FILE) as db:
        rows = db.execute(
            'SELECT cell, arm, trial, seed, status, message, error, evaluated, "values", epochs, measures, '
            "config, fingerprint FROM runs ORDER BY 1, 2, 3, 4"
        ).fetchall()
    db.close()
    return rows


def workers_of(driver: int) -> list[int]:
    """The driver's children that run this module's command in a worker."""
    children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for_the_end_of(orphans: list[int]) -> None:
    """A worker leaves with its driver, so that the next one finds the machine free."""
    deadline = time.monotonic() + 20
    while left := [pid for pid in orphans if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_killed_anywhere_a_study_comes_to_the_same_records(
    tiny_text, tmp_path, monkeypatch, capsys, no_figures
):
    spec = tmp_path / "tiny.toml"
    text = tiny_text.replace("epochs = 1", "epochs = 3").replace("seeds = 2", f"seeds = {4 * KILLS}")
    spec.write_text(text + TUNING)

    command = [sys.executable, "-m", "cdgrad", "study", str(spec), "--out", str(tmp_path / "killed")]

    def start():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_for_runs(study, count):
        for line in study.stderr:
            assert "Traceback" not in line, line + study.stderr.read()
            count -= re.match(r"\d+/\d+ ", line) is not None
            if count <= 0:
                return

    chance = random.Random(KILLS)
    killed = {"driver": 0, "worker": 0}
    while sum(killed.values()) < KILLS:
        study = start()
        # Either at any moment: while a worker starts, or after some more runs, and within one.
        for who in ("worker", "driver"):
            wait_for_runs(study, chance.randrange(4))
            time.sleep(chance.uniform(0, 0.5))
            while not (victims := workers_of(study.pid)) and who == "worker" and study.poll() is None:
                time.sleep(0.01)
            if who == "driver":
                study.kill()
            elif victims:
                os.kill(chance.choice(victims), signal.SIGKILL)
            killed[who] += 1
        ended = study.wait(timeout=60)
        wait_for_the_end_of(victims)
        study.stderr.close()
        # A study that came to its end before the signal says whether the killed worker had a run to lose.
        assert ended in (-signal.SIGKILL, 1, 0)

    without_workers(monkeypatch)
    capsys.readouterr()
    assert cli.main(command[3:]) == 0
    left = capsys.readouterr().err
    run_study(load(str(spec)), tmp_path / "whole", 1, in_this_process)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    print(f"{killed}; {left.splitlines()[0]} before the last start; all the same bytes")


EPOCHS = 60


@pytest.fixture
def long_study(tiny_text):
    """One arm and seed, with all that a run keeps from epoch to epoch."""
    schedule = f"epochs = {EPOCHS}\nema = 0.9\nwarmup = 5"
    text = tiny_text.replace("epochs = 1", schedule).replace("seeds = 2", "seeds = 1")
    text = text.replace('baseline = "sgd"', 'baseline = "directed"').replace("[arms.sgd]\n", "")
    return parse(text.replace('data = "fake"', 'data = "fake"\naugment = ["pad-crop", "flip"]'), "tiny")


def test_a_run_that_was_killed_in_its_middle_resumes_there_to_the_same_record(long_study, tmp_path):
    folder, checkpoints = tmp_path / "killed", tmp_path / "killed" / CHECKPOINTS
    saving = partial(run_all, checkpoints=checkpoints, save_every=0)
    victims, resumed_at = set(), {}

    def killing(take, workers):
        with closing(saving(take, workers)) as events:
            for event in events:
                file = checkpoints / event.job.file("cpu")
                late = isinstance(event, EpochDone) and event.epoch >= 10
                if late and event.job.key not in victims and file.exists():
                    victims.add(event.job.key)
                    (worker,) = active_children()
                    os.kill(worker.pid, signal.SIGKILL)
                yield event

    def watched(take, workers):
        with closing(saving(take, workers)) as events:
            for event in events:
                resumed_at.setdefault(event.job.key, event.epoch if isinstance(event, EpochDone) else None)
                yield event

    failed = run_study(long_study, folder, 1, killing)
    assert [run.message for run in failed] == [
        "the worker process was killed by signal 9 during the run (out of memory?)"
    ]
    saved = {file.name: len(torch.load(file)["state"]["epochs"]) for file in checkpoints.glob("*.pt")}
    assert len(saved) == 1
    assert all(9 <= epochs < EPOCHS - 1 for epochs in saved.values())

    finished = run_study(long_study, folder, 1, watched)
    assert sorted(resumed_at.values()) == sorted(epochs + 1 for epochs in saved.values())
    assert {run.key for run in finished} == {run.key for run in failed} == set(resumed_at)
    assert not checkpoints.exists()

    whole = run_study(long_study, tmp_path / "whole", 1, in_this_process)
    assert [len(run.epochs) for run in whole] == [EPOCHS]
    assert results(folder) == results(tmp_path / "whole")
