"""The study as a whole, in worker processes; each start of them costs seconds, so few tests do."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import active_children

import pytest
from tiny_study import in_this_process

from cdgrad import cli
from cdgrad.study import StudyError, data, models
from cdgrad.study.files import CHECKPOINTS
from cdgrad.study.plan.job import Job
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records import Store
from cdgrad.study.records.environment import environment
from cdgrad.study.run import execute as workers
from cdgrad.study.run import local_engine, progress, worker
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.engine import EpochDone, RunDone
from cdgrad.study.run.local_engine import run_all
from cdgrad.study.spec import Model, parse


def records(folder):
    with Store(folder, write=False) as store:
        return store.runs()


def test_a_study_makes_what_is_missing_and_records_how(tiny, tiny_text, tmp_path, capfd):
    executed = run_study(tiny, tmp_path, workers=2)
    assert [(run.arm, run.seed, run.status) for run in records(tmp_path)] == [
        (arm, seed, "ok") for arm in ("directed", "sgd") for seed in (0, 1)
    ]
    assert {run.environment["threads"] for run in executed} == {1}
    assert executed[0].environment.items() >= environment().items()
    assert {run.arm: run.environment["backend"] for run in executed} == {"sgd": "none", "directed": "cpu"}
    assert {(run.images, run.memory) for run in executed} == {(48, None)}
    parts = data.load(tiny.setting("", "sgd").task, 0)
    network = models.build("small-cnn", parts.image_shape, parts.classes, {"width": 2})
    assert {run.parameters for run in executed} == {sum(p.numel() for p in network.parameters())}
    assert "4/4" in capfd.readouterr().err

    # The workers' results are those of the same runs made here, to the last bit.
    here = [
        workers.execute(Job("", a, None, 1, tiny.setting("", a)), lambda epoch, measured: None)
        for a in tiny.arms
    ]
    assert all(run in records(tmp_path) for run in here)

    assert run_study(tiny, tmp_path, workers=2) == []
    more = parse(tiny_text.replace("seeds = 2", "seeds = 3"), "tiny")
    assert sorted((run.arm, run.seed) for run in run_study(more, tmp_path, 1, in_this_process)) == [
        ("directed", 2),
        ("sgd", 2),
    ]


def test_trials_choose_what_the_final_runs_use(tiny_text, tmp_path, capfd):
    spec = parse(
        tiny_text + "[tuning]\ntrials = 2\nseeds = [100]\n[tuning.space]\n"
        '"optimizer.lr" = { low = 0.01, high = 1.0, log = true }\n',
        "tiny",
    )
    run_study(spec, tmp_path, 1, in_this_process)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "tiny: 8 runs, 0 of them finished"
    assert re.match(r"1/8 (sgd|directed), trial 0, seed 100: error", lines[1])
    runs = records(tmp_path)
    assert {(run.trial is None, run.evaluated) for run in runs} == {(True, "test"), (False, "validation")}
    for arm in spec.arms:
        trials = [run for run in runs if run.arm == arm and run.trial is not None]
        assert [trial.error for trial in trials] == [trial.epochs[-1]["validation_error"] for trial in trials]
        best = min(trials, key=lambda run: (run.error, run.trial))
        final = [run for run in runs if run.arm == arm and run.trial is None]
        assert [run.values for run in final] == [best.values] * 2
        assert [run.config["optimizer"]["lr"] for run in final] == [best.values["optimizer.lr"]] * 2
    assert run_study(spec, tmp_path, 1, in_this_process) == []


def test_checkpoints_that_a_killed_driver_left_go_with_the_last_run(tiny, finished, tmp_path):
    left = finished(tmp_path) / ".cdgrad-checkpoints" / "run.pt"
    left.parent.mkdir()
    left.touch()
    assert run_study(tiny, tmp_path, workers=1) == []
    assert not left.parent.exists()


def test_missing_runs_come_seed_by_seed_and_failed_ones_again(tiny, make_run):
    runs = [make_run("sgd", 0, 3.0), make_run("directed", 0, None, status="failed")]
    assert [(job.arm, job.seed) for job in iter(Plan(tiny, runs, "here").take, None)] == [
        ("directed", 0), ("sgd", 1), ("directed", 1),
    ]  # fmt: skip


def test_runs_of_a_changed_specification_are_never_mixed(tiny, tiny_text, tmp_path):
    setting = tiny.setting("", "sgd")
    with Store(tmp_path, write=True) as store:
        run = workers.execute(Job("", "sgd", None, 0, setting), lambda epoch, measured: None)
        store.add(run, store.use_spec("tiny", tiny_text))
    changed = parse(tiny_text.replace("train = 48", "train = 64"), "tiny")
    with pytest.raises(StudyError, match=r"another specification \(task.train was 48 and is 64\)") as caught:
        run_study(changed, tmp_path, workers=1)
    assert "\n" not in str(caught.value)
    assert len(records(tmp_path)) == 1


def test_a_run_that_kills_its_process_costs_that_run_alone(tiny, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text("import os\ndef net(*_): os.kill(os.getpid(), 9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    deadly = dataclasses.replace(tiny.setting("", "sgd"), model=Model("deadly:net"))
    jobs = [Job("", "dead", None, 0, deadly), Job("", "sgd", None, 0, tiny.setting("", "sgd"))]
    runs = [
        event.run for event in run_all(lambda: jobs.pop(0) if jobs else None, 1) if isinstance(event, RunDone)
    ]
    assert [(run.arm, run.status) for run in runs] == [("dead", "failed"), ("sgd", "ok")]
    assert "killed by signal 9" in runs[0].message


def test_no_run_is_lost_where_workers_die_at_the_same_time(tiny, monkeypatch):
    monkeypatch.setattr(worker, "serve", print)  # a worker that ends at once
    jobs = [Job("", "sgd", None, seed, tiny.setting("", "sgd")) for seed in range(4)]
    expected = {job.key for job in jobs}
    runs = []
    for event in run_all(lambda: jobs.pop(0) if jobs else None, 2):
        runs.append(event.run)
        for process in active_children():  # the other one has ended, too, when the next job is given
            process.join()
    assert {run.key for run in runs} == expected
    assert len(runs) == 4
    assert {(run.status, run.message) for run in runs} == {
        ("failed", "the worker process ended during the run with exit status 0")
    }


def test_all_workers_are_asked_to_end_before_one_is_waited_for(tiny, monkeypatch):
    calls = []

    class Idle:
        """Takes a job and never answers."""

        def __init__(self, options):
            self.job, self.alive = None, True
            (self.pipe, other), (self.sentinel, self._other) = os.pipe(), os.pipe()
            os.close(other)  # so that the pipe is ready, and the sentinel is not

        def take(self, job):
            self.job = job

        def receive(self, index):
            return index

        def ask_to_end(self):
            calls.append("ask")

        def end(self):
            calls.append("end")
            for end in (self.pipe, self.sentinel, self._other):
                os.close(end)

    monkeypatch.setattr(local_engine, "Worker", Idle)
    jobs = [Job("", "sgd", None, seed, tiny.setting("", "sgd")) for seed in range(2)]
    with contextlib.closing(run_all(lambda: jobs.pop() if jobs else None, 2)) as events:
        next(events)
    assert calls == ["ask", "ask", "end", "end"]


def test_on_windows_interrupts_are_held_without_what_it_lacks(monkeypatch):
    monkeypatch.setattr(worker.sys, "platform", "win32")
    monkeypatch.setattr(worker.resource_tracker, "ensure_running", None)
    monkeypatch.setattr(worker.signal, "pthread_sigmask", None)
    with pytest.raises(KeyboardInterrupt), worker.interrupts_held():
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_while_a_worker_starts_reaches_the_driver(tiny, monkeypatch):
    start = worker.SpawnProcess.start
    started = []

    def start_interrupted(process):
        os.kill(os.getpid(), signal.SIGINT)
        start(process)
        started.append(process)

    monkeypatch.setattr(worker.SpawnProcess, "start", start_interrupted)
    jobs = [Job("", "sgd", None, 0, tiny.setting("", "sgd"))]
    with pytest.raises(KeyboardInterrupt):
        list(run_all(lambda: jobs.pop() if jobs else None, 1))
    assert [process.is_alive() for process in started] == [False]


def test_what_a_run_raises_is_recorded_in_a_line(tiny):
    broken = dataclasses.replace(tiny.setting("", "sgd"), model=Model("builtins:eval"))
    run = workers.execute(Job("", "sgd", None, 0, broken), lambda epoch, measured: None)
    assert (run.status, run.error) == ("failed", None)
    assert "builtins:eval refuses its arguments" in run.message
    assert "\n" not in run.message


def test_a_run_that_was_killed_goes_on_from_its_last_epoch(tiny_text, tmp_path):
    spec = parse(tiny_text.replace("epochs = 1", "epochs = 4"), "tiny")
    job = Job("", "directed", None, 1, spec.setting("", "directed"))
    seen = []

    def killed(epoch, measured):
        seen.append(epoch)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.execute(job, killed, checkpoints=tmp_path, save_every=0)
    assert [path.name for path in tmp_path.iterdir()] == [job.file("cpu")]
    run = workers.execute(job, killed, checkpoints=tmp_path, save_every=0)
    assert seen == [1, 2, 3, 3, 4]
    assert run == workers.execute(job, lambda epoch, measured: None)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_study_goes_on_where_it_was(tiny_text, tmp_path, monkeypatch, capsys, no_figures):
    spec = tmp_path / "tiny.toml"
    # More runs than a fast machine makes between the first line and the signal.
    spec.write_text(tiny_text.replace("epochs = 1", "epochs = 4").replace("seeds = 2", "seeds = 30"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cdgrad", "study", str(spec), "--out", str(out), "--workers", "1"]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in study.stderr:
        if line.startswith("1/60"):
            break
    study.send_signal(signal.SIGINT)
    _, messages = study.communicate(timeout=30)
    assert study.returncode == 130, messages
    assert "run the same command to resume the study" in messages
    assert "Traceback" not in messages
    before = records(out)
    assert 1 <= len(before) < 60

    def instant(take, workers, **options):  # which runs remain is asked, not what comes of them
        ended = {"status": "ok", "error": 5.0, "epochs": [], "measures": {}, "environment": {}}
        for job in iter(take, None):
            yield RunDone(0, job, job.run(datetime.now(UTC), seconds=1.0, **ended))

    monkeypatch.setattr(local_engine, "run_all", instant)
    assert cli.main(command[3:]) == 0
    progress = capsys.readouterr().err
    assert f"{len(before) + 1}/60" in progress
    assert f"\n{len(before)}/60" not in progress
    after = records(out)
    assert len(after) == 60
    assert [run for run in after if run in before] == before


def jobs(spec):
    return iter(Plan(spec, [], "here").take, None)


def test_a_run_whose_record_cannot_be_written_keeps_its_checkpoint(tiny, tmp_path, monkeypatch):
    """A disk that is full at the end of a run of hours costs what came after its last checkpoint."""
    file = tmp_path / CHECKPOINTS / next(jobs(tiny)).file("cpu")
    file.parent.mkdir()
    file.write_bytes(b"state")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(StudyError("the disk is full")))
        with pytest.raises(StudyError, match="full"):
            run_study(tiny, tmp_path, 1, in_this_process)
    assert file.exists()
    monkeypatch.setattr("cdgrad.study.run.driver._clear", lambda _: None)
    run_study(tiny, tmp_path, 1, in_this_process)
    assert not file.exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_runs_of_other_images_are_not_added_unasked(tiny, tmp_path, make_run, allowed):
    with Store(tmp_path, write=True) as store:
        store.add(
            make_run("sgd", 0, 1.0, environment={"data": "former"}), store.use_spec(tiny.name, tiny.text)
        )
    ran = run_study(tiny, tmp_path, 1, in_this_process, allow_data_change=allowed)
    if allowed:
        assert [run.status for run in ran] == ["ok"] * 3
    else:
        (run,) = ran
        assert run.status == "failed"
        assert "fake has other images (fake) than the recorded runs of the study (former)" in run.message


def test_what_a_process_imports_once_is_not_the_time_of_its_first_run(tmp_path, monkeypatch):
    (tmp_path / "slow_import.py").write_text(
        "import time\ntime.sleep(1)\ndef run(seed, arm):\n    arm.attached = True\n    return {'error': 1}\n"
    )
    monkeypatch.setattr("cdgrad.study.records.code._SEEN", {})
    setting = parse('baseline = "a"\nseeds = 1\nentry = "slow_import:run"\narms.a = {}', "x").setting("", "a")
    run = workers.execute(Job("", "a", None, 0, setting, {}, str(tmp_path)), lambda *_: None)
    assert run.status == "ok"
    assert run.seconds < 0.5


class Steps:
    """A plan of `total` runs, `done` of which are recorded."""

    def __init__(self, total, done):
        self.total, self.done = total, done


@pytest.mark.parametrize("resumed", [0, 50])
def test_the_time_left_counts_epochs_under_way_and_not_those_of_a_checkpoint(tiny, monkeypatch, resumed):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    setting = tiny.setting("", "sgd")
    setting = replace(setting, schedule=replace(setting.schedule, epochs=100))
    job = replace(next(jobs(tiny)), setting=setting)
    pace = progress.Pace(Steps(total=12, done=10))
    assert pace.left is None
    for epoch in range(resumed + 1, resumed + 31):
        clock[0] += 10  # rich's own estimate knows the last 30 s alone
        pace.epoch(EpochDone(0, job, epoch))
    assert pace.left == pytest.approx(10 * (200 - resumed - 30))


def test_the_time_left_does_not_expect_another_start_of_a_worker(tiny, make_run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    plan = Steps(total=4, done=0)
    pace, job = progress.Pace(plan), next(jobs(tiny))
    for clock[0], plan.done in ((20.0, 1), (22.0, 2)):
        pace.run(RunDone(0, job, make_run("sgd", 0, 3.0, seconds=2.0)))
        assert pace.left == 2 * (plan.total - plan.done)
