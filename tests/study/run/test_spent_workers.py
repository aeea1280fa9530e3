"""A Ray worker ends after a run that leaves it unfit for the next, as a local one does."""

import pytest

from cdgrad.study.plan.job import Job
from cdgrad.study.records import Run
from cdgrad.study.run import flags, ray_engine
from cdgrad.study.spec import parse

FAILING = 'baseline = "a"\nseeds = 1\nentry = "absent_entry:run"\narms.a = {}\n'


@pytest.mark.parametrize(
    ("lost", "set_late", "ends"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_a_task_hands_its_run_over_and_then_ends_its_worker(
    monkeypatch: pytest.MonkeyPatch, lost: bool, set_late: bool, ends: bool
):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("cdgrad.study.train.device.is_lost", lambda: lost)
    monkeypatch.setattr(flags, "need_new_process", lambda: set_late)
    job = Job("", "a", None, 0, parse(FAILING, "x").setting("", "a"))
    task = ray_engine.stream_run(job, "cpu", ".")
    run = next(task)
    assert isinstance(run, Run)
    assert run.status == "failed"
    with pytest.raises(SystemExit if ends else StopIteration):
        next(task)
