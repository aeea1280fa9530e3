"""Every built-in network: its paper's size, its initialization, the images it takes and refuses."""

import pytest
import torch
from torch import nn

from cdgrad.study import StudyError, models

CIFAR = (3, 32, 32)


def build(name, image_shape=CIFAR, classes=10, **arguments):
    torch.manual_seed(0)
    return models.build(name, image_shape, classes, arguments)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet8", 75_290),  # the formula 6 n + 2 at n = 1
        ("resnet20", 269_722),  # He et al. 2015, table 6: 0.27 million
        ("resnet56", 853_018),  # ibid.: 0.85 million
        ("resnet18", 11_173_962),  # the 11.17 million of the usual variant for 32 x 32
    ],
)
def test_the_number_of_parameters_is_the_papers(name, count):
    assert parameters(build(name)) == count


@pytest.mark.parametrize("name", models.BUILTIN)
@pytest.mark.parametrize("image_shape", [(3, 32, 32), (3, 64, 64)])
def test_images_of_32_and_64_pixels_give_logits(name, image_shape):
    model = build(name, image_shape, 7).eval()
    with torch.no_grad():
        assert model(torch.randn(1, *image_shape)).shape == (1, 7)


@pytest.mark.parametrize("name", models.BUILTIN)
def test_small_gray_images_are_taken_by_the_small_networks(name):
    model = build(name, (1, 8, 8))
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(("name", "side"), [("resnet20", 4), ("resnet18", 8)])
def test_images_that_would_be_halved_to_nothing_are_refused(name, side):
    build(name, (1, side, side))
    with pytest.raises(StudyError, match=f"at least {side} x {side} pixels, got {side} x {side - 1}"):
        build(name, (1, side, side - 1))


@pytest.mark.parametrize("name", [n for n in models.BUILTIN if n != "small-cnn"])
def test_convolutions_start_with_the_variance_that_keeps_rectified_signals(name):
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.08)


def test_a_depth_without_a_network_is_refused():
    with pytest.raises(StudyError, match=r"6 n \+ 2, such as 20 or 56; got 21"):
        build("resnet20", depth=21)
    assert parameters(build("resnet20", depth=56)) == parameters(build("resnet56"))


def test_the_padded_shortcut_is_a_subsampled_identity_with_zeros_around_it():
    x = torch.randn(2, 4, 6, 6)
    out = models.resnet.PaddedShortcut(4, 8, 2)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, [0, 1, 6, 7]].count_nonzero() == 0
