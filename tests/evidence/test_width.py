"""Width as a mesh: the laws of folding, of the smooth initialization and of the smoothed gradients."""

import copy
import io
import itertools
import math
from dataclasses import replace

import measure_width
import pytest
import torch
import width as mesh
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cdgrad.diagnostics import roughness
from cdgrad.study import models, spec
from evidence.build.loading import ROOT

NETWORKS = {
    "small-cnn": {"width": 8},
    "vgg11-bn": {},
    "resnet8": {"width": 8, "shortcut": "projection"},
    "resnet18": {"width": 8},
    "densenet-bc": {"depth": 10, "growth": 4},
    "mobilenet-v2": {"width": 0.25},
}


def network(name, seed=0):
    torch.manual_seed(seed)
    model = models.build(name, (3, 32, 32) if name == "vgg11-bn" else (3, 8, 8), 10, NETWORKS[name])
    with torch.no_grad():  # statistics, scales and shifts that differ from channel to channel
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 2)
                layer.bias.normal_(0, 0.1)
    return model.eval()


def images(name, count=4):
    side = 32 if name == "vgg11-bn" else 8
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_to_the_same_width_is_the_identity(name):
    model = network(name)
    same = mesh.resize(model, 1.0)
    before, after = model.state_dict(), same.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_the_width_is_a_plain_module_that_runs_saves_and_keeps_input_and_output(name):
    model = network(name)
    half = mesh.resize(model, 0.5)
    assert half(images(name)).shape == model(images(name)).shape
    count = sum(p.numel() for p in half.parameters()) / sum(p.numel() for p in model.parameters())
    assert 0.2 < count < 0.45  # a quarter, but for what one width of a layer scales
    assert {type(module) for module in half.modules()} == {type(module) for module in model.modules()}
    for layer in half.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    again = mesh.resize(network(name, seed=7), 0.5)
    again.load_state_dict(torch.load(file))
    assert torch.equal(again.eval()(images(name)), half.eval()(images(name)))


@pytest.mark.parametrize("name", NETWORKS)
def test_half_the_width_has_the_architecture_of_the_network_of_that_width(name):
    if name in ("vgg11-bn", "mobilenet-v2", "densenet-bc"):
        pytest.skip("its width is not one factor on all layers")
    half = {**NETWORKS[name], "width": NETWORKS[name]["width"] // 2}
    built = models.build(name, (3, 8, 8), 10, half).state_dict()
    folded = mesh.resize(network(name), 0.5).state_dict()
    assert {key: value.shape for key, value in folded.items()} == {
        key: value.shape for key, value in built.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_refining_and_then_folding_back_returns_the_network(name):
    model = network(name)
    meshes = mesh.meshes_of(model)
    wide = mesh.resize(model, 1.75, meshes)
    changes = {
        axis: mesh.coarsen(wide_size, meshes.sizes[axis])
        for axis, wide_size in mesh.meshes_of(wide).sizes.items()
    }
    back = mesh.changed(wide, mesh.meshes_of(wide), changes).state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(back[key], value, rtol=1e-4, atol=1e-5)


def smooth_network(n):
    """Two convolutions whose filters, scales and shifts are samples of smooth functions; float64."""
    position = (torch.arange(n, dtype=torch.float64) / (n - 1)).view(-1, 1, 1, 1)
    model = nn.Sequential(
        nn.Conv2d(1, n, 3), nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 1, 3, bias=False)
    ).double()
    first, norm, _, second = model
    phase = torch.arange(9, dtype=torch.float64).view(1, 1, 3, 3)
    with torch.no_grad():
        first.weight.copy_(torch.sin(3 * position + phase))
        first.bias.copy_(torch.cos(2 * position).flatten())
        norm.weight.copy_(1 + 0.3 * torch.sin(4 * position).flatten())
        norm.bias.copy_(0.2 * torch.cos(3 * position).flatten())
        second.weight.copy_(torch.cos(2 * position.view(1, n, 1, 1) + phase.view(1, 1, 3, 3)) / n)
    return model.eval()


def test_the_error_of_folding_is_of_second_order_in_the_gap():
    model = smooth_network(193)
    x = torch.randn(8, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axis = next(iter(mesh.meshes_of(model).sizes))
    errors = []
    for k in (97, 49, 25, 13):  # gaps 2, 4, 8, 16
        small = mesh.changed(model, mesh.meshes_of(model), {axis: mesh.coarsen(193, k)})
        errors.append((small(x) - model(x)).square().mean().sqrt().item())
    orders = [math.log2(b / a) for a, b in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.3 for order in orders), orders


def test_a_shuffled_network_does_not_fold():
    model = smooth_network(193)
    meshes = mesh.meshes_of(model)
    (axis,) = meshes.sizes
    order = torch.randperm(193, generator=torch.Generator().manual_seed(0))
    place = torch.eye(193)[order]
    shuffled = mesh.changed(model, meshes, {axis: mesh.Change(place, place.T)})
    x = torch.randn(8, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shuffled(x), model(x))  # the order of the channels changes nothing
    errors = [(mesh.resize(network, 0.5)(x) - model(x)).norm() for network in (model, shuffled)]
    assert errors[1] > 50 * errors[0]


@pytest.mark.parametrize("reduction", mesh.REDUCTIONS)
def test_channels_in_two_equal_halves_can_be_merged_without_error_and_not_dropped(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3)).eval()
    with torch.no_grad():
        model[0].weight[8:], model[0].bias[8:] = model[0].weight[:8], model[0].bias[:8]
    meshes = mesh.meshes_of(model)
    half = mesh.changed(model, meshes, mesh.REDUCTIONS[reduction](model, meshes, 0.5))
    x = torch.randn(4, 1, 8, 8)
    close = torch.allclose(half(x), model(x), atol=1e-5)
    assert close == (reduction == "merged")


def test_the_axes_of_a_resnet_are_its_streams_and_the_insides_of_its_blocks():
    meshes = mesh.meshes_of(network("resnet8"))
    # Three streams of 8, 16 and 32 channels and the inside of a block in each.
    assert sorted(meshes.sizes.values()) == [8, 8, 16, 16, 32, 32]
    assert meshes.writes["features.3.residual.3"] == meshes.writes["features.0"]
    assert meshes.writes["features.4.shortcut.0"] == meshes.writes["features.4.residual.3"]


def test_concatenated_features_keep_an_axis_a_part():
    meshes = mesh.meshes_of(network("densenet-bc"))
    assert max(map(len, meshes.reads.values())) == 2
    assert len(meshes.reads["head"]) == 2


def test_depthwise_convolutions_follow_their_input():
    meshes = mesh.meshes_of(network("mobilenet-v2"))
    depthwise = [name for name in meshes.follows if name.endswith("layers.0") or name.endswith("layers.3")]
    assert depthwise


def test_padding_with_zeros_is_refused_because_it_treats_channels_by_number():
    model = models.build("resnet8", (3, 8, 8), 10, {"width": 8})
    with pytest.raises(ValueError, match="may treat channels by their number"):
        mesh.meshes_of(model)


def test_an_unknown_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3))
    with pytest.raises(ValueError, match="a GroupNorm, is not known to act on every channel alike"):
        mesh.meshes_of(model)


def test_a_smooth_initialization_has_the_metric_s_spectrum_and_keeps_the_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 9), nn.ReLU(), nn.Conv2d(16, 2, 1))
    draws = []
    for seed in range(60):
        model[0].weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        size = model[0].weight.norm().item()
        mesh.smooth_(model, mesh.meshes_of(model), 3.0)
        assert model[0].weight.norm().item() == pytest.approx(size, rel=1e-5)
        draws.append((mesh.cosines(16).float() @ model[0].weight.detach().flatten(1)).square().mean(1))
    mean = torch.stack(draws).mean(0)
    damping = 1 / (1 + 12 * torch.sin(math.pi * torch.arange(16) / 32).square())
    torch.testing.assert_close(mean / mean[0], damping, rtol=0.2, atol=0)


def test_the_smoother_directs_weights_scales_and_shifts_and_keeps_their_norms():
    model = network("resnet8")
    meshes = mesh.meshes_of(model)
    model.train()(images("resnet8")).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    mesh.Smoother(model, meshes)(30.0)
    for name, param in model.named_parameters():
        assert param.grad.norm() == pytest.approx(before[name].norm().item(), rel=1e-4)
        changed = not torch.equal(param.grad, before[name])
        assert changed == (not name.startswith("head")), name
    weight = model.features[0].weight
    assert roughness(weight.grad) < 0.3 * roughness(before["features.0.weight"])


def test_half_the_width_takes_about_a_quarter_of_the_operations():
    model = models.build("small-cnn", (3, 16, 16), 10, {"width": 64}).eval()
    half, x = mesh.resize(model, 0.5), torch.randn(1, 3, 16, 16)

    def operations(net):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(x)
        return counter.get_total_flops()

    assert operations(half) < 0.3 * operations(model)


def test_a_resized_network_exports():
    half = mesh.resize(network("resnet8"), 0.5)
    x = images("resnet8")
    exported = torch.export.export(copy.deepcopy(half), (x,))
    torch.testing.assert_close(exported.module()(x), half(x))


def test_statistics_estimated_anew_are_those_of_the_images():
    model = network("small-cnn")
    x = images("small-cnn", 64)
    mesh.reestimate_(model, [x[:32], x[32:]])
    first = model.features[0](x)
    torch.testing.assert_close(model.features[1].running_mean, first.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert model.features[1].momentum == 0.1


def test_training_at_a_width_trains_the_folded_network_and_reaches_all_weights():
    model, x = network("resnet8"), images("resnet8")
    meshes = mesh.meshes_of(model)
    logits = measure_width.at_width(model, meshes, 0.5, x)
    torch.testing.assert_close(logits, mesh.resize(model, 0.5)(x))
    logits.square().sum().backward()
    unread = model.features[0].weight.grad[3]  # a channel between kept ones is not used itself
    assert float(unread.abs().sum()) == 0
    assert all(p.grad is not None for p in model.parameters())
    half = mesh.resize(model, 0.5)
    half(x).square().sum().backward()
    spread = mesh.coarsen(32, 16).spread  # what reads it is reached, by interpolation
    torch.testing.assert_close(model.head.weight.grad, half.head.weight.grad @ spread.T)


def test_the_study_of_width_measures_every_width_and_chooses_on_validation_images():
    setting = spec.load(str(ROOT / "evidence/studies/width.toml")).setting("small-cnn-digits", "none")
    task, model, schedule, _ = setting.tables()
    small = replace(
        setting,
        task=replace(task, train=64),
        model=replace(model, arguments={"width": 4}),
        schedule=replace(schedule, epochs=1),
    )
    arm = measure_width.Arm(10, 1, widths=True)
    rows = measure_width.measured(small, arm, seed=0, rate=0.1, trial=False)
    assert [row["width"] for row in rows if row["best"]] == [1, 0.75, 0.5, 0.25]
    trial = measure_width.measured(small, arm, seed=0, rate=0.1, trial=True)
    assert [row["width"] for row in trial] == [1, 0.5]
    assert [400 * row["error"] / 100 % 1 for row in trial] == [0, 0]  # of 400 validation images
    again = measure_width.measured(small, arm, seed=0, rate=0.1, trial=False)
    assert again == rows
