"""A real Ray cluster of two nodes on this machine, reachable from it alone, and one of them is killed."""

import re
import sys
import warnings

import pytest

from cdgrad import cli
from cdgrad.study import StudyError
from cdgrad.study.plan.job import Job
from cdgrad.study.plan.plan import Plan
from cdgrad.study.records import Store
from cdgrad.study.run import logs, ray_engine
from cdgrad.study.run.driver import run_study
from cdgrad.study.run.engine import EpochDone, RunDone
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import load, parse

pytest.importorskip("ray", reason="needs the extra ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    own = tmp_path_factory.mktemp("modules")
    (own / "deadly.py").write_text("import os\ndef net(*_): os.kill(os.getpid(), 9)\n")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of resources that its start-up leaves open
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", ":".join([*sys.path, str(own)]))
        # Ray replaces a loopback address by the machine's own.
        patch.setattr("ray._private.services.get_node_ip_address", lambda *_: "127.0.0.1")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
        started = Cluster(True, head_node_args={**node, "include_dashboard": False, "_system_config": quick})
        started.node = started.add_node(**node)
        yield started
        started.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_under_ray_a_study_gives_the_local_numbers_though_a_node_is_killed(cluster, tiny_text, tmp_path):
    spec = parse(tiny_text.replace("epochs = 1", "epochs = 3").replace("seeds = 2", "seeds = 5"), "tiny")
    epochs = []

    def and_a_node_is_killed(take, workers):
        ended = 0
        for event in ray_engine.run_all(take, workers, address=cluster.address):
            if isinstance(event, EpochDone):
                epochs.append((event.job.key, event.epoch))
            ended += isinstance(event, RunDone)
            yield event
            if ended == 2 and cluster.node is not None:
                cluster.remove_node(cluster.node, allow_graceful=False)
                cluster.node = None

    executed = run_study(spec, tmp_path, 2, and_a_node_is_killed)
    assert cluster.node is None
    with Store(tmp_path, write=False) as store:
        runs = store.runs()
    assert [run.status for run in runs] == ["ok"] * 10, [run.message for run in runs]
    assert {(run.key, epoch) for run in runs for epoch in (1, 2, 3)} == set(epochs)
    assert {run.environment["threads"] for run in executed} == {1}
    here = [execute(job, lambda epoch, measured: None) for job in iter(Plan(spec, [], "here").take, None)]
    assert sorted(here, key=lambda run: run.key[1::2]) == runs


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_kills_every_worker_is_recorded_with_the_reason(cluster, tiny, monkeypatch):
    deadly = parse(tiny.text.replace("small-cnn", "deadly:net").replace("width = 2", ""), "tiny")
    monkeypatch.setattr(ray_engine, "ATTEMPTS", 2)
    jobs = [Job("", "dead", None, 0, deadly.setting("", "sgd"))]
    (event,) = ray_engine.run_all(lambda: jobs.pop() if jobs else None, 1, address=cluster.address)
    assert (event.run.status, event.run.key) == ("failed", ("", "dead", None, 0))
    assert event.run.message.startswith("lost 2 times by the Ray cluster: ")


ENTRY = """
import helper  # beside the specification

def run(seed, arm):
    import here  # in the folder that the command is started in
    arm.attached = True
    return {"error": helper.DOUBLE * seed / (seed - 2)}
"""


@pytest.mark.filterwarnings("ignore")
def test_under_ray_the_users_modules_are_found_and_the_first_exception_ends_the_study(
    cluster, tmp_path, monkeypatch
):
    project, started = tmp_path / "project", tmp_path / "started"
    project.mkdir()
    started.mkdir()
    (project / "own_entry.py").write_text(ENTRY)
    (project / "helper.py").write_text("DOUBLE = -2")
    (started / "here.py").write_text("")
    (project / "own.toml").write_text('baseline = "a"\nseeds = 4\nentry = "own_entry:run"\narms.a = {}\n')
    monkeypatch.chdir(started)

    def on_the_cluster(take, workers):
        return ray_engine.run_all(take, workers, address=cluster.address)

    executed = run_study(load("../project/own.toml"), tmp_path / "out", 1, on_the_cluster)
    assert [(run.status, run.error) for run in executed] == [("ok", 0.0), ("ok", 2.0), ("failed", None)]
    kept = logs.kept_traceback(tmp_path / "out", executed[-1])
    assert kept.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.filterwarnings("ignore")
def test_a_gpu_that_no_node_has_is_missed_at_once(cluster, tiny):
    with pytest.raises(StudyError, match="the Ray cluster has no GPU; omit --device cuda"):
        list(ray_engine.run_all(lambda: None, 1, address=cluster.address, gpus_per_run=0.5))


def test_no_cluster_is_said_in_a_line(tiny_text, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(tiny_text)
    command = ["study", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert cli.main([*command, "--address", "127.0.0.1:1"]) == 1
    assert re.search(
        r"^cdgrad: no Ray cluster at 127.0.0.1:1 \(.*refused.*\); start one with ray start --head$",
        capsys.readouterr().err,
        re.MULTILINE,
    )


def test_a_task_runs_in_the_folder_that_the_study_was_started_in(tmp_path, monkeypatch):
    project, started = tmp_path / "project", tmp_path / "started"
    project.mkdir()
    started.mkdir()
    (project / "task_entry.py").write_text(
        "def run(seed, arm):\n    import there\n    arm.attached = True\n    return {'error': there.ERROR}\n"
    )
    (started / "there.py").write_text("ERROR = 7")
    text = 'baseline = "a"\nseeds = 1\nentry = "task_entry:run"\narms.a = {}\n'
    job = Job("", "a", None, 0, parse(text, "x").setting("", "a"), folder=str(project))
    monkeypatch.chdir(tmp_path)  # where a node was started; restored at the end
    *_, run = ray_engine.stream_run(job, "cpu", str(started))
    assert (run.status, run.error, run.message) == ("ok", 7.0, "")
