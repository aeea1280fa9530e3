"""What the records of the mechanism say: signal over noise along the channel, roughness along training."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdgrad.study.statistics import paired as stats
from evidence.build.loading import RECORDS

SPECS = ("mechanism", "mechanism-cifar10-jpeg")
BINS = 6  # of the relative mode number k / n, for k > 0
Array = NDArray[np.float64]
pq: Any = import_module("pyarrow.parquet")  # it has no types


@dataclass(frozen=True)
class Curve:
    """Signal over noise by mode, relative to its mean over the modes k > 0, averaged over the layers.

    Attributes:
        position: centers of the bins of k / n, the mean mode (k = 0) first, at 0.
        ratio: mean over the seeds.
        interval: 95 % interval of it, shape (2, bins).
    """

    position: Array
    ratio: Array
    interval: Array


def table(kind: str) -> dict[str, Array]:
    """The columns of ``modes`` or ``layers``, of all specifications that have records."""
    paths = [p for name in SPECS if (p := RECORDS / f"{name}-{kind}.parquet").is_file()]
    parts: list[dict[str, Any]] = [pq.read_table(path).to_pydict() for path in paths]
    return {
        key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in (parts[0] if parts else {})
    }


def chosen(columns: dict[str, Array], **conditions: Any) -> dict[str, Array]:
    """The rows that have these values."""
    rows = np.logical_and.reduce([columns[key] == value for key, value in conditions.items()])
    return {key: values[rows] for key, values in columns.items()}


def curve(modes: dict[str, Array], **conditions: Any) -> Curve:
    """Signal over noise by relative mode number, of the rows that `conditions` choose."""
    rows = chosen(modes, **conditions)
    seeds = np.unique(rows["seed"])
    per_seed = np.mean([_layer(rows, layer, seeds) for layer in np.unique(rows["layer"])], axis=0)
    ends = np.array([stats.mean_interval(column) for column in per_seed.T])
    centers = (np.arange(BINS) + 0.5) / BINS
    return Curve(np.concatenate([[0.0], centers]), per_seed.mean(0), ends.T)


def contrast(modes: dict[str, Array], **conditions: Any) -> tuple[float, stats.Interval]:
    """Low modes (first third, the mean apart) against high ones (last third): difference over the mean.

    0 where signal over noise is the same, above 0 where the signal is smoother than the noise.
    """
    rows = chosen(modes, **conditions)
    seeds = np.unique(rows["seed"])
    per_seed = np.mean([_layer(rows, layer, seeds) for layer in np.unique(rows["layer"])], axis=0)
    third = BINS // 3
    values = per_seed[:, 1 : 1 + third].mean(1) - per_seed[:, -third:].mean(1)
    return float(values.mean()), stats.mean_interval(values)


def along_training(layers: dict[str, Array], key: str, **conditions: Any) -> tuple[Array, Array, Array]:
    """Epochs, the mean over layers and seeds of a column, and its 95 % interval over the seeds."""
    rows = chosen(layers, **conditions)
    epochs, seeds = np.unique(rows["epoch"]), np.unique(rows["seed"])
    values = np.array(
        [[rows[key][(rows["epoch"] == e) & (rows["seed"] == s)].mean() for s in seeds] for e in epochs]
    )
    return epochs, values.mean(1), np.array([stats.mean_interval(row) for row in values]).T


def _layer(rows: dict[str, Array], layer: str, seeds: Array) -> Array:
    """A seed a row: signal over noise of the mean mode and of each bin, over the seed's mean of k > 0.

    The average over the stops of training comes first: at a single stop the signal may be small against
    the error of its estimate, and the estimate even negative.
    """
    own = chosen(rows, layer=layer)
    n = int(own["mode"].max()) + 1
    ratios = np.zeros((len(seeds), n))
    for index, seed in enumerate(seeds):
        of_seed = own["seed"] == seed
        for k in range(n):
            at = of_seed & (own["mode"] == k)
            ratios[index, k] = np.mean(own["signal"][at] / own["noise"][at])
    position = np.arange(1, n) / n
    bins = np.minimum((position * BINS).astype(int), BINS - 1)
    binned = np.stack([ratios[:, 1:][:, bins == b].mean(1) for b in range(BINS)], axis=1)
    return np.concatenate([ratios[:, :1], binned], axis=1) / ratios[:, 1:].mean(1, keepdims=True)
