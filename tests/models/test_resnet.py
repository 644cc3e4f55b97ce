import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.models import build, infer
from compress.models.published import PUBLISHED
from tests.models.foreign_networks import (
    CifarBottlenecks,
    CifarOptionA,
    CifarShortcuts,
    TorchvisionBasics,
    TorchvisionBottlenecks,
)
from tests.networks import trained_like

SHARED = Path(__file__).parents[3] / "shared" / "data"
# Parameters in the tables of torchvision; the CIFAR networks' are published as 0.27 M and 0.85 M.
PUBLISHED_PARAMS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "mobilenet_v2": 3_504_872,
    "resnet20": 269_722,
    "resnet56": 853_018,
}


def on_meta(name):
    with torch.device("meta"):
        return build(*PUBLISHED[name])


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMS.items())
def test_published_networks_have_their_parameters_and_are_read_back(name, parameters):
    network = on_meta(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    arch, config = infer(network.state_dict())
    assert (arch, config) == (network.arch, {k: network.config[k] for k in config})


def test_names_are_torchvisions():
    names = list(on_meta("resnet50").state_dict())
    assert len(names) == 320
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_var"} <= set(names)
    assert {"layer3.5.conv3.weight", "layer4.2.bn3.bias", "fc.weight", "fc.bias"} <= set(names)


FOREIGN = [
    pytest.param(TorchvisionBottlenecks, (3, 40, 48), 224, id="torchvision, grouped bottlenecks"),
    pytest.param(TorchvisionBasics, (1, 64, 64), 224, id="torchvision, basic blocks, grey"),
    pytest.param(CifarOptionA, (3, 32, 32), 32, id="CIFAR, option A"),
    pytest.param(CifarShortcuts, (3, 32, 32), 32, id="CIFAR, convolutions"),
    pytest.param(CifarBottlenecks, (3, 32, 32), 32, id="CIFAR, grouped bottlenecks"),
]


@pytest.mark.parametrize(("foreign", "shape", "side"), FOREIGN)
def test_foreign_checkpoints_give_the_outputs_of_the_foreign_code(foreign, shape, side, tmp_path):
    network = trained_like(foreign())
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "foreign.pth")
    ours = compress.load(tmp_path / "foreign.pth")
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), network(images), rtol=1e-5, atol=1e-6)
    assert ours.default_input_size == side


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    bottleneck=st.booleans(),
    stages=st.integers(1, 4),
    stem=st.sampled_from([1, 3, 7]),
    head=st.sampled_from(["fc", "linear"]),
)
def test_any_widths_are_read_from_the_tensors(data, bottleneck, stages, stem, head):
    width = st.integers(1, 40)
    groups = data.draw(st.integers(1, 3)) if bottleneck else 1
    inner = st.integers(1, 9).map(lambda w: w * groups)
    block = st.lists(inner, min_size=1 + bottleneck, max_size=1 + bottleneck)
    config = {
        "stage_widths": data.draw(st.lists(width, min_size=stages, max_size=stages)),
        "block_widths": [data.draw(st.lists(block, min_size=1, max_size=3)) for _ in range(stages)],
        "num_classes": data.draw(width),
        "projections": [True] * stages,
        "groups": groups,
        "stem_width": data.draw(width),
        "stem_kernel": stem,
        "stem_stride": 2 if stem == 7 else 1,
        "stem_pool": stem == 7,
        "in_channels": data.draw(st.integers(1, 5)),
        "head": head,
        "shortcut": data.draw(st.sampled_from(["downsample", "shortcut"])),
    }
    with torch.device("meta"):
        network = build("resnet", config)
    assert infer(network.state_dict()) == ("resnet", network.config)


def test_files_without_counters_of_batches_load(tmp_path):
    network = trained_like(CifarOptionA())
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    assert compress.load(tmp_path / "old.pth").arch == "resnet"


def changed(**changes):
    state = dict(CifarOptionA().state_dict())
    for name, tensor in changes.items():
        state[name.replace("__", ".")] = tensor
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param(
            changed(layer1__0__se__fc1__weight=torch.zeros(2, 8)),
            r"layer1\.0\.se\.fc1\.weight \(2, 8\) is not among its tensors",
            id="squeeze and excitation",
        ),
        pytest.param(
            changed(bn1__running_mean=None), r"bn1\.running_mean is not there", id="other norm"
        ),
        pytest.param(
            changed(layer2__1__conv2__weight=torch.zeros(16, 16, 5, 5)),
            r"layer2\.1\.conv2\.weight is \(16, 16, 5, 5\) where \(16, 16, 3, 3\)",
            id="other kernels",
        ),
        pytest.param(
            changed(conv1__weight=torch.zeros(8, 3)), r"conv1\.weight has shape \(8, 3\)", id="2-d"
        ),
        pytest.param(
            changed(layer2__0__conv2__weight=torch.zeros(4, 16, 3, 3)),
            "stage 2 of the ResNet has 4 channels after 8",
            id="narrower without projection",
        ),
    ],
)
def test_what_only_looks_like_a_resnet_is_refused_by_the_tensor(state, message):
    with pytest.raises(UnsupportedModelError, match=rf"{message}.*--model"):
        infer(state)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stage_widths": [8, 8]}, id="stages"),
        pytest.param({"stage_widths": []}, id="no stages"),
        pytest.param({"block_widths": [[]]}, id="empty stage"),
        pytest.param({"block_widths": [[[4], [4, 4]]]}, id="kinds of blocks"),
        pytest.param({"block_widths": [[[4, 4, 4]]]}, id="long block"),
        pytest.param({"stem_kernel": 4}, id="even kernel"),
        pytest.param({"num_classes": 0}, id="no classes"),
        pytest.param({"stem_width": 1.5}, id="half a channel"),
        pytest.param({"head": "conv1"}, id="head"),
        pytest.param({"shortcut": "skip"}, id="shortcut"),
        pytest.param({"groups": 3, "block_widths": [[[4, 4]]]}, id="groups"),
        pytest.param({"stem_width": 9}, id="narrower"),
    ],
)
def test_bad_configurations(change):
    config = {"stage_widths": [8], "block_widths": [[[4]]], "num_classes": 2, "stem_width": 8}
    build("resnet", {**config, "projections": [False]})
    with pytest.raises(UserInputError):
        build("resnet", {**config, "projections": [False], **change})


def cifar10_test():
    """Give class and pixels (32, 32, 3) uint8 of the 10,000 test images, class by class."""
    with tarfile.open(SHARED / "cifar10_jpeg.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith("cifar10/test/"):
                picture = Image.open(io.BytesIO(archive.extractfile(member).read()))
                yield member.name.split("/")[2], torch.from_numpy(np.array(picture))


def right_of_cifar10(network: torch.nn.Module) -> int:
    """Count the right answers: pixels / 255, normalised, no resize; classes by the alphabet."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    network = network.to(memory_format=torch.channels_last)
    images, right, classes = islice(cifar10_test(), 10_000), 0, []
    while batch := list(islice(images, 100)):
        names, pixels = zip(*batch, strict=True)
        classes += [name for name in dict.fromkeys(names) if name not in classes]
        with torch.inference_mode():
            inputs = (torch.stack(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
            answers = network(inputs).argmax(1).tolist()
        right += sum(classes.index(n) == a for n, a in zip(names, answers, strict=True))
    assert classes == sorted(classes)
    return right


needs_real = pytest.mark.skipif(
    not SHARED.exists(), reason=f"{SHARED} with real images and networks is absent"
)
RESNETS = {"resnet20-12fca82f.th": 3, "resnet56-4bfd9763.th": 9}  # blocks a stage


@pytest.mark.real
@needs_real
@pytest.mark.parametrize(("file", "blocks"), list(RESNETS.items()))
def test_real_networks_answer_as_the_foreign_code_does(file, blocks):
    state = torch.load(SHARED / file, map_location="cpu")["state_dict"]
    network = CifarOptionA(blocks, (16, 32, 64)).eval()
    network.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    images = torch.stack([pixels for _, pixels in islice(cifar10_test(), 20)])
    images = images.permute(0, 3, 1, 2) / 255 - 0.45
    with torch.inference_mode():
        torch.testing.assert_close(
            compress.load(SHARED / file)(images), network(images), rtol=1e-4, atol=1e-4
        )


@pytest.mark.real
@pytest.mark.slow
@needs_real
def test_a_real_network_is_right_in_exactly_as_many_images_as_measured():
    """By a loop that shares nothing with ours but the network."""
    assert right_of_cifar10(compress.load(SHARED / "resnet20-12fca82f.th")) == 8103
