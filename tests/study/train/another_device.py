"""A training step and an evaluation on a device that is not the CPU, as far as that shows without one.

The tensors are fake: they have shapes and a device, and no memory. So whatever mixes devices, waits for the
device or copies from the host where a CUDA graph would be captured raises an error here, too. Run as a
program, because torch cannot forget a registered device; it prints a line for each setting, and one for the
error of each fault.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cdgrad.ops import byte_cache, graphs
from cdgrad.study import data
from cdgrad.study.shown import one_line
from cdgrad.study.spec import LoopSetting, Model, Optimizer, Schedule, Task
from cdgrad.study.train import average, epoch, execution, state, step
from cdgrad.study.train.ranks import ALONE

TASK = Task("fake", train=96, validation=64, test=64)
SETTING = LoopSetting(
    task=TASK,
    model=Model("resnet8"),
    schedule=Schedule(epochs=1, batch=32),
    optimizer=Optimizer("torch.optim:AdamW", 0.1),
    metric="sobolev:lam=0.01",
    evaluate="validation",
)
SETTINGS = {
    "no metric": {"metric": "none", "rounding": 3},
    "re-weighted, clipped, averaged": {
        "metric": "reweighted:lam=3",
        "schedule": Schedule(epochs=1, batch=32, clip=0.5, ema=0.9),
    },
    "permuted, rescaled": {"permute": True, "rescale": "norm"},
    "centralized, in halves": {
        "centralize": True,
        "schedule": Schedule(epochs=1, batch=32, accumulate=2, label_smoothing=0.1, channels_last=True),
    },
    "augmented": {
        "task": dataclasses.replace(TASK, augment=("pad-crop", "flip", "cutout")),
        "metric": "mean-sobolev:lam=0.1,boundary=periodic",
    },
}
FAULTS = {  # in the place of what makes the strides of gradients and weights equal
    "waiting": lambda optimizer: bool(optimizer.param_groups[0]["lr"]),
    "copying": lambda optimizer: optimizer.param_groups[0]["lr"].cpu(),
}
GPU = "gpu"
_aten = torch.ops.aten
WAITING = (_aten._local_scalar_dense.default, _aten.equal.default, _aten.nonzero.default)


class Strict(TorchDispatchMode):
    """Refuses, while `capturing`, what a CUDA graph cannot hold."""

    capturing = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.capturing and function in WAITING:
            raise RuntimeError(f"{function} waits for the device")
        found = function(*args, **(kwargs or {}))
        inputs, outputs = (
            [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            for tree in ((args, kwargs), found)
        )
        # A number of the host may be the argument of a kernel.
        kinds = {x.device for x in inputs if x.ndim or len(inputs) == 1} | {x.device for x in outputs}
        if self.capturing and function.namespace == "aten" and len(kinds) > 1:
            raise RuntimeError(f"{function} mixes {kinds}")
        return found


def on_gpu(build):
    """The network that `build` returns, with fake parameters; ``to`` would exchange real ones."""

    def network(*arguments):
        model = build(*arguments)
        for module in model.modules():
            for name, tensor in dict(module.named_parameters(recurse=False)).items():
                setattr(module, name, nn.Parameter(torch.empty(tensor.shape, device=GPU)))
            for name, tensor in dict(module.named_buffers(recurse=False)).items():
                setattr(module, name, torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU))
        model.to = lambda *_, **__: model
        built[:] = arguments
        return model

    return network


built = []


def replace_what_needs_memory():
    """For good, as the device is registered: only in a process of its own."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(GPU)
    state._network = on_gpu(state._network)
    average.copy = SimpleNamespace(deepcopy=lambda model: state._network(*built))
    state.TrainingState.precision = lambda self: nullcontext()  # autocast knows no such device
    byte_cache.outside_modes = nullcontext  # outside of the mode there is no such device
    graphs.capturing = lambda: Strict.capturing
    graphs.capturing_on = lambda device: Strict.capturing
    sys.modules["cdgrad.study.data.augment"]._draw = lambda n, below, generator: torch.randint(
        below, (n,), device=GPU
    )


class Generator:
    """A random generator of the device, which has none."""

    def __init__(self, device):
        assert device.type == GPU
        self.device = device

    def manual_seed(self, seed):
        return self


def splits(mode, task):
    """The images as fake tensors, on the CPU."""
    loaded = data.load(task, 0)
    names = ("pixels", "rows", "labels", "mean", "std")
    return dataclasses.replace(
        loaded,
        **{
            split: dataclasses.replace(
                getattr(loaded, split),
                **{name: mode.from_tensor(getattr(getattr(loaded, split), name)) for name in names},
            )
            for split in ("train", "validation", "test")
        },
    )


def run(setting):
    """Steps and an evaluation, first at once and then as they would be captured."""
    Strict.capturing = False
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    loaded = splits(mode, setting.task)
    state.datasets = SimpleNamespace(load=lambda task, seed: loaded)
    with mode, Strict():
        real, torch.Generator = torch.Generator, Generator
        try:
            training = state.TrainingState(setting, 0, torch.device(GPU), ALONE)
        finally:
            torch.Generator = real
        assert not execution.prepare(training.optimizer, torch.device(GPU))
        training.rates.move_to(torch.device(GPU))
        for Strict.capturing, compare in ((False, False), (False, True), (True, False), (True, True)):
            capturing, Strict.capturing = Strict.capturing, False
            training.rates.set(0.5, setting.rounding)
            if training.average:
                training.average.begin_step()
            training.buffers.write_rows(torch.arange(32, device=GPU))
            training.wrapped.train()
            Strict.capturing = capturing
            step.training_step(training, 32, compare=compare)
            epoch._evaluate(training, training.validation)


if __name__ == "__main__":
    replace_what_needs_memory()
    for name, changes in SETTINGS.items():
        run(dataclasses.replace(SETTING, **changes))
        print(name, flush=True)
    for name, fault in FAULTS.items():
        step.match_strides = fault
        try:
            run(SETTING)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {one_line(str(error))}", flush=True)
