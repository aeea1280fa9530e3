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


@pytest.fixture(scope="module")
def done():
    """The program's end; torch._dynamo and the fake kernels make its start take long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_steps_and_evaluations_stay_on_their_device_and_wait_for_nothing(done):
    assert done.stdout.splitlines()[:5] == [
        "no metric",
        "re-weighted, clipped, averaged",
        "permuted, rescaled",
        "centralized, in halves",
        "augmented",
    ], done.stderr


@pytest.mark.parametrize(
    ("line", "fault", "message"), [(5, "waiting", "waits for the device"), (6, "copying", "mixes")]
)
def test_a_step_that_waits_or_copies_is_noticed(done, line, fault, message):
    noticed = done.stdout.splitlines()[line]
    assert noticed.startswith(f"{fault}: ")
    assert message in noticed or "DataDependentOutputException" in noticed
