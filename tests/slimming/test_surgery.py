import copy

import pytest
import torch
from torch import nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.vgg import VGG
from compress.slimming.output_error import relative_error
from compress.slimming.slim import SlimOptions, slim_model
from tests.golden import LOG, golden_vgg16

FREE = SlimOptions(round_to=1, min_channels=1)


def tiny_vgg(*, pooled: int = 2, seed: int = 0) -> VGG:
    """A VGG of three convolutions whose every tensor is random, running statistics included."""
    torch.manual_seed(seed)
    model = VGG(widths=[[8, 12], [16]], num_classes=5, hidden=[10], pooled=pooled, dropout=0.0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.2, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.eval()


def kill(model: VGG, share: float, *, beta: float = 0.0) -> int:
    """Set γ to 0 and β to `beta` in the first channels of every layer; return how many."""
    killed = 0
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            count = int(layer.num_features * share)
            layer.weight.data[:count] = 0
            layer.bias.data[:count] = beta
            killed += count
    return killed


@pytest.mark.parametrize("pooled", [1, 2, 3], ids="pool{}".format)
def test_removing_dead_channels_changes_nothing(pooled):
    model = tiny_vgg(pooled=pooled)
    killed = kill(model, 0.5)
    ratio = (killed - 0.5) / 36  # index killed - 1: the largest of the dead
    slim = slim_model(model, ratio, FREE).model
    assert slim.config["widths"] == [[4, 6], [8]]
    images = torch.randn(3, 3, 24, 24)
    assert relative_error(slim, model, images) < 1e-6


def test_the_unpruned_network_is_left_alone():
    model = tiny_vgg()
    before = copy.deepcopy(model.state_dict())
    slim = slim_model(model, 0.5, FREE).model
    for tensor in slim.state_dict().values():
        tensor.zero_()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], msg=f"{name} was changed through the copy")


def test_kept_channels_keep_their_own_tensors():
    """Every kept slice equals the original's slice: a second implementation by fancy indexing."""
    model = tiny_vgg()
    result = slim_model(model, 0.5, SlimOptions(round_to=1, min_channels=1, absorb=False))
    kept = list(result.selection.kept.values())
    old, new = model.state_dict(), result.model.state_dict()
    torch.testing.assert_close(
        new["features.3.weight"], old["features.3.weight"][kept[1]][:, kept[0]]
    )
    torch.testing.assert_close(
        new["features.4.running_var"], old["features.4.running_var"][kept[1]]
    )
    columns = (kept[2][:, None] * 4 + torch.arange(4)).flatten()
    torch.testing.assert_close(new["classifier.0.weight"], old["classifier.0.weight"][:, columns])


def test_absorbing_is_exact_behind_a_flatten():
    """Only the last convolution loses channels, γ = 0 and β = 1: the linear layer takes relu(1)."""
    model = tiny_vgg()
    norm = model.features[8]
    norm.weight.data[:8], norm.bias.data[:8] = 0, 1.0
    options = SlimOptions(round_to=1, min_channels=1, ignore=("features.1", "features.4"))
    slim = slim_model(model, 7.5 / 16, options).model
    assert slim.config["widths"] == [[8, 12], [8]]
    assert relative_error(slim, model, torch.randn(3, 3, 24, 24)) < 1e-6


def test_absorbing_brings_the_output_closer():
    model = tiny_vgg()
    killed = kill(model, 0.5, beta=0.7)
    images = torch.randn(4, 3, 24, 24)
    errors = {}
    for absorb in (False, True):
        options = SlimOptions(round_to=1, min_channels=1, absorb=absorb)
        slim = slim_model(model, (killed - 0.5) / 36, options).model
        errors[absorb] = relative_error(slim, model, images)
    assert errors[True] < errors[False] / 2  # what is left comes from the zero-padded border


def test_ignored_layers_keep_their_width_and_do_not_vote():
    model = tiny_vgg()
    model.features[1].weight.data.fill_(0.001)  # would fill the quota, were it not left out
    slim = slim_model(model, 0.5, SlimOptions(round_to=1, min_channels=1, ignore=("features.1",)))
    assert slim.layers[0].after == 8
    assert slim.layers[0].smallest_kept is None
    assert slim.selection.totals == {"features.4": 12, "features.8": 16}
    assert sum(layer.after for layer in slim.layers[1:]) == 28 - 15


def test_a_pattern_that_matches_nothing():
    with pytest.raises(UserInputError, match=r"features\.2"):
        slim_model(tiny_vgg(), 0.5, SlimOptions(ignore=("features.2",)))


def test_ignoring_everything():
    with pytest.raises(UnsupportedModelError, match="--ignore matches all"):
        slim_model(tiny_vgg(), 0.5, SlimOptions(ignore=("features.*",)))


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_golden_vgg16_reads_the_features_of_the_log(ratio):
    result = slim_model(golden_vgg16(), ratio)
    assert [layer.after for layer in result.layers] == LOG[ratio]["widths"]
    assert result.model.classifier[0].in_features == LOG[ratio]["fc_in"]
