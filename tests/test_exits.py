"""The door of early exits: where they can stand, and their training from end to end."""

import json
from pathlib import Path

import pytest
import torch

import compress
from compress import evaluate
from compress.checkpoint import save
from compress.data.spec import load_data
from compress.exits.__main__ import main
from compress.models.early_exit import EarlyExitNetwork
from compress.models.gfnet import GFNet
from tests.exit_networks import resnet
from tests.networks import trained_like
from tests.tapped_networks import Uncuttable, unet

CHEAP = ["--data", "digits", "--device", "cpu", "--epochs", "1", "-q"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    preprocessing = load_data("digits", image_size=16).preprocessing.to_dict()
    meta = {"preprocessing": preprocessing}
    return save(trained_like(resnet()), tmp_path / "net.pth", meta=meta)


def test_where_exits_can_stand(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(checkpoint)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "exit behind    gives  tensors  KiB  MACs before",
        "relu         8x16x16        1  8.0         4.7%",
        "layer1.0     8x16x16        1  8.0        29.9%",
        "layer1.1     8x16x16        1  8.0        55.2%",
        "layer2.0      16x8x8        1  4.0        74.8%",
    ]
    assert main(["list", str(checkpoint), "--all"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "* more than one tensor crosses here: it can be cut, and all of them travel"
    (line,) = (line for line in told if line.startswith("layer1.0.conv2"))
    assert line.split() == ["layer1.0.conv2", "8x16x16", "2", "*", "16.0", "29.9%"]


def test_where_exits_can_stand_as_json(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", str(checkpoint), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "compress.exit-positions/1"
    assert [each["path"] for each in told["positions"]] == [
        "relu", "layer1.0", "layer1.1", "layer2.0",
    ]  # fmt: skip
    assert told["positions"][3]["shape"] == [16, 8, 8]


def test_a_network_of_a_factory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(unet().state_dict(), tmp_path / "unet.pth")
    words = [str(tmp_path / "unet.pth"), "--model", "tests.tapped_networks:unet"]
    assert main(["list", *words, "--input-size", "16"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["middle", "16x4x4", "3", "*", "12.0", "19.7%"] in told


def test_from_a_network_to_a_sweep(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.pth"
    words = ["train", str(checkpoint), "--at", "auto:2", "-o", str(out), *CHEAP]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exits"] == ["layer1.0", "layer2.0"]
    assert report["files"] == {"best": str(out)}
    network = compress.load(out)
    assert isinstance(network, EarlyExitNetwork)
    before = compress.load(checkpoint).state_dict()
    assert all(torch.equal(t, before[n]) for n, t in network.backbone.state_dict().items())

    written = out.read_bytes()
    assert main(words) == 0  # the run is finished
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("exits behind layer1.0, layer2.0, threshold 0.5 (by calibration")
    assert told[-1] == f"written: {out}"
    assert out.read_bytes() == written

    assert evaluate.main([str(out), "--data", "digits", "--sweep", "0.3:0.9:0.3", "-q"]) == 0
    told = capsys.readouterr().out
    assert all(f"threshold:{bar}-->" in told for bar in (0.3, 0.6, 0.9))
    assert "layer1.0" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "nowhere"], "ResNet has no module 'nowhere' to put an exit behind"),
        (["--at", "layer1.0,layer1.0"], "repeat"),
        (["--at", "auto:0"], "auto:0 asks for 0 exits"),
        (["--at", "auto:99"], "expected auto:1 to auto:4"),
        (["--at", "auto:x"], "exits are asked for at 'auto:x'"),
        (["--at", "auto:2", "--head", "rubbish"], "expected linear, hidden:N, conv or conv:N"),
        (["--at", "auto:2", "--head", "conv:999999"], "N from 1 to 8192"),
        (["--at", "auto:2", "-o", "net.onnx"], "ends with .pth, .pt or .safetensors"),
        ([], "has no exits and none are asked for"),
    ],
)
def test_what_cannot_be_trained(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["train", str(checkpoint), *words, *CHEAP]) == 3
    told = capsys.readouterr()
    assert message in told.err
    assert "Traceback" not in told.err
    assert not told.out
    assert [path.name for path in checkpoint.parent.iterdir()] == ["net.pth"]


def test_a_network_that_cannot_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Uncuttable().state_dict(), tmp_path / "one.pth")
    words = [str(tmp_path / "one.pth"), "--model", "tests.tapped_networks:Uncuttable"]
    assert main(["list", *words, "--input-size", "16"]) == 3
    assert "has no module behind which an exit could stand" in capsys.readouterr().err


def test_a_gfnet_keeps_its_published_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = GFNet(image_size=16, patch_size=4, width=16, depth=3, num_classes=10)
    path = compress.save(network, tmp_path / "gfnet.pth")
    words = ["train", str(path), *CHEAP, "--json", "-o", str(tmp_path / "dynn.pth")]
    assert main([*words, "--at", "0,1", "--head-warmup-epochs", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "compress.train_exits/1"
    assert report["exits"] == [0, 1]
    dynamic = compress.load(tmp_path / "dynn.pth")
    assert dynamic.arch == "gfnet_dynn"
    assert dynamic.config["exits"] == [0, 1]
    for name, tensor in network.state_dict().items():  # the backbone rests
        assert torch.equal(dynamic.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "0,2"], "exit position 2 is the last block"),
        (["--at", "1,1"], "repeat themselves"),
        (["--at", "0", "--cost-lambda", "-1"], "cost_lambda is -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_a_gfnet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    network = GFNet(image_size=16, patch_size=4, width=16, depth=3, num_classes=10)
    path = compress.save(network, tmp_path / "gfnet.pth")
    assert main(["train", str(path), *CHEAP, *options]) == 3
    assert message in capsys.readouterr().err
