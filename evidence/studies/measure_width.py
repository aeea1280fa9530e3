"""Error over width after training, without training after: the study of width.toml.

    python measure_width.py width.toml ../../runs/width.jsonl ../records/width.parquet

trains every cell, arm and seed once, folds the network to each width of `WIDTHS`, and measures. Each training
is a line of the first file, so that an interrupted study resumes; the second file is written at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import width as mesh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from cdgrad.study import data as datasets
from cdgrad.study import models
from cdgrad.study.callables import load_callable
from cdgrad.study.records.environment import environment
from cdgrad.study.spec import Setting, load
from cdgrad.study.train.evaluate import count_mistakes

WIDTHS = (1.0, 0.75, 0.5, 0.25)
RATES = (0.1, 0.3)
TRIAL_SEED = 1000
Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """How a network is trained.

    Attributes:
        strength: lam n^2 of the Sobolev operator at the first step, and of the initialization; 0: neither.
        last_strength: at the last step, geometrically between.
        widths: whether half of the steps train the network folded to a random width of at least a quarter.
        scale: of the network's width, for networks trained at a smaller one from scratch.
    """

    strength: float = 0.0
    last_strength: float = 0.0
    widths: bool = False
    scale: float = 1.0

    @property
    def folds(self) -> bool:
        """Whether the arm is meant for folding: its rate is chosen for full and half width."""
        return self.strength > 0 or self.widths


ARMS = {
    "ordinary": Arm(),
    "scratch-0.5": Arm(scale=0.5),
    "widths": Arm(widths=True),
    "widths-sobolev-1": Arm(1, 1, widths=True),
    "sobolev-1": Arm(1, 1),
    "sobolev-10": Arm(10, 10),
    "sobolev-100": Arm(100, 100),
    "widths-sobolev-10": Arm(10, 10, widths=True),
    "scratch-0.25": Arm(scale=0.25),
    "falling": Arm(100, 0.1),
    "sobolev-0.1": Arm(0.1, 0.1),
}


def main() -> None:
    """Run what is missing; write the record when nothing is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("spec")
    parser.add_argument("runs", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--cells", nargs="*", help="only these cells")
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="only these arms")
    arguments = parser.parse_args()
    spec = load(arguments.spec)
    torch.set_num_threads(1)
    runs = Runs(arguments.runs)
    cells = arguments.cells or list(spec.cells)
    for cell in cells:
        setting = spec.setting(cell, "none")
        for name in arguments.arms or ARMS:
            rate = runs.chosen(cell, name, setting)
            for seed in spec.seeds:
                runs.get(cell, name, setting, seed, rate, trial=False)
    write(arguments.record, spec.text, runs, spec.seeds)


class Runs:
    """The trainings that are done, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.done = {self.key(run): run for run in map(json.loads, lines)}

    @staticmethod
    def key(run: Row) -> tuple[Any, ...]:
        return tuple(run[key] for key in ("cell", "arm", "seed", "rate", "trial"))

    def get(self, cell: str, arm: str, setting: Setting, seed: int, rate: float, *, trial: bool) -> Row:
        """The training, from the file, or made and added to it."""
        run: Row = {"cell": cell, "arm": arm, "seed": seed, "rate": rate, "trial": trial}
        if (key := self.key(run)) not in self.done:
            started = time.monotonic()
            run["errors"] = measured(setting, ARMS[arm], seed, rate, trial=trial)
            run["seconds"] = time.monotonic() - started
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
            self.done[key] = run
            shown = [f"{row['width']:g} {row['error']:.1f}" for row in run["errors"] if row["best"]]
            print(f"{cell}, {arm}, seed {seed}, rate {rate:g}: {', '.join(shown)}", flush=True)
        return self.done[key]

    def chosen(self, cell: str, arm: str, setting: Setting) -> float:
        """The rate of the smallest validation error, at half the width, too, if the arm folds."""
        wanted = (1.0, 0.5) if ARMS[arm].folds else (1.0,)
        errors: dict[float, float] = {}
        for rate in RATES:
            run = self.get(cell, arm, setting, TRIAL_SEED, rate, trial=True)
            rows = [row["error"] for row in run["errors"] if row["width"] in wanted and row["best"]]
            errors[rate] = sum(rows) / len(rows)
        return min(errors, key=errors.__getitem__)


def measured(setting: Setting, arm: Arm, seed: int, rate: float, *, trial: bool) -> list[Row]:
    """Train, then the error at every width by every reduction; of a trial on validation images.

    ``best`` marks the row that stands for the arm's folding: in the channels' own order, with statistics of
    batch norm estimated anew.
    """
    task = setting.tables()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        data = datasets.load(task, seed)
        model = train(setting, arm, data, seed, rate)
        split = data.validation if trial else data.test
        rows: list[Row] = [_row(1.0, "none", False, _error(model, split), True)]
        if arm.scale < 1:
            return rows
        meshes = mesh.meshes_of(model)
        methods = ["fold"] if arm.folds or trial else list(mesh.REDUCTIONS)
        for width in (0.5,) if trial else WIDTHS[1:]:
            for method in methods:
                small = mesh.changed(model, meshes, mesh.REDUCTIONS[method](model, meshes, width))
                if not trial:
                    rows.append(_row(width, method, False, _error(small, split), False))
                mesh.reestimate_(small, _batches(data.train, 256))
                rows.append(_row(width, method, True, _error(small, split), method == "fold"))
    return rows


def _error(model: nn.Module, split: datasets.Split) -> float:
    """Misclassified images of the split, in percent."""
    wrong = torch.zeros((), dtype=torch.int64)
    count_mistakes(model, split, wrong)
    return 100 * int(wrong) / len(split)


def _row(width: float, method: str, reestimated: bool, error: float, best: bool) -> Row:
    return {"width": width, "method": method, "reestimated": reestimated, "error": error, "best": best}


def _batches(split: datasets.Split, size: int) -> Iterator[Tensor]:
    for start in range(0, len(split), size):
        yield split.images(slice(start, start + size))


def train(setting: Setting, arm: Arm, data: datasets.Data, seed: int, rate: float) -> nn.Module:
    """One training of an arm; the order of the images and the widths follow from the seed."""
    task, network, schedule, optimizing = setting.tables()
    size = {"width": round(network.arguments["width"] * arm.scale)}
    model = models.build(network.name, data.image_shape, data.classes, network.arguments | size)
    meshes = mesh.meshes_of(model)
    if arm.strength:
        mesh.smooth_(model, meshes, arm.strength)
    smoother = mesh.Smoother(model, meshes)
    make = load_callable(optimizing.name)
    optimizer = make(list(model.parameters()), lr=rate, **optimizing.arguments)
    steps = schedule.epochs * math.ceil(len(data.train) / schedule.batch)
    falling = CosineAnnealingLR(optimizer, T_max=steps)
    random, augmentation = np.random.default_rng([seed, 8]), torch.Generator().manual_seed(seed)
    model.train()
    done = 0
    for _ in range(schedule.epochs):
        for rows in torch.tensor(random.permutation(len(data.train))).split(schedule.batch):
            images = datasets.augment(data.train.images(rows), task.augment, augmentation)
            optimizer.zero_grad()
            folded = arm.widths and random.random() < 0.5
            logits = at_width(model, meshes, random.uniform(0.25, 1), images) if folded else model(images)
            cross_entropy(logits, data.train.labels[rows]).backward()
            if arm.strength:
                smoother(arm.strength * (arm.last_strength / arm.strength) ** (done / steps))
            optimizer.step()
            falling.step()
            done += 1
    return model


def at_width(model: nn.Module, meshes: mesh.Meshes, width: float, images: Tensor) -> Tensor:
    """The output of the network folded to `width`, differentiable in the weights of the whole one."""
    changes = mesh.fold(model, meshes, width)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return functional_call(model, mesh.changed_tensors(tensors, meshes, changes), (images,))


def write(path: Path, spec: str, runs: Runs, seeds: Sequence[int]) -> None:
    """The record: one row an error, of the arms that were trained on all seeds."""
    final: dict[tuple[str, str], set[int]] = {}
    for run in runs.done.values():
        if not run["trial"]:
            final.setdefault((run["cell"], run["arm"]), set()).add(run["seed"])
    rows = [
        {**{key: run[key] for key in ("cell", "arm", "seed", "rate", "trial", "seconds")}, **row}
        for run in runs.done.values()
        if final.get((run["cell"], run["arm"])) == set(seeds)
        for row in run["errors"]
    ]
    description = {"spec": spec, "environment": json.dumps(environment())}
    table = pa.Table.from_pylist(rows).sort_by(
        [(key, "ascending") for key in ("cell", "arm", "trial", "seed")]
    )
    pq.write_table(table.replace_schema_metadata(description), path, compression="zstd")
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
