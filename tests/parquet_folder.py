"""Folders of images in the layout of the hub, for tests: one Parquet file a split."""

import io

import numpy as np
import pytest

from cdgrad.study.data import decoding, files

datasets = pytest.importorskip("datasets", reason="the extra data is not installed")
pillow = pytest.importorskip("PIL.Image", reason="the extra data is not installed")


def new_process():
    """Forget what the folders held."""
    files.contents.cache_clear()
    files.digest.cache_clear()
    decoding.warn_once.cache_clear()


def pictures(n, seed, shape=(6, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    pillow.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(folder, *, image="img", label="label", classes=("cat", "dog"), labels=None, **splits):
    """A folder in the layout of the hub: one Parquet file a split."""
    folder.mkdir(exist_ok=True)
    kind = datasets.ClassLabel(names=list(classes)) if classes else None
    for split, pixels in splits.items():
        given = labels if labels is not None else [i % 2 for i in range(len(pixels))]
        columns = {image: [png(p) for p in pixels], label: given}
        features = datasets.Features({image: datasets.Image(), label: kind or datasets.Value(_type(given))})
        dataset = datasets.Dataset.from_dict(columns, features)
        dataset.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def _type(values):
    return "string" if isinstance(values[0], str) else "int64"
