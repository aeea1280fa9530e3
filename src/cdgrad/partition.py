"""Refuses models and optimizers that cut weights where channels can no longer be told apart."""

from __future__ import annotations

from typing import Any

from torch import nn

_REMEDY = "use torch.distributed.fsdp.fully_shard (FSDP2), which keeps every weight's axes, or DDP"


def refuse_partitions(optimizer: object, model: nn.Module) -> None:
    """Refuse what keeps a weight as a stretch of a flat buffer, or updates it on one rank only.

    Known by their marks, so that nothing is imported: FSDP1 flags what it flattens, DeepSpeed's ZeRO
    stage 3 numbers parameters, stages 1 and 2 have optimizers of their own.

    Raises:
        ValueError: such a parameter or optimizer, with what to use instead.
    """
    parameters: Any = model.named_parameters() if isinstance(model, nn.Module) else ()  # pyright: ignore[reportUnnecessaryIsInstance]
    for name, param in parameters:
        if getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"{name} of shape {tuple(param.shape)} is a piece of an FSDP1 flat parameter: its channels "
                f"are lost; {_REMEDY}"
            )
        if hasattr(param, "ds_id"):
            raise ValueError(
                f"{name} of shape {tuple(param.shape)} is partitioned by DeepSpeed's ZeRO stage 3, flat: its "
                f"channels are lost; {_REMEDY}"
            )
    kind = type(optimizer)
    if kind.__module__.startswith("deepspeed.runtime.zero"):
        raise ValueError(f"{kind.__name__} updates flat partitions, not the model's weights; {_REMEDY}")
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in kind.__mro__):
        raise ValueError(
            f"{kind.__name__} spreads the weights over ranks, so every rank would direct all gradients and "
            f"use a part of them; {_REMEDY} with the plain optimizer"
        )
