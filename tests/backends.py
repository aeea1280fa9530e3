"""The rows of the contract suite: every implementation of the operator, on numpy arrays."""

from collections.abc import Callable
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

import cdgrad
import cdgrad.optax
from cdgrad import Metric

Operator = Callable[[NDArray[np.floating], Metric, int, int], NDArray[np.floating]]


def torch_out_of_place(x, metric, dim=0, groups=1):
    return cdgrad.channel_directed(torch.from_numpy(x), metric, dim, groups).numpy()


def torch_in_place(backend):
    def run(x, metric, dim=0, groups=1):
        grad = torch.from_numpy(x.copy())
        cdgrad.channel_directed_([grad], metric, dim, groups, backend=backend)
        return grad.numpy()

    return run


def jax_by_columns(x, metric, dim=0, groups=1):
    """JAX compiles once per shape: small problems are brought to one shape per channel count.

    So axes and groups are made here; test_optax_operator.py tests JAX's own.
    """
    channels = np.moveaxis(x, dim, 0)
    n = len(channels) // groups
    columns = np.moveaxis(channels.reshape(groups, n, -1), 1, 0)
    flat = columns.reshape(n, -1)
    padded = np.pad(flat, [(0, 0), (0, 192 - flat.shape[1] if n <= 20 else 0)])
    with jax.enable_x64(True):
        out = np.asarray(cdgrad.optax.directed(jnp.asarray(padded), metric, axis=0))
    columns = np.moveaxis(out[:, : flat.shape[1]].reshape(columns.shape), 0, 1)
    return np.moveaxis(columns.reshape(channels.shape), 0, dim)


BACKENDS: dict[str, Operator] = {
    "channel_directed": torch_out_of_place,
    "eager": torch_in_place("eager"),
    "cpu": torch_in_place("cpu"),
    "jax": jax_by_columns,
}
if find_spec("triton"):
    BACKENDS["triton"] = torch_in_place("triton")  # interpreted: see conftest.py
