"""A Flax CNN under Optax takes the same steps as the same CNN in torch under `cdgrad.attach`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from sklearn.datasets import load_digits

import cdgrad
from cdgrad.optax import channel_directed

LR, MOMENTUM, BATCH, STEPS = 0.1, 0.9, 80, 20


class FlaxCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), param_dtype=jnp.float64, name="one")(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=2, param_dtype=jnp.float64, name="two")(x))
        return nn.Dense(10, param_dtype=jnp.float64, name="head")(x.mean((1, 2)))


class TorchCNN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Conv2d(1, 8, 3, padding=1, dtype=torch.float64)
        self.two = torch.nn.Conv2d(8, 12, 3, padding=1, groups=2, dtype=torch.float64)
        self.head = torch.nn.Linear(12, 10, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


def as_flax(model):
    """The torch weights (O, I, h, w) and (O, I) as Flax kernels (h, w, I, O) and (I, O)."""
    params = {}
    for name, layer in model.named_children():
        weight = layer.weight.detach().numpy()
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        params[name] = {"kernel": jnp.array(kernel), "bias": jnp.array(layer.bias.detach().numpy())}
    return params


@pytest.mark.parametrize(
    ("metric", "rescale"),
    [("reweighted:lam=3", "norm"), ("sobolev:lam=0.02,boundary=periodic", "none")],
)
def test_flax_and_torch_train_step_for_step(metric, rescale):
    images, labels = load_digits(return_X_y=True)
    images = images[: BATCH * STEPS].reshape(-1, 1, 8, 8) / 16
    torch.manual_seed(0)
    model = TorchCNN()
    with jax.enable_x64(True):
        params = as_flax(model)
        sgd = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
        cdgrad.attach(sgd, model, metric, rescale=rescale)
        optimizer = optax.chain(
            channel_directed(metric, groups={"two/kernel": 2}, rescale=rescale),
            optax.sgd(LR, momentum=MOMENTUM),
        )
        state = optimizer.init(params)

        @jax.jit
        def step(params, state, x, y):
            def loss(params):
                logits = FlaxCNN().apply({"params": params}, x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, value

        start = params
        for i in range(STEPS):
            batch = slice(i * BATCH, (i + 1) * BATCH)
            x, y = images[batch], labels[batch]
            sgd.zero_grad()
            theirs = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
            theirs.backward()
            sgd.step()
            params, state, ours = step(params, state, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(y))
            assert abs(ours - theirs.item()) < 1e-9
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(as_flax(model)), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, start)
        assert min(jax.tree.leaves(moved)) > 1e-3
