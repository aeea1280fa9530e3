import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cdgrad import Selection, select


def axes(selection: Selection):
    return {t.name: (t.dim, t.groups) for t in selection.targets}


def reasons(selection: Selection):
    return {s.name: s.reason for s in selection.skipped}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("direction", "plain", "transposed"), [("output", (0, 2), (1, 1)), ("input", (1, 1), (0, 2))]
)
def test_the_layer_decides_the_axis(rank, direction, plain, transposed):
    conv = getattr(nn, f"Conv{rank}d")(4, 6, 3, groups=2)
    deconv = getattr(nn, f"ConvTranspose{rank}d")(4, 6, 3, groups=2)
    selection = select(nn.ModuleList([conv, deconv]), direction=direction)
    assert axes(selection) == {"0.weight": plain, "1.weight": transposed}


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)])
@pytest.mark.parametrize("direction", ["output", "input"])
def test_intervals_are_the_channels_that_share_the_other_side(layer, direction):
    """Along one interval of a column nothing but that channel changes: checked on the layer itself.

    A weight entry connects one input to one output channel. Two entries belong to one interval
    exactly when they connect channels of one group and differ along `direction` alone.
    """
    (target,) = select(layer, direction=direction).targets
    links = {}
    for index in torch.cartesian_prod(*map(torch.arange, layer.weight.shape[:2])).tolist():
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[tuple(index)] = 1
            responses = [
                layer(torch.eye(4)[i].view(1, 4, 1, 1).expand(1, 4, 5, 5)).abs().sum((0, 2, 3))
                for i in range(4)
            ]
        ((source, sink),) = torch.stack(responses).nonzero().tolist()
        links[tuple(index)] = (sink, source) if direction == "output" else (source, sink)
    size = layer.weight.shape[target.dim] // target.groups
    intervals = {}
    for index, (along, fixed) in links.items():
        key = (index[1 - target.dim], index[target.dim] // size)
        intervals.setdefault(key, []).append((along, fixed))
    for members in intervals.values():
        assert len({fixed for _, fixed in members}) == 1
        assert len({along for along, _ in members}) == size


def test_height_and_width():
    model = nn.ModuleList([nn.Conv1d(2, 4, 3), nn.Conv2d(2, 4, (3, 1)), nn.ConvTranspose3d(2, 4, 3)])
    assert axes(select(model, direction="height")) == {"1.weight": (2, 1), "2.weight": (3, 1)}
    width = select(model, direction="width")
    assert axes(width) == {"0.weight": (2, 1), "2.weight": (4, 1)}
    assert "one width entry" in reasons(width)["1.weight"]
    assert "no height axis" in reasons(select(model, direction="height"))["0.weight"]


def test_every_parameter_is_accounted_for():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 1, 1),
        nn.Conv2d(1, 4, 1, dtype=torch.complex64),
        nn.Linear(4, 2),
        nn.Embedding(3, 2),
    )
    selection = select(model)
    assert axes(selection) == {"0.weight": (0, 1)}
    names = [*axes(selection), *reasons(selection)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    expected = {
        "0.bias": "bias",
        "1.weight": "BatchNorm2d: not a convolution",
        "2.weight": "one output entry per group: nothing to smooth",
        "3.weight": "one output entry: nothing to smooth",
        "4.weight": "dtype torch.complex64: not real floating point",
        "5.weight": "Linear: off by default, linear=True processes it",
        "6.weight": "Embedding: not a convolution",
    }
    assert expected.items() <= reasons(selection).items()
    for name in names:
        assert name in str(selection)


def test_linear_on_request():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    assert axes(select(model, linear=True)) == {"0.weight": (0, 1)}
    assert axes(select(model, linear=True, direction="input")) == {"0.weight": (1, 1), "1.weight": (1, 1)}


def test_lazy_layers_once_they_have_seen_a_batch():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyLinear(3))
    with pytest.warns(UserWarning, match="nothing to direct.*; pass a batch through the model first"):
        selection = select(model, linear=True)
    assert "not materialized" in reasons(selection)["0.weight"]
    model[0](torch.ones(1, 2, 5, 5))
    assert axes(select(model)) == {"0.weight": (0, 1)}


class Standardized(nn.Conv2d):
    """A subclass with a parameter of its own, as weight standardization has."""

    def __init__(self):
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))


def test_subclasses():
    selection = select(Standardized())
    assert axes(selection) == {"weight": (0, 1)}
    assert reasons(selection)["gain"] == "gain of Standardized: not its weight"


@pytest.mark.parametrize(
    ("reparametrize", "processed", "left_alone"),
    [
        (
            parametrizations.weight_norm,
            "parametrizations.weight.original1",
            "parametrizations.weight.original0",
        ),
        (parametrizations.spectral_norm, "parametrizations.weight.original", None),
        (parametrizations.orthogonal, "parametrizations.weight.original", None),
        (nn.utils.spectral_norm, "weight_orig", None),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "weight_orig", None),
    ],
)
def test_reparametrized_weights(reparametrize, processed, left_alone):
    conv = reparametrize(nn.ConvTranspose2d(4, 6, 3, groups=2))
    selection = select(conv)
    assert axes(selection) == {processed: (1, 1)}
    if left_alone:
        assert "is not the weight's (4, 3, 3, 3): channel axis unknown" in reasons(selection)[left_alone]


def test_parameters_of_a_parametrization_are_not_weights():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, weight):
            return self.weight * weight

    conv = nn.Conv2d(3, 4, 3)
    nn.utils.parametrize.register_parametrization(conv, "weight", Scaled())
    selection = select(conv)
    assert axes(selection) == {"parametrizations.weight.original": (0, 1)}
    assert reasons(selection)["parametrizations.weight.0.weight"] == "Scaled: not a convolution"


def test_selecting_runs_no_power_iteration():
    conv = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    before = conv.parametrizations.weight[0]._u.clone()
    select(conv)
    assert torch.equal(conv.parametrizations.weight[0]._u, before)


def test_tied_weights_once():
    model = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.Conv2d(4, 4, 3)})
    model["b"].weight = model["a"].weight
    model["c"] = model["a"]
    selection = select(model)
    assert axes(selection) == {"a.weight": (0, 1)}
    assert (
        reasons(selection)["b.weight"] == reasons(selection)["c.weight"] == "tied to a.weight, processed once"
    )
    with pytest.warns(UserWarning, match="nothing to direct"):
        assert not select(model, exclude="b.weight").targets


def test_tied_with_two_axes_is_ambiguous():
    model = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3)])
    model[1].weight = model[0].weight
    selection = select(model)
    assert axes(selection) == {"2.weight": (0, 1)}
    assert "another channel axis" in reasons(selection)["0.weight"]


def test_patterns():
    model = nn.ModuleDict(
        {"stem": nn.Conv2d(3, 4, 3), "body": nn.Conv2d(4, 4, 3), "head": nn.Conv2d(4, 2, 1)}
    )
    assert list(axes(select(model, include="body.*"))) == ["body.weight"]
    assert list(axes(select(model, include=["stem.*", "head.weight"]))) == ["stem.weight", "head.weight"]
    assert list(axes(select(model, exclude="*[ad].weight"))) == ["stem.weight", "body.weight"]
    assert reasons(select(model, include="body.*"))["stem.weight"] == "not included"
    assert reasons(select(model, exclude="stem.*"))["stem.weight"] == "excluded"


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_without_a_match_is_an_error(argument):
    with pytest.raises(
        ValueError, match=f"{argument} pattern 'layer1' matches no parameter; names are weight, bias"
    ):
        select(nn.Conv2d(3, 4, 3), **{argument: ["weight", "layer1"]})


def test_bad_arguments():
    with pytest.raises(ValueError, match="direction must be one of output, input, height, width, got 'out'"):
        select(nn.Conv2d(3, 4, 3), direction="out")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        select([nn.Conv2d(3, 4, 3)])


def test_a_model_without_targets_warns_what_was_looked_for():
    with pytest.warns(
        UserWarning, match="looked for weights of Conv1d-3d and ConvTranspose1d-3d .* 2 parameters"
    ):
        select(nn.Linear(3, 4))
    with pytest.warns(UserWarning, match="0 parameters"):
        assert select(nn.ReLU()) == Selection((), ())
