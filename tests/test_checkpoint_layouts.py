"""Checkpoints as other people write them: each gives the very network that it was made from."""

import argparse
import logging
import pathlib
import types
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.checkpoint import read_checkpoint
from compress.errors import UnsupportedModelError, UserInputError
from compress.models.vgg import VGG

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
HERE = "tests.test_checkpoint_layouts"
REAL = Path(__file__).parents[2] / "shared" / "data"


def vgg(seed: int = 0) -> VGG:
    torch.manual_seed(seed)
    return VGG(widths=[[8], [16]], num_classes=5, hidden=[6], pooled=2).eval()


def state(prefix: str = "", seed: int = 0) -> "OrderedDict[str, torch.Tensor]":
    return OrderedDict((prefix + name, t) for name, t in vgg(seed).state_dict().items())


def same(path, seed: int = 0, **options) -> None:
    assert torch.equal(compress.load(path, **options)(IMAGES), vgg(seed)(IMAGES))


@pytest.mark.parametrize(
    "prefix",
    ["net.", "backbone.", "_orig_mod.", "student.", "module._orig_mod.", "_orig_mod.module.model."],
)
@pytest.mark.parametrize("key", [None, "state_dict", "weights", "anything"])
def test_prefixes(tmp_path, prefix, key):
    content = state(prefix)
    torch.save({key: content, "epoch": 1} if key else content, tmp_path / "net.pth")
    same(tmp_path / "net.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_a_wrapper_inside_of_the_names(tmp_path, prefix, wrapper):
    renamed = {
        prefix + name.replace("features.", f"features.{wrapper}."): t for name, t in state().items()
    }
    torch.save(renamed, tmp_path / "net.pth")
    same(tmp_path / "net.pth")


def test_a_loss_beside_the_network_in_a_lightning_file(tmp_path, caplog):
    content = {**state("model."), "criterion.weight": torch.ones(5), "scale": torch.ones(1)}
    lightning = {
        "epoch": 3,
        "state_dict": content,
        "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "lr_schedulers": [],
        "hyper_parameters": types.SimpleNamespace(lr=1),
    }
    torch.save(lightning, tmp_path / "net.ckpt")
    same(tmp_path / "net.ckpt")
    assert "2 tensors" in caplog.text
    assert "criterion.weight, scale" in caplog.text


BESIDE = {
    "int": 3,
    "array": np.arange(100_000),
    "scalar": np.float32(1.5),
    "bool": np.bool_(True),
    "path": pathlib.PosixPath("/data/run"),
    "defaultdict": defaultdict(list, a=[1]),
    "ordered": OrderedDict(a=1),
    "counter": Counter("abc"),
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("x")),
    "set": {1, 2},
    "dtype": torch.float16,
    "device": torch.device("cuda:0"),
    "size": torch.Size([1, 2]),
    "bytes": b"\x00\xff",
    "complex": 1 + 2j,
    "class": nn.Linear,
    "function": F.relu,
    "none": None,
    "nan": float("nan"),
    "big": 1 << 70,
}


@pytest.mark.parametrize("where", ["beside", "among"])
@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_weights_does_no_harm(tmp_path, name, where):
    extra = {name: BESIDE[name]}
    content = {"state_dict": state(), **extra} if where == "beside" else {**state(), **extra}
    torch.save(content, tmp_path / "net.pth")
    same(tmp_path / "net.pth")


def test_words_and_numbers_beside_the_weights_are_kept(tmp_path):
    torch.save({"state_dict": state(), **BESIDE}, tmp_path / "net.pth")
    kept = read_checkpoint(tmp_path / "net.pth").meta["source"]
    assert kept == {
        "int": 3,
        "scalar": 1.5,
        "bool": True,
        "path": "/data/run",
        "device": "cuda:0",
        "big": 1 << 70,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol):
    torch.save({"state_dict": state(), **BESIDE}, tmp_path / "net.pth", pickle_protocol=protocol)
    same(tmp_path / "net.pth")


@pytest.mark.parametrize("content", ["state", "nested", "halves"])
def test_files_of_old_torch(tmp_path, content):
    if content == "halves":  # one storage, two tensors
        block = torch.cat([t.flatten().float() for t in state().values()])
        parts = torch.split(block, [t.numel() for t in state().values()])
        saved = {n: p.reshape(t.shape) for (n, t), p in zip(state().items(), parts, strict=True)}
    else:
        saved = {"net": state(), "acc": 97.5} if content == "nested" else state()
    torch.save(saved, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    same(tmp_path / "net.pth")


def test_thop_counters_are_left_out(tmp_path):
    counted = {
        **state("module."),
        "module.total_ops": torch.zeros(1),
        "total_params": torch.ones(1),
    }
    counted["module.features.0.total_ops"] = torch.zeros(1)
    torch.save(counted, tmp_path / "net.pth")
    same(tmp_path / "net.pth")


# Several weights in one file.


def test_plain_weights_are_taken_and_it_is_said(tmp_path, caplog):
    content = {"state_dict_ema": state("module.", 1), "state_dict": state("module."), "epoch": 3}
    torch.save(content, tmp_path / "net.pth")
    same(tmp_path / "net.pth")
    assert "weights state_dict of" in caplog.text
    assert "also state_dict_ema" in caplog.text
    same(tmp_path / "net.pth", seed=1, weights="state_dict_ema")
    with pytest.raises(UserInputError, match=r"'x' are not in .*: state_dict, state_dict_ema"):
        compress.load(tmp_path / "net.pth", weights="x")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"ema": state()}, "ema"),
        ({"model_ema": {"module": state("module.")}, "n": 3}, "model_ema.module"),
        ({"params_ema": state()}, "params_ema"),
    ],
)
def test_averaged_weights_alone_are_taken_and_it_is_said(tmp_path, caplog, content, name):
    torch.save(content, tmp_path / "net.pth")
    same(tmp_path / "net.pth")
    assert f"averaged weights alone ({name})" in caplog.text


def test_averaged_weights_among_the_plain_ones(tmp_path, caplog):
    torch.save({**state("model."), **state("model_ema.", 1)}, tmp_path / "net.pth")
    same(tmp_path / "net.pth")
    assert "also model_ema" in caplog.text
    same(tmp_path / "net.pth", seed=1, weights="model_ema")


def test_the_weights_of_our_own_file_have_one_name(tmp_path):
    path = compress.save(vgg(), tmp_path / "net.pth")
    same(path, weights="state_dict")
    with pytest.raises(UserInputError, match="'ema' are not in"):
        compress.load(path, weights="ema")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_become_float32_with_a_note(tmp_path, caplog, dtype):
    torch.save({n: t.to(dtype) for n, t in state().items()}, tmp_path / "net.pth")
    loaded = compress.load(tmp_path / "net.pth")
    assert {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()} == {
        torch.float32
    }
    assert f"are {str(dtype).removeprefix('torch.')}; taken as float32" in caplog.text


# Whole modules.


def test_a_module_in_a_dict(tmp_path, caplog):
    """As YOLO saves its networks."""
    torch.save({"model": vgg().half(), "ema": None, "epoch": -1}, tmp_path / "net.pt")
    with pytest.raises(UserInputError, match=r"would run code .*--unsafe-pickle"):
        compress.load(tmp_path / "net.pt")
    loaded = compress.load(tmp_path / "net.pt", unsafe_pickle=True)
    assert torch.equal(loaded(IMAGES), vgg().half().float()(IMAGES))
    assert "this runs code" not in caplog.text


def test_a_module_whose_class_is_gone_gives_its_weights(tmp_path, monkeypatch):
    gone = types.ModuleType("gone")
    gone.Net = type("Net", (VGG,), {"__module__": "gone"})
    monkeypatch.setitem(__import__("sys").modules, "gone", gone)
    model = vgg()
    model.__class__ = gone.Net
    model.register_buffer("scratch", torch.zeros(7), persistent=False)
    torch.save(nn.DataParallel(model, device_ids=[]), tmp_path / "net.pt")
    monkeypatch.delitem(__import__("sys").modules, "gone")
    same(tmp_path / "net.pt", unsafe_pickle=True)


class Strange:
    """Something that only the real unpickler can make weights of."""

    def __reduce__(self):
        return vgg, ()


def test_what_is_left_is_unpickled_if_that_is_allowed(tmp_path, caplog):
    torch.save({"model": Strange()}, tmp_path / "net.pt")
    with pytest.raises(UserInputError, match=rf"would run code \({HERE}\.vgg\)"):
        compress.load(tmp_path / "net.pt")
    same(tmp_path / "net.pt", unsafe_pickle=True)
    assert "this runs code" in caplog.text


@pytest.mark.filterwarnings("ignore:.*quanti")
def test_a_quantised_network_is_named(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    torch.save(quantised.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserInputError, match=r"quantised weights .* float network"):
        compress.load(tmp_path / "net.pth")


# A factory's own names.


class Wrapped(nn.Module):
    """`model.` and `module.` belong to it, and its BatchNorm counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.model.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.model.head(self.model.module(x))


def wrapped() -> nn.Module:
    torch.manual_seed(0)
    model = Wrapped().eval()
    model(IMAGES)
    return model


def conv_only() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "anything."])
def test_names_that_belong_to_a_factory_network_stay(tmp_path, prefix):
    content = {prefix + name: t for name, t in wrapped().state_dict().items()}
    torch.save({"state_dict": content}, tmp_path / "net.pth")
    loaded = compress.load(tmp_path / "net.pth", factory=f"{HERE}:wrapped")
    assert torch.equal(loaded(IMAGES), wrapped()(IMAGES))
    again = compress.load(
        compress.save(loaded, tmp_path / "ours.safetensors"), factory=f"{HERE}:wrapped"
    )
    assert torch.equal(again(IMAGES), wrapped()(IMAGES))


def test_a_factory_network_whose_names_are_a_part_of_the_file(tmp_path, caplog):
    content = {f"model.{n}": t for n, t in conv_only().state_dict().items()}
    torch.save({**content, "loss.weight": torch.ones(3)}, tmp_path / "net.pth")
    loaded = compress.load(tmp_path / "net.pth", factory=f"{HERE}:conv_only")
    assert torch.equal(loaded(IMAGES), conv_only().eval()(IMAGES))
    assert "loss.weight" in caplog.text


def test_names_of_another_network_are_told(tmp_path):
    torch.save({"model.other.weight": torch.ones(3)}, tmp_path / "net.pth")
    with pytest.raises(UserInputError, match=r"do not fit .*Missing key"):
        compress.load(tmp_path / "net.pth", factory=f"{HERE}:conv_only")
    with pytest.raises(UnsupportedModelError, match=r"other.weight|weight, …"):
        compress.load(tmp_path / "net.pth")


class Versioned(nn.Module):
    """Since its version 2 the scale is stored as its logarithm."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([2.0]))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}log_scale"] = state_dict.pop(f"{prefix}scale").log()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def versioned() -> nn.Module:
    return nn.Sequential(Versioned(), nn.BatchNorm1d(2))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_versions_of_modules_are_heeded(tmp_path, prefix):
    source = versioned() if not prefix else nn.DataParallel(versioned(), device_ids=[])
    torch.save(source.state_dict(), tmp_path / "new.pth")
    old = source.state_dict()
    old[f"{prefix}0.scale"] = old.pop(f"{prefix}0.log_scale").exp()
    old._metadata[f"{prefix}0"]["version"] = 1
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    for name in ("new.pth", "old.pth"):
        loaded = compress.load(tmp_path / name, factory=f"{HERE}:versioned")
        assert loaded[0].log_scale.item() == pytest.approx(2.0)
        for ours in ("a.pth", "a.safetensors"):
            path = compress.save(loaded, tmp_path / ours)
            again = compress.load(path, factory=f"{HERE}:versioned")
            assert again[0].log_scale.item() == pytest.approx(2.0)


def test_tied_weights_are_written_in_both_formats(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    tied.arch, tied.config = "factory", {"factory": f"{HERE}:two_linears"}
    for name in ("a.pth", "a.safetensors"):
        path = compress.save(tied, tmp_path / name)
        again = compress.load(path, factory=f"{HERE}:two_linears")
        assert torch.equal(again[1].weight, tied[0].weight)


def two_linears() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


# A network that somebody published.


class Block(nn.Module):
    """A basic block with shortcut A."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.more, self.stride = width - given, stride

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            half = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for i in (1, 2, 3):
            first = Block(widths[i - 1], widths[i], 1 if i == 1 else 2)
            rest = [Block(widths[i], widths[i], 1) for _ in range(2)]
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    return ResNet20()


@pytest.mark.real
def test_a_published_resnet20(caplog):
    path = REAL / "resnet20-12fca82f.th"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    caplog.set_level(logging.WARNING)
    checkpoint = read_checkpoint(path, factory=f"{HERE}:resnet20")
    raw = torch.load(path, map_location="cpu", weights_only=True)
    assert checkpoint.meta["source"]["best_prec1"] == pytest.approx(raw["best_prec1"])
    plain = ResNet20().eval()
    plain.load_state_dict({n.removeprefix("module."): t for n, t in raw["state_dict"].items()})
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = compress.load(path, factory=f"{HERE}:resnet20")
    assert torch.equal(loaded(images), plain(images))
