"""The launch on a GPU, with a driver that launches nothing: what reaches Triton's launcher."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
import json
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

launched, searched, compiled = [], [], []

class Launcher:
    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments):
        launched.append(arguments)

class Utils:
    def load_binary(self, *arguments):
        return 1, 2, 128, 0, 1024

    def get_device_properties(self, device):
        return dict(max_shared_mem=232448, multiprocessor_count=132, max_num_regs=65536, warpSize=32)

class Driver:
    utils, launcher_cls = Utils(), Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
run = JITFunction.run

def counted(self, *args, **options):
    searched.append(self)
    compiled.append(run(self, *args, **options))
    return compiled[-1]

JITFunction.run = counted

from cdgrad.metrics import ReweightedL2, Sobolev
from cdgrad.ops.triton import launch

def plain(value):
    return str(value) if isinstance(value, int | str | tuple) else type(value).__name__

grads = [torch.randn(6, 4), torch.randn(9, 5, 3, 3)]
plan = launch.Plan([(grad, 0, 1) for grad in grads], ReweightedL2(3))
for _ in range(3):
    plan.run(grads)
*_, first, second, third = launched
print(json.dumps({
    "first": [plain(value) for value in first],
    "later": [[plain(value) for value in each] for each in (second, third)],
    "tensors": [[id(x) for x in each if isinstance(x, torch.Tensor)] for each in (first, second, third)],
    "searched": searched.count(launch.kernels.directed),
    "fused": "fma.rn.f32" in compiled[searched.index(launch.kernels.directed)].asm["ptx"],
}))
"""


def test_steps_after_the_first_launch_the_compiled_kernel_with_the_same_arguments(tmp_path):
    """Triton looks for the kernel by its arguments once, and its launcher is given the same afterwards."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["TRITON_DEFAULT_FP_FUSION"] = "0"  # as Triton 3.10 will have it
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["later"] == [found["first"]] * 2
    assert found["tensors"] == [found["tensors"][0]] * 3
    assert len(found["tensors"][0]) == 5
    assert found["first"][3] == "7"  # the stream
    assert found["searched"] == 1
    assert found["fused"]
