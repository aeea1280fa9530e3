"""The device that a run trains on: what it is called, and how much memory a run takes of it."""

from __future__ import annotations

import torch

from cdgrad.study import StudyError


def the_device(name: str) -> torch.device:
    """The device of a name such as ``"cuda:0"``.

    Raises:
        StudyError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as problem:  # its message lists every kind that torch knows
        raise StudyError(f"unknown device {name!r}; expected cpu, cuda or cuda:N") from problem
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"device {name}: PyTorch finds no CUDA device; use cpu")
    return device


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took of a GPU; None on the CPU.

    A process's peak there is mostly Python, torch and what the allocator keeps of earlier runs, so that two
    arms would differ by their order in the worker.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
