"""The pixels of data sets on a device, which stay there from one run of a process to the next."""

from __future__ import annotations

import torch
from torch import Tensor

_ARRAYS = 4  # training and test images of two data sets
MOST_BYTES = 2 << 30  # a larger array is not kept: runs copy the images of their splits

KEPT: dict[tuple[str, torch.device], Tensor] = {}


def resident(source: str, pixels: Tensor, device: torch.device) -> Tensor | None:
    """All of `pixels` on the device, copied once a process; None where they are too many to stay there.

    Args:
        source: a name that no other pixels have; empty: they have none, and are not kept.
        pixels: of a data set, on the CPU.
        device: where to.
    """
    if not source or pixels.numel() * pixels.itemsize > MOST_BYTES:
        return None
    key = source, device
    kept = KEPT.pop(key, None)
    KEPT[key] = pixels.to(device) if kept is None else kept  # the last used is the last to leave
    while len(KEPT) > _ARRAYS:
        del KEPT[next(iter(KEPT))]
    return KEPT[key]
