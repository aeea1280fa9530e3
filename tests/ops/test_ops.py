"""What the operator promises about tensors: dtypes, strides, memory, derivatives, errors."""

import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgrad import (
    L2,
    MeanSobolev,
    ReweightedL2,
    Sobolev,
    attach,
    channel_directed,
    channel_directed_,
    select_backend,
)
from cdgrad.metrics import with_lam
from cdgrad.ops import addresses, local, overlaps, prepare
from cdgrad.ops.local import BACKENDS
from cdgrad.ops.overlaps import refuse_overlaps
from cdgrad.reference import directed

METRICS = [
    L2(),
    ReweightedL2(3),
    Sobolev(0.1),
    Sobolev(0.1, "periodic"),
    MeanSobolev(0.1),
    MeanSobolev(0.1, "periodic"),
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)


def layouts():
    """Tensors of one shape, (6, 4, 3, 3), whose elements lie in memory in many ways."""
    torch.manual_seed(0)
    base = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    yield "contiguous", base
    yield "channels_last", base.to(memory_format=torch.channels_last)
    yield "transposed", torch.randn(3, 4, 6, 3, dtype=torch.float64).transpose(0, 2)
    yield "strided", torch.randn(12, 4, 3, 6, dtype=torch.float64)[::2, :, :, ::2]
    yield "offset", torch.randn(1 + base.numel(), dtype=torch.float64)[1:].view(base.shape)
    yield "expanded kernel", torch.randn(6, 4, 1, 1, dtype=torch.float64).expand(6, 4, 3, 3)
    yield "expanded channel", torch.randn(1, 4, 3, 3, dtype=torch.float64).expand(6, 4, 3, 3)


@every_metric
@pytest.mark.parametrize("grad", [pytest.param(grad, id=name) for name, grad in layouts()])
@pytest.mark.parametrize(("dim", "groups"), [(0, 1), (0, 2), (1, 1), (1, 4), (-1, 1)])
def test_any_strides(metric, grad, dim, groups):
    """Out of place, and in place by every backend."""
    results = {"out of place": channel_directed(grad, metric, dim, groups)}
    for backend in ("auto", *BACKENDS):
        memory = grad.untyped_storage().clone()
        copy = grad.new_empty(0).set_(memory, grad.storage_offset(), grad.shape, grad.stride())
        channel_directed_([copy], metric, dim, groups, backend=backend)
        assert copy.untyped_storage().data_ptr() == memory.data_ptr()
        results[backend] = copy
    expected = directed(grad.numpy(), metric, dim, groups)
    for how, result in results.items():
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12, err_msg=how)


def test_in_place_touches_nothing_beside_the_tensor():
    memory = torch.randn(12, 5)
    before = memory.clone()
    channel_directed_([memory[::2, 1:4]], "sobolev:lam=1")
    assert torch.equal(memory[1::2], before[1::2])
    assert torch.equal(memory[:, [0, 4]], before[:, [0, 4]])
    assert not torch.equal(memory[::2, 1:4], before[::2, 1:4])


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype(metric, dtype):
    """Half precision is computed in float32: the only error left is the rounding of the result."""
    torch.manual_seed(0)
    grad = torch.randn(64, 5).to(dtype)
    expected = torch.from_numpy(directed(grad.double().numpy(), metric)).to(dtype)
    out = channel_directed(grad, metric)
    assert out.dtype == dtype
    unit = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-10
    torch.testing.assert_close(out, expected, rtol=2 * unit, atol=unit * grad.abs().max().item())
    channel_directed_([grad], metric)
    torch.testing.assert_close(grad, expected, rtol=2 * unit, atol=unit * expected.abs().max().item())


@every_metric
def test_derivatives_pass_through(metric):
    grad = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: channel_directed(g, metric, 0, 2), grad)
    assert torch.autograd.gradgradcheck(lambda g: channel_directed(g, metric, 0, 2) ** 2, grad)


# The interpreter computes in numpy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@every_metric
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_non_finite_stays_non_finite(metric, value, backend):
    grad = torch.randn(9, 3)
    grad[4, 1] = value
    channel_directed_([grad], metric, backend=backend)
    assert not grad[4, 1].isfinite()
    assert grad[:, [0, 2]].isfinite().all()


@every_metric
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (1,), (1, 1, 1)])
def test_nothing_to_smooth(metric, shape):
    grad = torch.randn(shape)
    out = channel_directed(grad, metric)
    assert torch.equal(out, grad)
    assert out.data_ptr() != grad.data_ptr() or not grad.numel()
    channel_directed_([grad], metric)
    assert torch.equal(out, grad)


def test_out_of_place_leaves_the_input():
    grad = torch.randn(5, 3)
    before = grad.clone()
    assert not torch.equal(channel_directed(grad, "reweighted:lam=2"), grad)
    assert torch.equal(grad, before)
    assert channel_directed(grad, L2()).data_ptr() != grad.data_ptr()


def test_many_tensors_with_their_own_axes():
    grads = [torch.randn(4, 3), torch.randn(3, 6), torch.randn(8, 2, dtype=torch.float64)]
    dims, groups = (0, np.int64(1), -2), (1, 3, 2)
    expected = [
        channel_directed(*args) for args in zip(grads, ["sobolev:lam=0.1"] * 3, dims, groups, strict=True)
    ]
    channel_directed_(grads, "sobolev:lam=0.1", dims, groups)
    for grad, direct in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, direct)
    channel_directed_([], "sobolev:lam=0.1", np.int64(1), np.int64(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.ones(4, dtype=torch.int64), "l2"),
            TypeError,
            r"real floating dtype, got torch.int64; convert",
        ),
        ((torch.ones(4, dtype=torch.complex64), "l2"), TypeError, "real floating dtype, got torch.complex64"),
        (([1.0], "l2"), TypeError, "must be a torch.Tensor, got list"),
        ((torch.ones(4), 3), TypeError, "expected a metric or its text.*got int: 3"),
        ((torch.ones(4), "sobolef:lam=1"), ValueError, "did you mean 'sobolev'"),
        ((torch.ones(4, 2), "l2", 2), IndexError, r"dim 2 is out of range for .* \(4, 2\).* in \[-2, 1\]"),
        ((torch.ones(()), "l2"), IndexError, "dim 0 is out of range"),
        ((torch.ones(4), "l2", 0, 3), ValueError, "divisor of the channel axis: got groups=3 for 4 channels"),
        ((torch.ones(4), "l2", 0, 0), ValueError, "got groups=0"),
        ((torch.ones(4, 3), "l2", "0"), TypeError, "dim of grad.* must be an integer, got '0'"),
        ((torch.ones(4, 3), "l2", True), TypeError, "dim of grad.* must be an integer, got True"),
        ((torch.ones(4, 3), "l2", 0, 2.0), TypeError, "groups of grad.* must be an integer, got 2.0"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        channel_directed(*arguments)
    assert "\n" not in str(raised.value)
    grad, *rest = arguments
    with pytest.raises(error, match=message):
        channel_directed_([grad], *rest)


def test_an_error_leaves_every_gradient_untouched():
    good, bad = torch.randn(4, 2), torch.ones(4, dtype=torch.int64)
    before = good.clone()
    with pytest.raises(TypeError, match=r"grads\[1\]"):
        channel_directed_([good, bad], "reweighted:lam=3")
    with pytest.raises(ValueError, match="groups must be one int or one per gradient: got 1 for 2"):
        channel_directed_([good, good], "reweighted:lam=3", 0, [2])
    with pytest.raises(ValueError, match="unknown backend 'fast'; known are auto, eager"):
        channel_directed_([good], "reweighted:lam=3", backend="fast")
    assert torch.equal(good, before)


def test_select_backend_gives_a_known_name_and_a_reason():
    name, reason = select_backend(torch.ones(4, 3), "sobolev:lam=1")
    assert name in BACKENDS
    assert reason == "fused CPU kernels, one read and one write per element"
    assert select_backend(torch.ones(4, 3, device="meta"), "sobolev:lam=1") == (
        "eager",
        "no fused kernel for this device",
    )
    assert select_backend(torch.ones(4, 3), "l2") == ("eager", "the ordinary gradient needs no work")
    with pytest.raises(TypeError, match="int64"):
        select_backend(torch.ones(4, dtype=torch.int64), "l2")


HALVES = [(4, 0), (1, 6), (1, 8)]  # elements and the byte where they begin


def overlapping():
    base = torch.randn(40)
    yield "itself", [base.as_strided((4, 3), (1, 1))]
    yield "itself, beside a good one", [torch.randn(4, 3), base.as_strided((2, 3, 4), (6, 3, 2))]
    yield "the same twice", [base.view(4, 10), base.view(4, 10)]
    tiles = base.view(4, 10)
    yield "tiles, of which one is too wide", [tiles[:2, :5], tiles[2:, :5], tiles[:2, 5:], tiles[1:3, 5:]]
    yield "one of many columns twice", [*tiles.split(1, 1), tiles[2:, 6:7]]
    yield "a part", [base.view(4, 10), base[35:].view(5, 1)]
    yield "in one element", [base[:12].view(3, 4), base[11:23].view(3, 4)]
    yield "interleaved", [base[::2].view(4, 5), base[::3].view(2, 7)]
    yield "beyond one that lies between", [base[::2].view(4, 5), base[1:2].view(1, 1), base[20:21].view(1, 1)]
    memory = bytearray(16)
    outer, *inner = (torch.frombuffer(memory, dtype=torch.float32, count=n, offset=i) for n, i in HALVES)
    yield "by half an element", [outer[::3], *inner]
    yield "seen through another dtype", [base.view(4, 10), base.view(torch.bfloat16)[4:8].view(4, 1)]
    yield "expanded, and its base", [base[:10].expand(4, 10), base[:10].view(2, 5)]


def disjoint():
    base = torch.randn(40)
    yield "halves", [base[:20].view(4, 5), base[20:].view(4, 5)]
    yield "columns", [base.view(4, 10)[:, :3], base.view(4, 10)[:, 3:]]
    yield "odd and even", [base[::2].view(4, 5), base[1::2].view(4, 5)]
    yield "strides that do not nest", [base.as_strided((3, 2), (2, 3))]
    yield "expanded", [base[:10].expand(4, 10), base[10:].view(6, 5)]
    yield "empty", [base[:0].view(0, 3), base[:0].view(0, 3)]
    tiles = base.view(4, 10)[:, 1:9]
    yield "tiles of two axes", [tiles[i : i + 2, j : j + 2] for j in (0, 2, 4, 6) for i in (0, 2)]
    yield (
        "channels last, cut along channels",
        list(torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last).split(2, 1)),
    )
    yield (
        "rows that end where the next begin",
        [base[3:23].view(2, 10)[:, :7], base[10:30].view(2, 10)[:, :3]],
    )


class Apples(torch.Tensor):
    """A tensor on Apple's GPU: its address is that of a small object, which stands for the storage."""

    addresses: ClassVar = {}

    @property
    def device(self):
        return torch.device("mps")

    def data_ptr(self):
        base = self.untyped_storage()
        address = self.addresses.setdefault(base.data_ptr(), 2**40 + 512 * len(self.addresses))
        return address + self.storage_offset() * self.itemsize


def test_addresses_of_objects_are_not_those_of_memory():
    whole, other = (torch.randn(64, 32).as_subclass(Apples) for _ in range(2))
    assert abs(whole.data_ptr() - other.data_ptr()) < whole.nbytes
    refuse_overlaps([*whole.split(16), other])
    with pytest.raises(ValueError, match=r"grads\[1\] and grads\[2\] overlap in memory"):
        refuse_overlaps([other, whole[:9], whole[8:]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["reweighted:lam=3.25", "sobolev:lam=0.0625", "mean-sobolev:lam=0.0625"])
def test_the_default_device_does_not_matter(metric, backend):
    """What is new on the host stays there: with `torch.set_default_device("cuda")`, uploads failed."""
    model = torch.nn.Conv2d(2, 21, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, model, metric, rescale="norm", backend=backend)
    grad = torch.randn_like(model.weight)
    want = channel_directed(grad, metric)
    for lam in (None, 0.125):
        model.weight.grad = grad.clone()
        with torch.device("meta"):
            if lam is not None:
                handle.metric = with_lam(handle.metric, lam)
            assert handle.statistics()["norm_ratio"] == pytest.approx(1)
            optimizer.step()
        want = channel_directed(grad, handle.metric)
        torch.testing.assert_close(model.weight.grad, want * (grad.norm() / want.norm()))


def test_a_missing_triton_is_looked_for_once(monkeypatch):
    searches = []
    monkeypatch.setattr(local, "find_spec", searches.append)
    local._has_triton.cache_clear()
    with pytest.raises(ValueError, match="Triton is not installed"):
        channel_directed_([torch.ones(2, 2)], "reweighted:lam=3", backend="triton")
    assert not local.on_triton("triton", torch.ones(2, 2))
    local._has_triton.cache_clear()
    assert searches == ["triton"]


def test_one_thread_at_a_time_changes_what_is_remembered():
    """Eight threads that did at once failed: the dictionary changed while its oldest key was looked for."""

    class Table(dict):
        def __setitem__(self, key, value):
            assert addresses._lock.locked()
            super().__setitem__(key, value)

        def __iter__(self):
            assert addresses._lock.locked()
            return super().__iter__()

    table = Table()
    for i in range(5):
        addresses.remember(table, i, i, most=2)
    assert table.keys() == {3, 4}


def test_addresses_may_exceed_a_signed_integer(monkeypatch):
    """As those of Intel's GPUs do."""
    address = torch.Tensor.data_ptr
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: address(tensor) + (255 << 56))
    whole = torch.randn(8, 3)
    grads, want = list(whole.split(4)), channel_directed(whole, "sobolev:lam=0.1", groups=2)
    prepare(grads, "sobolev:lam=0.1", backend="eager").run(grads)
    torch.testing.assert_close(whole, want)
    with pytest.raises(ValueError, match="overlap in memory"):
        refuse_overlaps([whole, whole[3:]])


@pytest.mark.parametrize("grads", [pytest.param(grads, id=name) for name, grads in overlapping()])
def test_overlapping_gradients_are_refused_before_the_first_write(grads):
    before = [grad.clone() for grad in grads]
    with pytest.raises(ValueError, match=r"overlaps? (itself )?in memory.* clone") as raised:
        channel_directed_(grads, "reweighted:lam=3")
    assert "grads[" in str(raised.value)
    for grad, old in zip(grads, before, strict=True):
        assert torch.equal(grad.float().nan_to_num(), old.float().nan_to_num())


@given(st.data())
def test_views_of_one_tensor_are_refused_exactly_where_they_share_an_element(data):
    """Boxes of a lattice, compared with a count of every element; some are permuted, some not boxes."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    memory = torch.arange(200)
    base = memory[data.draw(st.integers(0, 5)) :].as_strided(shape, torch.empty(shape).stride())
    views = []
    for _ in range(data.draw(st.integers(2, 5))):
        cuts = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
        view = base[tuple(slice(*cut, data.draw(st.integers(1, 2))) for cut in cuts)]
        views.append(view.permute(*data.draw(st.permutations(range(len(shape))))))
    if data.draw(st.booleans()):
        views.append(memory[data.draw(st.integers(0, 30)) :: data.draw(st.integers(1, 7))][:6])
    elements = torch.cat([view.flatten() for view in views])
    shared = len(elements.unique()) < len(elements)
    if shared:
        with pytest.raises(ValueError, match=r"grads\[\d\] and grads\[\d\] overlap in memory") as raised:
            refuse_overlaps(views)
        first, second = (views[int(i)].flatten() for i in re.findall(r"\[(\d)\]", str(raised.value)))
        assert torch.isin(first, second).any()
    else:
        refuse_overlaps(views)


def test_many_parts_of_one_tensor_are_compared_without_looking_at_their_elements(monkeypatch):
    """Each pair by itself took 0.7 ms a part for 500 parts."""
    monkeypatch.setattr(overlaps, "_share", None)
    refuse_overlaps(torch.randn(8, 500, 3).split(1, 1))
    parts = torch.randn(2, 3, 64, 40).split(4, 3)
    refuse_overlaps([each for part in parts for each in part.split(16, 2)])


@pytest.mark.parametrize("grads", [pytest.param(grads, id=name) for name, grads in disjoint()])
def test_gradients_that_share_a_storage_but_no_element_are_directed(grads):
    want = [channel_directed(grad, "reweighted:lam=3") for grad in grads]
    channel_directed_(grads, "reweighted:lam=3")
    for grad, expected in zip(grads, want, strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (torch.ones(4, 3), TypeError, r"a list of gradients, got a Tensor; for one gradient, pass \[grad\]"),
        ((torch.ones(4, 3) for _ in range(2)), TypeError, "a list of gradients, got a generator"),
        (
            [torch.ones(4, 3).to_sparse()],
            TypeError,
            r"grads\[0\] has layout torch.sparse_coo.*dense first",
        ),
        ([torch.tensor(1.0)], IndexError, r"dim 0 is out of range for grads\[0\], which has no axes"),
    ],
)
def test_what_is_no_list_of_dense_gradients_is_refused(grads, error, message):
    """The rows of a tensor are tensors, too, and would be directed along the wrong axis."""
    with pytest.raises(error, match=message):
        channel_directed_(grads, "sobolev:lam=0.1")
