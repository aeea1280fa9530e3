"""A study small enough for tests: two arms, two seeds, one epoch, no data set to import."""

from functools import lru_cache, partial
from itertools import product

import pytest
import torch

from cdgrad.study import StudyError
from cdgrad.study.records import Run, Store
from cdgrad.study.run import driver, local_engine
from cdgrad.study.run.engine import RunDone
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import Spec, parse

WITHOUT_ARMS = """
title = "Tiny"
baseline = "sgd"
seeds = 2

[task]
data = "fake"
train = 48
validation = 32

[model]
name = "small-cnn"
width = 2

[schedule]
epochs = 1
batch = 16

[optimizer]
name = "torch.optim:SGD"
lr = 0.1
momentum = 0.9
"""
TINY = (
    WITHOUT_ARMS
    + """
[arms.sgd]

[arms.directed]
metric = "reweighted:lam=3"
optimizer = { lr = 0.3 }
"""
)


def assert_refused(text: str, old: str, new: str, message: str) -> None:
    """With `old` replaced by `new` the specification is refused, in one line that contains `message`."""
    assert old in text
    with pytest.raises(StudyError) as caught:
        parse(text.replace(old, new), "tiny")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def _one_thread():
    """As in a study's workers; several would wait for each other on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_text() -> str:
    return TINY


@pytest.fixture
def tiny() -> Spec:
    return parse(TINY, "tiny")


@pytest.fixture
def make_run(tiny):
    """A finished run of the tiny study with a given error, as if it had been trained."""
    setting_of = lru_cache(partial(tiny.setting, ""))  # simulated studies ask for thousands

    def make(arm: str, seed: int, error: float | None, **changes) -> Run:
        setting = setting_of(arm)
        values = {
            "cell": "",
            "trial": None,
            "evaluated": "test",
            "values": {},
            "measures": {},
            "status": "ok",
            "epochs": [{"loss": 0.5, "validation_error": 3.0 + seed}],
            "config": {},
            "fingerprint": setting.fingerprint,
            "environment": {"torch": "2.0", "threads": 1},
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 1.5,
        }
        return Run(arm=arm, seed=seed, error=error, **(values | changes))

    return make


@pytest.fixture
def finished(tiny, make_run):
    """Write the records of the tiny study into a folder, as if its runs had been executed."""

    def write(folder, **least):
        """`least`: the error of an arm's seed 0, 3 where it is not given; each further seed has one more."""
        with Store(folder, write=True) as store:
            digest = store.use_spec(tiny.name, tiny.text)
            for arm, seed in product(tiny.arms, tiny.seeds):
                store.add(make_run(arm, seed, least.get(arm, 3.0) + seed), digest)
        return folder

    return write


def in_this_process(take, workers, **options):
    """An engine without worker processes; `options` are those of the local engine that a run takes."""
    for job in iter(take, None):
        yield RunDone(0, job, execute(job, lambda epoch, measured: None, **options))


def _here(take, workers, *, gpus=(), **options):
    assert not gpus
    return in_this_process(take, workers, **options)


def without_workers(patch):
    """Studies of this process execute their runs here: a worker process takes seconds to start."""
    for module in (local_engine, driver):
        patch.setattr(module, "run_all", _here)


def without_figures(patch):
    """Reports have empty figures: drawing them takes seconds."""
    for kind in ("png", "svg", "pdf"):
        patch.setattr(f"cdgrad.study.report.figures.drawing.Drawing.{kind}", lambda drawing: b"")


@pytest.fixture
def no_workers(monkeypatch):
    without_workers(monkeypatch)


@pytest.fixture
def no_figures(monkeypatch):
    without_figures(monkeypatch)
