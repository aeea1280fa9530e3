"""The transformation among Optax's: chain, jit, scan, MultiSteps, masked, schedules, shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdgrad import L2, MeanSobolev, ReweightedL2, Sobolev
from cdgrad.optax import ChannelDirectedState, batches, channel_directed, selection
from cdgrad.reference import directed as reference

METRIC = Sobolev(0.1, "periodic")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def tree(seed=0):
    random = np.random.default_rng(seed).standard_normal
    return {"conv": {"kernel": jnp.asarray(random((2, 3, 6))), "bias": jnp.asarray(random(6))}}


def expected(gradients, metric=METRIC):
    kernel = reference(gradients["conv"]["kernel"], metric, -1)
    return {"conv": {"kernel": kernel, "bias": gradients["conv"]["bias"]}}


def close(actual, wanted, tolerance=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_directs_kernels_and_passes_the_rest(x64):
    tx = channel_directed(METRIC)
    state = tx.init(tree())
    assert state == optax.EmptyState()
    for update in (tx.update, jax.jit(tx.update)):
        updates, state = update(tree(1), state)
        close(updates, expected(tree(1)))
        assert updates["conv"]["bias"].dtype == jnp.float64


def test_half_precision_trees_keep_their_dtypes():
    gradients = jax.tree.map(lambda g: g.astype(jnp.bfloat16), tree())
    for rescale in ("none", "norm"):
        updates, _ = channel_directed(METRIC, rescale=rescale).update(gradients, optax.EmptyState())
        assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))


def test_chained_with_sgd_under_scan(x64):
    optimizer = optax.chain(channel_directed(METRIC), optax.sgd(0.1, momentum=0.9))
    plain = optax.sgd(0.1, momentum=0.9)
    gradients = [tree(seed) for seed in range(4)]

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    (scanned, _), _ = jax.lax.scan(step, (tree(9), optimizer.init(tree(9))), stacked)

    params, state = tree(9), plain.init(tree(9))
    for gradient in gradients:
        updates, state = plain.update(expected(gradient), state, params)
        params = optax.apply_updates(params, updates)
    close(scanned, params)


def test_commutes_with_multi_steps(x64):
    steps = optax.MultiSteps(channel_directed(METRIC), every_k_schedule=2, accumulator_dtype=jnp.float64)
    state = steps.init(tree())
    first, state = steps.update(tree(1), state)
    close(first, jax.tree.map(jnp.zeros_like, tree()))
    second, state = steps.update(tree(2), state)
    close(second, expected(jax.tree.map(lambda a, b: (a + b) / 2, tree(1), tree(2))))


def test_masked_leaves_pass_unchanged(x64):
    both = {"a": tree(0), "b": tree(1)}
    tx = optax.masked(channel_directed(METRIC), {"a": True, "b": False})
    updates, _ = tx.update(both, tx.init(both))
    close(updates, {"a": expected(tree(0)), "b": tree(1)})


def test_vmap_over_an_ensemble(x64):
    tx = channel_directed(METRIC)
    members = [tree(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    updates, _ = jax.vmap(lambda g: tx.update(g, optax.EmptyState()))(stacked)
    for i, member in enumerate(members):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], updates), expected(member))


def test_shard_map_over_the_batch(x64):
    """Data parallel: each device directs its own gradient, then they are averaged, or the reverse."""
    mesh = jax.make_mesh((1,), ("batch",))
    spec = jax.sharding.PartitionSpec()
    tx = channel_directed(METRIC)

    def step(gradients):
        updates, _ = tx.update(gradients, optax.EmptyState())
        return jax.lax.pmean(updates, "batch")

    close(jax.jit(jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec))(tree()), expected(tree()))


def test_a_schedule_counts_updates_and_does_not_recompile(x64):
    tx = channel_directed("sobolev:lam=1,boundary=periodic", lam=lambda count: 0.1 * (count + 1))
    state = tx.init(tree())
    assert state == ChannelDirectedState(jnp.zeros((), jnp.int32))
    update = jax.jit(tx.update)
    for count in range(3):
        assert state.count == count
        updates, state = update(tree(count), state)
        close(updates, expected(tree(count), Sobolev(0.1 * (count + 1), "periodic")))
    assert update._cache_size() == 1


@pytest.mark.parametrize("scheduled", [True, False])
def test_inject_hyperparams_sets_lam(scheduled, x64):
    lam = optax.linear_schedule(1.0, 3.0, 2) if scheduled else 1.0
    tx = optax.inject_hyperparams(channel_directed)(ReweightedL2(5), lam=lam)
    state = tx.init(tree())
    assert set(state.hyperparams) == {"lam"}
    update = jax.jit(tx.update)
    for count in range(3):
        if not scheduled:
            state.hyperparams["lam"] = jnp.asarray(1.0 + count)
        updates, state = update(tree(count), state, tree())
        close(updates, expected(tree(count), ReweightedL2(1.0 + count)))
    assert update._cache_size() == 1


def test_an_injected_axis_is_refused_with_the_remedy():
    tx = optax.inject_hyperparams(channel_directed)(METRIC, axis=-1)
    with pytest.raises(TypeError, match=r"axis must be an int, .* name it in static_args"):
        jax.jit(tx.update)(tree(), jax.eval_shape(tx.init, tree()), tree())
    tx = optax.inject_hyperparams(channel_directed, static_args="axis")(METRIC, axis=-1)
    jax.jit(tx.update)(tree(), tx.init(tree()), tree())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rescale_keeps_the_norm_of_each_leaf(scale):
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32) * scale, tree())
    plain, _ = channel_directed(METRIC).update(gradients, optax.EmptyState())
    updates, _ = channel_directed(METRIC, rescale="norm").update(gradients, optax.EmptyState())
    before, directed, after = (
        np.asarray(t["conv"]["kernel"], np.float64) for t in (gradients, plain, updates)
    )
    np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(before), rtol=1e-6)
    np.testing.assert_allclose(after / np.linalg.norm(after), directed / np.linalg.norm(directed), atol=1e-6)


def test_rescale_keeps_zero():
    zero = jax.tree.map(jnp.zeros_like, tree())
    close(channel_directed(METRIC, rescale="norm").update(zero, optax.EmptyState())[0], zero)


def test_l2_changes_nothing():
    close(channel_directed(L2()).update(tree(), optax.EmptyState())[0], tree(), 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "sobolev:lam=-1"}, ValueError, "positive and finite"),
        ({"metric": METRIC, "rescale": "max"}, ValueError, "rescale must be one of none, norm, got 'max'"),
        ({"metric": "l2", "lam": 1.0}, ValueError, "has none"),
        ({"metric": METRIC, "lam": "0.1"}, TypeError, "lam must be a number, got str"),
    ],
)
def test_mistakes_show_where_they_are_made(arguments, error, message):
    with pytest.raises(error, match=message):
        channel_directed(**arguments)


@pytest.mark.parametrize("rescale", ["none", "norm"])
@pytest.mark.parametrize(
    ("blocks", "sizes"), [(2, (3, 3)), ((3, 3), (3, 3)), ((1, 5), (1, 5)), ((3, 1, 2), (3, 1, 2))]
)
def test_blocks_equal_the_split_leaf(blocks, sizes, rescale, x64):
    """A block of one channel stays as it is; a Dense kernel that is named is directed, too."""
    gradients = {**tree(1), "qkv": {"kernel": tree(2)["conv"]["kernel"][0]}}
    tx = channel_directed(METRIC, blocks={"*/kernel": blocks}, rescale=rescale)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    for name in ("conv", "qkv"):
        g = np.asarray(gradients[name]["kernel"])
        parts = np.split(g, np.cumsum(sizes)[:-1], -1)
        wanted = np.concatenate([reference(part, METRIC, -1) for part in parts], -1)
        if rescale == "norm":
            wanted *= np.linalg.norm(g) / np.linalg.norm(wanted)
        np.testing.assert_allclose(updates[name]["kernel"], wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(updates["conv"]["bias"], gradients["conv"]["bias"])


@pytest.mark.parametrize("blocks", [4, 0, (3, 2), (6, 0), (7, -1)])
def test_blocks_that_do_not_fit_a_leaf(blocks):
    with pytest.raises(ValueError, match=r"blocks for conv/kernel of shape .* has 6 entries: expected"):
        selection(tree(), blocks={"conv/kernel": blocks})
    with pytest.raises(ValueError, match=r"blocks pattern 'fused/\*' matches no leaf"):
        selection(tree(), blocks={"fused/*": 2})


def test_blocks_of_grouped_leaves_and_of_single_channels():
    chosen = selection(tree(), groups={"*": 2}, blocks={"conv/*": 1}).targets[0]
    assert (chosen.groups, chosen.sizes) == (2, ())
    for groups, blocks in ((2, 2), (3, (2, 4))):
        with pytest.raises(ValueError, match=rf"in {groups} groups: expected a count of equal blocks"):
            selection(tree(), groups={"conv/kernel": groups}, blocks={"conv/*": blocks})
    assert selection(tree(), blocks={"conv/*": 6}).skipped[-1].reason == "one channel per block"


def several_kernels():
    random = np.random.default_rng(0).standard_normal
    shapes = {"a": (1, 2, 3, 6), "b": (3, 3, 2, 6), "grouped": (1, 2, 2, 12), "other": (1, 2, 3, 8)}
    return {name: {"kernel": jnp.asarray(random(shape))} for name, shape in shapes.items()}


@pytest.mark.parametrize("rescale", ["none", "norm"])
@pytest.mark.parametrize("metric", [METRIC, MeanSobolev(0.3)], ids=str)
def test_on_an_accelerator_kernels_of_one_channel_count_are_solved_together(
    metric, rescale, x64, monkeypatch
):
    gradients = several_kernels()
    tx = channel_directed(metric, groups={"grouped/kernel": 2}, rescale=rescale)
    apart, _ = tx.update(gradients, tx.init(gradients))
    monkeypatch.setattr(batches, "worth_batches", lambda metric: True)
    together, _ = tx.update(gradients, tx.init(gradients))
    close(together, apart)
    program = str(jax.make_jaxpr(lambda tree: tx.update(tree, tx.init(tree)))(gradients))
    assert program.count("name=_direct") == 2  # of 6 and of 8 channels


def test_what_solves_nothing_or_runs_on_a_cpu_is_left_apart(monkeypatch):
    assert not batches.worth_batches(METRIC)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches.worth_batches(METRIC)
    assert not batches.worth_batches(ReweightedL2(3))
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not batches.worth_batches(METRIC)
