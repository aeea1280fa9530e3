"""The operator on shards equals the operator on the whole, and tells only a few numbers."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from world import Operations, Traffic, in_worlds

from cdgrad import (
    L2,
    MeanSobolev,
    ReweightedL2,
    Sobolev,
    attach,
    channel_directed,
    channel_directed_,
    reference,
    select_backend,
)
from cdgrad.dtensors import local_part, whole_norms
from cdgrad.ops import eager, prepare
from cdgrad.ops.sharded.interface_system import coupling, cut, standalone

LAMS = [1e-8, 1e-1, 1e5]
COUPLED = [
    family(lam, end) for family in (Sobolev, MeanSobolev) for lam in LAMS for end in ("free", "periodic")
]
METRICS = [L2(), *map(ReweightedL2, LAMS), *COUPLED]


def relative(got, want):
    return float((got - want).detach().norm() / want.norm())


def shard(full, mesh, *placements):
    """A DTensor from the whole, which every rank holds."""
    return distribute_tensor(full, mesh, placements, src_data_rank=None)


def off(grad, want):
    """The relative error of this rank's part of a DTensor."""
    part = shard(want, grad.device_mesh, *grad.placements).to_local()
    return float((grad.to_local() - part).detach().norm() / want.norm())


def randn(*shape, dtype=torch.float64):
    """The same on every rank."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(
        dtype
    )


# The interface system, without processes


lengths = st.lists(st.integers(1, 40), min_size=2, max_size=6)
lams = st.floats(-9, 9).map(lambda exponent: 10.0**exponent)
coupled = st.builds(
    lambda family, lam, end: family(lam, end),
    st.sampled_from([Sobolev, MeanSobolev]),
    lams,
    st.sampled_from(["free", "periodic"]),
)


def by_pieces(g, metric, lengths):
    """The formula of cdgrad.ops.sharded.interface_system."""
    n, out, told = sum(lengths), [], []
    for x in g.split(lengths):
        a = eager.directed((x - x.mean(0))[None], standalone(metric, n, len(x)))[0]
        out.append(a - a.mean(0))
        told.append(torch.stack([x.mean(0), *out[-1][[0, -1]]]))
    told = torch.stack(told)
    mean = g.mean(0)
    told[:, 0] -= mean
    for i, a in enumerate(out):
        rows, w, _ = map(torch.tensor, coupling(metric, tuple(lengths), i))
        v, right, left = rows @ told.flatten(0, 1)
        a += mean + v + w[:, None] * right - w.flip(0)[:, None] * left
    return torch.cat(out)


@given(lengths, coupled)
def test_pieces_make_up_the_whole(lengths, metric):
    g = randn(sum(lengths), 3)
    assert relative(by_pieces(g, metric, lengths), eager.directed(g[None], metric)[0]) < 1e-12


@given(lengths, coupled)
def test_pieces_keep_small_deviations(lengths, metric):
    # Where lam is large, all of g~ but its mean is of order 1 / lam: without a mean it shows.
    g = randn(sum(lengths), 3)
    g -= g.mean(0)
    got, want = by_pieces(g, metric, lengths), eager.directed(g[None], metric)[0]
    assert relative(got - got.mean(0), want - want.mean(0)) < 1e-12


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        response = coupling(Sobolev(0.0625), (5, 4), 0).response
    assert abs(response.sum()) < 1e-12 < response[-1]


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 12))
def test_cut_covers_what_crosses_ranks(intervals, shards, n):
    channels = intervals * n
    pieces = cut(channels, shards, n)
    chunks = torch.arange(channels).chunk(shards)
    families = [list(family) for _, family in itertools.groupby(pieces, lambda piece: piece.interval)]
    covered = [
        torch.cat([chunks[p.rank][p.start : p.start + p.length] for p in family]) for family in families
    ]
    crossing = [
        interval
        for interval in torch.arange(channels).split(n)
        if not any(np.isin(interval, chunk).all() for chunk in chunks)
    ]
    assert [x.tolist() for x in covered] == [x.tolist() for x in crossing]
    for rank in range(shards):
        own = [piece.slot for piece in pieces if piece.rank == rank]
        assert own == list(range(len(own)))
        assert len(own) <= 2


# In worlds of one to four ranks


def check_every_metric_and_cut():
    """Even, uneven and empty shards; groups inside, across and over several shards; one metric at a time."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cases = [(o, g) for o in (1, 2, 3, 5, 8, 30) for g in (1, 2, 3, 4, 6) if o % g == 0]
    fulls = [randn(o, 3, 2) + 0.3 for o, _ in cases]
    groups = [g for _, g in cases]
    for metric in METRICS:
        grads = [shard(full, mesh, Shard(0)) for full in fulls]
        pointers = [grad.to_local().data_ptr() for grad in grads]
        channel_directed_(grads, metric, 0, groups)
        for (o, g), grad, full, pointer in zip(cases, grads, fulls, pointers, strict=True):
            want = eager.directed(full.unflatten(0, (g, -1)), metric).flatten(0, 1)
            assert off(grad, want) < 1e-10, (metric, o, g)
            assert grad.to_local().data_ptr() == pointer


def check_the_judge():
    """The dense reference itself, where it is well conditioned."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full = randn(12, 2, 3, 3)
    for metric in METRICS:
        if metric == L2() or 1e-4 < metric.lam < 1:
            grad = shard(full, mesh, Shard(0))
            channel_directed_([grad], metric, groups=3)
            want = torch.from_numpy(reference.directed(full.numpy(), metric, 0, 3))
            assert off(grad, want) < 1e-10, metric


def check_axes_and_placements():
    """Any axis, sharded or not, negative ones too, ordinary tensors in between; strides are kept."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full = randn(6, 5, 4, 4)
    for metric in (ReweightedL2(3), Sobolev(0.1, "periodic"), MeanSobolev(0.1)):
        grads, dims = [], []
        for placement in (Shard(0), Shard(1), Shard(3), Replicate()):
            for dim in (0, 1, -1):
                x = full.contiguous(memory_format=torch.channels_last)
                grads += [shard(x, mesh, placement), x.clone()]
                dims += [dim, dim]
        strides = [local_part(grad).stride() for grad in grads]
        channel_directed_(grads, metric, dims)
        assert [local_part(grad).stride() for grad in grads] == strides
        assert select_backend(grads[0], metric) == select_backend(grads[1], metric)
        for grad, dim in zip(grads, dims, strict=True):
            error = off if isinstance(grad, DTensor) else relative
            assert error(grad, channel_directed(full, metric, dim)) < 1e-10
        last = channel_directed(shard(full, mesh, Shard(3)), metric, -1)
        assert off(last, channel_directed(full, metric, -1)) < 1e-10


def check_hybrid_meshes():
    """replicate x shard, shard x replicate, and both axes sharded over two mesh dimensions."""
    if (size := dist.get_world_size()) < 4:
        return
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    full = randn(5, 4, 3)
    for placements in ([Replicate(), Shard(0)], [Shard(0), Replicate()], [Shard(1), Shard(0)]):
        for metric in METRICS:
            grad = shard(full, mesh, *placements)
            with Traffic() as traffic:
                channel_directed_([grad], metric)
            assert len(traffic.calls) == (metric != L2())
            assert off(grad, channel_directed(full, metric)) < 1e-10
            norms = whole_norms([grad], [torch.linalg.vector_norm(grad.to_local())])
            torch.testing.assert_close(norms[0][0], channel_directed(full, metric).norm())
    grad = shard(full, init_device_mesh("cpu", (1, size)), Shard(0), Shard(0))  # over one rank, and over all
    channel_directed_([grad], Sobolev(0.1))
    assert off(grad, channel_directed(full, Sobolev(0.1))) < 1e-10


def check_one_small_collective():
    """One per step and metric, not per tensor, and of the same size for any number of channels."""
    mesh = init_device_mesh("cpu", (size := dist.get_world_size(),))
    columns = [18, 10]
    for metric, told in (
        (ReweightedL2(3), 1),
        (Sobolev(0.1), 3 * size),
        (MeanSobolev(0.1, "periodic"), 3 * size),
    ):
        for channels in (64, 256, 1024, 4096):
            grads = [shard(randn(channels, 2, n // 2), mesh, Shard(0)) for n in columns]
            with Traffic() as traffic:
                channel_directed_(grads, metric)
            sizes = [size for _, size in traffic.calls]
            assert sizes == ([] if size == 1 else [8 * told * sum(columns)]), (metric, channels)


def check_nothing_is_told_without_need():
    """Groups that end where shards end, axes that are not cut, and L2."""
    mesh = init_device_mesh("cpu", (size := dist.get_world_size(),))
    grads = [shard(randn(4 * size, 4), mesh, Shard(0)) for _ in range(2)]
    with Traffic() as traffic:
        channel_directed_(grads, Sobolev(0.1), [0, 1], [2 * size, 1])
        channel_directed_(grads, L2())
    assert traffic.calls == []


def check_low_precision():
    """Rounded once, at the end; small float16 numbers, which rounding in between would cost digits."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-3), (torch.float16, 5e-4)):
        full = (randn(37, 6) / 2048).to(dtype)
        for metric in METRICS:
            grad = shard(full, mesh, Shard(0))
            channel_directed_([grad], metric)
            want = eager.directed(full.double()[None], metric)[0]
            # ReweightedL2(1e-8) leaves float16's range.
            if want.abs().max() < torch.finfo(dtype).max:
                assert grad.dtype == dtype
                assert off(grad.double(), want) < tolerance, (metric, dtype)


def check_small_deviations():
    """Where a deviation is far below the mean and amplified, or is all that is left of g~."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full = (1 + 1e-3 * randn(37, 6)).float()
    grad = shard(full, mesh, Shard(0))
    channel_directed_([grad], ReweightedL2(1e-5))
    assert off(grad.double(), eager.directed(full.double()[None], ReweightedL2(1e-5))[0]) < 1e-6

    full = randn(37, 6)
    full -= full.mean(0)
    for metric in (Sobolev(1e9), Sobolev(1e9, "periodic"), MeanSobolev(1e9), MeanSobolev(1e9, "periodic")):
        grad = shard(full, mesh, Shard(0))
        channel_directed_([grad], metric)
        got, want = grad.full_tensor(), eager.directed(full[None], metric)[0]
        assert relative(got - got.mean(0), want - want.mean(0)) < 1e-10, metric

    full = full.float()
    for metric in (Sobolev(1e4), MeanSobolev(1e4, "periodic")):
        grad = shard(full, mesh, Shard(0))
        channel_directed_([grad], metric)
        assert off(grad.double(), eager.directed(full.double()[None], metric)[0]) < 1e-5, metric


def check_values_near_the_largest_float():
    """Sums and deviations exceed it, the result does not."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for metric in (
        ReweightedL2(3),
        *(f(0.5, b) for f in (Sobolev, MeanSobolev) for b in ("free", "periodic")),
    ):
        for dtype, scale, tolerance in ((torch.float32, 2.0**127, 1e-6), (torch.float64, 2.0**1023, 1e-12)):
            small = randn(13, 3).clamp(-1.9, 1.9)
            small[:, 0] = torch.tensor([1.0, 1.0, -1.0]).repeat(5)[:13] * 1.9
            small = small.to(dtype)
            want = channel_directed(small.double(), metric)
            grad = shard(small * scale, mesh, Shard(0))
            channel_directed_([grad], metric)
            part = shard(want, mesh, Shard(0)).to_local()
            got = (grad.to_local() / scale).double()
            assert float((got - part).norm()) <= tolerance * float(want.norm()), (metric, dtype)


def check_the_smallest_and_the_largest_lam():
    """The identity and the mean; what overflows is no error that would leave gradients half changed."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for dtype in (torch.float32, torch.float64):
        full = randn(13, 3).to(dtype)
        for metric in (ReweightedL2(1e-308), MeanSobolev(1e-320)):
            channel_directed_([shard(full, mesh, Shard(0))], metric)
        for metric in (ReweightedL2(1e308), Sobolev(1e-320), Sobolev(1e308), MeanSobolev(1e308, "periodic")):
            grad = shard(full, mesh, Shard(0))
            channel_directed_([grad], metric)
            assert off(grad, channel_directed(full, metric)) < 1e-6, metric


def check_the_second_step_takes_nothing_from_the_host():
    """So that a CUDA graph can hold it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for metric in (ReweightedL2(3), Sobolev(0.1), MeanSobolev(0.1, "periodic")):
        grad = shard(randn(30, 2), mesh, Shard(0))
        channel_directed_([grad], metric)
        with Operations() as seen:
            channel_directed_([grad], metric)
        assert not {"lift_fresh", "index", "_to_copy"} & {name.split(".")[1] for name in seen.names}, metric


def check_blocks_equal_the_split_tensor():
    """A fused projection of three blocks, attached, with its channels cut over the ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for metric in (ReweightedL2(3), Sobolev(0.1), MeanSobolev(0.1, "periodic")):
        model = torch.nn.Linear(4, 15, bias=False).double()
        model.weight = torch.nn.Parameter(shard(randn(15, 4), mesh, Shard(0)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attach(optimizer, model, metric, linear=True, blocks={"weight": 3})
        grad = randn(15, 4).flip(0)
        model.weight.grad = shard(grad, mesh, Shard(0))
        optimizer.step()
        want = torch.cat([channel_directed(part, metric) for part in grad.split(5)])
        assert off(model.weight.grad, want) < 1e-10


def check_nonfinite_stays_in_its_column():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full = randn(9, 4)
    full[7, 1] = torch.inf
    for metric in METRICS[1:]:
        grad = shard(full, mesh, Shard(0))
        channel_directed_([grad], metric)
        finite = grad.to_local().isfinite()
        assert finite[:, [0, 2, 3]].all()
        assert not finite[:, 1].any()


def check_out_of_place_and_its_derivative():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full, weight = randn(7, 3), randn(7, 3) ** 2
    for metric in (ReweightedL2(3), Sobolev(0.1), MeanSobolev(0.1)):
        grad = shard(full, mesh, Shard(0)).requires_grad_()
        out = channel_directed(grad, metric)
        assert off(out, channel_directed(full, metric)) < 1e-10
        assert off(grad, full) == 0
        out.backward(shard(weight, mesh, Replicate()))
        assert grad.grad.placements == grad.placements
        assert off(grad.grad, channel_directed(weight, metric)) < 1e-10


def check_norms():
    mesh = init_device_mesh("cpu", (size := dist.get_world_size(),))
    fulls = [randn(o, 3) for o in (1, 5, 8)]
    grads = [shard(full, mesh, Shard(0)) for full in fulls]
    grads += [shard(fulls[2], mesh, Replicate()), fulls[2]]
    parts = [torch.linalg.vector_norm(local_part(grad)) for grad in grads]
    with Traffic() as traffic:
        norms, doubled = whole_norms(grads, parts, [2 * part for part in parts])
    assert len(traffic.calls) == (size > 1)
    want = torch.stack([full.norm() for full in [*fulls, fulls[2], fulls[2]]])
    torch.testing.assert_close(torch.stack(norms), want)
    torch.testing.assert_close(torch.stack(doubled), 2 * want)
    ((tiny,),) = whole_norms(grads[:1], [torch.tensor(1e-30)])  # whose square is no float32
    assert float(tiny) == pytest.approx(1e-30 * size**0.5, rel=1e-6, abs=0)


def check_odd_shapes():
    """No channels, no columns, and a stride of 0 on an axis of length 1."""
    mesh = init_device_mesh("cpu", (size := dist.get_world_size(),))
    for metric in (ReweightedL2(3), Sobolev(0.1)):
        fulls = [randn(0, 4), randn(3 * size, 0), randn(3 * size, 1)]
        grads = [shard(full, mesh, Shard(0)) for full in fulls[:2]]
        part = fulls[2].chunk(size)[dist.get_rank()].as_strided((3, 1), (1, 0))
        grads.append(DTensor.from_local(part, mesh, [Shard(0)]))
        channel_directed_(grads, metric)
        assert off(grads[2], channel_directed(randn(3 * size, 1), metric)) < 1e-10


def check_refusals():
    """They name the tensor and the placements, say what to do, and nothing is written."""
    if (size := dist.get_world_size()) < 2:
        return
    line = init_device_mesh("cpu", (size,))
    plain = randn(4, 3)
    for grad, dim, words in [
        (DTensor.from_local(randn(4, 3), line, [Partial()]), 0, ("P(sum)", "pending", "redistribute")),
        (
            DTensor.from_local(randn(4, 3), line, [Shard(0)], shape=(3 * size, 3), stride=(3, 1)),
            0,
            ("torch.chunk",),
        ),
        (shard(randn(8, 3), line, Shard(0)).select(1, 0)[:, None].expand(8, 3), 0, ("clone",)),
    ]:
        # The plain tensor comes first, so that it would be written first.
        with pytest.raises(ValueError, match=r"grads\[1\]") as caught:
            channel_directed_([plain, grad], ReweightedL2(3), dim)
        assert all(word in str(caught.value) for word in words), caught.value
        assert relative(plain, randn(4, 3)) == 0
    with pytest.raises(ValueError, match=r"^w: its shard is expanded"):
        prepare([grad], ReweightedL2(3), names=["w"]).run([grad])
    for metric in (Sobolev(0.1), MeanSobolev(0.1)):
        sparse = randn(2, 4, 4, 4, 4)[:, ::2, ::2, ::2, ::2]
        grads = [plain, DTensor.from_local(sparse, line, [Shard(0)])]
        with pytest.raises(ValueError, match=r"backend=.cpu. cannot take .* more than three axes"):
            channel_directed_(grads, metric, backend="cpu")
        assert torch.equal(plain, randn(4, 3))
        assert torch.equal(sparse, randn(2, 4, 4, 4, 4)[:, ::2, ::2, ::2, ::2])
    if size == 4:
        square = init_device_mesh("cpu", (2, 2))
        twice = shard(randn(8, 3), square, Shard(0), Shard(0))
        with pytest.raises(ValueError, match=r"grads\[0\] .*\(S\(0\), S\(0\)\).*several mesh.*exclude"):
            channel_directed_([twice], ReweightedL2(3))
        channel_directed_([twice], ReweightedL2(3), 1)
        assert off(twice, channel_directed(randn(8, 3), ReweightedL2(3), 1)) < 1e-10


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


def test_one_to_four_ranks():
    in_worlds((1, 2, 3, 4), *CHECKS)
