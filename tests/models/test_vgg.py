import pytest
import torch

from compress.errors import UnsupportedModelError, UserInputError
from compress.models import build, infer
from compress.models.vgg import VGG, VGG_DEPTHS, vgg_bn

# Published parameter counts of torchvision's vgg*_bn at 1000 classes.
PUBLISHED_PARAMS = {11: 132_868_840, 13: 133_053_736, 16: 138_365_992, 19: 143_678_248}


def on_meta(depth: int, **config) -> VGG:
    with torch.device("meta"):
        return vgg_bn(depth, **config)


@pytest.mark.parametrize("depth", VGG_DEPTHS)
def test_parameters_are_the_published_ones(depth):
    assert sum(p.numel() for p in on_meta(depth).parameters()) == PUBLISHED_PARAMS[depth]


def test_names_are_torchvisions():
    names = list(on_meta(16).state_dict())
    assert names[:7] == [
        "features.0.weight",
        "features.0.bias",
        "features.1.weight",
        "features.1.bias",
        "features.1.running_mean",
        "features.1.running_var",
        "features.1.num_batches_tracked",
    ]
    assert "features.40.weight" in names
    assert names[-2:] == ["classifier.6.weight", "classifier.6.bias"]


@pytest.mark.parametrize("depth", VGG_DEPTHS)
def test_depth_widths_and_classes_are_read_from_the_tensors(depth):
    model = on_meta(depth, num_classes=37, in_channels=1)
    arch, config = infer(model.state_dict())
    assert (arch, config["num_classes"], config["in_channels"]) == ("vgg", 37, 1)
    with torch.device("meta"):
        rebuilt = build(arch, config)
    assert rebuilt.display_name == f"vgg{depth}_bn"
    assert rebuilt.config == {**model.config}


def test_widths_of_any_kind_are_read():
    model = VGG(widths=[[5], [7, 9]], num_classes=3, hidden=[], pooled=3)
    assert infer(model.state_dict())[1]["widths"] == [[5], [7, 9]]
    assert infer(model.state_dict())[1]["pooled"] == 3


def test_a_vgg_without_batchnorm_says_so():
    state = {
        "features.0.weight": torch.zeros(8, 3, 3, 3),
        "features.2.weight": torch.zeros(8, 8, 3, 3),
        "classifier.0.weight": torch.zeros(10, 8 * 49),
    }
    with pytest.raises(UnsupportedModelError, match=r"features\.0 .* has no BatchNorm"):
        infer(state)


def test_another_network_is_not_taken_for_a_vgg():
    with pytest.raises(UnsupportedModelError, match=r"fit none of .*--model"):
        infer({"layer1.0.conv1.weight": torch.zeros(8, 3, 3, 3)})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"num_classes": 0}, id="no classes"),
        pytest.param({"widths": []}, id="no stages"),
        pytest.param({"widths": [[8], []]}, id="empty stage"),
        pytest.param({"widths": [[8, 10**9]]}, id="absurd width"),
        pytest.param({"widths": [[8.5]]}, id="half a channel"),
        pytest.param({"depth": 3}, id="unknown keyword"),
    ],
)
def test_bad_configurations(change):
    config = {"widths": [[8]], "num_classes": 10, "hidden": [], "pooled": 1, **change}
    with pytest.raises(UserInputError):
        build("vgg", config)
