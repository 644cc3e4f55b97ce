"""Where exits can stand: what crosses, counted by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.measure.exit_macs import exit_check_macs, macs_per_exit
from compress.measure.exit_positions import (
    ExitPosition,
    auto_positions,
    chosen_positions,
    exit_positions,
)
from compress.models.give_exits import with_exits
from tests.exit_networks import gfnet, resnet
from tests.foreign_networks import NETWORKS as FOREIGN
from tests.tapped_networks import (
    IMAGE_SHAPE,
    NETWORKS,
    Spoilt,
    Uncuttable,
    branching,
    densenet,
    in_place,
    swin,
    trained,
    unet,
    vgg,
    vit,
    vit_of_torch,
)

FLOAT = 4 / 1024  # KiB of a value


def listed(model: nn.Module, *, every: bool = False) -> dict[str, ExitPosition]:
    return {each.path: each for each in exit_positions(model, IMAGE_SHAPE, every=every)}


def crossing(model: nn.Module, *, every: bool = False) -> dict[str, tuple[int, float]]:
    return {path: (e.tensors, e.kib) for path, e in listed(model, every=every).items()}


def test_behind_a_residual_block_one_tensor_crosses_and_inside_of_it_two() -> None:
    wide, narrow = 8 * 256 * FLOAT, 16 * 64 * FLOAT  # the maps of the two stages
    model = resnet()
    assert crossing(model) == {
        "relu": (1, wide),
        "layer1.0": (1, wide),
        "layer1.1": (1, wide),
        "layer2.0": (1, narrow),
    }
    inside = crossing(model, every=True)
    assert inside["layer1.0.conv1"] == inside["layer1.0.bn2"] == (2, 2 * wide)
    assert inside["layer2.0.downsample"] == (2, wide + narrow)
    assert inside["layer2.1.bn1"] == (2, 2 * narrow)
    assert {path: inside[path] for path in crossing(model)} == crossing(model)


def test_skips_of_a_unet_cross() -> None:
    one, two, middle = 8 * 256 * FLOAT, 12 * 64 * FLOAT, 16 * 16 * FLOAT
    assert crossing(unet()) == {
        "down1": (1, one),
        "down2": (2, one + two),
        "middle": (3, one + two + middle),
        "merge2": (2, one + two),  # as wide as the second skip, which has ended there
    }


def test_dense_layers_hand_on_everything_before_them() -> None:
    found = crossing(densenet(), every=True)
    assert found["block1.0"] == (1, 24 * 256 * FLOAT)  # concatenated already
    assert found["block1.0.conv1"] == (2, (16 + 16) * 256 * FLOAT)
    assert found["block1.1.conv2"] == (2, (24 + 8) * 256 * FLOAT)
    assert found["transition"] == (1, 16 * 64 * FLOAT)


@pytest.mark.parametrize(
    ("build", "paths"),
    [
        pytest.param(
            vgg, ["features.2", "features.6", "features.9", "features.13", "avgpool"], id="VGG"
        ),
        pytest.param(gfnet, ["patch_embed", "blocks.0", "blocks.1", "blocks.2"], id="GFNet"),
        pytest.param(swin, ["patches", "stages.0", "stages.1"], id="Swin"),
        # inside of a wrapper that ends with a norm
        *(
            pytest.param(
                build,
                ["patches", "encoder.layers.0", "encoder.layers.1", "encoder.layers.2.attention"],
                id=f"ViT {build.__name__}",
            )
            for build in (vit, vit_of_torch)
        ),
        pytest.param(
            densenet, ["stem", "block1.0", "block1.1", "transition", "block2.0"], id="DenseNet"
        ),
        pytest.param(branching, ["stem", "blocks.0", "blocks.1", "blocks.2"], id="branching"),
    ],
)
def test_what_is_worth_listing(build: Callable[[], nn.Module], paths: list[str]) -> None:
    assert list(listed(build())) == paths


def test_shapes_and_shares() -> None:
    found = listed(vgg())
    # 3x3 convolutions on 16x16, 8x8 and 4x4, two linear layers: multiply-adds by hand
    layers = [256 * 27 * 8, 256 * 72 * 8, 64 * 72 * 12, 64 * 108 * 12, 16 * 108 * 16]
    whole = sum(layers) + 16 * 12 + 12 * 10
    shares = [sum(layers[: i + 1]) / whole for i in range(5)]
    assert [each.macs_share for each in found.values()] == pytest.approx(shares)
    assert found["features.6"].shape == (8, 8, 8)
    assert found["features.6"].to_dict() == {
        "path": "features.6", "shape": [8, 8, 8], "tensors": 1, "kib": 2.0,
        "macs_share": pytest.approx(shares[1]),
    }  # fmt: skip
    assert [each.position for each in exit_positions(gfnet(), IMAGE_SHAPE)] == [
        "patch_embed", 0, 1, 2,
    ]  # fmt: skip


def test_in_place_operations_and_views_are_followed() -> None:
    """Behind `two.1` a slice is doubled through a view and the rest is left: one tensor crosses."""
    assert crossing(in_place()) == {"one": (1, 8.0), "two": (1, 8.0)}

    class Late(nn.Module):
        """Reads, behind a module, what was written before it."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            first = x[:, :1]
            x.add_(1)
            y = self.two(x)
            return self.fc((y + first).mean((2, 3)))

    assert crossing(Late(), every=True)["one"] == (1, 4.0)
    # `first` is a view of the map that was added to, so that sum crosses, not the old map


@pytest.mark.parametrize("name", ["GhostNet by assignment", "GhostNet by concatenation"])
def test_what_is_written_into_a_constant_is_followed(name: str) -> None:
    found = crossing(FOREIGN[name].build())
    assert found["body.1"] == (1, 24 * 256 * FLOAT)
    assert found["body.1.cheap"] == (2, 24 * 256 * FLOAT)


def test_a_network_with_exits_is_looked_at_without_them() -> None:
    network = with_exits(trained(unet), ["down2"], torch.zeros(1, *IMAGE_SHAPE))
    assert crossing(network) == crossing(unet())


def test_modules_that_no_exit_can_read_are_not_listed() -> None:
    assert set(listed(Spoilt(), every=True)) == {"stem", "stem.0", "stem.1"}


def test_a_network_without_a_position() -> None:
    with pytest.raises(UnsupportedModelError, match="has no module behind which an exit could"):
        exit_positions(Uncuttable(), IMAGE_SHAPE)
    with pytest.raises(UnsupportedModelError, match="cannot be run on an image of shape"):
        exit_positions(unet(), (5, 16, 16))


def test_auto_takes_positions_evenly_where_one_tensor_crosses() -> None:
    # shares of the residual network: 0.047, 0.299, 0.552, 0.748
    chosen = {count: auto_positions(resnet(), IMAGE_SHAPE, count) for count in (1, 2, 3, 4)}
    assert chosen == {
        1: ("layer1.1",),
        2: ("layer1.0", "layer2.0"),
        3: ("layer1.0", "layer1.1", "layer2.0"),
        4: ("relu", "layer1.0", "layer1.1", "layer2.0"),
    }
    assert auto_positions(unet(), IMAGE_SHAPE, 1) == ("down1",)
    assert chosen_positions(resnet(), IMAGE_SHAPE, "auto:2") == chosen[2]
    assert chosen_positions(gfnet(), IMAGE_SHAPE, "auto:2") == (0, 2)
    assert chosen_positions(gfnet(), IMAGE_SHAPE, ["blocks.1", 2, "norm"]) == (1, 2, "norm")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("auto:0", "auto:0 asks for 0 exits, but one tensor crosses behind 1 modules .*auto:1"),
        ("auto:2", "auto:2 asks for 2 exits"),
        ("auto:99", "auto:99 asks for 99 exits"),
        ("auto:99999", "asked for at 'auto:99999'; expected paths of modules, or auto:K"),
        ("auto:x", "asked for at 'auto:x'"),
        ("auto:", "asked for at 'auto:'"),
        ("auto", "asked for at 'auto'"),
        ("auto:-1", "asked for at 'auto:-1'"),
    ],
)
def test_numbers_of_exits_that_cannot_be(asked: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message) as found:
        chosen_positions(unet(), IMAGE_SHAPE, asked)
    assert found.value.exit_code == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_exits_stand_wherever_a_position_is_listed(name: str) -> None:
    """The listing and the hooks mean the same by a module that an exit can read."""
    network = NETWORKS[name].build().eval()
    image = torch.zeros(1, *IMAGE_SHAPE)
    found = exit_positions(network, IMAGE_SHAPE, every=name in ("U-Net", "ViT", "telling"))
    given = with_exits(network, [each.path for each in found], image)
    assert list(given.exit_paths) == [each.path for each in found]
    shares = [macs / macs_per_exit(network, IMAGE_SHAPE)[0] for macs in before_heads(given)]
    assert shares == pytest.approx([each.macs_share for each in found])


def before_heads(network) -> list[int]:
    checks = exit_check_macs(network, IMAGE_SHAPE)
    exits = macs_per_exit(network, IMAGE_SHAPE)[:-1]
    return [macs - sum(checks[: i + 1]) for i, macs in enumerate(exits)]


def test_multiply_adds_of_exits_by_hand() -> None:
    image = torch.zeros(1, *IMAGE_SHAPE)
    down1, down2 = 256 * 27 * 8, 64 * 72 * 12
    middle, merge2, merge1 = 16 * 108 * 16, 64 * 9 * 28 * 12, 256 * 9 * 20 * 8
    final = down1 + down2 + middle + merge2 + merge1 + 8 * 10
    gate = 4
    linear = [2 * width * 10 + gate for width in (12, 16)]
    network = with_exits(unet(), ["down2", "middle"], image)
    assert exit_check_macs(network, IMAGE_SHAPE) == linear
    assert macs_per_exit(network, IMAGE_SHAPE) == [
        down1 + down2 + linear[0],
        down1 + down2 + middle + sum(linear),
        final + sum(linear),
    ]
    # behind down2: 12 channels of 8x8 to 4x4, 6 channels there, 6 of 4x4 to 2x2, 6 there
    conv = 16 * 9 * 12 + 16 * 12 * 6 + 4 * 9 * 6 + 4 * 6 * 6 + 12 * 10 + gate
    network = with_exits(unet(), ["down2"], image, head="conv:6")
    assert macs_per_exit(network, IMAGE_SHAPE) == [down1 + down2 + conv, final + conv]


def test_attention_of_torch_costs_what_its_linear_layers_would() -> None:
    ours, torchs = (
        macs_per_exit(with_exits(build(), ["encoder.layers.1"], torch.zeros(1, *IMAGE_SHAPE)),
                      IMAGE_SHAPE)
        for build in (vit, vit_of_torch)
    )  # fmt: skip
    tokens, width = 17, 16
    patches = 16 * 48 * 16
    block = tokens * (4 * width * width + 4 * width * width)  # attention, and the two of the MLP
    check = width * 10 + 4
    assert ours == torchs
    assert ours == [patches + 2 * block + check, patches + 3 * block + check + width * 10]


def test_errors_are_one_short_sentence() -> None:
    for work in (
        lambda: exit_positions(Uncuttable(), IMAGE_SHAPE),
        lambda: chosen_positions(unet(), IMAGE_SHAPE, "auto:" + "9" * 10**6),
    ):
        with pytest.raises(CompressError) as found:
            work()
        assert len(str(found.value)) < 300
        assert "\n" not in str(found.value)
