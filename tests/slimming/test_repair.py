import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.slimming.output_error import relative_error
from compress.slimming.output_readers import norms_behind
from compress.slimming.reestimate import reestimate_
from compress.slimming.repair import images_within, repair_
from compress.slimming.slim import SlimOptions, slim_model
from tests.networks import FACTORIES, IMAGE, trained_like

OPTIONS = SlimOptions(round_to=4, min_channels=4)


def images(count: int, seed: int = 0, shape: tuple[int, ...] = IMAGE[1:]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


class Twins(nn.Module):
    """Two convolutions: of the channels of the first the later half repeats the earlier one."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 5, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


@torch.no_grad()
def twins(*, bias: bool) -> tuple[Twins, Twins]:
    """Return the network, and itself without the channels that repeat others."""
    torch.manual_seed(0)
    whole = Twins(8, bias=bias).eval()
    for tensor in (whole.first.weight, whole.first.bias):
        tensor[4:] = 1.5 * tensor[:4]
    reestimate_(whole, [images(32, seed=5)])
    cut = Twins(4, bias=bias).eval()
    state = whole.state_dict()
    state |= {name: state[name][:4] for name in ("first.weight", "first.bias")}
    cut.load_state_dict(state | {"second.weight": state["second.weight"][:, :4]})
    return whole, cut


@pytest.mark.parametrize("bias", [True, False])
def test_a_channel_that_repeats_another_is_made_up_for(bias):
    """Up to what the ridge holds back and what BatchNorm's statistics of other images differ."""
    whole, slim = twins(bias=bias)
    unseen = images(16, seed=9)
    assert relative_error(slim, whole, unseen) > 0.05
    weight = whole.second.weight
    told = repair_(slim, whole, images(32, seed=5), {"first": torch.arange(4)}, ridge=1e-9)
    # The twin has 1.5 times the channel's value, through the ReLU too.
    torch.testing.assert_close(
        slim.second.weight, weight[:, :4] + 1.5 * weight[:, 4:], atol=1e-4, rtol=1e-4
    )
    assert relative_error(slim, whole, unseen) < 1e-4
    assert told.images == 32
    assert max(told.left.values()) < 1e-6
    assert told.unfitted == {}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_any_network_comes_closer_on_images_that_it_was_not_fitted_to(factory):
    network = trained_like(factory())
    reestimate_(network, [images(64)])  # as BatchNorm would be after training on such images
    result = slim_model(network, 0.4, OPTIONS, example=torch.zeros(IMAGE))
    slim = copy.deepcopy(result.model)
    repair_(slim, network, images(128), result.kept_outputs)
    unseen = images(32, seed=1)
    before, after = (relative_error(one, network, unseen) for one in (result.model, slim))
    assert after < 0.8 * before
    shapes = {name: tensor.shape for name, tensor in result.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in slim.state_dict().items()} == shapes


def test_the_same_images_give_the_same_network():
    network = trained_like(FACTORIES["bottleneck_resnet"]())
    result = slim_model(network, 0.4, OPTIONS, example=torch.zeros(IMAGE))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        slim = copy.deepcopy(result.model)
        repair_(slim, network, images(32), result.kept_outputs)
        found.append(slim.state_dict())
    for name, tensor in found[0].items():
        assert tensor.equal(found[1][name])


def test_what_is_not_cut_stays():
    network = trained_like(FACTORIES["branch_net"]())
    reestimate_(network, [images(64)])
    slim = copy.deepcopy(network)
    repair_(slim, network, images(64), {})
    assert relative_error(slim, network, images(8, seed=1)) < 1e-3


class Shared(nn.Module):
    """A layer that runs twice, one whose weight another has too, one that reads no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)
        self.other.weight = self.tied.weight
        self.split = nn.Linear(3, 3)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.tied(self.twice(self.twice(x))))
        return self.last(self.split(x.reshape(-1, 3)).reshape(-1, 6))


def test_layers_that_cannot_be_fitted_stay_and_are_named():
    network = Shared().eval()
    slim = copy.deepcopy(network)
    told = repair_(slim, network, images(64, shape=(6,)), {})
    assert set(told.unfitted) == {"twice", "tied", "other", "split"}
    assert set(told.left) == {"last"}
    for name in told.unfitted:
        assert slim.get_submodule(name).weight.equal(network.get_submodule(name).weight)


class PreActivation(nn.Module):
    """What `stem` gives is normalised, and added to what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 1, bias=False)
        self.after = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.after(self.inner(F.relu(self.norm(x))))


def test_only_a_norm_that_reads_alone_may_take_up_a_constant():
    assert norms_behind(PreActivation().eval(), images(1)) == {"inner": "after"}
    network = FACTORIES["bottleneck_resnet"]().eval()
    behind = norms_behind(network, images(1))
    assert behind["layer1.0.conv2"] == "layer1.0.bn2"
    assert "layer1.0.bn1" not in behind


def test_too_few_samples_fit_a_bias_alone():
    network = nn.Sequential(nn.Linear(30, 4)).eval()
    slim = copy.deepcopy(network)
    with torch.no_grad():
        slim[0].bias += 2
    told = repair_(slim, network, images(40, shape=(30,)), {})
    assert "40 samples are too few for 30 inputs" in told.unfitted["0"]
    torch.testing.assert_close(slim[0].weight, network[0].weight)
    torch.testing.assert_close(slim[0].bias, network[0].bias)


def test_images_within_a_budget_of_memory():
    network = nn.Sequential(nn.Conv2d(3, 64, 1))  # a map of 64 * 16 * 16 * 4 bytes is 64 KiB
    assert images_within(network, images(1), 1) == 2**20 // (4 * 64 * 2**10)
    assert images_within(network, images(1), 0) == 1
