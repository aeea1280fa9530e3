"""Every built-in network: its paper's size, its initialization, the images it takes and refuses."""

import sys
import types

import pytest
import torch
from torch import nn

from cdgrad.study import StudyError, models
from cdgrad.study.callables import load_callable

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
        ("resnet18", 11_173_962),  # the usual variant for 32 x 32
        ("preact-resnet164", 1_703_258),  # Huang et al. 2016, table 2: 1.7 million
        ("wide-resnet28-10", 36_479_194),  # Zagoruyko and Komodakis 2016, table 4: 36.5 million
        ("wide-resnet16-4", 2_748_890),
        ("densenet-bc", 769_162),  # Huang et al. 2016, table 2: 0.8 million
        ("mobilenet-v2", 2_236_682),
    ],
)
def test_the_number_of_parameters_is_the_papers(name, count):
    assert parameters(build(name)) == count


@pytest.mark.parametrize(
    ("depth", "count"),
    [(11, 132_863_336), (16, 138_357_544)],  # Simonyan and Zisserman 2014, table 2: 133 and 138 million
)
def test_a_vgg_has_the_convolutions_of_the_paper(depth, count):
    model = build(f"vgg{depth}-bn")
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    with_biases = sum(weight.numel() + len(weight) for weight in convolutions)
    fully_connected = (7 * 7 * 512 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert with_biases + fully_connected == count
    norms = 2 * sum(len(weight) for weight in convolutions)
    assert parameters(model) == sum(weight.numel() for weight in convolutions) + norms + (512 + 1) * 10


def test_mobilenet_has_the_size_of_the_paper_with_its_1000_classes():
    # Sandler et al. 2018, table 4: 3.4 million at width 1, 6.9 million at 1.4.
    assert parameters(build("mobilenet-v2", classes=1000)) == 3_504_872
    assert parameters(build("mobilenet-v2", classes=1000, width=1.4)) == pytest.approx(6.9e6, rel=0.15)


@pytest.mark.parametrize("name", models.BUILTIN)
@pytest.mark.parametrize("side", [32, 64])
def test_images_of_32_and_64_pixels_give_logits(name, side):
    with torch.device("meta"):
        model = build(name, (3, side, side), 7)
        assert model(torch.empty(2, 3, side, side)).shape == (2, 7)


SMALLEST = dict.fromkeys(models.BUILTIN, 4) | {
    "small-cnn": 2,
    "resnet18": 8,
    "mobilenet-v2": 8,
    "vgg11-bn": 32,
    "vgg16-bn": 32,
}


@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_the_smallest_gray_images_reach_every_weight(name, side):
    model = build(name, (1, side, side))
    model(torch.randn(4, 1, side, side)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_images_that_would_be_halved_to_nothing_are_refused(name, side):
    with pytest.raises(StudyError, match=f"at least {side} x {side} pixels, got {side} x {side - 1}"):
        build(name, (1, side, side - 1))


@pytest.mark.parametrize(
    ("side", "names"),
    [
        (8, ["resnet20", "preact-resnet164", "wide-resnet16-4", "densenet-bc"]),
        (4, ["resnet18", "mobilenet-v2"]),
        (1, ["vgg16-bn"]),
    ],
)
def test_strides_halve_the_images_where_the_papers_do(side, names):
    for name in names:
        with torch.device("meta"):
            assert build(name).features(torch.empty(1, 3, 32, 32)).shape[2:] == (side, side), name


@pytest.mark.parametrize("name", [n for n in models.BUILTIN if n != "small-cnn"])
def test_convolutions_start_with_the_variance_that_keeps_rectified_signals(name):
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.08)


@pytest.mark.parametrize(
    ("name", "depth", "allowed"),
    [
        ("resnet20", 21, r"6 n \+ 2, such as 20 or 56"),
        ("preact-resnet164", 21, r"9 n \+ 2"),
        ("wide-resnet28-10", 20, r"6 n \+ 4"),
        ("densenet-bc", 12, r"6 n \+ 4"),
        ("vgg16-bn", 12, "one of 11, 13, 16, 19"),
    ],
)
def test_a_depth_without_a_network_is_refused(name, depth, allowed):
    with pytest.raises(StudyError, match=rf"{allowed}.*; got {depth}"):
        build(name, depth=depth)


def test_depth_and_width_are_arguments():
    assert parameters(build("resnet20", depth=56)) == parameters(build("resnet56"))
    assert build("resnet8", width=4).head.in_features == 16
    assert build("mobilenet-v2", width=0.5).features[0].out_channels == 16


def test_the_padded_shortcut_is_a_subsampled_identity_with_zeros_around_it():
    x = torch.randn(2, 4, 6, 6)
    out = models.resnet.PaddedShortcut(4, 8, 2)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, [0, 1, 6, 7]].count_nonzero() == 0


def test_the_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(StudyError, match=r"timm:resnet18 needs timm .*: pip install timm"):
        build("timm:resnet18")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        StudyError, match=r"torchvision:resnet18 needs torchvision .*: pip install torchvision"
    ):
        build("torchvision:resnet18")


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins with the two functions that are called, where the libraries are not installed."""

    def make(name, num_classes, in_chans=3, bias=True):
        if name != "linear":
            raise ValueError(f"Unknown model {name}")
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 4, num_classes, bias))

    timm, vision = types.ModuleType("timm"), types.ModuleType("torchvision.models")
    timm.create_model = vision.get_model = make
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", vision)


@pytest.mark.usefixtures("libraries")
def test_a_library_is_asked_for_the_classes_and_channels_of_the_task():
    assert build("timm:linear", (1, 2, 2), 5)(torch.randn(3, 1, 2, 2)).shape == (3, 5)
    assert build("torchvision:linear", (3, 2, 2), 5, bias=False)[1].bias is None
    with pytest.raises(StudyError, match="torchvision:linear takes images of 3 channels, got 1"):
        build("torchvision:linear", (1, 2, 2), 5)
    with pytest.raises(StudyError, match=r"timm:nonesuch .*: Unknown model nonesuch"):
        build("timm:nonesuch")
    with pytest.raises(StudyError, match=r"timm:linear cannot be built with the arguments \(depth\)"):
        build("timm:linear", depth=3)


def test_torchvision_and_the_builtin_network_agree_where_it_is_installed():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    stem = 64 * 3 * (7 * 7 - 3 * 3)
    assert parameters(build("torchvision:resnet18")) - stem == parameters(build("resnet18"))
    assert parameters(build("torchvision:mobilenet_v2")) == parameters(build("mobilenet-v2"))


def test_a_callable_may_be_that_of_a_class():
    assert load_callable("torch.nn:Module.named_parameters") is nn.Module.named_parameters
    with pytest.raises(StudyError, match="cannot be imported"):
        load_callable("torch.nn:Module.nonesuch")
