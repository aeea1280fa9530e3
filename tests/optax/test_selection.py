"""Which leaves of Flax, Equinox and Haiku trees are kernels, and along which axis."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from cdgrad.optax import channel_directed, selection


def chosen(params, **options):
    return {t.name: (t.axis, t.groups) for t in selection(params, **options).targets}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.ConvTranspose(6, (3, 3))(x)
        x = nn.ConvTranspose(5, (3, 3), transpose_kernel=True, name="mirrored")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = nn.Conv(1, (3,), name="scalar")(nn.MultiHeadDotProductAttention(num_heads=1)(x))
        return nn.Dense(10)(x)


@pytest.fixture(scope="module")
def linen():
    shapes = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    return shapes["params"]


def test_linen_needs_the_group_counts_and_the_mirrored_kernel(linen):
    groups = {"grouped/kernel": 2, "depthwise/kernel": 8}
    assert chosen(linen, groups=groups, select={"mirrored/kernel": -2}) == {
        "Conv_0/kernel": (-1, 1),
        "ConvTranspose_0/kernel": (-1, 1),
        "grouped/kernel": (-1, 2),
        "mirrored/kernel": (-2, 1),
    }
    assert linen["mirrored"]["kernel"].shape == (3, 3, 5, 6)  # (..., O, I)


def test_every_leaf_is_in_the_table_with_its_reason(linen):
    table = selection(linen, groups={"depthwise/kernel": 8})
    assert len(table.leaves) == len(jax.tree.leaves(linen))
    reasons = {s.name: s.reason for s in table.skipped}
    assert reasons["depthwise/kernel"] == "one channel per group: nothing to smooth"
    assert reasons["scalar/kernel"] == "one channel: nothing to smooth"
    assert reasons["Dense_0/kernel"].startswith("rank 2: Dense, off by default")
    assert reasons["Conv_0/bias"] == reasons["BatchNorm_0/scale"] == "rank 1: a bias or norm parameter"
    assert "projection" in reasons["MultiHeadDotProductAttention_0/query/kernel"]
    for leaf in table.leaves:
        assert leaf.name in str(table)


def test_a_possible_depthwise_kernel_is_pointed_out():
    shapes = {"depthwise": (3, 3, 1, 8), "pointwise": (1, 1, 8, 8), "dense": (1, 8), "flat": (8, 4, 1, 3)}
    params = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    select = {"dense/*": -1, "flat/*": 0}
    table = selection(params, select=select)
    assert {t.name for t in table.targets if t.note} == {"depthwise/kernel"}
    assert len(table.targets) == 4
    assert "if this kernel is depthwise, set its count in groups=" in str(table)
    assert not any(t.note for t in selection(params, select=select, groups={"depthwise/*": 1}).targets)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 4, (3, 3), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)


def test_nnx_has_the_same_names_on_init_and_on_update():
    state = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param)
    expected = {"conv/kernel": (-1, 1), "up/kernel": (-1, 1)}
    assert chosen(state) == chosen(nnx.as_pure(state)) == expected


def test_nnx_optimizer_takes_the_transformation():
    model = Nnx(nnx.Rngs(0))
    before = nnx.as_pure(nnx.state(model, nnx.Param))
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    tx = optax.chain(channel_directed("reweighted:lam=3"), optax.sgd(0.5))
    nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, gradients)
    after = nnx.as_pure(nnx.state(model, nnx.Param))
    # A constant gradient is its own mean, which every metric keeps.
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert jnp.allclose(a, b - 0.5, atol=1e-6)


class Equinox(eqx.Module):
    first: eqx.nn.Conv2d
    grouped: eqx.nn.Conv1d
    depthwise: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    norm: eqx.nn.LayerNorm
    rest: list

    def __init__(self, key):
        self.first = eqx.nn.Conv2d(3, 8, 3, key=key)
        self.grouped = eqx.nn.Conv1d(8, 6, 3, groups=2, key=key)
        self.depthwise = eqx.nn.Conv2d(8, 8, 3, groups=8, key=key)
        self.up = eqx.nn.ConvTranspose2d(8, 4, 3, groups=2, key=key)
        self.norm = eqx.nn.LayerNorm(8)
        self.rest = [jax.nn.relu, eqx.nn.Linear(4, 2, key=key)]


def test_equinox_layers_know_their_axis_and_groups():
    model = eqx.filter_eval_shape(Equinox, jax.random.key(0))
    assert model.up.weight.shape == (4, 4, 3, 3)  # (O, I / groups, ...), unlike torch's
    expected = {"first/weight": (-4, 1), "grouped/weight": (-3, 2), "up/weight": (-4, 2)}
    assert chosen(model) == expected
    assert chosen(model, select={"grouped/weight": 1})["grouped/weight"] == (1, 2)
    reasons = {skipped.name: skipped.reason for skipped in selection(model).skipped}
    assert reasons["first/bias"] == "rank 3: a bias or norm parameter"
    assert "select={name: axis} processes it" in reasons["rest/1/weight"]
    stacked = eqx.filter_eval_shape(eqx.filter_vmap(Equinox), jax.random.split(jax.random.key(0), 5))
    assert stacked.up.weight.shape == (5, 4, 4, 3, 3)
    assert chosen(stacked) == expected


def test_a_weight_without_its_equinox_layer_has_no_known_axis():
    assert chosen({"conv": {"weight": jnp.ones((8, 3, 3, 3))}}) == {}
    assert chosen({"conv": {"weight": jnp.ones((8, 3, 3, 3))}}, select={"*/weight": 0}) == {
        "conv/weight": (0, 1)
    }


def test_haiku_by_path_and_shape():
    """Trees in Haiku's layout, written by hand: Haiku itself is not among the test dependencies."""
    params = {
        "net/~/conv2_d": {"w": jnp.ones((3, 3, 4, 8)), "b": jnp.ones(8)},
        "net/~/conv2_d_transpose": {"w": jnp.ones((3, 3, 5, 8))},
        "net/~/depthwise_conv2_d": {"w": jnp.ones((3, 3, 1, 8))},
        "net/~/linear": {"w": jnp.ones((8, 2))},
    }
    assert chosen(params) == {"net/~/conv2_d/w": (-1, 1), "net/~/conv2_d_transpose/w": (-2, 1)}


def test_haiku_modules_around_a_layer_do_not_decide_its_kind():
    params = {
        "depthwise_separable/pointwise": {"w": jnp.ones((1, 1, 4, 8)), "b": jnp.ones(8)},
        "depthwise_separable/dw": {"w": jnp.ones((3, 3, 1, 8))},
        "transposed_net/conv2_d": {"w": jnp.ones((3, 3, 8, 8)), "b": jnp.ones(8)},
    }
    assert chosen(params) == {
        "depthwise_separable/pointwise/w": (-1, 1),
        "transposed_net/conv2_d/w": (-1, 1),
    }


def test_a_count_for_a_haiku_depthwise_kernel_with_a_multiplier_is_taken():
    params = {"depthwise_conv2_d": {"w": jnp.ones((3, 3, 1, 8))}}  # 4 input channels, 2 outputs for each
    assert chosen(params, groups={"depthwise*/w": 4}) == {"depthwise_conv2_d/w": (-1, 4)}
    assert chosen(params, groups={"depthwise*/w": 8}) == {}
    assert "unless groups={name: count}" in selection(params).skipped[0].reason


@pytest.mark.parametrize(
    ("kernel", "bias", "axis"),
    [((3, 3, 5, 8), (5,), -2), ((3, 3, 5, 8), (8,), -1), ((3, 5, 8), (5, 1), -2), ((3, 3, 8, 8), (8,), -1)],
)
def test_the_bias_shows_the_output_axis_of_a_layer_with_a_name_of_its_own(kernel, bias, axis):
    """As of Haiku's ConvTranspose(name="up"), and Flax's with transpose_kernel=True."""
    for weight, other in (("w", "b"), ("kernel", "bias")):
        params = {"net": {"up": {weight: jnp.ones(kernel), other: jnp.ones(bias)}}}
        assert chosen(params) == {f"net/up/{weight}": (axis, 1)}
    params = {"net/conv_transpose": {"w": jnp.ones((3, 3, 8, 8)), "b": jnp.ones(8)}}
    assert chosen(params) == {"net/conv_transpose/w": (-2, 1)}  # as many inputs: the name decides


def test_select_overrides(linen):
    assert "Dense_0/kernel" in chosen(linen, select={"Dense_*/kernel": -1})
    assert "Conv_0/kernel" not in chosen(linen, select={"Conv_*/kernel": None})
    first_counts = chosen(linen, select={"Conv_0/*nel": -2, "Conv_*/kernel": None})
    assert first_counts["Conv_0/kernel"] == (-2, 1)
    only = chosen(linen, select=lambda name, leaf: name.startswith("Dense") and leaf.ndim == 2)
    assert only == {"Dense_0/kernel": (-1, 1)}
    assert set(chosen(linen, axis=-2).values()) == {(-2, 1)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"select": {"conv*": -1}},
            ValueError,
            "select pattern 'conv\\*' matches no leaf; names are Conv/bias",
        ),
        ({"groups": {"x": 2}}, ValueError, "groups pattern 'x' matches no leaf"),
        (
            {"groups": {"*bias": 2}},
            ValueError,
            "groups pattern '\\*bias' matches only leaves that are left alone: Conv/bias \\(rank 1: a bias",
        ),
        ({"blocks": {"*bias": 2}}, ValueError, "blocks pattern '\\*bias' matches only leaves that are left"),
        ({"blocks": {"step": 2}}, ValueError, "matches only leaves that are left alone: step \\(int: not an"),
        ({"groups": {"*kernel": 3}}, ValueError, "groups=3 for 8 channels, axis -1 of Conv/kernel"),
        ({"groups": {"*kernel": -2}}, ValueError, "groups=-2 for 8 channels"),
        ({"select": {"*kernel": 4}}, IndexError, "axis 4 is out of range for Conv/kernel"),
        ({"select": {"*kernel": -5}}, IndexError, "axis -5 is out of range for Conv/kernel"),
        ({"select": {"*kernel": "last"}}, TypeError, "the axis for '\\*kernel' must be an int, got 'last'"),
        ({"axis": 0.5}, TypeError, "axis must be an int"),
    ],
)
def test_errors_teach(options, error, message):
    params = {"Conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}, "step": 3}
    with pytest.raises(error, match=message):
        selection(params, **options)


def test_other_leaves_are_left_alone():
    tree = {"kernel": jnp.ones((2, 3, 4), int), "count": 3, "w": jnp.ones((2, 3, 4), complex), "none": None}
    tree["head"] = {"value": jnp.ones(3)}  # a name of the user's, unlike that of a Flax nnx variable
    reasons = {s.name: s.reason for s in selection(tree).skipped}
    assert reasons == {
        "count": "int: not an array",
        "head/value": "rank 1: a bias or norm parameter",
        "kernel": "dtype int32: not real floating point",
        "w": "dtype complex64: not real floating point",
    }


def test_nothing_to_direct_warns():
    with pytest.warns(UserWarning, match="nothing to direct among 1 leaves"):
        channel_directed("reweighted:lam=3").init({"Dense_0": {"kernel": jnp.ones((3, 4))}})


class Scanned(nn.Module):
    """Layers stacked by scan: dense with and without bias, attention, 1-d and 2-d convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3,), use_bias=False, name="Conv_1d")(nn.Conv(8, (3, 3))(x).mean(1))

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = nn.Dense(8, name="mlp")(nn.Dense(8)(x))
                x = nn.Dense(8, use_bias=False, name="mix")(x)
                x = nn.DenseGeneral((2, 4), name="to_heads")(x).reshape(x.shape)
                return nn.Conv(8, (3,), name="along")(x), None

        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)()(x, None)
        return nn.DenseGeneral((2, 4), name="to_heads")(x)


def test_stacked_dense_kernels_are_no_convolutions():
    shapes = jax.eval_shape(Scanned().init, jax.random.key(0), jnp.ones((2, 8, 8, 1)))["params"]
    table = selection(shapes)
    assert {t.name for t in table.targets} == {
        "Conv_0/kernel",
        "Conv_1d/kernel",
        "ScanBlock_0/along/kernel",
    }
    reasons = {s.name: s.reason for s in table.skipped}
    assert "stacked Dense" in reasons["ScanBlock_0/mlp/kernel"]
    assert "stacked Dense" in reasons["ScanBlock_0/to_heads/kernel"]
    assert "stacked Dense" in reasons["to_heads/kernel"]
    assert reasons["ScanBlock_0/mix/kernel"].startswith("undecided")
    with pytest.warns(UserWarning, match=r"left 1 kernels alone .*\(ScanBlock_0/mix/kernel\); decide with"):
        channel_directed("reweighted:lam=3").init(shapes)
    assert "ScanBlock_0/mix/kernel" in chosen(shapes, select={"*/mix/kernel": -1})
    with pytest.warns(UserWarning, match="left 1 kernels alone") as said:
        channel_directed("reweighted:lam=3").init({"mix": {"kernel": jnp.ones((4, 8, 8))}})
    assert len(said) == 1  # and not that there is nothing to direct, too


@pytest.mark.parametrize(
    ("layer", "kernel", "bias", "axis"),
    [
        ("conv_proj", (3, 3, 4, 8), (8,), -1),
        ("ConvLocal_0", (4, 4, 27, 8), (4, 4, 8), -1),  # one kernel and bias for each position
        ("conv_transpose", (3, 3, 8, 8), None, -1),  # Flax's, not Haiku's
        ("up", (3, 3, 70, 80), None, -1),
        ("mix", (4, 70, 2, 8), None, None),  # no window is as long as 70
        ("mix", (4, 70, 2, 8), (4, 8), None),
    ],
)
def test_name_bias_and_window_tell_convolutions_from_projections(layer, kernel, bias, axis):
    leaves = {"kernel": kernel} | ({"bias": bias} if bias else {})
    params = jax.tree.map(jnp.ones, {layer: leaves}, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert chosen(params) == ({f"{layer}/kernel": (axis, 1)} if axis else {})


def test_the_bias_of_a_tree_that_is_one_layer_is_found():
    assert chosen({"kernel": jnp.ones((3, 4, 8)), "bias": jnp.ones(8)}) == {"kernel": (-1, 1)}
    assert chosen({"kernel": jnp.ones((3, 4, 8)), "bias": jnp.ones((3, 8))}) == {}


def test_haiku_biases_of_channels_first_layers_do_not_mislead():
    params = {"net/conv2_d": {"w": jnp.ones((3, 3, 4, 8)), "b": jnp.ones((8, 1, 1))}}
    assert chosen(params) == {"net/conv2_d/w": (-1, 1)}
    assert not chosen({"net/linear": {"w": jnp.ones((2, 4, 8)), "b": jnp.ones((2, 8))}})
