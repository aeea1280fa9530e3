"""The studies for a GPU run from the repository and a folder of data alone, resume, and stop in time."""

import re
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from parquet_folder import parquet, pictures

from cdgrad.study.plan.plan import Plan
from cdgrad.study.records.parquet import from_parquet
from evidence.gpu import visit

ROOT = Path(__file__).parents[2]
# What the machine with the GPU has; all else that is installed here cannot be imported in these tests.
GIVEN = ("torch", "pyarrow", "pillow", "numpy", "scipy", "matplotlib")


def needed(names):
    """The distributions, and what they require without extras."""
    seen, left = set(), [*names]
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # required on another system
        if name not in seen:
            seen.add(name)
            left += [re.match(r"[\w.-]+", text)[0] for text in requirements if "extra ==" not in text]
    return seen


def blocked():
    """The modules of all other distributions; cdgrad itself is the repository's."""
    given = needed(GIVEN) | {"cdgrad"}
    return sorted(
        module
        for module, distributions in metadata.packages_distributions().items()
        if module.isidentifier()
        and module not in sys.stdlib_module_names
        and not given & {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    )


BLOCKED = blocked()
# A smaller network, fewer arms and seeds; SLACK decides whether a second run starts.
PROGRAM = f"""
import dataclasses, sys

def given(finder):
    def find_spec(name, *rest):
        return None if name.partition(".")[0] in {BLOCKED} else finder(name, *rest)

    return staticmethod(find_spec)

for finder in sys.meta_path:
    finder.find_spec = given(finder.find_spec)
sys.path[:0] = [{str(ROOT / "evidence/gpu")!r}]
import run
from evidence.gpu import visit

def small(name, rehearse, rehearsal=visit.specification):
    spec = rehearsal(name, rehearse=rehearse)
    (tables,) = spec.cells.values()
    model = {{"name": "resnet8", "width": 2}}
    arms = {{arm: spec.arms[arm] for arm in ("none", "rw-3-rate", "centralized")}}
    tuning = dataclasses.replace(spec.tuning, seeds=(1000,))
    return dataclasses.replace(
        spec, arms=arms, tuning=tuning, seeds=(0,), cells={{"": {{**tables, "model": model}}}}
    )

if __name__ == "__main__":
    visit.specification = small
    visit._SLACK = float(sys.argv.pop(1))
    sys.exit(run.main(sys.argv[1:]))
"""


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    test = pictures(120, 1, (32, 32, 3))
    parquet(tmp_path / "data/cifar10-jpeg", train=pictures(520, 0, (32, 32, 3)), test=test)
    return tmp_path / "data"


def test_the_queue_is_every_specification_of_the_folder():
    assert sorted(visit.QUEUE) == sorted(path.stem for path in visit.HERE.glob("*.toml"))


@pytest.mark.parametrize("name", visit.QUEUE)
def test_every_arm_has_its_setting(name):
    spec = visit.specification(name)
    chosen = {"optimizer.lr": 0.2}
    rates = {arm: spec.setting("", arm, chosen).optimizer.lr for arm in spec.arms}
    expected = {"rw-1.5-rate": 0.3, "rw-3-rate": 0.6, "rw-10-rate": 2.0}
    assert rates == pytest.approx({arm: expected.get(arm, 0.2) for arm in spec.arms})
    widest = {"resnet20": 64, "vgg11": 512}[name.partition("-")[0]]
    for arm, product in (("sobolev-1", 1), ("sobolev-10", 10)):
        lam = float(spec.arms[arm].metric.partition("lam=")[2])
        assert lam * widest**2 == pytest.approx(product, rel=1e-3)
    assert len(spec.seeds) >= 20


def test_every_package_that_is_not_given_is_blocked():
    assert {"optuna", "datasets", "sklearn", "rich", "ray", "numba", "pytest", "pandas"} <= {*BLOCKED}
    assert not {"torch", "numpy", "scipy", "pyarrow", "PIL", "matplotlib", "cdgrad"} & {*BLOCKED}


def test_it_runs_with_the_given_packages_alone_resumes_and_packs(data, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    arguments = ["--data", data, "--out", out, "--rehearse", "--device", "cpu", "--workers", "1"]
    arguments += ["--only", "resnet20-512", "--seconds", "500", "--commit", "0" * 40]
    counts = []
    for slack in ("1e9", "1.2"):
        command = [sys.executable, program, slack, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        runs = from_parquet(out / "resnet20-512-rehearsal.parquet")
        assert all(run.status == "ok" for run in runs)
        counts.append(len({run.key for run in runs}))
    assert counts == [1, 5 + 3]  # trials, then a seed of each arm
    size = (out / "resnet20-512-rehearsal.parquet").stat().st_size
    assert size < visit.MOST_BYTES
    assert f"3 of 3 final runs; resnet20-512-rehearsal.parquet has {size:,} bytes" in done.stdout


def test_no_run_starts_that_would_end_late(monkeypatch, tmp_path):
    started = []

    def engine(take, workers, gpus):
        while job := take():
            started.append(job.key)
            yield visit.RunDone(0, job, _run(job, seconds=50.0))

    def _run(job, seconds):
        from datetime import UTC, datetime

        executed = {"status": "ok", "error": 5.0, "epochs": [], "measures": {}, "environment": {}}
        return job.run(datetime.now(UTC), seconds=seconds, **executed)

    monkeypatch.setattr(visit, "run_all", engine)
    monkeypatch.setattr("cdgrad.study.data.load", lambda task, seed: None)
    now = [0.0]
    monkeypatch.setattr(visit.time, "monotonic", lambda: now[0])
    options = Namespace(device="cpu", workers=1)
    spec = visit.specification("resnet20-512")
    executed = visit._execute(spec, [], options, 100.0, lambda runs: now.__setitem__(0, now[0] + 50.0))
    assert len(executed) == len(started) == 1  # at 50 s another might take 60 s
    now[0] = 0.0
    more = visit._execute(spec, executed, options, 200.0, lambda runs: now.__setitem__(0, now[0] + 50.0))
    assert len(more) == 4
    assert Plan(spec, more, "").done == 4


def test_the_time_holds_for_decoding_the_images_too(monkeypatch):
    def slow(task, seed):
        for _ in range(10):
            with suppress(Exception):  # as a decoder does, that goes on with the next image
                visit.time.sleep(3)

    monkeypatch.setattr("cdgrad.study.data.load", slow)
    monkeypatch.setattr(visit, "run_all", lambda *_, **__: pytest.fail("no time is left for a run"))
    started = visit.time.monotonic()
    options = Namespace(device="cpu", workers=1)
    spec = visit.specification("resnet20-512")
    assert visit._execute(spec, [], options, started + 0.5, lambda runs: None) == []
    assert visit.time.monotonic() - started < 5
