from typing import Any

import pytest
import torch
from torch import nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models import build
from compress.models.factory import call_factory
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.gfnet_resize import resized
from compress.models.published import PUBLISHED
from compress.models.vgg import VGG
from compress.training.transfer import build_student, network_names, transferred
from tests.training.fakes import same_weights

SMALL: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 3}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found = {
        "vgg": VGG(widths=[[4], [6]], num_classes=10, hidden=[5], pooled=2),
        "vgg without hidden layer": VGG(widths=[[4]], num_classes=10, hidden=[], pooled=1),
        "resnet": build("resnet", {**PUBLISHED["resnet20"][1], "num_classes": 10}),
        "vgg_variant": build("vgg_variant", {"widths": [[4], [6]], "num_classes": 10}),
        "gfnet": GFNet(**SMALL, num_classes=10),
        "gfnet_distil": GFNet(**SMALL, num_classes=10, distilled=True, hidden_scale=True),
        "gfnet_dynn": GFNetDynn(**SMALL, num_classes=10, exits=[0, 1]),
        "gfnet_dynn_distil": GFNetDynn(**SMALL, num_classes=10, exits=[1], distilled=True),
    }
    for model in found.values():
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(1.0)  # so that nothing equals a fresh network
    return found


HEADS = {
    "vgg": ("classifier.3",),
    "vgg without hidden layer": ("classifier.0",),
    "resnet": ("linear",),
    "vgg_variant": ("classifier",),
    "gfnet": ("head",),
    "gfnet_distil": ("head", "head_dist"),
    "gfnet_dynn": ("head", "intermediate_heads", "gates"),
    "gfnet_dynn_distil": (
        "head", "head_dist", "intermediate_heads", "intermediate_heads_dist", "gates",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_other_classes_replace_the_heads_and_nothing_else(name: str) -> None:
    model = networks()[name].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    twin = transferred(model, num_classes=4)
    assert twin(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert twin.config == {**model.config, "num_classes": 4}  # type: ignore[operator]
    assert not twin.training
    for key, tensor in twin.state_dict().items():
        replaced = key.startswith(tuple(f"{head}." for head in HEADS[name]))
        same = tensor.shape == before[key].shape and torch.equal(tensor, before[key])
        assert same != replaced, key
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", HEADS)
def test_a_network_that_fits_is_given_back(name: str) -> None:
    model = networks()[name]
    assert transferred(model) is model
    assert transferred(model, num_classes=10, image_size=(16, 16)) is model


def test_a_new_head_follows_the_seed() -> None:
    model = networks()["gfnet"]
    twins = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        twins.append(transferred(model, num_classes=4))
    assert same_weights(twins[0], twins[1])
    assert not same_weights(twins[0], twins[2])


def test_another_size_and_other_classes_at_once() -> None:
    model = networks()["gfnet_dynn"]
    twin = transferred(model, num_classes=4, image_size=(24, 24))
    expected = resized(model, 24)  # type: ignore[arg-type]
    assert twin(torch.randn(1, 3, 24, 24)).shape == (1, 4)
    for name in ("pos_embed", "blocks.1.filter.complex_weight", "blocks.2.mlp.fc1.weight"):
        assert torch.equal(twin.get_parameter(name), expected.get_parameter(name))


def test_a_vgg_takes_another_size_as_it_is() -> None:
    model = networks()["vgg"]
    assert transferred(model, image_size=(24, 24)) is model


def test_a_size_that_the_patches_do_not_divide() -> None:
    with pytest.raises(UserInputError, match="26x26 is not divisible by the patch size 4"):
        transferred(networks()["gfnet"], image_size=(26, 26))


def test_the_head_of_a_network_that_is_not_ours() -> None:
    model = call_factory("tests.networks:BottleneckResNet")
    with pytest.raises(UnsupportedModelError, match="which layer is its head is not known"):
        transferred(model, num_classes=4)


@pytest.mark.parametrize(
    ("spec", "side", "arch", "settings"),
    [
        ("gfnet_12_192", 32, "gfnet", {"width": 192, "image_size": [32, 32], "distilled": False}),
        ("gfnet_distil_12_192", 32, "gfnet", {"width": 192, "distilled": True}),
        ('gfnet:{"width": 8, "depth": 2, "patch_size": 4}', 8, "gfnet", {"hidden": [32, 32]}),
        ('gfnet_xs:{"width": 8, "num_classes": 3}', 16, "gfnet", {"width": 8, "num_classes": 5}),
        ('gfnet_dynn:{"width": 8, "depth": 3, "exits": [1]}', 16, "gfnet_dynn", {"exits": [1]}),
        ("resnet20", 32, "resnet", {"stage_widths": [16, 32, 64]}),
        ('mobilenet_v2:{"dropout": 0}', 32, "mobilenet_v2", {"last_width": 1280, "dropout": 0}),
        ('vgg11_bn:{"hidden": [], "pooled": 1}', 32, "vgg", {"hidden": [], "pooled": 1}),
    ],
)
def test_a_new_network_by_name(spec: str, side: int, arch: str, settings: dict[str, Any]) -> None:
    model = build_student(spec, num_classes=5, image_size=side)
    assert model.arch == arch
    assert not model.training
    assert {name: model.config[name] for name in settings} == settings  # type: ignore[index]
    assert model(torch.randn(1, 3, side, side)).shape == (1, 5)


def test_the_parameters_of_gfnet_12_192_at_224() -> None:
    model = build_student("gfnet_12_192", num_classes=1000, image_size=224)
    # Patches, positions, blocks (two norms, filter, MLP), norm, head; by hand.
    block = 4 * 192 + 14 * 8 * 192 * 2 + 192 * 768 * 2 + 768 + 192
    expected = 768 * 192 + 192 + 196 * 192 + 12 * block + 2 * 192 + 192 * 1000 + 1000
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gfnet_12_193", "network 'gfnet_12_193' is not known; expected one of gfnet_ti"),
        ("gfnet:{width: 8}", "what follows gfnet: is '{width: 8}'"),
        ("gfnet:[1]", r"is '\[1\]' \(list\); expected a JSON object"),
        ('gfnet:{"wide": 8}', "does not fit architecture 'gfnet'"),
        ('gfnet:{"width": "8"}', "."),
        ("vgg", "does not fit architecture 'vgg'"),
        ("gfnet_xs", "8x8 is not divisible by the patch size 16"),
    ],
)
def test_a_network_that_cannot_be_built(spec: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        build_student(spec, num_classes=5, image_size=8)


def test_every_name_is_known() -> None:
    assert {"gfnet_12_192", "gfnet_distil_12_192", "vgg16_bn", "resnet50", "gfnet_dynn"} <= set(
        network_names()
    )
