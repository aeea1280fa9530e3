"""Placements of a DTensor: the local part, the mesh dimension of the channels, the norm of the whole."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor; without the import, which takes most of a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a DTensor that is on this rank, sharing its memory; any other tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def channel_mesh_dim(tensor: DTensor, dim: int, name: str) -> int | None:
    """The mesh dimension over which axis `dim` is cut, or None where every rank has whole channels.

    Raises:
        ValueError: a placement that the operator does not know, with the tensor's name.
    """
    mesh, placements = tensor.device_mesh, tensor.placements
    dim %= tensor.ndim
    cutting = [
        i for i, p in enumerate(placements) if getattr(p, "dim", None) == dim and mesh.size(mesh_dim=i) > 1
    ]
    if any(p.is_partial() for p in placements):
        reason, remedy = "pending sums", "reduce it first: redistribute to Shard or Replicate"
    elif len(cutting) > 1 or any(getattr(placements[i], "split_factor", 1) > 1 for i in cutting):
        reason = f"its channel axis {dim} cut over several mesh dimensions"
        remedy = "cut another axis in all but one (fully_shard's shard_placement_fn), or exclude it"
    else:
        return cutting[0] if cutting else None
    shown = ", ".join(map(str, placements))
    raise ValueError(f"{name} of shape {tuple(tensor.shape)} has placements ({shown}), {reason}; {remedy}")


def whole_norms(tensors: Sequence[Tensor], *parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """The L2 norms of whole tensors from those of this rank's parts; for each of `parts` a list.

    `parts` holds one scalar per tensor: the norms of `local_part` at one time or several. Costs one
    all-reduce of a number per norm, for each mesh dimension that shards; none for ordinary tensors.
    """
    shared: dict[tuple[dist.ProcessGroup, str], list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        if is_dtensor(tensor) and tensor.device_mesh.get_coordinate() is not None:
            mesh = tensor.device_mesh
            for mesh_dim, placement in enumerate(tensor.placements):
                if hasattr(placement, "dim") and mesh.size(mesh_dim=mesh_dim) > 1:
                    shared[mesh.get_group(mesh_dim), mesh.device_type].append(i)
    norms = [list(part) for part in parts]
    for (process_group, device), members in shared.items():
        squares = torch.stack([norm[i].double().square().to(device) for norm in norms for i in members])
        dist.all_reduce(squares, group=process_group)
        for norm, totals in zip(norms, squares.sqrt().view(len(norms), -1), strict=True):
            for i, total in zip(members, totals, strict=True):
                norm[i] = total.to(norm[i].device)
    return norms
