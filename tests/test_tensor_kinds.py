"""Gradients of every kind are directed in place, left alone with a reason, or refused by name."""

import warnings

import pytest
import torch
from optimizer_catalogue import IMAGES, LABELS, METRIC, network
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.testing._internal.two_tensor import TwoTensor

from cdgrad import attach, channel_directed, channel_directed_, select
from cdgrad.ops.local import choose

every_rescale = pytest.mark.parametrize("rescale", ["none", "norm"])


def sgd(model, lr=0.0):
    return torch.optim.SGD([p for p in model.parameters() if not p.is_complex()], lr=lr)


def reasons(model):
    return {skipped.name: skipped.reason for skipped in select(model).skipped}


def test_a_sparse_gradient_is_refused_by_the_name_of_its_parameter():
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3, bias=False))
    optimizer = sgd(model)
    attach(optimizer, model, METRIC, linear=True)
    model[1].weight.grad = torch.ones(3, 4).to_sparse()
    with pytest.raises(
        TypeError, match=r"the gradient of 1\.weight has layout .*to_dense\(\).*exclude='1\.weight'"
    ):
        optimizer.step()


def test_the_refusal_comes_before_any_gradient_is_written():
    model = network()
    optimizer = sgd(model)
    attach(optimizer, model, METRIC)
    functional.cross_entropy(model(IMAGES), LABELS).backward()
    raw = model[0].weight.grad.clone()
    model[2].weight.grad = model[2].weight.grad.to_sparse()
    with pytest.raises(TypeError, match=r"2\.weight"):
        optimizer.step()
    assert torch.equal(model[0].weight.grad, raw)


def test_a_meta_model_can_be_selected_from_but_not_attached_to():
    with torch.device("meta"):
        model = network()
    assert len(select(model).targets) == 2
    with pytest.raises(ValueError, match=r"0\.weight is on the meta device.*to_empty.*then attach"):
        attach(sgd(model), model, METRIC)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_what_has_no_real_floating_gradient_is_left_alone_with_a_reason():
    model = nn.ModuleList([nn.Conv2d(2, 3, 1, bias=False) for _ in range(3)])
    model[0] = nn.Conv2d(2, 3, 1, bias=False, dtype=torch.complex64)
    whole = torch.quantize_per_tensor(torch.ones(3, 2, 1, 1), 0.1, 0, torch.qint8)
    model[1].weight = nn.Parameter(whole, requires_grad=False)
    model[2].weight = nn.Parameter(torch.ones(3, 2, 1, 1, dtype=torch.int8), requires_grad=False)
    with pytest.warns(UserWarning, match="nothing to direct"):
        skipped = reasons(model)
    assert {name: reason.split(":")[0] for name, reason in skipped.items()} == {
        "0.weight": "dtype torch.complex64",
        "1.weight": "dtype torch.qint8",
        "2.weight": "dtype torch.int8",
    }


def test_frozen_parameters_are_left_alone():
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = sgd(model, lr=0.1)
    handle = attach(optimizer, model, METRIC)
    before = model[0].weight.clone()
    functional.cross_entropy(model(IMAGES), LABELS).backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert "frozen" in str(handle)


LAYOUTS = {
    "contiguous": lambda g: g.clone(),
    "channels_last": lambda g: g.clone(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 2).contiguous().transpose(0, 2),
    "sliced": lambda g: torch.stack([g, g], -1)[..., 0],
    "expanded along the channel": lambda g: g[:1].clone().expand_as(g),
    "expanded across it": lambda g: g[:, :, :1].clone().expand_as(g),
}


@every_rescale
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_written_in_place(layout, rescale):
    """A view made before the step sees the directed gradient: no memory and no strides were replaced."""
    conv = nn.Conv2d(3, 4, 3, bias=False)
    gradient = LAYOUTS[layout](torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    expected = channel_directed(gradient.clone(), METRIC)
    if rescale == "norm":
        expected *= gradient.norm() / expected.norm()
    conv.weight.grad = gradient
    view, memory, strides = gradient[:], gradient.data_ptr(), gradient.stride()
    weight = conv.weight.data_ptr()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    attach(optimizer, conv, METRIC, rescale=rescale)
    optimizer.step()
    assert conv.weight.grad is gradient
    assert (gradient.data_ptr(), gradient.stride()) == (memory, strides)
    assert conv.weight.data_ptr() == weight
    torch.testing.assert_close(view, expected)


@every_rescale
def test_channels_last_3d_and_half_precision(rescale):
    conv = nn.Conv3d(2, 4, 3, bias=False, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d)
    conv(torch.ones(1, 2, 5, 5, 5, dtype=torch.bfloat16)).square().sum().backward()
    gradient = conv.weight.grad
    wide = gradient.double()
    expected = channel_directed(wide, METRIC)
    if rescale == "norm":
        expected *= wide.norm() / expected.norm()
    memory, strides = gradient.data_ptr(), gradient.stride()
    optimizer = sgd(conv)
    attach(optimizer, conv, METRIC, rescale=rescale)
    optimizer.step()
    assert (gradient.data_ptr(), gradient.stride()) == (memory, strides)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-2, atol=1e-2)


@every_rescale
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_and_single_weights(rescale):
    """No column, no channel, one entry: nothing to do, and nothing breaks."""
    model = nn.ModuleList([nn.Conv2d(0, 4, 1), nn.Conv2d(2, 0, 1), nn.Conv2d(1, 1, 1)])
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer = sgd(model)
    attach(optimizer, model, METRIC, rescale=rescale)
    optimizer.step()
    assert all(torch.equal(param.grad, torch.ones_like(param)) for param in model.parameters())
    assert reasons(model)["2.weight"] == "one output entry: nothing to smooth"


class Tagged(torch.Tensor):
    """A subclass without methods of its own; every result is one again."""


@pytest.mark.parametrize("channels", [4, 256, 300])
@pytest.mark.parametrize("metric", ["reweighted:lam=3", "sobolev:lam=0.1"])
def test_in_place_under_the_transforms_of_torch_func(metric, channels):
    def in_place(gradient):
        copy = gradient.clone()
        channel_directed_([copy], metric)
        return copy

    batch = torch.randn(3, channels, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([channel_directed(gradient, metric) for gradient in batch])
    torch.testing.assert_close(torch.func.vmap(in_place)(batch), expected)
    torch.testing.assert_close(torch.func.functionalize(in_place)(batch[0]), expected[0])
    torch.testing.assert_close(torch.func.jvp(in_place, (batch[0],), (batch[1],))[1], expected[1])


def test_no_fused_kernel_takes_the_address_of_what_has_none(monkeypatch):
    kernels = pytest.importorskip("cdgrad.ops.triton.kernels")
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    plain = torch.ones(4, 3)
    for backend in ("cpu", "triton"):
        assert choose(backend, METRIC, plain, 0, 1)[0] == backend
        with pytest.raises(ValueError, match="a TwoTensor may not be plain memory"):
            choose(backend, METRIC, TwoTensor(plain, plain), 0, 1)
        with pytest.raises(ValueError, match=r"under torch\.func's transforms a tensor has no memory"):
            torch.func.vmap(lambda g, name=backend: choose(name, METRIC, g, 0, 1))(torch.ones(2, 4, 3))


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_steps_of_fake_tensors_estimate_without_a_warning(backend):
    """As tools do that estimate the memory of a training step."""
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        conv = nn.Conv2d(2, 4, 3)
        optimizer = sgd(conv)
        attach(optimizer, conv, METRIC, rescale="norm", backend=backend)
        for _ in range(2):
            conv(torch.ones(1, 2, 5, 5)).square().sum().backward()
            optimizer.step()


def test_a_wrapper_subclass_is_directed_through_what_it_holds():
    """Memory behind its own dispatch, as of quantized or sharded tensors: no kernel may take its address."""
    parts = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(3, 4, 3, bias=False)
    conv.weight = nn.Parameter(TwoTensor(*(part.clone() for part in parts)))
    conv.weight.grad = TwoTensor(*(part.clone() for part in parts))
    optimizer = sgd(conv)
    attach(optimizer, conv, METRIC)
    optimizer.step()
    for got, part in zip((conv.weight.grad.a, conv.weight.grad.b), parts, strict=True):
        torch.testing.assert_close(got, channel_directed(part, METRIC))


def test_a_tensor_subclass_is_directed_like_its_base():
    conv, base = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
    base.load_state_dict(conv.state_dict())
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(Tagged))
    for model in (conv, base):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(optimizer, model, METRIC, rescale="norm")
        model(IMAGES).square().mean().backward()
        optimizer.step()
    assert isinstance(conv.weight, Tagged)
    assert torch.equal(conv.weight.as_subclass(torch.Tensor), base.weight)
