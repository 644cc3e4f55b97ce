"""Well-known topologies: a slim network is the network with γ = β = 0 in exactly what went."""

import copy

import pytest
import torch
from torch import nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.outputs import float_outputs
from compress.slimming.output_error import relative_error
from compress.slimming.selection import select_channels
from compress.slimming.slim import SlimOptions, slim_model
from compress.slimming.traced import TracedNetwork
from tests.foreign_networks import NETWORKS, BatchNormAct2d, Classifier, Detector, conv_act
from tests.networks import IMAGE, trained_like

FINE = SlimOptions(round_to=1, min_channels=1, absorb=False)


@torch.no_grad()
def masked_like(network: nn.Module, slim: nn.Module, example, ratio: float) -> nn.Module:
    """Return the network with γ = β = 0 in the channels that the rule of the paper removes.

    Which these are is told by the scores; where they lie by the groups. That no other channel went
    is what the outputs then tell.
    """
    net = TracedNetwork(network, example)
    kept = select_channels(
        net.scores(),
        ratio,
        round_to=1,
        min_channels=1,
        channels_per_decision=net.channels_per_decision(),
    ).kept
    masked = copy.deepcopy(network)
    layers = dict(masked.named_modules())
    for name, channels in kept.items():
        group = net.groups[name]
        per = group.channels_per_decision
        gone = sorted(set(range(group.decisions)) - set((channels // per).tolist()))
        for cut in group.cuts:
            layer = layers[cut.layer]
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight[cut.indices[gone].flatten()] = 0
                layer.bias[cut.indices[gone].flatten()] = 0
    return masked


@pytest.mark.parametrize("name", NETWORKS)
def test_slim_is_masked_to_the_last_digits(name):
    known = NETWORKS[name]
    network = trained_like(known.build()).double()
    example = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1)).double()
    result = slim_model(network, 0.5, FINE, example=example)
    assert result.kept_whole.keys() == known.whole.keys()
    for group, words in known.whole.items():
        assert words in result.kept_whole[group]
    assert result.selection.true_pruned_ratio > 0.2
    masked = masked_like(network, result.model, example, 0.5)
    with torch.no_grad():
        wanted, got = float_outputs(masked(example)), float_outputs(result.model(example))
        before = float_outputs(network(example))
    assert list(got) == list(wanted)
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(got[key], before[key], rtol=1e-3, atol=1e-3)


def test_every_head_of_a_detector_is_compared():
    network = trained_like(Detector())
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.heads[2][1].weight.mul_(2)
        other.heads[2][1].bias.mul_(2)
    assert relative_error(other, network, torch.randn(IMAGE)) == pytest.approx(1)
    assert relative_error(network, network, torch.randn(IMAGE)) == 0


def test_heads_for_training_are_cut_with_the_rest():
    network = trained_like(NETWORKS["deep supervision"].build())
    slim = slim_model(network, 0.5, FINE, example=torch.zeros(IMAGE)).model
    assert slim.auxiliary[0][0].in_channels == slim.stage1[0].out_channels < 16
    assert slim.unused.in_channels == slim.stage2[0].out_channels < 24
    logits, auxiliary = slim.train()(torch.randn(2, *IMAGE[1:]))
    assert logits.shape == auxiliary.shape == (2, 10)


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = conv_act(3, 16), nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def test_layers_that_never_run_are_named():
    result = slim_model(trained_like(Spare()), 0.5, FINE, example=torch.zeros(IMAGE))
    assert result.notes == ("did not run on the image, so their widths stay: spare",)


def test_an_activation_inside_a_batch_norm_is_folded_like_one_behind_it():
    """Without padding the fold is exact where γ is 0."""
    inside = nn.Sequential(nn.Conv2d(3, 16, 1), BatchNormAct2d(16), nn.Conv2d(16, 10, 1))
    inside = trained_like(Classifier(inside, 10))
    with torch.no_grad():
        inside.body[1].weight[:8] = 0
    ratio = 7.5 / 16
    slim = slim_model(inside, ratio, SlimOptions(round_to=1), example=torch.zeros(IMAGE)).model
    assert slim.body[0].out_channels == 8
    assert relative_error(slim, inside, torch.randn(IMAGE)) < 1e-5


def test_a_gap_between_asked_and_true_ratio_is_said():
    network = trained_like(NETWORKS["DenseNet, growth 12"].build())
    result = slim_model(network, 0.3, example=torch.zeros(IMAGE))
    assert result.selection.true_pruned_ratio < 0.25
    (note,) = [note for note in result.notes if note.startswith("asked to remove 0.3")]
    assert "--round-to" in note
    told = {layer.name: layer.unrounded for layer in result.layers if layer.unrounded}
    assert any("no multiple of 8" in why for why in told.values())
    assert all(layer.before == layer.after for layer in result.layers if layer.name in told)
    fine = slim_model(network, 0.3, FINE, example=torch.zeros(IMAGE))
    assert fine.notes == ()


def test_the_reason_is_the_true_one_where_nothing_can_go():
    network = trained_like(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    with pytest.raises(UnsupportedModelError, match=r"1 because they are the network's output"):
        slim_model(network, 0.5, example=torch.zeros(IMAGE))
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with pytest.raises(UnsupportedModelError, match="no BatchNorm"):
        slim_model(network, 0.5, example=torch.zeros(IMAGE))


def test_rounding_that_fits_no_layer_is_an_error():
    network = trained_like(Spare())
    with pytest.raises(UserInputError, match=r"body\.1 \(no multiple of 32 from 8 to 16\)"):
        slim_model(network, 0.5, SlimOptions(round_to=32), example=torch.zeros(IMAGE))


def test_the_bias_of_a_depthwise_convolution_is_folded():
    """StarNet's: with γ = β = 0 before it, the convolution still gives its bias."""
    layers = [nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16)]
    network = trained_like(Classifier(nn.Sequential(*layers, nn.Conv2d(16, 10, 1)), 10))
    with torch.no_grad():
        network.body[1].weight[:8] = 0
    slim = slim_model(network, 7.5 / 16, SlimOptions(round_to=1), example=torch.zeros(IMAGE)).model
    assert slim.body[2].groups == 8
    assert relative_error(slim, network, torch.randn(IMAGE)) < 1e-5
