"""Heads by themselves: widths, what they read, what a checkpoint says of them."""

import pytest
import torch
from torch import nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.channel_axis import ChannelAxis
from compress.models.exit_head import ExitHead, tap_channels

TAPS = {4: (3, 6, 5, 7), 3: (3, 9, 6), 2: (3, 6)}


@pytest.mark.parametrize(
    ("kind", "dims", "parameters"),
    [
        ("linear", 4, 2 * 6 * 10 + 10),
        ("linear", 3, 6 * 10 + 10),
        ("linear", 2, 6 * 10 + 10),
        ("hidden:5", 4, 2 * 6 * 5 + 5 + 5 * 10 + 10),
        ("hidden:5", 3, 6 * 5 + 5 + 5 * 10 + 10),
        # two depthwise 3x3, two pointwise, a γ and a β behind each, and the last layer
        (
            "conv:8",
            4,
            (9 * 6 + 2 * 6 + 6 * 8 + 2 * 8) + (9 * 8 + 2 * 8 + 8 * 8 + 2 * 8) + 16 * 10 + 10,
        ),
    ],
)
def test_a_head_of_every_kind(kind: str, dims: int, parameters: int) -> None:
    head = ExitHead(kind, channels=6, dims=dims, num_classes=10).eval()
    assert sum(p.numel() for p in head.parameters()) == parameters
    tap = torch.randn(TAPS[dims])
    logits = head(tap)
    assert logits.shape == (3, 10)
    assert torch.equal(head.classify(head.read(tap)), logits)
    again = ExitHead(kind, channels=6, dims=dims, num_classes=10)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(tap), logits)
    assert head.to_config() == {"head": kind, "channels": 6, "dims": dims}


def test_mean_and_maximum_over_the_map() -> None:
    head = ExitHead("linear", channels=2, dims=4, num_classes=2)
    head.classifier[0].weight.data = torch.eye(4)[:2].flip(0)  # mean of channel 1, then of 0
    head.classifier[0].bias.data.zero_()
    tap = torch.tensor([[[[1.0, 3.0]], [[-2.0, 8.0]]]])
    assert head.read(tap).tolist() == [[2.0, 3.0, 3.0, 8.0]]
    assert head(tap).tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize("kind", ["linear", "hidden:4", "conv:8"])
def test_channels_last(kind: str) -> None:
    head = ExitHead(kind, channels=6, dims=4, num_classes=10).eval()
    twin = ExitHead(kind, channels=6, dims=4, num_classes=10, channels_last=True).eval()
    twin.load_state_dict(head.state_dict())
    tap = torch.randn(TAPS[4])
    torch.testing.assert_close(twin(tap.permute(0, 2, 3, 1)), head(tap))
    assert twin.to_config() == {**head.to_config(), "channels_last": True}


def test_a_slimmed_head_says_how_wide_it_is() -> None:
    head = ExitHead("conv:8", channels=6, dims=4, num_classes=10, inner=3).eval()
    config = head.to_config()
    assert config == {"head": "conv:8", "channels": 6, "dims": 4, "inner": 3}
    config["kind"] = config.pop("head")
    ExitHead(**config, num_classes=10).load_state_dict(head.state_dict())


@pytest.mark.parametrize(
    "kind", ["", "Linear", "hidden", "hidden:", "hidden:-1", "hidden:1.5", "conv:0", "conv:8193",
             "conv:9" + "9" * 6, "conv:8 ", "linear:3", "conv:٣"],
)  # fmt: skip
def test_kinds_that_there_are_not(kind: str) -> None:
    with pytest.raises(UserInputError, match="expected linear, hidden:N, conv or conv:N, N from 1"):
        ExitHead(kind, channels=6, dims=4, num_classes=10)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_conv_head_needs_a_map(dims: int) -> None:
    with pytest.raises(UserInputError, match="reads a map of channels, rows and columns"):
        ExitHead("conv:8", channels=6, dims=dims, num_classes=10)


def test_channels_of_what_a_module_gives() -> None:
    shapes = {(2, 6, 5, 7): 6, (2, 9, 6): 6, (2, 6): 6}
    assert {shape: tap_channels(shape, "x") for shape in shapes} == shapes
    assert tap_channels((2, 5, 7, 6), "x", channels_last=True) == 6
    for shape in ((2,), (2, 3, 4, 5, 6)):
        with pytest.raises(UnsupportedModelError, match=r"module 'x' gives a tensor of shape"):
            tap_channels(shape, "x")


class Permuted(nn.Module):
    """A block of ConvNeXt: linear layers on the last axis, but channels first outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth, self.mlp = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.depth(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("network", "size", "last"),
    [
        pytest.param(nn.Conv2d(6, 6, 1), 6, False, id="convolution on 6x6"),
        pytest.param(Permuted(6), 5, False, id="back in place"),
        pytest.param(Permuted(6), 6, False, id="back in place on 6x6"),
        pytest.param(nn.Linear(5, 7), 5, True, id="linear layer on the last axis"),
        pytest.param(nn.Sequential(nn.LayerNorm(5), nn.GELU()), 5, True, id="LayerNorm and GELU"),
        pytest.param(nn.ReLU(), 5, False, id="no layer with channels"),
    ],
)
def test_the_layer_that_ran_last_tells_the_axis(network: nn.Module, size: int, last: bool) -> None:
    with ChannelAxis().watching(network) as axis:
        tap = network(torch.randn(2, 6, size, size))
    assert axis.is_last(tap) is last
    assert not any(module._forward_hooks for module in network.modules())
