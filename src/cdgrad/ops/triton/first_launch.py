"""Whether Triton works on a device, which only a launch shows: it needs a C compiler and a writable cache."""

from __future__ import annotations

import warnings

import torch

from cdgrad.messages import brief
from cdgrad.ops.graphs import capturing_on
from cdgrad.ops.triton import launch

OLDEST = (7, 0)  # compute capability, of which Triton supports NVIDIA's GPUs
_refusals: dict[torch.device, str | None] = {}


def refusal(device: torch.device) -> str | None:
    """Why kernels cannot be launched on a device, as a sentence; None if they can.

    The first call for a GPU launches a small kernel, which later captures of CUDA graphs need anyway.

    Warns:
        UserWarning: once for each device on which that failed.
    """
    if device.type != "cuda" or device in _refusals:
        return _refusals.get(device)
    if capturing_on(device):
        return None  # the launch that is captured reports what is missing
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        _refusals[device] = (
            f"Triton needs a GPU of compute capability {_text(OLDEST)}, and {device} has {_text(capability)}"
        )
    else:
        _refusals[device] = _failure(device)
    return _refusals[device]


def _failure(device: torch.device) -> str | None:
    try:
        with torch.cuda.device(device):
            launch.prepare_captures(device)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # they say nothing about Triton
    except Exception as error:  # of the C compiler, the linker, the file system, the driver
        failure = f"Triton failed to launch a kernel on {device} ({brief(error)})"
        warnings.warn(
            f"{failure}; plain torch operations replace its kernels, and take several times as long. Triton "
            "needs a C compiler and Python's headers (packages gcc and python3-dev, or set CC), and a folder "
            "for its cache that it can write to (TRITON_CACHE_DIR). backend='eager' avoids this warning",
            stacklevel=2,
        )
        return failure
    return None


def _text(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
