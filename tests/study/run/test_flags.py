"""What the user's code sets in its process: each run starts as the first run of its modules did."""

import os
import sys

import numpy as np
import pytest
import torch

from cdgrad.study.plan.job import Job
from cdgrad.study.records import Run
from cdgrad.study.run import flags, ray_engine
from cdgrad.study.run.execute import execute
from cdgrad.study.spec import parse

STATE = """
import os, numpy, torch
def state():
    return {
        "error": 1.0,
        "double": torch.get_default_dtype() == torch.float64,
        "benchmark": torch.backends.cudnn.benchmark,
        "high": torch.get_float32_matmul_precision() == "high",
        "tf32": torch.backends.cudnn.conv.fp32_precision == "tf32",
        "onednn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "meta": torch.ones(1).device.type == "meta",
        "raises": numpy.geterr()["over"] == "raise",
        "flash": torch.backends.cuda.flash_sdp_enabled(),
    }
"""
SETS = """
torch.set_default_dtype(torch.float64)
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")
torch.backends.mkldnn.enabled = False
numpy.seterr(over="raise")
torch.set_num_threads(2)
"""
RUN = """
def run(seed, arm):
    arm.attached, found = True, state()
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.enable_flash_sdp(False)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    return found
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What a run of a module finds, executed in this process."""
    monkeypatch.setattr(flags, "_SET", {})
    monkeypatch.setattr(flags, "_new_process_needed", [])

    def measures(module, code=None):
        if code is not None:
            (tmp_path / f"{module}.py").write_text(code)
        spec = parse(f'baseline = "a"\nseeds = 1\nentry = "{module}:run"\narms.a = {{}}', "flags")
        run = execute(Job("", "a", None, 0, spec.setting("", "a"), {}, str(tmp_path)), lambda *_: None)
        assert run.status == "ok", run.message
        return run.measures

    yield measures
    for name in ("flags_setter", "flags_other", "flags_late", "flags_inner"):
        sys.modules.pop(name, None)


def test_every_run_of_a_module_starts_from_the_flags_that_its_import_set_and_no_other_module_has_them(
    measured,
):
    before = flags._values()
    first = measured("flags_setter", STATE + SETS + RUN)
    other = measured("flags_other", STATE + RUN)
    of_the_import = dict.fromkeys(("double", "benchmark", "high", "raises"), 1.0) | {
        "onednn": 0.0,
        "threads": 2.0,
    }
    elsewhere = dict.fromkeys(("double", "benchmark", "high", "raises"), 0.0) | {
        "onednn": 1.0,
        "threads": 1.0,
    }
    alike = {"gradients": 1.0, "flash": 1.0, "tf32": 1.0, "deterministic": 0.0, "meta": 0.0}
    assert first == of_the_import | alike
    assert other == elsewhere | alike
    assert measured("flags_setter") == first
    assert measured("flags_other") == other
    assert flags._values() == before
    assert not flags.need_new_process()


def test_a_module_that_a_run_imports_and_that_sets_flags_needs_a_new_process(measured, tmp_path):
    (tmp_path / "flags_inner.py").write_text("import torch\ntorch.backends.cudnn.benchmark = True\n")
    code = (
        STATE + "\ndef run(seed, arm):\n    import flags_inner\n    arm.attached = True\n    return state()\n"
    )
    assert measured("flags_late", code)["benchmark"]
    assert flags.need_new_process()
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("device", "cuda", "lost", "set_late", "ends"),
    [
        ("cpu", True, True, False, True),
        ("cuda", False, True, False, True),  # CUDA could not even be initialized
        ("cpu", False, True, False, False),
        ("cpu", True, False, True, True),
        ("cpu", True, False, False, False),
    ],
)
def test_a_ray_task_hands_its_run_over_and_then_ends_a_worker_that_is_unfit_for_the_next(
    monkeypatch, device, cuda, lost, set_late, ends
):
    def synchronize():
        if lost:
            raise torch.AcceleratorError("CUDA error")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(flags, "need_new_process", lambda: set_late)
    text = 'baseline = "a"\nseeds = 1\nentry = "absent_entry:run"\narms.a = {}\n'
    job = Job("", "a", None, 0, parse(text, "x").setting("", "a"))
    task = ray_engine.stream_run(job, device, ".")
    run = next(task)
    assert isinstance(run, Run)
    assert run.status == "failed"
    with pytest.raises(SystemExit if ends else StopIteration):
        next(task)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_precisions_of_torchs_two_interfaces_are_restored_where_they_disagree(precision):
    before = flags._values()
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    flags._set(before)
    assert flags._values() == before
    assert np.geterr() == before["numpy's errors"]
    assert os.getcwd() == before["working directory"]
