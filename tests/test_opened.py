"""A checkpoint opened once: what it records wins, what contradicts it is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compress
from compress.data.image_data import Preprocessing
from compress.data.spec import load_data
from compress.errors import UserInputError
from compress.models.factory import call_factory
from compress.models.gfnet import GFNet
from compress.models.vgg import VGG, vgg_bn
from compress.opened import Opening, check_classes, open_checkpoint, sized

GREY = Preprocessing(20, "pillow-bilinear", 24, mean=(0.1,), std=(0.3,))
ODD = Preprocessing(20, "pillow-bilinear", 24, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
GFNET: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "width": 8, "depth": 2, "num_classes": 10,
}  # fmt: skip


def tiny_vgg() -> VGG:
    return VGG(widths=[[8, 12], [16]], num_classes=10, hidden=[10], pooled=2, dropout=0.0).eval()


def saved(folder: Path, model: nn.Module, **meta: Any) -> Path:
    return compress.save(model, folder / "network.pth", meta=meta)


def recorded(folder: Path, preprocessing: Preprocessing = ODD, **meta: Any) -> Path:
    return saved(folder, tiny_vgg(), preprocessing=preprocessing.to_dict(), **meta)


def small_grey() -> nn.Module:
    """A network for images of one channel."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )


def test_the_images_are_prepared_as_recorded(tmp_path: Path) -> None:
    data = open_checkpoint(recorded(tmp_path)).data("digits")
    assert data.preprocessing == ODD
    pixels = data.splits["test"].images(torch.arange(2))
    wanted = (pixels[:, 1].float() / 255 - 0.2) / 0.2
    torch.testing.assert_close(data.normalize(pixels)[:, 1], wanted)


def test_images_that_are_loaded_already_get_the_networks_own_mean_and_std(tmp_path: Path) -> None:
    other = replace(ODD, mean=(0.5,) * 3, std=(0.5,) * 3)
    loaded = load_data("digits", preprocessing=other)
    assert open_checkpoint(recorded(tmp_path)).data(loaded).preprocessing == ODD


def test_images_that_were_prepared_otherwise_are_refused(tmp_path: Path) -> None:
    loaded = load_data("digits", image_size=20)  # bicubic
    with pytest.raises(UserInputError, match=r"prepared otherwise .* \(bicubic\).*\(bilinear\)"):
        open_checkpoint(recorded(tmp_path)).data(loaded)


def test_a_size_that_contradicts_the_record_is_refused(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    assert open_checkpoint(file, Opening(image_size=20)).size == (20, 20)
    with pytest.raises(UserInputError, match=r"--image-size is 32x32, but .* records 20x20"):
        open_checkpoint(file, Opening(image_size=32))


def test_training_may_change_the_size_and_what_is_cut_keeps_its_share(tmp_path: Path) -> None:
    found = open_checkpoint(recorded(tmp_path), Opening(image_size=40, override=True))
    assert found.preprocessing == replace(ODD, image_size=40, resize_size=48)


def test_a_gfnet_is_resampled_to_another_size(tmp_path: Path) -> None:
    file = saved(tmp_path, GFNet(**GFNET), preprocessing=replace(ODD, image_size=16).to_dict())
    found = open_checkpoint(file, Opening(image_size=24, resample=True))
    assert found.model.config["image_size"] == [24, 24]
    assert found.preprocessing is not None
    assert found.preprocessing.size == (24, 24)


def test_a_gfnet_whose_patches_leave_a_rest_of_the_image(tmp_path, caplog) -> None:
    torch.manual_seed(0)
    model = GFNet(**{**GFNET, "image_size": 20}).eval()
    torch.save(model.state_dict(), tmp_path / "published.pth")
    with caplog.at_level("INFO"):
        assert open_checkpoint(tmp_path / "published.pth").size == (20, 20)
    assert "5 patches of 4 pixels a side are an image of 20 to 23; 20 is taken" in caplog.text
    found = open_checkpoint(tmp_path / "published.pth", Opening(image_size=23))
    image = torch.randn(1, 3, 23, 23)
    torch.testing.assert_close(found.model(image), model(image[..., :20, :20]))
    file = compress.save(found.model, tmp_path / "ours.pth")
    assert open_checkpoint(file).size == (23, 23)


def test_a_size_that_nobody_tells_is_asked_for(tmp_path: Path) -> None:
    found = open_checkpoint(saved(tmp_path, tiny_vgg()))
    with pytest.raises(UserInputError, match=r"takes any; give it by --image-size PIXELS, .*adopt"):
        found.image_shape()
    assert open_checkpoint(found.path, Opening(image_size=(8, 12))).image_shape() == (3, 8, 12)


def test_the_published_size_is_taken_aloud_and_never_against_the_data(tmp_path, caplog) -> None:
    with torch.device("meta"):
        config = vgg_bn(16, num_classes=10, hidden=[]).config
    thin = {**config, "widths": [[4] * len(stage) for stage in config["widths"]]}
    found = open_checkpoint(saved(tmp_path, compress.models.build("vgg", thin)))
    with caplog.at_level("INFO"):
        assert found.image_shape() == (3, 224, 224)
    assert "images of 224x224 are taken, as vgg16_bn was published for them" in caplog.text
    with pytest.raises(UserInputError, match="published for 224x224, the data digits give 32x32"):
        found.data("digits")


def test_grey_images(tmp_path: Path) -> None:
    model = call_factory("tests.test_opened:small_grey")
    file = saved(tmp_path, model, preprocessing=GREY.to_dict())
    found = open_checkpoint(file, Opening(factory="tests.test_opened:small_grey"))
    assert found.image_shape() == (1, 20, 20)
    check_classes(found.model, found.data("digits"))
    with pytest.raises(UserInputError, match=r"asks for 3 channels, but .* takes 1"):
        open_checkpoint(file, Opening(factory="tests.test_opened:small_grey", channels=3))


def test_what_is_done_to_pixels_is_told_once(tmp_path, caplog) -> None:
    found = open_checkpoint(recorded(tmp_path))
    with caplog.at_level("INFO"):
        found.data(found.data("digits"))
    assert caplog.text.count("images: shorter side resized to 24 (bilinear)") == 1


def test_another_order_of_the_classes_is_refused(tmp_path: Path) -> None:
    names = [str(number) for number in (1, 0, *range(2, 10))]
    found = open_checkpoint(recorded(tmp_path, classes=names))
    with pytest.raises(UserInputError, match=r"class 0 of the network is '1', but .* '0'"):
        check_classes(found.model, found.data("digits"), known=found.classes)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"preprocessing": [1, 2]}, r"meta.preprocessing .* is \[1, 2\]; expected a mapping"),
        ({"preprocessing": {"image_size": 8}}, "preprocessing has the fields"),
        ({"classes": 7}, "is 7; expected a list of names"),
        ({"classes": [1, 2]}, "expected a list of names"),
    ],
)
def test_a_record_of_another_kind_is_one_sentence(tmp_path, meta, message) -> None:
    with pytest.raises(UserInputError, match=message):
        open_checkpoint(saved(tmp_path, tiny_vgg(), **meta))


def test_heads_of_a_network_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="has no early exits; leave the option out"):
        open_checkpoint(saved(tmp_path, tiny_vgg()), Opening(head_positions=(1, 2)))


def test_sized_keeps_a_record_without_a_cut() -> None:
    plain = Preprocessing(32, "none", 32, mean=(0.5,), std=(0.5,))
    assert sized(plain, (64, 64)) == replace(plain, image_size=64, resize_size=64)
