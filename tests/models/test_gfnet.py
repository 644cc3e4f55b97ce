from pathlib import Path

import pytest
import torch

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.models import build, infer
from compress.models.gfnet import GFNET_VARIANTS, GFNet, gfnet
from compress.models.gfnet_layout import token_grid
from tests.models import published_gfnet as published

PARAMS_1000 = {  # counted from the published shapes, at 1000 classes and 224 pixels
    "gfnet_ti": 7_511_784,
    "gfnet_xs": 15_985_768,
    "gfnet_s": 24_869_608,
    "gfnet_b": 43_120_616,
}
PARAMS_LOG = [  # variant, classes, image size, parameters of the log's last table
    ("gfnet_12_384", 10, 224, 15_604_618),
    ("gfnet_12_384", 45, 256, 15_936_045),
    ("gfnet_12_384", 21, 256, 15_926_805),
    ("gfnet_distil_12_192", 10, 224, 4_256_852),
    ("gfnet_distil_12_192", 45, 256, 4_567_578),
    ("gfnet_distil_12_192", 21, 256, 4_558_314),
]
TINY = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 3, "num_classes": 5}


def params(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("variant", PARAMS_1000)
def test_published_parameter_counts(variant: str) -> None:
    with torch.device("meta"):
        assert params(gfnet(variant)) == PARAMS_1000[variant]


@pytest.mark.parametrize(("variant", "classes", "size", "expected"), PARAMS_LOG)
def test_parameter_counts_of_the_log(variant: str, classes: int, size: int, expected: int) -> None:
    with torch.device("meta"):
        model = gfnet(variant, num_classes=classes, image_size=size)
    assert params(model) == expected
    assert model.display_name == variant


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = gfnet("gfnet_xs").state_dict()
    assert len(state) == 115
    block = "blocks.11."
    shapes = {
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "pos_embed": (1, 196, 384),
        block + "filter.complex_weight": (14, 8, 384, 2),
        block + "mlp.fc1.weight": (1536, 384),
        block + "mlp.fc2.bias": (384,),
        "head.bias": (1000,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize(
    ("patches", "grid"),
    [((14, 14), (11, 18)), ((16, 16), (43, 6)), ((8, 8), (11, 6))],
)
def test_distilled_tokens_are_laid_out_as_in_the_log(
    patches: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert token_grid(patches, distilled=True) == grid


@pytest.mark.parametrize(
    ("grid", "patches", "distilled"),
    [
        pytest.param((4, 4), (4, 4), False, id="square"),
        pytest.param((3, 5), (3, 5), False, id="not-square-odd"),
        pytest.param((5, 4), (5, 4), False, id="not-square-even"),
        pytest.param((3, 6), (4, 4), True, id="distilled"),
        pytest.param((11, 1), (3, 3), True, id="distilled-one-column"),
    ],
)
def test_a_published_checkpoint_gives_the_published_outputs(
    grid: tuple[int, int], patches: tuple[int, int], distilled: bool, tmp_path: Path
) -> None:
    state = published.random_state(width=6, depth=3, grid=grid, classes=5, distilled=distilled)
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "a")
    model = compress.load(tmp_path / "a")
    assert isinstance(model, GFNet)
    assert model.config["image_size"] == [4 * side for side in patches]
    assert model.config["grid"] == list(grid)
    image = torch.randn(2, 3, *model.config["image_size"])
    expected = published.final_logits(state, image, grid)
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)  # float32 rounding


def test_every_argument_is_read_back_from_the_tensors() -> None:
    config = GFNet(
        image_size=(12, 20), patch_size=4, in_channels=1, width=6, hidden=[7, 9], num_classes=3
    ).config
    arch, inferred = infer(build("gfnet", config).state_dict())
    assert arch == "gfnet"
    assert build(arch, inferred).config == config


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_survives_saving(suffix: str, tmp_path: Path) -> None:
    model = gfnet("gfnet_12_192", **{**TINY, "drop_path": 0.2, "hidden_scale": True}).eval()
    image = torch.randn(2, 3, 16, 16)
    loaded = compress.load(compress.save(model, tmp_path / f"a{suffix}"))
    assert loaded.config == model.config
    assert torch.equal(loaded(image), model(image))


def test_the_two_heads_of_the_distilled_form_are_averaged() -> None:
    model = GFNet(**TINY, distilled=True).eval()
    image = torch.randn(2, 3, 16, 16)
    both = model.forward_both(image)
    torch.testing.assert_close(model(image), (both[0] + both[1]) / 2)
    with pytest.raises(UnsupportedModelError, match="one head"):
        GFNet(**TINY).forward_both(image)


def test_drop_path_acts_in_training_only_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    model = GFNet(**{**TINY, "drop_path": 0.5})
    block = model.blocks[-1]
    assert [b.drop_path for b in model.blocks] == pytest.approx([0, 0.25, 0.5])
    x = torch.randn(1, 16, 8).expand(4000, -1, -1)
    with torch.no_grad():
        kept = block.eval()(x) - x
        branch = block.train()(x) - x
    dropped = branch.flatten(1).abs().sum(1) == 0
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.03)  # 4 standard deviations
    torch.testing.assert_close(branch[~dropped], 2 * kept[~dropped], rtol=1e-4, atol=1e-5)


def test_no_weight_decay_names_positions_tokens_and_scales() -> None:
    plain = GFNet(**TINY)
    assert plain.no_weight_decay() == {"pos_embed"}
    rich = GFNet(**TINY, distilled=True, hidden_scale=True)
    scales = {f"blocks.{i}.mlp.scale" for i in range(3)}
    assert rich.no_weight_decay() == {"pos_embed", "cls_token", "dist_token"} | scales


def test_channel_groups_name_all_that_a_hidden_unit_owns() -> None:
    model = GFNet(**TINY, hidden_scale=True).eval()
    groups = model.channel_groups()
    assert [group.name for group in groups] == [f"blocks.{i}.mlp" for i in range(3)]
    state = dict(model.state_dict())
    dead = torch.tensor([1, 30])
    kept = torch.tensor([i for i in range(32) if i not in dead])
    for group in groups:
        assert group.shift is None
        state[group.scale][dead] = 0
    image = torch.randn(2, 3, 16, 16)
    before = model(image)
    for group in groups:
        for piece in group.slices:
            state[piece.tensor] = state[piece.tensor].index_select(piece.dim, kept)
    slim = build("gfnet", model.config_with({group.name: 30 for group in groups})).eval()
    slim.load_state_dict(state)
    torch.testing.assert_close(slim(image), before)
    assert infer(slim.state_dict())[1]["hidden"] == [30, 30, 30]


def test_a_network_without_scales_says_how_to_get_them() -> None:
    with pytest.raises(UnsupportedModelError, match="with_hidden_scale"):
        GFNet(**TINY).channel_groups()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        pytest.param({"image_size": 18}, "18x18 is not divisible by the patch size 4", id="side"),
        pytest.param({"image_size": (16, 18)}, "16x18 is not divisible", id="height-width"),
        pytest.param({"image_size": (16, 16, 16)}, "height and width", id="three-sides"),
        pytest.param({"depth": 0}, "at least one block", id="no-block"),
        pytest.param({"num_classes": 0}, "expected 1 to", id="no-class"),
        pytest.param({"width": 1 << 20}, "expected 1 to", id="too-wide"),
        pytest.param({"grid": (3, 5)}, "16 tokens", id="grid"),
        pytest.param({"drop_path": 1.0}, "drop_path", id="drop-path"),
    ],
)
def test_configurations_that_fit_no_network_are_refused(wrong: dict, match: str) -> None:
    with pytest.raises(UserInputError, match=match) as caught:
        GFNet(**{**TINY, **wrong})
    assert caught.value.exit_code == 3


def test_an_image_of_another_size_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"20x16.*built for 16x16"):
        GFNet(**TINY)(torch.zeros(1, 3, 20, 16))
    with pytest.raises(UserInputError, match="gfnet_12_384"):
        gfnet("gfnet_13_384")
    assert "gfnet_xs" in GFNET_VARIANTS


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        pytest.param("pos_embed", (1, 15, 6), "15 tokens", id="tokens"),
        pytest.param("pos_embed", (16, 6), "3 dimensions", id="dimensions"),
        pytest.param("pos_embed", (1, 0, 6), "0 tokens", id="no-tokens"),
        pytest.param("blocks.0.filter.complex_weight", (4, 4, 6, 2), "4x4 freq", id="filter"),
        pytest.param("head.weight", None, "head.weight has shape none", id="no-head"),
        pytest.param("blocks.1.filter.complex_weight", None, "without a gap", id="gap"),
    ],
)
def test_shapes_that_fit_no_gfnet_are_told(name: str, shape: tuple | None, match: str) -> None:
    state = published.random_state(width=6, depth=3, grid=(4, 4), classes=5)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    with pytest.raises(UnsupportedModelError, match=match) as caught:
        infer(state)
    assert caught.value.exit_code == 3


def test_a_distilled_checkpoint_that_is_not_square_is_told() -> None:
    state = published.random_state(width=6, depth=1, grid=(2, 7), classes=5, distilled=True)
    with pytest.raises(UnsupportedModelError, match="square number of patches"):
        infer(state)


def test_a_tensor_of_a_wrong_shape_inside_is_told(tmp_path: Path) -> None:
    state = published.random_state(width=6, depth=2, grid=(4, 4), classes=5)
    state["blocks.1.mlp.fc2.weight"] = torch.zeros(6, 23)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserInputError, match="do not fit architecture 'gfnet'"):
        compress.load(tmp_path / "a.pth")
