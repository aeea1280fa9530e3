"""The JAX operator beyond the contract: axes, groups, dtypes, transformations, precision, devices."""

import subprocess
import sys
import textwrap
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cdgrad
from cdgrad import L2, MeanSobolev, ReweightedL2, Sobolev
from cdgrad.optax import blocks, directed, operator
from cdgrad.optax.operator import direct
from cdgrad.reference import directed as reference

METRICS = [
    ReweightedL2(3),
    Sobolev(0.01),
    Sobolev(0.2, "periodic"),
    MeanSobolev(0.05),
    MeanSobolev(0.3, "periodic"),
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@every_metric
@pytest.mark.parametrize(("axis", "groups"), [(0, 1), (1, 2), (-1, 1), (-2, 3), (2, 4)])
def test_axes_and_groups_agree_with_torch_and_the_reference(metric, axis, groups, x64):
    x = random(5, 8, 12)
    if axis == -2:
        x = x.swapaxes(-1, -2)
    ours = np.asarray(directed(jnp.asarray(x), metric, axis=axis, groups=groups))
    theirs = cdgrad.channel_directed(torch.from_numpy(x), metric, axis, groups).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())
    np.testing.assert_allclose(ours, reference(x, metric, axis, groups), rtol=0, atol=1e-12)


@every_metric
def test_half_precision_is_computed_in_float32(metric):
    x = jnp.asarray(random(7, 6), jnp.float32)
    for dtype in (jnp.bfloat16, jnp.float16):
        half = x.astype(dtype)
        out = directed(half, metric, axis=0)
        assert out.dtype == dtype
        assert jnp.array_equal(out, directed(half.astype(jnp.float32), metric, axis=0).astype(dtype))


def test_dtype_and_shape_are_kept(x64):
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
        for shape in ((0, 3), (1, 3), (4, 0)):
            out = directed(jnp.ones(shape, dtype), "sobolev:lam=1", axis=0)
            assert (out.dtype, out.shape) == (dtype, shape)


@every_metric
def test_a_traced_lam_equals_the_metrics_own_and_does_not_recompile(metric, x64):
    x = jnp.asarray(random(6, 4))
    traces = []

    @jax.jit
    def run(lam):
        traces.append(lam)
        return directed(x, metric, axis=0, lam=lam)

    for lam in (1e-3, 1.0, 50.0):
        own = type(metric)(lam, *([metric.boundary] if hasattr(metric, "boundary") else []))
        np.testing.assert_allclose(run(lam), reference(x, own), rtol=0, atol=1e-12 * max(1, 1 / lam))
    assert len(traces) == 1
    assert run._cache_size() == 1


@every_metric
def test_one_program_serves_every_lam(metric):
    x = jnp.asarray(random(6, 4))
    before = operator._direct._cache_size()
    for lam in (1e-3, 1.0, 50.0):
        directed(x, metric, axis=0, lam=lam)
    assert operator._direct._cache_size() <= before + 1


@every_metric
def test_vmap_over_gradients_and_lam(metric, x64):
    xs, lams = jnp.asarray(random(3, 6, 4)), jnp.asarray([0.1, 1.0, 10.0])
    together = jax.vmap(lambda x, lam: directed(x, metric, axis=0, lam=lam))(xs, lams)
    apart = [directed(x, metric, axis=0, lam=lam) for x, lam in zip(xs, lams, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(apart), rtol=1e-13, atol=1e-14)


@every_metric
def test_the_operator_is_its_own_derivative(metric, x64):
    x, k = jnp.asarray(random(6, 4)), jnp.asarray(random(7, 4)[:6])

    def run(x):
        return directed(x, metric, axis=0)

    value, tangent = jax.jvp(run, (x,), (k,))
    (pulled,) = jax.vjp(run, x)[1](k)
    np.testing.assert_allclose(tangent, run(k), atol=1e-12)
    np.testing.assert_allclose(pulled, run(k), atol=1e-12)
    np.testing.assert_allclose(value, run(x), atol=1e-13)


def test_the_derivative_in_lam_is_finite(x64):
    x = jnp.asarray(random(6, 4))
    for metric in METRICS:
        slope = jax.grad(lambda lam, m=metric: jnp.sum(directed(x, m, axis=0, lam=lam) ** 2))(1.0)
        assert jnp.isfinite(slope)
        assert slope < 0  # a larger lam always smooths more


@pytest.mark.parametrize("n", [60, 2048])
@pytest.mark.parametrize("boundary", ["free", "periodic"])
def test_float32_stays_within_1e_6_without_x64(n, boundary):
    """Also with coefficients from a traced float32 lam, up to lam n^2 = 4e9."""
    assert not jax.config.jax_enable_x64
    noise = random(n, 4)
    for x in (noise, noise - noise.mean(0), noise + 100):
        x = x.astype(np.float32)
        for lam in (1e-6, 1e-3, 1.0, 1e3):
            for family in (Sobolev, MeanSobolev):
                exact = cdgrad.channel_directed(torch.from_numpy(x).double(), family(lam, boundary)).numpy()
                ours = directed(jnp.asarray(x), family(1, boundary), axis=0, lam=jnp.float32(lam))
                # lam itself is rounded to float32.
                assert np.linalg.norm(ours - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8, 12, 13, 20, 64, 250, 1024])
def test_an_accelerators_program_is_as_exact(n, monkeypatch):
    """It eliminates three of four unknowns at once where a CPU's eliminates every second one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = jax.jit(partial(operator._direct.__wrapped__, axis=0, groups=1, rescale="none"))
    noise = random(n, 4)
    for x in (noise, noise - noise.mean(0), noise + 100):
        x = x.astype(np.float32)
        for lam, boundary in product((1e-6, 1e-3, 1.0, 1e3), ("free", "periodic")):
            for row_sum, metric in ((1.0, Sobolev(lam, boundary)), (0.0, MeanSobolev(lam, boundary))):
                exact = cdgrad.channel_directed(torch.from_numpy(x).double(), metric).numpy()
                ours = run(x, lam, row_sum, float(boundary == "periodic"))
                assert np.linalg.norm(ours - exact) <= 1e-6 * np.linalg.norm(exact)
    assert run._cache_size() == 1


def test_an_accelerator_stores_fewer_levels(monkeypatch):
    """Each barrier is one array in memory, and one kernel at least."""

    def barriers():
        run = partial(operator._direct.__wrapped__, axis=0, groups=1, rescale="none")
        return str(jax.make_jaxpr(run)(jnp.zeros((512, 4)), 0.1, 1.0, 0.0)).count("optimization_barrier")

    on_a_cpu = barriers()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (on_a_cpu, barriers()) == (16, 6)


def test_numpy_gradients_are_taken():
    x = random(6, 4).astype(np.float32)
    out = directed(x, "sobolev:lam=1", axis=0)
    assert isinstance(out, jax.Array)
    assert jnp.array_equal(out, directed(jnp.asarray(x), "sobolev:lam=1", axis=0))
    with pytest.raises(TypeError, match="NumPy array of a real floating dtype, got int64"):
        directed(np.ones(3, np.int64), "l2")


@every_metric
def test_what_is_not_finite_stays_in_its_column(metric):
    for bad in (np.nan, np.inf):
        x = random(6, 4)
        x[2, 1] = bad
        out = np.asarray(directed(jnp.asarray(x), metric, axis=0))
        assert not np.isfinite(out[:, 1]).any()
        assert np.isfinite(np.delete(out, 1, axis=1)).all()


@pytest.fixture
def tiny_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 32)
    operator._direct.clear_cache()
    yield
    operator._direct.clear_cache()


@pytest.mark.parametrize(
    ("shape", "axis", "groups", "metric", "rescale"),
    [
        ((5, 9, 12), -1, 3, MeanSobolev(0.1), "none"),
        ((12, 41), 0, 1, Sobolev(0.1), "norm"),
        ((2, 12, 31), 1, 2, MeanSobolev(0.1, "periodic"), "none"),
        ((7, 3, 12, 2), 2, 1, Sobolev(0.1, "periodic"), "norm"),
    ],
)
def test_large_gradients_go_block_by_block(shape, axis, groups, metric, rescale, tiny_blocks, x64):
    """Blocks that do not divide the columns, before and behind the channel axis; derivatives and batches."""
    x = jnp.asarray(random(*shape))

    def run(x):
        return direct(x, metric, metric.lam, axis=axis, groups=groups, rescale=rescale)

    expected = reference(x, metric, axis, groups)
    if rescale == "norm":
        expected *= np.linalg.norm(x) / np.linalg.norm(expected)
    assert "scan[" in str(jax.make_jaxpr(run)(x))
    np.testing.assert_allclose(run(x), expected, rtol=0, atol=1e-12)
    batch = jax.vmap(run)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(batch, [expected, 2 * expected], rtol=0, atol=1e-12)
    if rescale == "none":
        (pulled,) = jax.vjp(run, x)[1](x)
        np.testing.assert_allclose(pulled, expected, rtol=0, atol=1e-12)


def test_one_long_column_is_not_cut(tiny_blocks, x64):
    x = random(130, 1)
    for shape in ((130,), (130, 1), (1, 130)):
        for metric in (ReweightedL2(3), Sobolev(0.1)):
            out = directed(jnp.asarray(x.reshape(shape)), metric, axis=shape.index(130))
            np.testing.assert_allclose(out, reference(x, metric).reshape(shape), rtol=0, atol=1e-12)


@pytest.mark.skipif(jax.__version_info__ < (0, 10, 2), reason="XLA wrote the gradient in float64 on a CPU")
@pytest.mark.parametrize("axis", [0, 1])
def test_reweighting_writes_one_array(axis):
    """However large it is: two sums of each column, and the result."""
    x = jnp.asarray(random(1536, 1024), jnp.float32)
    program = jax.jit(lambda x: directed(x, ReweightedL2(3), axis=axis)).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.05 * x.nbytes
    main = program.as_text().partition("ENTRY")[2].splitlines()[1:]
    assert [line.split()[0] for line in main if "= f32[1536,1024]" in line and "parameter(" not in line] == [
        "ROOT"
    ]


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38])
@every_metric
def test_any_scale_of_float32_is_kept(metric, scale):
    x = (np.random.default_rng(1).uniform(-1, 1, (40, 3)) * scale).astype(np.float32)
    out = np.asarray(directed(jnp.asarray(x), metric, axis=0), np.float64)
    exact = reference(x.astype(np.float64), metric)
    # Compilers may take subnormal numbers for 0.
    allowed = 1e-6 * np.linalg.norm(exact) + np.finfo(np.float32).tiny * np.sqrt(x.size)
    assert np.linalg.norm(out - exact) <= allowed


def test_l2_returns_the_gradient():
    x = jnp.asarray(random(3, 4))
    assert directed(x, L2()) is x


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grad": jnp.ones(3, int)}, TypeError, "real floating dtype, got int32"),
        ({"grad": jnp.ones(3, complex)}, TypeError, "got complex64"),
        ({"grad": [1.0]}, TypeError, "got list"),
        ({"axis": 2}, IndexError, "axis 2 is out of range for grad of shape \\(6, 4\\)"),
        ({"axis": 0, "groups": 4}, ValueError, "groups=4 for 6 channels"),
        ({"groups": 0}, ValueError, "positive divisor"),
        ({"metric": "l2", "lam": 1.0}, ValueError, "has none"),
        ({"lam": -1.0}, ValueError, "positive and finite"),
        ({"lam": jnp.ones(2)}, TypeError, "real scalar, got float32 of shape \\(2,\\)"),
        ({"metric": 3}, TypeError, "expected a metric"),
    ],
)
def test_errors_teach(arguments, error, message):
    call = {"grad": jnp.ones((6, 4)), "metric": "sobolev:lam=1"} | arguments
    with pytest.raises(error, match=message):
        directed(**call)


def test_the_output_axis_may_be_sharded():
    """Under jit, over 4 forced devices: which axis is split changes nothing but the layout."""
    run_apart("""
        import itertools
        import jax, jax.numpy as jnp, numpy as np
        jax.config.update("jax_num_cpu_devices", 4)
        jax.config.update("jax_enable_x64", True)
        from jax.sharding import NamedSharding, PartitionSpec as P
        import cdgrad.optax
        from cdgrad import MeanSobolev, ReweightedL2
        from cdgrad.reference import directed
        x = np.random.default_rng(0).standard_normal((3, 4, 24))
        cases = [(ReweightedL2(3), 2), (MeanSobolev(0.1, "periodic"), 1)]
        kinds = [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]
        specs = [P(None, None, "model"), P(None, "model")]
        for kind, (metric, groups), spec in itertools.product(kinds, cases, specs):
            mesh = jax.make_mesh((4,), ("model",), axis_types=(kind,))
            sharding = NamedSharding(mesh, spec)
            grad = jax.device_put(x, sharding)
            assert len(set(str(s.index) for s in grad.addressable_shards)) == 4
            call = lambda g: cdgrad.optax.directed(g, metric, groups=groups)
            out = jax.jit(call, out_shardings=sharding)(grad)
            assert out.sharding == sharding
            np.testing.assert_allclose(out, directed(x, metric, -1, groups), atol=1e-12)
    """)


def test_the_output_axis_may_be_sharded_over_accelerators():
    """Their program, on 4 forced devices; XLA's partitioner was wrong about its last level of 8 unknowns."""
    run_apart("""
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 4)
        jax.config.update("jax_enable_x64", True)
        jax.default_backend = lambda: "gpu"
        from jax.sharding import NamedSharding, PartitionSpec as P
        import cdgrad.optax
        from cdgrad import Sobolev
        from cdgrad.reference import directed
        mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        for n in (4, 8, 16, 32):
            x = np.random.default_rng(0).standard_normal((3, n))
            grad = jax.device_put(x, NamedSharding(mesh, P(None, "model")))
            out = cdgrad.optax.directed(grad, Sobolev(0.1))
            np.testing.assert_allclose(out, directed(x, Sobolev(0.1), -1), atol=1e-12)
    """)


def test_data_parallel_under_shard_map():
    """Over 4 forced devices: each directs the gradient of its part of the batch, then they are averaged."""
    run_apart("""
        import jax, jax.numpy as jnp, numpy as np, optax
        jax.config.update("jax_num_cpu_devices", 4)
        jax.config.update("jax_enable_x64", True)
        from jax.sharding import PartitionSpec as P
        from cdgrad import MeanSobolev
        from cdgrad.optax import channel_directed
        from cdgrad.reference import directed
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        tx = optax.chain(channel_directed(MeanSobolev(0.1)), optax.sgd(1.0))
        gradients = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3, 2, 10)))

        def step(part):
            updates, _ = tx.update({"conv": {"kernel": part.mean(0)}}, tx.init({"conv": {"kernel": part[0]}}))
            return jax.lax.pmean(updates["conv"]["kernel"], "batch")

        mapped = jax.shard_map(step, mesh=mesh, in_specs=P("batch"), out_specs=P())
        expected = -directed(np.asarray(gradients.mean(0)), MeanSobolev(0.1), -1)
        np.testing.assert_allclose(jax.jit(mapped)(gradients), expected, atol=1e-12)
    """)


@every_metric
def test_the_cost_is_linear_in_the_channels(metric):
    """Operations that XLA counts, for 16 times the channels; a dense product would take 256 times as many."""

    def operations(n):
        lowered = jax.jit(lambda x: directed(x, metric, axis=0)).lower(
            jax.ShapeDtypeStruct((n, 8), "float32")
        )
        return lowered.cost_analysis()["flops"]

    assert 8 < operations(1024) / operations(64) < 24


def test_neither_side_imports_the_others_library():
    run_apart("import sys, cdgrad.optax; assert 'torch' not in sys.modules and 'numba' not in sys.modules")
    run_apart(
        "import sys, cdgrad; cdgrad.Sobolev(1); assert not {'jax', 'optax', 'torch'} & set(sys.modules)"
    )
    run_apart("import sys, cdgrad; cdgrad.channel_directed; assert not {'jax', 'optax'} & set(sys.modules)")


def run_apart(code):
    """In a process of its own: devices and imports are decided once per process."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_operator_needs_no_optax():
    program = """
import sys
sys.modules["optax"] = None  # as if it were not installed
import jax.numpy as jnp
from cdgrad.optax import directed, selection
print(directed(jnp.array([1.0, 3.0]), "reweighted:lam=4"), callable(selection))
try:
    from cdgrad.optax import channel_directed
except ImportError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[1.75 2.25] True", "optax"], done.stderr
