import pytest
import torch

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.models import build, infer
from compress.models.mobilenet import mobilenet_v2_config
from tests.models.foreign_networks import CifarMobileNetV2, TorchvisionMobileNetV2
from tests.networks import trained_like


@pytest.mark.parametrize(
    ("foreign", "arch", "side"),
    [
        (TorchvisionMobileNetV2, "mobilenet_v2", 64),
        (CifarMobileNetV2, "mobilenet_v2_cifar", 32),
    ],
)
def test_foreign_checkpoints_give_the_outputs_of_the_foreign_code(foreign, arch, side, tmp_path):
    network = trained_like(foreign())
    torch.save(network.state_dict(), tmp_path / "foreign.pth")
    ours = compress.load(tmp_path / "foreign.pth")
    assert ours.arch == arch
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), network(images), rtol=1e-5, atol=1e-6)


def test_names_are_torchvisions():
    with torch.device("meta"):
        names = list(build("mobilenet_v2", mobilenet_v2_config()).state_dict())
    assert len(names) == 314
    assert names[0] == "features.0.0.weight"
    assert {"features.1.conv.1.weight", "features.17.conv.2.weight"} <= set(names)
    assert names[-2:] == ["classifier.1.weight", "classifier.1.bias"]


@pytest.mark.parametrize("foreign", [TorchvisionMobileNetV2, CifarMobileNetV2])
def test_another_number_of_blocks_does_not_tell_its_strides(foreign):
    state = foreign().state_dict()
    shorter = {k: v for k, v in state.items() if not k.startswith(("features.17.", "layers.16."))}
    with pytest.raises(UnsupportedModelError, match="has 16 blocks; expected the published 17"):
        infer(shorter)


@pytest.mark.parametrize("foreign", [TorchvisionMobileNetV2, CifarMobileNetV2])
def test_what_only_looks_like_one_is_refused_by_the_tensor(foreign):
    state = {**foreign().state_dict(), "features.3.se.fc.weight": torch.zeros(2, 2)}
    with pytest.raises(UnsupportedModelError, match=r"features\.3\.se\.fc\.weight .*--model"):
        infer(state)


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        ("mobilenet_v2", {"residual": [True]}, "adds 8 channels to 4 at stride 1"),
        ("mobilenet_v2", {"expand": [False]}, "does not expand, but has 12 hidden channels of 8"),
        ("mobilenet_v2", {"strides": [1, 1]}, "another number of blocks"),
        ("mobilenet_v2", {"widths": []}, "another number of blocks"),
        ("mobilenet_v2", {"num_classes": 0}, "a size of the MobileNetV2 is 0"),
        ("mobilenet_v2_cifar", {"projections": [False]}, "adds 8 channels to 4"),
        ("mobilenet_v2_cifar", {"strides": []}, "another number of blocks"),
        ("mobilenet_v2_cifar", {"stem_width": 2.5}, r"a size of the MobileNetV2 is 2\.5"),
    ],
)
def test_bad_configurations(arch, change, message):
    config = {"widths": [4], "hidden": [12], "num_classes": 2, "strides": [1], "stem_width": 8}
    is_cifar = arch == "mobilenet_v2_cifar"
    config |= {"projections": [True]} if is_cifar else {"expand": [True], "residual": [False]}
    build(arch, config)
    with pytest.raises(UserInputError, match=message):
        build(arch, {**config, **change})
