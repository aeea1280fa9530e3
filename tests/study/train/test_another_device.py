"""The training loop on a device that is not the CPU, with fake tensors (`another_device`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

PROGRAM = Path(__file__).with_name("another_device.py")
pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends that are written in Python",
)


def run(before=""):
    """The program, after some code that changes the package."""
    code = f"import sys, runpy\n{before}\nrunpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_steps_and_evaluations_stay_on_their_device_and_wait_for_nothing():
    done = run()
    assert done.stdout.splitlines() == [
        "no metric",
        "re-weighted, clipped, averaged",
        "permuted, rescaled",
        "centralized, in halves",
        "augmented",
    ], done.stderr


@pytest.mark.parametrize(
    ("function", "body", "message"),
    [
        ("match_strides", "lambda optimizer: bool(optimizer.param_groups[0]['lr'])", "waits for the device"),
        ("match_strides", "lambda optimizer: optimizer.param_groups[0]['lr'].cpu()", "mixes"),
    ],
)
def test_a_step_that_waits_or_copies_is_noticed(function, body, message):
    done = run(f"from cdgrad.study.train import step\nstep.{function} = {body}")
    assert done.returncode != 0
    assert message in done.stderr or "DataDependentOutputException" in done.stderr
