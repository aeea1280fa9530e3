"""Is the gradient's signal smoother along the output channel than its noise? Measured along training.

    python measure_mechanism.py mechanism.toml ../records

trains every cell, arm and seed of the specification and stops at some epochs to look: at fixed weights it
takes independent mini-batches, from the training images and from images never trained on, and separates
their gradients into signal and noise, mode by mode along the channel (`cdgrad.diagnostics`), in the
channels' own order and in one where neighbors have similar weights. The records are two Parquet files.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from cdgrad.diagnostics import mean_share, roughness, signal_and_noise, similarity_order
from cdgrad.selection import Target, select
from cdgrad.study import data as datasets
from cdgrad.study import models, streams
from cdgrad.study.callables import load_callable
from cdgrad.study.records.environment import environment
from cdgrad.study.spec import Setting, load
from cdgrad.study.train.arms import attach_arm

BATCHES = 16  # independent gradients at each stop
STOPS = (0.0, 0.1, 0.25, 0.5, 1.0)  # shares of the training
Row = dict[str, Any]


def main() -> None:
    """Run the specification and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("spec")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    spec = load(arguments.spec)
    torch.set_num_threads(1)
    modes, layers = list[Row](), list[Row]()
    for cell in spec.cells:
        for seed in spec.seeds:
            for arm in spec.arms:
                for stop, model, data in training(spec.setting(cell, arm), seed):
                    key = {"cell": cell, "arm": arm, "seed": seed, "epoch": stop}
                    rows = look(model, data, spec.setting(cell, arm), seed)
                    modes += [key | row for row in rows[0]]
                    layers += [key | row for row in rows[1]]
                print(f"{cell}, seed {seed}, {arm}: done", flush=True)
    metadata = {"spec": spec.text, "environment": json.dumps(environment())}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("modes", modes), ("layers", layers)):
        table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
        path = arguments.folder / f"{spec.name}-{name}.parquet"
        pq.write_table(_single_precision(table), path, compression="zstd")
        print(f"{path}: {len(rows)} rows")


def training(setting: Setting, seed: int) -> Iterator[tuple[int, nn.Module, datasets.Data]]:
    """Train once; before the first step and after some epochs, yield the epoch, the network and the data.

    Not the study's loop, which ends with an epoch's numbers: here the network is measured between epochs. The
    order of the images is torch's global one, with which the committed records were measured.
    """
    task, network, schedule, optimizing = setting.tables()
    torch.manual_seed(seed)
    data = datasets.load(task, seed)
    model = models.build(network.name, data.image_shape, data.classes, network.arguments)
    make = load_callable(optimizing.name)
    optimizer = make(model.parameters(), lr=optimizing.lr, **optimizing.arguments)
    attach_arm(setting, optimizer, model, seed)
    split = data.train
    steps = schedule.epochs * math.ceil(len(split) / schedule.batch)
    falling = CosineAnnealingLR(optimizer, T_max=steps)
    stops = {round(share * schedule.epochs) for share in STOPS}
    for epoch in range(schedule.epochs + 1):
        if epoch in stops:
            yield epoch, model, data
        if epoch == schedule.epochs:
            return
        model.train()
        for rows in torch.randperm(len(split)).split(schedule.batch):
            optimizer.zero_grad()
            cross_entropy(model(split.images(rows)), split.labels[rows]).backward()
            optimizer.step()
            falling.step()


def look(model: nn.Module, data: datasets.Data, setting: Setting, seed: int) -> tuple[list[Row], list[Row]]:
    """What the weights and gradients of every convolution are like: rows of modes, rows of layers."""
    schedule = setting.tables()[2]
    targets = select(model).targets
    random = streams.generator(seed, streams.MEASUREMENT)
    modes, layers = list[Row](), list[Row]()
    orders = {t.name: similarity_order(t.param.detach(), t.dim) for t in targets}
    for source, split in (("train", data.train), ("fresh", data.validation)):
        gradients = independent_gradients(model, split, schedule.batch, random)
        for target in targets:
            own = gradients[target.name]
            for order, rows in (("index", None), ("similar", orders[target.name])):
                ordered = own if rows is None else [g.index_select(target.dim, rows) for g in own]
                spectrum = signal_and_noise(ordered, target.dim, target.groups)
                key = {"layer": target.name, "source": source, "order": order}
                for k, (signal, noise) in enumerate(zip(spectrum.signal, spectrum.noise, strict=True)):
                    modes.append(key | {"mode": k, "signal": float(signal), "noise": float(noise)})
                if source == "train":
                    layers.append(_layer(target, ordered, rows, random) | {"order": order})
    return modes, layers


def independent_gradients(
    model: nn.Module, split: datasets.Split, batch: int, random: np.random.Generator
) -> dict[str, list[Tensor]]:
    """Gradients at the present weights from `BATCHES` batches drawn independently, by parameter name.

    In training mode, as a step has it, on a copy, so that batch norm's running averages stay.
    """
    copied = copy.deepcopy(model).train()
    gradients: dict[str, list[Tensor]] = {}
    for _ in range(BATCHES):
        rows = torch.tensor(random.choice(len(split), size=min(batch, len(split)), replace=False))
        copied.zero_grad()
        cross_entropy(copied(split.images(rows)), split.labels[rows]).backward()
        for name, param in copied.named_parameters():
            if param.grad is not None:
                gradients.setdefault(name, []).append(param.grad.clone())
    return gradients


def _layer(target: Target, gradients: list[Tensor], rows: Tensor | None, random: np.random.Generator) -> Row:
    weight = target.param.detach()
    noise = torch.tensor(random.normal(size=tuple(weight.shape)))
    if rows is not None:
        weight = weight.index_select(target.dim, rows)
        noise = noise.index_select(target.dim, similarity_order(noise, target.dim))
    mean = torch.stack(gradients).mean(0)
    return {
        "layer": target.name,
        "channels": weight.shape[target.dim] // target.groups,
        "weight_roughness": roughness(weight, target.dim, target.groups),
        "noise_roughness": roughness(noise, target.dim, target.groups),
        "gradient_roughness": roughness(mean, target.dim, target.groups),
        "weight_mean_share": mean_share(weight, target.dim, target.groups),
        "gradient_mean_share": mean_share(mean, target.dim, target.groups),
    }


def _single_precision(table: pa.Table) -> pa.Table:
    """Floats in 32 bits: half the size, and far finer than what the seeds agree on."""
    kinds = [
        field.with_type(pa.float32()) if pa.types.is_float64(field.type) else field for field in table.schema
    ]
    return table.cast(pa.schema(kinds, metadata=table.schema.metadata))


if __name__ == "__main__":
    main()
