"""The device that a run trains on: its name, the memory that a run takes of it, and its failures."""

from __future__ import annotations

import gc

import torch

from cdgrad.messages import text_of
from cdgrad.study import StudyError
from cdgrad.study.callables import UserCodeError
from cdgrad.study.shown import one_line


def the_device(name: str) -> torch.device:
    """The device of a name such as ``"cuda:0"``.

    Raises:
        StudyError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as problem:  # its message lists every kind that torch knows
        raise StudyError(f"unknown device {name!r}; expected cpu, cuda or cuda:N") from problem
    accelerator = torch.accelerator.current_accelerator()
    if device.type not in ("cpu", "cuda", accelerator and accelerator.type):
        raise StudyError(f"device {name}: PyTorch finds no such device here; use cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"device {name}: PyTorch finds no CUDA device; use cpu")
    return device


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on."""
    if device.type == "cuda":
        torch.cuda.init()  # without it, torch knows no device of a given number yet
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took of a GPU; None on the CPU.

    A process's peak there is mostly Python, torch and what the allocator keeps of earlier runs, so that two
    arms would differ by their order in the worker.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def limit_memory(sharing: int) -> None:
    """Let this process take its share of the GPU that `sharing` processes train on, and no more.

    A twentieth is left for what each process takes beside PyTorch's tensors. A run that needs more than the
    share fails, instead of those of the other processes.
    """
    if sharing > 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(0.95 / sharing)


def explained(error: BaseException) -> str:
    """One line for an error of the GPU, the user's code included, with what to do; empty for any other."""
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        error = error.__cause__
    first = (
        text_of(error).strip().partition("\n")[0].removeprefix("CUDA out of memory. ").partition(". GPU ")[0]
    )
    if isinstance(error, torch.OutOfMemoryError):
        return one_line(
            f"the GPU's memory is full ({first.rstrip('.')}); use fewer --workers for each GPU, or a smaller "
            "batch: schedule.batch, or schedule.accumulate = 2, which trains by the same steps in halves"
        )
    if isinstance(error, torch.AcceleratorError):
        return one_line(
            f"the GPU failed during the run ({first.rstrip('.')}); a new process takes the next run, and the "
            "same command tries this one again; if it fails again, see nvidia-smi for errors of the device"
        )
    return ""


def is_lost(device: str) -> bool:
    """Whether this process cannot use its GPU any more, as after an illegal access; frees unused memory.

    The user's own training code chooses its device: where `device` is ``"cpu"``, it may use a GPU, too.
    """
    if device == "cpu" and not torch.cuda.is_initialized():
        return False
    gc.collect()  # what a failed run held, in frames that refer to each other
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False
