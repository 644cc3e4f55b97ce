"""Slimming networks with exits, and exits on slim networks: all exits keep their function."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.checkpoint import save
from compress.models.early_exit import EarlyExitNetwork
from compress.models.give_exits import with_exits
from compress.slimming.slim import slim_model
from compress.slimming.traced import TracedNetwork
from tests.slimming.test_foreign import FINE, masked_like
from tests.tapped_networks import IMAGE_SHAPE, NETWORKS, Tapped, trained

BATCH_NORM = ("VGG", "CIFAR ResNet", "torchvision ResNet", "MobileNetV2", "U-Net", "DenseNet")
CASES = [
    pytest.param(NETWORKS[name], head, id=f"{name}, {head}")
    for name in BATCH_NORM
    for head in ("linear", "conv:8")
]


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed)).double()


@torch.no_grad()
def lively(network: EarlyExitNetwork) -> EarlyExitNetwork:
    """Heads and gates that say something; γ of conv heads between those of the backbone."""
    generator = torch.Generator().manual_seed(5)
    for parameter in (*network.heads.parameters(), *network.gates.parameters()):
        parameter.normal_(0, 0.5, generator=generator)
    for layer in network.heads.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def given_exits(backbone: nn.Module, tapped: Tapped, head: str) -> EarlyExitNetwork:
    network = with_exits(backbone, tapped.at, pictures(1), head=head).double()
    assert isinstance(network, EarlyExitNetwork)
    return lively(network)


@torch.no_grad()
def assert_same(one: EarlyExitNetwork, other: EarlyExitNetwork) -> None:
    outputs = [network.every_exit(pictures(3, seed=2)) for network in (one, other)]
    (wanted, wanted_gates), (got, got_gates) = outputs
    assert len(wanted) == len(got) == len(one.exit_paths) + 1
    for tensors in (zip(wanted, got, strict=True), zip(wanted_gates, got_gates, strict=True)):
        for a, b in tensors:
            torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("tapped", "head"), CASES)
def test_all_exits_are_those_of_the_masked_network(
    tmp_path: Path, tapped: Tapped, head: str
) -> None:
    backbone = trained(tapped.build).double()
    if tapped.factory is not None:
        backbone.arch, backbone.config = "factory", {"factory": tapped.factory}
    network = given_exits(backbone, tapped, head)
    result = slim_model(network, 0.4, FINE, example=pictures(1))
    slim = result.model
    assert isinstance(slim, EarlyExitNetwork)
    assert 0.3 < result.selection.true_pruned_ratio < 0.5
    assert_same(masked_like(network, slim, pictures(1), 0.4), slim)
    if head.startswith("conv"):
        assert slim.heads.get_parameter("0.see.3.weight").shape[0] < 8

    path = save(slim.float(), tmp_path / "slim.pth")
    loaded = compress.load(path, factory=tapped.factory)
    assert loaded.config == slim.config
    with torch.no_grad():
        image = pictures(2).float()
        pairs = zip(loaded.forward_all(image), slim.forward_all(image), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert slim.forward_early(image[:1], 0.0)[1] == 0


@torch.no_grad()
def with_dead_channels(network: nn.Module, share: float) -> tuple[nn.Module, int]:
    """Return a network with γ = β = 0 in the first channels of every group, and how many.

    Groups of the backbone, that is: heads that a map is convolved in have a γ for its channels too.
    """
    net = TracedNetwork(network, pictures(1))
    dead = copy.deepcopy(network)
    layers, count = dict(dead.named_modules()), 0
    for group in (net.groups[name] for name in net.scores()):  # those that can be cut
        if not any(cut.layer.startswith("backbone.") for cut in group.cuts):
            continue
        gone = list(range(int(share * group.decisions)))
        count += len(gone)
        for cut in group.cuts:
            layer = layers[cut.layer]
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight[cut.indices[gone].flatten()] = 0
                layer.bias[cut.indices[gone].flatten()] = 0
    return dead, count


def slimmed(network: nn.Module, count: int) -> nn.Module:
    """Return the network without as many channels, those of the smallest γ.

    The rule of the paper takes the threshold behind the share that is asked for: one more channel.
    """
    decisions = sum(len(scores) for scores in TracedNetwork(network, pictures(1)).scores().values())
    result = slim_model(network, (count - 0.5) / decisions, FINE, example=pictures(1))
    return result.model


@pytest.mark.parametrize(("tapped", "head"), CASES)
def test_slimming_and_exits_in_either_order(tapped: Tapped, head: str) -> None:
    """Where what goes is dead, nothing changes, and the two orders end in the same network."""
    alive = given_exits(trained(tapped.build).double(), tapped, head)
    first, dead = with_dead_channels(alive, 0.4)
    assert dead > 5
    backbone = first.backbone
    exits_then_slim = slimmed(first, dead)
    assert_same(first, exits_then_slim)

    slim_then_exits = given_exits(slimmed(backbone, dead), tapped, head)
    assert slim_then_exits.config == exits_then_slim.config
    for name in ("heads", "gates"):
        part = getattr(exits_then_slim, name).state_dict()
        getattr(slim_then_exits, name).load_state_dict(part)
    assert_same(exits_then_slim, slim_then_exits)
