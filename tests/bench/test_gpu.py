"""The benchmark of a GPU, rehearsed, and how it keeps to its time."""

import copyreg
import importlib
import itertools
import json
import operator
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from cdgrad.bench.candidates import FLOOR, METRICS
from cdgrad.bench.gpu import compilation, processes
from cdgrad.bench.gpu import operator as gpu_operator
from cdgrad.bench.gpu import record as recording
from cdgrad.bench.gpu.setup import Setup, UnavailableError, alternating
from cdgrad.bench.gpu.targets import targets
from cdgrad.bench.gpu.training import STEP, Training
from cdgrad.bench.page import gpu_tables
from cdgrad.bench.shapes import Conv


@pytest.fixture
def measured(monkeypatch):
    """Call it with sections and seconds: the record, and what was written after each item."""

    def run(sections, seconds, *, rehearsal=False, timer=lambda seconds: None):
        """`timer` is told when the end is set, and does not come."""

        class Timer(threading.Thread):
            def __init__(self, seconds, *_):
                super().__init__(target=timer, args=[seconds])

            def cancel(self):
                self.join()

        written = []
        monkeypatch.setattr(recording, "_sections", lambda: sections)
        monkeypatch.setattr(recording.threading, "Timer", Timer)
        setup = Setup(torch.device("cpu"), rehearsal)
        found = recording.record(setup, seconds, lambda found: written.append(json.dumps(found)))
        return found, [json.loads(text) for text in written]

    return run


def test_an_item_that_fails_costs_no_other_and_every_item_is_written(measured):
    def fails():
        raise ValueError("out of memory")

    items = {"a": lambda: {"ms": 1.0}, "b": fails, "c": lambda: {"ms": 2.0}}
    found, written = measured([("first", 1, lambda setup: items), ("second", 1, lambda setup: fails())], 60)
    first = found["sections"]["first"]
    assert first["rows"] == {"a": {"ms": 1.0}, "c": {"ms": 2.0}}
    assert "ValueError: out of memory" in first["errors"]["b"]
    assert "out of memory" in found["sections"]["second"]["errors"]["section"]
    assert written[0]["sections"]["first"]["rows"] == {"a": {"ms": 1.0}}
    assert "failed: first: b: ValueError" in gpu_tables(found)


def test_what_has_no_time_left_is_recorded_as_skipped(measured):
    items = {"a": lambda: time.sleep(0.2), "b": lambda: {}}
    found, _ = measured([("first", 1, lambda setup: items), ("second", 3, lambda setup: {"c": dict})], 0.4)
    assert found["sections"]["first"]["skipped"] == ["b"]
    assert found["sections"]["second"]["skipped"] == []


def test_an_item_leaves_its_share_of_the_time_to_the_others(measured):
    """An item that could go on for ever stops at its share; what one leaves the next ones have."""
    took = {}

    def item(name, wanted):
        def run():
            start = time.perf_counter()
            while time.perf_counter() - start < wanted and not setups[-1].item_over:
                time.sleep(0.01)
            took[name] = time.perf_counter() - start
            return {}

        return run

    setups = []
    items = {"a": item("a", 0.0), "b": item("b", 9.0), "c": item("c", 9.0)}
    found, _ = measured([("first", 1, lambda setup: setups.append(setup) or items)], 0.6)
    assert found["sections"]["first"]["skipped"] == []
    assert took["b"] == pytest.approx(0.285, abs=0.05)
    assert took["c"] == pytest.approx(0.285, abs=0.05)


ENDLESS = """
import json, time, torch
from cdgrad.bench.gpu import record
from cdgrad.bench.gpu.setup import Setup

items = {"quick": lambda: {"ms": 1.5}, "endless": lambda: time.sleep(60)}
record._sections = lambda: [("first", 1, lambda setup: items)]
write = lambda found: open("record.json", "w").write(json.dumps(found))
record.record(Setup(torch.device("cpu")), 1.0, write)
"""


def test_an_item_that_ignores_the_clock_is_ended_and_the_tables_are_printed(tmp_path):
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", ENDLESS], cwd=tmp_path, capture_output=True, text=True)
    assert time.perf_counter() - begin < 50
    assert done.returncode == 1
    assert "| quick |  | 1.5 |" in done.stdout
    section = json.loads((tmp_path / "record.json").read_text())["sections"]["first"]
    assert section["rows"] == {"quick": {"ms": 1.5}}
    assert section["skipped"] == ["what was under way when the time was over"]


def test_a_rehearsal_is_ended_too_if_it_hangs(measured, monkeypatch):
    """It leaves nothing out, and has ten times as long."""
    begun = []
    monkeypatch.setattr(recording, "small_tiles", lambda: None)
    items = {"a": lambda: time.sleep(0.2), "b": dict}
    found, _ = measured([("first", 1, lambda setup: items)], 0.1, rehearsal=True, timer=begun.append)
    assert list(found["sections"]["first"]["rows"]) == ["a", "b"]
    assert begun == [pytest.approx(1.0, abs=0.05)]


def test_what_an_item_lacks_is_no_failure(measured):
    def lacks():
        raise UnavailableError("not compiled in time")

    found, _ = measured([("first", 1, lambda setup: {"a": lacks, "b": dict})], 60)
    section = found["sections"]["first"]
    assert (section["skipped"], section["errors"]) == (["a (not compiled in time)"], {})
    assert "b" in section["rows"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the given text that other processes can run, and its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "some_module.py").write_text(text)
        return "some_module"

    return write


def test_no_process_outlives_its_section(measured, module):
    started = []

    def items(setup):
        started.append(processes.Process(module("import time\ntime.sleep(60)")))
        return {"a": dict}

    begin = time.perf_counter()
    measured([("first", 1, items)], 60)
    assert time.perf_counter() - begin < 30
    assert not started[0].runs


def test_a_process_gives_what_it_printed_last_or_why_it_failed(module):
    name = module("import sys\nprint('words')\nprint([int(sys.argv[1])])")
    assert processes.Process(name, "7").result() == [7]
    with pytest.raises(RuntimeError, match=r"ended with status 1: ValueError: invalid literal"):
        processes.Process(name, "x").result()


def test_a_process_does_not_search_the_working_directory(module, tmp_path, monkeypatch):
    name = module("import json\nprint([7])")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemError")
    monkeypatch.chdir(tmp_path / "here")
    assert processes.Process(name).result() == [7]


def test_a_process_is_read_while_it_prints(module):
    process = processes.Process(module("import time\nprint([1], flush=True)\ntime.sleep(60)"))
    while process.printed() is None:
        time.sleep(0.01)
    assert process.printed() == [1]
    assert process.runs
    process.end()
    assert process.printed() is None


@pytest.fixture
def workers(monkeypatch):
    """How workers start, as if none had started yet; none is left behind."""
    monkeypatch.setattr(processes, "_methods", ["forkserver", "spawn"])
    monkeypatch.setattr(processes, "_proved", [])
    monkeypatch.setattr(processes, "_SERVER_SECONDS", 90.0)  # a loaded machine imports torch for long
    processes.start_server()
    yield processes
    processes.end_all()


def test_a_worker_gives_what_its_function_returns_or_why_it_failed(workers):
    assert workers.Worker(operator.truediv, 6, 3).result() == 2
    again = workers.Worker(os.getpid)
    first = again.result()
    assert not again.runs
    again.ask()
    assert again.result() == first != os.getpid()
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        workers.Worker(operator.truediv, 6, 0).result()
    with pytest.raises(RuntimeError, match="the process ended with status 3"):
        workers.Worker(os._exit, 3).result()
    assert workers._methods == ["forkserver", "spawn"]


WAITS = """
import os

def function(wait):
    wait()
    return 7

def unusable(connection):
    connection.send(False)
"""


@pytest.fixture
def some_module(module, tmp_path, monkeypatch):
    """A module of functions that workers can import."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_module", raising=False)
    return importlib.import_module(module(WAITS))


def test_a_worker_that_waits_is_stopped_until_its_section(workers, some_module):
    waits = workers.Worker(some_module.function, waits=True)
    other = workers.Worker(time.sleep, 60)
    workers.end_all(waiting=False)
    assert waits.runs
    assert not other.runs
    state = Path(f"/proc/{waits._process.pid}/stat")
    until = time.perf_counter() + 10
    while " T " not in state.read_text() and time.perf_counter() < until:
        time.sleep(0.01)
    assert " T " in state.read_text()
    waits.go()
    assert waits.result() == 7


def _fails(*_):
    raise EOFError("the server has ended")


@pytest.mark.parametrize("connect", [_fails, lambda *_: time.sleep(5)], ids=["ends", "hangs"])
def test_workers_start_without_the_server_when_it_fails(workers, monkeypatch, capsys, connect):
    monkeypatch.setattr(forkserver, "connect_to_new_process", connect)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_SERVER_SECONDS", 0.5)
        worker = workers.Worker(operator.truediv, 6, 3)
    assert worker.result() == 2
    assert "workers start without the server: " in capsys.readouterr().err
    assert workers.Worker(operator.truediv, 8, 2).result() == 4
    assert capsys.readouterr().err == ""


def test_workers_start_without_a_server_that_has_initialized_cuda(workers, some_module, monkeypatch, capsys):
    monkeypatch.setattr(processes, "_tell_whether_usable", some_module.unusable)
    assert workers.Worker(operator.truediv, 6, 3).result() == 2
    assert "CUDA was initialized before the fork" in capsys.readouterr().err


def test_what_was_compiled_in_time_is_kept_and_what_comes_later_is_added(monkeypatch):
    """Tasks end in another order than they are awaited in; the first one is late."""
    late = {STEP, ("resnet50 float32", "sobolev")}
    begun = []

    class Worker:
        def __init__(self, function, *arguments):
            begun.append(self)
            self.ask(*arguments)

        def ask(self, rehearsal, *task):
            self.task = task

        def end(self):
            self.task = None

        @property
        def runs(self):
            return not late.isdisjoint({*self.task, self.task})

        def result(self):
            if self.task == ("parity float64", "reweighted"):
                raise RuntimeError("out of memory")
            return 1.5

    monkeypatch.setattr(compilation, "Worker", Worker)
    monkeypatch.setattr(compilation.os, "cpu_count", lambda: 6)
    names = [STEP, "resnet50 float32", "resnet50 bfloat16", "parity float64"]
    setup = Setup(torch.device("cpu"), deadline=time.perf_counter() + 1.5)
    pool = compilation._Pool(setup, names)
    assert len(begun) == 3
    with pytest.raises(UnavailableError, match="not compiled in time"):
        pool.row(STEP)
    assert pool.row("resnet50 bfloat16") == dict.fromkeys(("sobolev", "mean-sobolev", "reweighted"), 1.5)
    row = pool.row("resnet50 float32")
    assert row == dict.fromkeys(("mean-sobolev", "reweighted"), 1.5)
    with pytest.raises(RuntimeError, match="reweighted: out of memory"):
        pool.row("parity float64")
    assert not setup.over
    assert setup.compiled == {"resnet50 bfloat16"}
    late.clear()
    pool.collect()
    assert row == dict.fromkeys(("mean-sobolev", "reweighted", "sobolev"), 1.5)
    assert setup.compiled == {STEP, "resnet50 float32", "resnet50 bfloat16"}
    assert len(begun) == 3


def test_what_another_process_compiled_has_the_same_key_whatever_either_imported_first(monkeypatch):
    formats = torch.contiguous_format, torch.channels_last, torch.preserve_format
    first = types.ModuleType("first")
    monkeypatch.setitem(sys.modules, "first", first)
    monkeypatch.setitem(copyreg.dispatch_table, torch.memory_format, None)
    del copyreg.dispatch_table[torch.memory_format]  # until the compiler is asked for

    def key(**attributes):
        with monkeypatch.context() as patch:  # pickle asks the modules for a format in their order
            patch.setattr(sys, "modules", {"first": first, **sys.modules})
            vars(first).update(attributes)
            return pickle.dumps(formats)

    assert key(torch=None) != key(torch=torch)
    Training(Setup(torch.device("cpu"), True), "resnet20", 4).compile()
    assert key(torch=None) == key(torch=torch)
    assert all(pickle.loads(pickle.dumps(each)) is each for each in formats)


def test_two_metrics_of_a_family_never_follow_each_other():
    metrics = alternating(METRICS)
    assert sorted(map(str, metrics)) == sorted(map(str, METRICS))
    assert all(type(a) is not type(b) for a, b in itertools.pairwise(metrics))
    assert len({type(metric) for metric in metrics[:3]}) == 3


def test_metrics_are_timed_over_the_floor_in_that_order(monkeypatch):
    monkeypatch.setattr(gpu_operator, "prepare", lambda *_, **__: types.SimpleNamespace(run=print))
    monkeypatch.setattr(Setup, "interleaved", lambda self, candidates: dict.fromkeys(candidates, 1.0))
    layers = [Conv(6, 2, 1)]
    found = gpu_operator._over_floor(
        Setup(torch.device("cpu")), layers, torch.float32, torch.contiguous_format
    )
    assert list(found["times"]) == [FLOOR, *map(str, alternating(METRICS))]


def test_a_call_takes_what_its_fastest_round_took():
    rounds = iter([0.05, 0.05, 0.005, 0.05, 0.05])
    calls = []

    def call():
        calls.append(1)
        if len(calls) % 2 == 0:  # the first of each round is not timed
            time.sleep(next(rounds))

    setup = Setup(torch.device("cpu"), deadline=0.0)
    assert 5 <= setup.per_call({"call": call}, repeats=1)["call"] < 50


def test_targets_have_a_number_and_its_bound():
    times = {"torch._foreach_mul_": 1.0, "reweighted:lam=3": 0.9, "sobolev:lam=0.01": 1.4}
    floor = {"resnet50 float32": {"times": {name: {"over_floor": r} for name, r in times.items()}}}
    study = {
        "resnet18, batch 128, by hand": {"graph, images a second": 100.0},
        "resnet18, batch 128, study, none": {"images a second": 96.0, "seconds of the start": 9.0},
        "resnet20, batch 512, study, none": {"images a second": 50.0, "seconds of the start": 2.0},
    }
    sections = {"floor": floor, "study loop": study, "workers": {"4": {"images a second": 45.0}}}
    record = {"seconds": 118.0, "sections": {name: {"rows": rows} for name, rows in sections.items()}}
    found = {each["name"]: (each["value"], each["holds"]) for each in targets(record)}
    assert found["ResNet-50, float32, re-weighted and mean-weighted, over the floor"] == (0.9, True)
    assert found["ResNet-50, float32, Sobolev, over the floor"] == (1.4, False)
    assert found["ResNet-50, bfloat16, any metric, over the floor"] == (None, None)
    assert found["the study's loop over a bare one, resnet18, without a metric"] == (0.96, True)
    assert found["start of a run after the first, s"] == (2.0, True)
    assert found["four workers over one, resnet20, images a second"] == (0.9, False)
    assert found["the benchmark, s"] == (118.0, True)
    sections["workers"]["1"] = {"images a second": 36.0}  # of the same epochs as the four
    sections["workers"]["4, with MPS"] = {"images a second": 72.0}
    ratios = [each for each in targets(record) if each["name"].startswith("four workers")]
    assert [(ratio["value"], ratio["holds"]) for ratio in ratios] == [(1.25, True), (2.0, True)]


def test_what_is_compiled_in_the_next_section_is_a_row_of_its_own():
    rows = {"a": {"seconds": 1.0}}
    skipped = ["a case", "b (not compiled in time)", "c"]
    section = {"rows": rows, "skipped": skipped, "errors": {}, "seconds": 9.0}
    recording._add_late(section, {"a": {"seconds": 1.0}, "b": {"seconds": 2.0}, "c": {}})
    assert rows == {"a": {"seconds": 1.0}, "b": {"seconds": 2.0}}
    assert section["skipped"] == ["a case", "c"]


@pytest.fixture
def scripts(tmp_path):
    """Starts a script of a benchmark whose JAX is ready at once and goes on for ever."""

    def begin(script, *arguments, **options):
        (tmp_path / "script.py").write_text(script)
        (tmp_path / "jax.py").write_text("import time\nprint([7], flush=True)\ntime.sleep(600)")
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "script.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
            **options,
        )

    return begin


INTERRUPTED = """
import os, sys, time
from cdgrad import cli
from cdgrad.bench.gpu import processes, record

def sleep(wait):
    open("begun", "w").close()
    time.sleep(600)

def start(setup):
    processes.Worker(sleep, waits=True)
    process = processes.Process("cdgrad.bench.gpu.jax_process", waits=True)
    while process.printed() is None or not os.path.exists("begun"):
        time.sleep(0.01)
    return {"started": dict}

def endless(setup):
    return {"endless": lambda: time.sleep(600)}

if __name__ == "__main__":
    processes._PRELOADED[1:] = []
    record._sections = lambda: [("start", 1, start), ("checks", 1, endless)]
    sys.exit(cli.main(["bench", "--device", "cuda", "--rehearse"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_benchmark_is_interrupted(number, scripts):
    """While those of later sections are stopped."""
    begun = scripts(INTERRUPTED, stderr=subprocess.PIPE, text=True)
    assert any(line == "measuring checks\n" for line in begun.stderr)
    begun.send_signal(number)
    begun.communicate(timeout=60)
    assert begun.returncode == 128 + number
    until = time.perf_counter() + 30
    while _exists(begun.pid) and time.perf_counter() < until:
        time.sleep(0.05)
    assert not _exists(begun.pid)


KILLED = """
import os, signal, sys, time
from cdgrad.bench.gpu import processes

def sleep(wait):
    open("begun", "w").close()
    time.sleep(600)

if __name__ == "__main__":
    processes._methods[:] = sys.argv[1:]
    processes._PRELOADED[1:] = []
    processes.start_server()
    worker = processes.Worker(sleep, waits=True)
    process = processes.Process("cdgrad.bench.gpu.jax_process", waits=True)
    while process.printed() is None or not os.path.exists("begun"):
        time.sleep(0.01)
    processes.end_all(waiting=False)
    assert worker.runs
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system kills the children of a process")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_no_stopped_process_is_left_when_the_benchmark_is_killed(method, scripts):
    begun = scripts(KILLED, method)
    assert begun.wait(timeout=60) == -signal.SIGKILL
    until = time.perf_counter() + 10
    while _exists(begun.pid) and time.perf_counter() < until:
        time.sleep(0.01)
    assert not _exists(begun.pid)


def _exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# The command, with the interpreter of these tests, which takes a third of the time of Triton's own.
COMMAND = """
import sys
sys.path.append(sys.argv.pop(1))
import interpreter
interpreter.enable()
from cdgrad.cli import main
sys.exit(main())
"""
TESTS = str(Path(__file__).parents[1])


def test_the_rehearsal_runs_everything(tmp_path):
    out = tmp_path / "gpu.json"
    command = [
        sys.executable,
        "-c",
        COMMAND,
        TESTS,
        "bench",
        "--device",
        "cuda",
        "--rehearse",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "without the server" not in done.stderr
    found = json.loads(out.read_text())
    names = "compilation, parity, checks, floor, host, graph, training steps, study loop, jax, workers"
    assert list(found["sections"]) == names.split(", ")
    for name, section in found["sections"].items():
        assert not section["errors"]
        assert bool(section["rows"]) != bool(section["skipped"]), name  # JAX may be missing
        assert name == "jax" or section["rows"]
    assert all(row["error"] < 1e-6 for row in found["sections"]["parity"]["rows"].values())
    assert all(row["difference"] == 0 for row in found["sections"]["graph"]["rows"].values())
    checks = found["sections"]["checks"]["rows"]
    assert len(checks) == 10
    assert all(row["difference"] < 1e-5 for row in checks.values()), checks
    assert set(found["sections"]["training steps"]["rows"]) == {"graph", "eager", "compiled"}
    assert list(found["sections"]["compilation"]["rows"]) == ["resnet50 float32", STEP]
    assert set(found["sections"]["workers"]["rows"]) == {"1", "2"}
    assert "commit" in found["machine"]
    # ResNet-18 and four workers are left out.
    open_targets = [target["name"] for target in found["targets"] if target["value"] is None]
    assert len(open_targets) == 4 + 2 * bool(found["sections"]["jax"]["skipped"])
    assert all("resnet18" in name or "workers" in name for name in open_targets if "JAX" not in name)
    assert done.stdout.strip() == gpu_tables(found).strip()
