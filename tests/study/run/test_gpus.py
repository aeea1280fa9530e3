"""Which GPU a worker sees; the assignment alone, so no GPU is needed."""

import os

import pytest
import torch

from cdgrad.study import StudyError
from cdgrad.study.run import local_engine


@pytest.mark.parametrize(
    ("gpus", "expected"), [((), [None] * 5), (("3",), ["3"] * 5), (("0", "2"), ["0", "2", "0", "2", "0"])]
)
def test_workers_take_the_gpus_by_turns(monkeypatch, gpus, expected):
    """What would each process find when it starts?"""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = []

    def start(process):
        found.append(
            (os.environ.get("CUDA_VISIBLE_DEVICES"), process._args[1], os.environ["OMP_NUM_THREADS"])
        )
        raise _NotStartedError

    monkeypatch.setattr(local_engine.SpawnProcess, "start", start)
    for index in range(5):
        with pytest.raises(_NotStartedError):
            local_engine._Worker(local_engine.gpu_of(index, gpus), None)
    assert found == [(gpu, gpu is not None, "1") for gpu in expected]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


class _NotStartedError(Exception):
    pass


@pytest.mark.parametrize(("listed", "expected"), [("", ["0", "1"]), ("4, 7", ["4", "7"])])
def test_only_gpus_that_are_left_to_this_process(monkeypatch, listed, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert local_engine.visible_gpus() == expected


def test_no_gpu_is_said_in_a_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(StudyError, match="--device cuda: PyTorch finds no CUDA device"):
        local_engine.visible_gpus()
