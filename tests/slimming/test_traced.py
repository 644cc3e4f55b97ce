import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.slimming.absorb import expected_relu
from compress.slimming.selection import Selection, select_channels
from compress.slimming.traced import TracedNetwork
from compress.slimming.traced_moments import expected_activation
from tests.networks import FACTORIES, IMAGE, bottleneck_resnet, trained_like

NETWORKS = [pytest.param(factory, id=name) for name, factory in FACTORIES.items()]

# Which layers share their channels, worked out by hand from tests/networks.py.
STAGES = {
    "bottleneck_resnet": {
        "bn1": {"conv1", "bn1"},
        "layer1.0.bn1": {"layer1.0.conv1", "layer1.0.bn1"},
        "layer1.0.bn2": {"layer1.0.conv2", "layer1.0.bn2"},
        "layer1.0.bn3": {
            "layer1.0.conv3",
            "layer1.0.bn3",
            "layer1.0.downsample.0",
            "layer1.0.downsample.1",
            "layer1.1.conv3",
            "layer1.1.bn3",
        },
        "layer1.1.bn1": {"layer1.1.conv1", "layer1.1.bn1"},
        "layer1.1.bn2": {"layer1.1.conv2", "layer1.1.bn2"},
        "layer2.0.bn1": {"layer2.0.conv1", "layer2.0.bn1"},
        "layer2.0.bn2": {"layer2.0.conv2", "layer2.0.bn2"},
        "layer2.0.bn3": {
            "layer2.0.conv3",
            "layer2.0.bn3",
            "layer2.0.downsample.0",
            "layer2.0.downsample.1",
            "layer2.1.conv3",
            "layer2.1.bn3",
        },
        "layer2.1.bn1": {"layer2.1.conv1", "layer2.1.bn1"},
        "layer2.1.bn2": {"layer2.1.conv2", "layer2.1.bn2"},
    },
    "inverted_residual_net": {
        "features.0.1": {
            "features.0.0",
            "features.0.1",
            "features.1.conv.0",
            "features.1.conv.1",
            "features.1.conv.3",
            "features.1.conv.4",
        },
        **{
            f"features.{i}.conv.1": {f"features.{i}.conv.{j}" for j in (0, 1, 3, 4)}
            for i in (2, 3, 4)
        },
        "features.2.conv.7": {
            "features.2.conv.6",
            "features.2.conv.7",
            "features.3.conv.6",
            "features.3.conv.7",
        },
        "features.4.conv.7": {"features.4.conv.6", "features.4.conv.7"},
        "features.5.1": {"features.5.0", "features.5.1"},
    },
    "grouped_net": {
        "norm0": {"stem", "norm0"},
        "norm1": {"conv1", "norm1", "conv2", "norm2"},
        "norm3": {"conv3", "norm3"},
    },
    "dense_net": {
        "block1.0.norm1": {"stem", "block1.0.norm1", "block1.1.norm1", "transition.0"},
        "block1.0.norm2": {"block1.0.conv1", "block1.0.norm2"},
        "block1.1.norm1": {"block1.0.conv2", "block1.1.norm1", "transition.0"},
        "block1.1.norm2": {"block1.1.conv1", "block1.1.norm2"},
        "transition.0": {"block1.1.conv2", "transition.0"},
        "block2.0.norm1": {"transition.2", "block2.0.norm1", "block2.1.norm1", "norm"},
        "block2.0.norm2": {"block2.0.conv1", "block2.0.norm2"},
        "block2.1.norm1": {"block2.0.conv2", "block2.1.norm1", "norm"},
        "block2.1.norm2": {"block2.1.conv1", "block2.1.norm2"},
        "norm": {"block2.1.conv2", "norm"},
    },
    "branch_net": {
        "stem.1": {"stem.0", "stem.1"},
        "branch1.1": {"branch1.0", "branch1.1"},
        "branch3.0.1": {"branch3.0.0", "branch3.0.1"},
        "branch3.1.1": {"branch3.1.0", "branch3.1.1"},
        "branch_pool.1.1": {"branch_pool.1.0", "branch_pool.1.1"},
        "mix.1": {"mix.0", "mix.1"},
    },
}


def images(count: int = 2, shape: tuple[int, ...] = IMAGE, seed: int = 7) -> Tensor:
    return torch.randn(count, *shape[1:], generator=torch.Generator().manual_seed(seed))


def traced(network: nn.Module, **options) -> TracedNetwork:
    return TracedNetwork(network, torch.zeros(IMAGE), **options)


def choose(net: TracedNetwork, ratio: float, round_to: int = 4) -> Selection:
    return select_channels(
        net.scores(),
        ratio,
        round_to=round_to,
        min_channels=round_to,
        channels_per_decision=net.channels_per_decision(),
    )


@torch.no_grad()
def set_scored_(network: nn.Module, net: TracedNetwork, kept: dict, gamma: float, beta: float):
    """Set γ and β of every BatchNorm in the channels that `kept` (decisions) leaves out."""
    layers = dict(network.named_modules())
    for name, decisions in kept.items():
        group = net.groups[name]
        gone = [i for i in range(group.decisions) if i not in set(decisions)]
        for cut in group.cuts:
            layer = layers[cut.layer]
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight[cut.indices[gone].flatten()] = gamma
                layer.bias[cut.indices[gone].flatten()] = beta


def half_dead(factory, gamma: float = 0.0, beta: float = 0.0):
    """Return a network, traced, and the Selection that removes its dead decisions and no others."""
    network = trained_like(factory())
    net = traced(network)
    generator = torch.Generator().manual_seed(3)
    kept = {
        name: torch.randperm(group.decisions, generator=generator)[: group.decisions // 2].tolist()
        for name, group in net.groups.items()
    }
    set_scored_(network, net, kept, gamma, beta)
    net = traced(network)  # what was traced before tells of other γ
    dead = sum(
        (group.decisions - group.decisions // 2) * group.channels_per_decision
        for group in net.groups.values()
    )
    selection = choose(net, (dead - 0.5) / sum(net.widths().values()))
    for name, decisions in kept.items():
        per = net.groups[name].channels_per_decision
        assert sorted({i // per for i in selection.kept[name].tolist()}) == sorted(decisions)
    return network, net, selection


@torch.no_grad()
def relative_change(network: nn.Module, reference: nn.Module, batch: Tensor) -> float:
    wanted = reference(batch)
    got = network(batch)
    assert got.shape == wanted.shape
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("factory", NETWORKS)
def test_coupled_layers_are_those_found_by_hand(factory):
    net = traced(factory())
    assert {name: group.owners for name, group in net.groups.items()} == STAGES[factory.__name__]
    assert net.kept_whole == {}


@pytest.mark.parametrize("factory", NETWORKS)
def test_removing_dead_channels_changes_nothing(factory):
    network, net, selection = half_dead(factory)
    slim = net.slim(selection, absorb=False)
    assert relative_change(slim, network, images()) < 1e-5
    # Dead channels are worth relu(0), relu6(0) or silu(0), so there is nothing to absorb either.
    assert relative_change(net.slim(selection), network, images()) < 1e-5


@pytest.mark.parametrize("factory", NETWORKS)
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_slim_equals_masked(factory, ratio):
    """Zeroing γ and β of the removed channels is another way to remove them."""
    network = trained_like(factory())
    net = traced(network)
    selection = choose(net, ratio)
    slim = net.slim(selection, absorb=False)
    masked = copy.deepcopy(network)
    per = net.channels_per_decision()
    kept = {name: (indices // per[name]).tolist() for name, indices in selection.kept.items()}
    set_scored_(masked, net, kept, 0.0, 0.0)
    assert relative_change(slim, masked, images()) < 1e-5
    assert relative_change(slim, network, images()) > 1e-3  # something was removed


def test_widths_by_hand():
    _, net, selection = half_dead(bottleneck_resnet)
    slim = net.slim(selection)
    assert slim.conv1.weight.shape == (8, 3, 3, 3)
    assert slim.bn1.num_features == len(slim.bn1.running_var) == 8
    assert slim.layer1[0].conv1.weight.shape == (4, 8, 1, 1)
    assert slim.layer1[0].conv2.weight.shape == (4, 4, 3, 3)
    assert slim.layer1[0].conv3.weight.shape == (16, 4, 1, 1)
    assert slim.layer1[0].downsample[0].weight.shape == (16, 8, 1, 1)
    assert slim.layer1[1].conv1.weight.shape == (4, 16, 1, 1)
    assert slim.layer1[1].bn3.num_features == 16
    assert slim.layer2[0].conv1.weight.shape == (8, 16, 1, 1)
    assert slim.fc.weight.shape == (10, 32)
    assert selection.true_pruned_ratio == 0.5
    skeleton = net.skeleton(selection)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in slim.state_dict().items()}
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == shapes


def test_flattened_map_goes_with_its_channel():
    network, net, selection = half_dead(FACTORIES["branch_net"])
    slim = net.slim(selection)
    assert slim.fc1.weight.shape == (32, 8 * 16)
    columns = network.fc1.weight.unflatten(1, (16, 16))[:, selection.kept["mix.1"]].flatten(1)
    torch.testing.assert_close(slim.fc1.weight, columns, rtol=0, atol=0)


def test_grouped_convolutions_lose_the_same_places_in_every_group():
    network = trained_like(FACTORIES["grouped_net"]())
    net = traced(network)
    assert net.channels_per_decision() == {"norm0": 2, "norm1": 4, "norm3": 1}
    assert net.widths() == {"norm0": 16, "norm1": 32, "norm3": 24}
    # Read by 2 groups, channels p and p + 8 go together, with the larger |γ| of both.
    gamma = network.norm0.weight.abs()
    expected = torch.maximum(gamma[:8], gamma[8:]).repeat_interleave(2)
    torch.testing.assert_close(net.scores()["norm0"], expected, rtol=0, atol=0)
    selection = choose(net, 0.5, round_to=8)
    slim = net.slim(selection)
    assert slim.conv2.groups == 4
    assert slim.conv2.in_channels == slim.conv2.out_channels == selection.widths["norm1"]
    assert all(width % 8 == 0 for width in selection.widths.values())
    positions = selection.kept["norm0"][::2] // 2
    kept = torch.cat([positions, positions + 8])
    torch.testing.assert_close(slim.norm0.weight, network.norm0.weight[kept], rtol=0, atol=0)


def test_selection_that_splits_a_decision_is_refused():
    net = traced(trained_like(FACTORIES["grouped_net"]()))
    selection = select_channels(net.scores(), 0.9, round_to=1, min_channels=3)
    with pytest.raises(ValueError, match="channels_per_decision"):
        net.slim(selection)


@pytest.mark.parametrize("round_to", [1, 3])
def test_grouped_convolutions_stay_whole_at_any_rounding(round_to):
    net = traced(trained_like(FACTORIES["grouped_net"]()))
    selection = choose(net, 0.9, round_to=round_to)
    assert selection.widths["norm0"] % (2 * round_to) == 0
    assert selection.widths["norm1"] % (4 * round_to) == 0
    slim = net.slim(selection)
    assert slim.conv2.in_channels == slim.conv2.out_channels == selection.widths["norm1"] < 32


def test_score_of_a_shared_channel_is_its_largest():
    network = trained_like(bottleneck_resnet())
    names = ("layer1.0.bn3", "layer1.0.downsample.1", "layer1.1.bn3")
    gammas = torch.stack([network.get_submodule(name).weight.abs() for name in names])
    assert torch.equal(traced(network).scores()["layer1.0.bn3"], gammas.amax(0))


class WithOutputNorm(nn.Module):
    """Ends in a BatchNorm over the logits, whose channels nobody may remove."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3)
        self.norm2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 32)
        self.norm3 = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.norm3(self.fc(x.mean((2, 3))))


def test_percentile_is_over_prunable_channels_only():
    network = trained_like(WithOutputNorm())
    with torch.no_grad():
        network.norm3.weight.fill_(1e-6)  # half of all γ, and the smallest
    net = traced(network)
    assert net.kept_whole == {"norm3": "they are the network's output"}
    assert net.widths() == {"norm1": 16, "norm2": 16, "norm3": 32}
    selection = choose(net, 0.5)
    everything = torch.cat([network.norm1.weight, network.norm2.weight]).sort().values
    assert selection.threshold == everything[16].item()
    assert selection.true_pruned_ratio > 0.25
    assert net.slim(selection).fc.out_features == 32


class Awkward(nn.Module):
    """A block of 16 channels put to one of several uses between two slimmable blocks."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        widths = {"cat image": 19, "cat image first": 19, "shuffle pixels": 4, "part": 8}
        width = widths.get(use, 16)
        self.conv3, self.norm3 = nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)
        if use == "group norm":
            self.extra = nn.GroupNorm(4, 16)
        elif use == "bare branch":
            self.extra = nn.Conv2d(16, 16, 3, padding=1)
        elif use == "parameter":
            self.scale = nn.Parameter(torch.linspace(1, 2, 16)[:, None, None])
        elif use == "squeeze":
            self.down, self.up = nn.Linear(16, 4), nn.Linear(4, 16)
        elif use == "shared":
            self.twin = nn.Conv2d(16, 16, 3, padding=1)
            self.twin.weight = self.conv2.weight
        elif use == "spatial gate":
            self.gate = nn.Conv2d(16, 1, 1)
        elif use == "multiplier":
            self.many = nn.Conv2d(16, 32, 3, padding=1, groups=16)
            self.few = nn.Conv2d(32, 16, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(image)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = getattr(self, self.use.replace(" ", "_"))(x, image)
        x = F.relu(self.norm3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))

    def plain(self, x, image):
        return x

    def cat_image(self, x, image):
        return torch.cat([x, image], 1)

    def cat_image_first(self, x, image):
        return torch.cat([image, x], 1)

    def group_norm(self, x, image):
        return self.extra(x)

    def parameter(self, x, image):
        return x * self.scale

    def squeeze(self, x, image):
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]

    def shared(self, x, image):
        return self.twin(x)

    def twice(self, x, image):
        return F.relu(self.norm2(self.conv2(x)))

    def chunk(self, x, image):
        one, other = x.chunk(2, 1)
        return torch.cat([other, one], 1)

    def channel_slice(self, x, image):
        return torch.cat([x[:, 8:], x[:, :8]], 1)

    def part(self, x, image):
        return x[:, 8:]

    def bare_branch(self, x, image):
        return x + self.extra(x)

    def shuffle(self, x, image):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def shuffle_pixels(self, x, image):
        return F.pixel_shuffle(x, 2)

    def normalize(self, x, image):
        return F.normalize(x, dim=1)

    def spatial_gate(self, x, image):
        return x * torch.sigmoid(self.gate(x))

    def multiplier(self, x, image):
        return self.few(self.many(x))


@pytest.mark.parametrize(
    ("use", "whole"),
    [
        ("plain", {}),
        ("cat image", {}),
        ("cat image first", {}),
        ("group norm", {"norm2": "GroupNorm among their layers works on all channels together"}),
        ("parameter", {"norm2": "parameter of its own"}),
        ("squeeze", {}),
        ("shared", {"norm1": "shares its parameters"}),
        ("twice", {}),
        ("chunk", {}),
        ("channel slice", {"norm2": "Awkward (slice) has their number written down"}),
        ("part", {"norm2": "Awkward (slice) has their number written down"}),
        ("bare branch", {"norm2": "no γ scales all of what conv3 reads"}),
        ("shuffle", {}),
        ("shuffle pixels", {}),
        ("normalize", {"norm2": "linalg_vector_norm, which picks or mixes"}),
        ("spatial gate", {}),
        ("multiplier", {"norm2": "only go all together"}),
    ],
)
def test_awkward_uses_are_slimmed_exactly_or_kept_whole(use, whole):
    network = trained_like(Awkward(use))
    net = traced(network)
    assert net.kept_whole.keys() == whole.keys()
    for name, words in whole.items():
        assert words in net.kept_whole[name]
    selection = choose(net, 0.5)
    slim = net.slim(selection, absorb=False)  # raises where the cut is not exact
    assert slim.conv1.out_channels + slim.conv3.out_channels < 32
    masked = copy.deepcopy(network)
    per = net.channels_per_decision()
    kept = {name: (indices // per[name]).tolist() for name, indices in selection.kept.items()}
    set_scored_(masked, net, kept, 0.0, 0.0)
    assert relative_change(slim, masked, images()) < 1e-5


class Several(nn.Module):
    """Gives maps and logits in a dict; the maps come straight from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.maps = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x))
        return {"probs": self.fc(F.relu(y).mean((2, 3))), "maps": self.maps(x), "norm": y}


def test_every_output_of_a_dict_keeps_its_channels():
    network = trained_like(Several())
    net = traced(network)
    assert set(net.kept_whole) == {"norm2"}
    slim = net.slim(choose(net, 0.5))
    got, wanted = slim(images()), network(images())
    assert {name: t.shape for name, t in got.items()} == {n: t.shape for n, t in wanted.items()}
    assert slim.conv1.out_channels < 16


class ResidualWithImage(nn.Module):
    """The first block is added to the image, so its channels are the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(image + self.norm1(self.conv1(image)))
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


def test_channels_added_to_the_image_stay():
    net = traced(trained_like(ResidualWithImage()))
    assert net.kept_whole == {"norm1": "they belong to the image"}
    assert net.slim(choose(net, 0.5)).conv1.out_channels == 3


def test_slimming_twice_gives_the_same_and_leaves_the_network_alone():
    network = trained_like(bottleneck_resnet())
    network.train()
    network.fc.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    slims = []
    for _ in range(2):
        net = traced(network)
        slims.append(net.slim(choose(net, 0.5)))
    torch.testing.assert_close(slims[0].state_dict(), slims[1].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert network.training
    assert not slims[0].training
    assert slims[0].conv1.weight.requires_grad
    assert not slims[0].fc.weight.requires_grad


def test_frozen_parameters_and_no_grad_are_no_obstacle():
    network = trained_like(bottleneck_resnet()).requires_grad_(False)
    with torch.no_grad():
        net = traced(network)
        assert relative_change(net.slim(choose(net, 0.0)), network, images()) == 0


def test_ignored_layers_keep_their_channels_and_leave_the_percentile():
    network = trained_like(bottleneck_resnet())
    net = traced(network, ignore=["layer1.1.bn3", "layer2.*.conv?"])
    whole = {"layer1.0.bn3"} | {f"layer2.{i}.bn{j}" for i in (0, 1) for j in (1, 2)}
    assert set(net.kept_whole) == whole | {"layer2.0.bn3"}
    assert set(net.scores()) == {"bn1", *(f"layer1.{i}.bn{j}" for i in (0, 1) for j in (1, 2))}
    slim = net.slim(choose(net, 0.7))
    assert slim.layer1[0].conv3.out_channels == 32
    assert slim.layer1[0].conv2.out_channels == 4


def test_pattern_without_a_layer():
    with pytest.raises(UserInputError, match=r"layer9.*matches no"):
        traced(bottleneck_resnet(), ignore=["layer9.*"])


def test_network_without_batch_norm_has_nothing_to_score():
    net = traced(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval())
    assert net.scores() == {}


class Hidden(nn.Module):
    """Reads its channels where tracing cannot see it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv0, self.norm0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)
        self.register_buffer("scale", torch.linspace(1, 2, 16)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(F.relu(self.norm0(self.conv0(x))))))
        if self.how == "mean":
            x = x - x.detach().mean(1, keepdim=True)
        elif self.how == "buffer":
            x = x * self.scale
        else:
            x = x.view(len(x), 16, -1, 1)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("mean", "pass through mean"),
        ("buffer", "combined with values of a fixed width"),
        ("view", "Hidden (view) has their number written down"),
    ],
)
def test_channels_that_are_read_out_of_sight_stay(how, why):
    network = trained_like(Hidden(how))
    net = traced(network)
    assert why in net.kept_whole["norm1"]
    assert net.slim(choose(net, 0.5)).conv0.out_channels == 4


def test_network_that_does_not_run_on_the_image():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(UnsupportedModelError, match=r"cannot be run on .*\(3, 16, 16\)"):
        traced(network)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean((2, 3)).detach())


def test_values_taken_off_the_graph_are_followed():
    net = traced(trained_like(Detached()))
    assert net.kept_whole == {}
    assert net.slim(choose(net, 0.5)).fc.in_features == 4


def test_nan_outputs_are_refused():
    network = trained_like(bottleneck_resnet())
    with torch.no_grad():
        network.layer1[0].conv2.weight[0] = math.nan
    with pytest.raises(UnsupportedModelError, match="not finite"):
        traced(network)


@pytest.mark.parametrize("factory", NETWORKS)
def test_absorption_brings_the_outputs_closer(factory):
    """Channels with γ = 0 and β ≠ 0 still give a constant, which plain removal takes away."""
    network, net, selection = half_dead(factory, gamma=0.0, beta=0.5)
    plain = relative_change(net.slim(selection, absorb=False), network, images())
    absorbed = relative_change(net.slim(selection), network, images())
    assert absorbed < 0.6 * plain
    # By hand: all readers have a bias or a BatchNorm, except what a dense layer concatenates.
    without = {"block1.0.conv2", "block1.1.conv2", "block2.0.conv2", "block2.1.conv2"}
    without |= {"transition.2"}
    assert set(net.not_absorbed) == (without if factory is FACTORIES["dense_net"] else set())


def test_readers_of_what_has_no_known_mean_are_named():
    net = traced(trained_like(Awkward("squeeze")))
    net.slim(choose(net, 0.5))
    assert "conv3" in net.not_absorbed
    assert "conv2" not in net.not_absorbed


class Chain(nn.Module):
    """No padding: here absorbing constants is exact."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.depth, self.norm3 = nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16)
        self.conv4, self.norm4 = nn.Conv2d(16, 16, 3, groups=2), nn.BatchNorm2d(16)
        self.other, self.norm5 = nn.Conv2d(3, 8, 9), nn.BatchNorm2d(8)
        self.mix, self.norm6 = nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16)
        self.again, self.norm7 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 4, 10)
        self.activation = activation

    def forward(self, image: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.conv1(image)))
        x = self.activation(self.norm2(self.conv2(x)))
        x = self.activation(self.norm3(self.depth(x)))
        x = self.activation(self.norm4(self.conv4(x)))
        x = torch.cat([self.activation(self.norm5(self.other(image))), x], 1)
        x = self.activation(self.norm6(self.mix(x)))
        x = self.activation(x + self.norm7(self.again(x)))
        return self.fc(torch.flatten(F.dropout(F.avg_pool2d(x, 4), 0.5, self.training), 1))


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(nn.ReLU(), id="relu"),
        pytest.param(nn.ReLU6(inplace=True), id="relu6"),
        pytest.param(nn.SiLU(), id="silu"),
        pytest.param(nn.GELU(), id="gelu"),
        pytest.param(nn.LeakyReLU(0.2), id="leaky-relu"),
        pytest.param(nn.Hardswish(), id="hardswish"),
        pytest.param(nn.Identity(), id="none"),
    ],
)
def test_absorption_is_exact_without_padding(activation):
    network, net, selection = half_dead(lambda: Chain(activation), gamma=0.0, beta=0.7)
    slim = net.slim(selection)
    assert net.not_absorbed == ()
    assert relative_change(slim, network, images()) < 1e-5
    assert relative_change(net.slim(selection, absorb=False), network, images()) > 1e-2
    assert slim.state_dict().keys() == network.state_dict().keys()


def test_absorption_of_live_channels_matches_the_mean():
    """Inputs that are standard normal behind BatchNorm's statistics: outputs agree on average."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    trained_like(network)
    batch = torch.randn(64, *IMAGE[1:])
    with torch.no_grad():
        before = network[0](batch)
        network[1].running_mean.copy_(before.mean((0, 2, 3)))
        network[1].running_var.copy_(before.var((0, 2, 3)))
        net = traced(network)
        selection = choose(net, 0.7)
        wanted = network(batch).mean((0, 2, 3))
        absorbed = net.slim(selection)(batch).mean((0, 2, 3))
        plain = net.slim(selection, absorb=False)(batch).mean((0, 2, 3))
    assert (absorbed - wanted).norm() < 0.02 * (plain - wanted).norm()


def test_expected_activation_against_closed_forms():
    beta, gamma = torch.meshgrid(torch.linspace(-4, 8, 25), torch.linspace(-2, 2, 9), indexing="ij")
    beta, gamma = beta.flatten(), gamma.flatten()
    relu = expected_activation(torch.relu, gamma, beta)
    torch.testing.assert_close(relu, expected_relu(gamma, beta), rtol=0, atol=2e-5)
    # relu6(x) = relu(x) - relu(x - 6)
    relu6 = expected_relu(gamma, beta) - expected_relu(gamma, beta - 6)
    torch.testing.assert_close(expected_activation(F.relu6, gamma, beta), relu6, rtol=0, atol=2e-5)
    # E[(β + γz)²] = β² + γ²
    square = expected_activation(torch.square, gamma, beta)
    torch.testing.assert_close(square, beta**2 + gamma**2, rtol=1e-5, atol=1e-5)
    silu = expected_activation(F.silu, torch.zeros_like(beta), beta)
    torch.testing.assert_close(silu, F.silu(beta), rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), ratio=st.floats(0, 0.9))
def test_any_gammas_at_any_ratio(seed, ratio):
    network = bottleneck_resnet().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.normal_(generator=generator)
    net = traced(network)
    selection = choose(net, ratio)
    slim = net.slim(selection)
    assert slim(images()).shape == (2, 10)
    widths = [layer.num_features for layer in slim.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(width >= 4 and width % 4 == 0 for width in widths)
    assert sum(selection.widths.values()) >= (1 - ratio) * sum(selection.totals.values()) - 1
