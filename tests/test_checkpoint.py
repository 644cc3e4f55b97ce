import argparse
import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import compress
from compress.checkpoint import FORMAT, read_checkpoint
from compress.errors import DiskFullError, UnsupportedModelError, UserInputError
from compress.models.vgg import VGG


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VGG(widths=[[8], [16]], num_classes=5, hidden=[6], pooled=2).eval()


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_same(loaded: nn.Module, model: nn.Module) -> None:
    assert not loaded.training
    assert loaded.config["widths"] == model.config["widths"]
    assert torch.equal(loaded(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_round_trip(model, tmp_path, name):
    path = compress.save(model, tmp_path / name, meta={"metrics": {"acc1": 97.5}})
    assert_same(compress.load(path), model)
    assert read_checkpoint(path).meta == {"metrics": {"acc1": 97.5}}


def test_our_file_opens_anywhere_with_weights_only(model, tmp_path):
    path = compress.save(model, tmp_path / "net.pth")
    content = torch.load(path, weights_only=True)
    assert content["format"] == FORMAT
    assert content["config"]["widths"] == [[8], [16]]
    assert set(content) == {"format", "arch", "config", "state_dict", "meta", "tensors_sha256"}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("key", [None, "model", "state_dict", "net"])
def test_foreign_layouts(model, tmp_path, prefix, key):
    state = OrderedDict((prefix + name, t) for name, t in model.state_dict().items())
    content = state
    if key:
        content = {
            key: state,
            "acc": np.float64(98.5),
            "epoch": 3,
            "args": argparse.Namespace(lr=1),
        }
    torch.save(content, tmp_path / "foreign.pth")
    assert_same(compress.load(tmp_path / "foreign.pth"), model)
    if key:
        assert read_checkpoint(tmp_path / "foreign.pth").meta["source"] == {"acc": 98.5, "epoch": 3}


def test_foreign_safetensors(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "foreign.safetensors")
    assert_same(compress.load(tmp_path / "foreign.safetensors"), model)


def test_half_precision_weights_become_float32(model, tmp_path):
    torch.save(model.half().state_dict(), tmp_path / "half.pth")
    assert compress.load(tmp_path / "half.pth")(IMAGES).dtype == torch.float32


def test_a_training_mode_model_is_not_changed_by_saving(model, tmp_path):
    model.train()
    compress.save(model, tmp_path / "net.pth")
    assert model.training


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(UserInputError, match=r"would run code \(posix\.mkdir\).*--unsafe-pickle"):
        compress.load(tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(UserInputError, match="evil"):
        compress.load(tmp_path / "evil.pkl")
    assert not (tmp_path / "executed").exists()


def test_a_whole_module_is_refused_with_the_way_out(model, tmp_path):
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(UserInputError, match=r"save model\.state_dict\(\) .* --unsafe-pickle"):
        compress.load(tmp_path / "whole.pth")
    assert_same(compress.load(tmp_path / "whole.pth", unsafe_pickle=True), model)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_truncated_files(model, tmp_path, name, keep):
    path = compress.save(model, tmp_path / name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UserInputError, match=r"cannot be read .* truncated"):
        compress.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"hello, world", "cannot be read", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read", id="picture"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserInputError, match=message):
        compress.load(tmp_path / "net.pth")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserInputError, match="does not exist"):
        compress.load(tmp_path / "none.pth")
    with pytest.raises(UserInputError, match="is not a file"):
        compress.load(tmp_path)


def test_no_weights_inside(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "net.pth")
    with pytest.raises(UserInputError, match=r"holds no weights: .*epoch, optimizer"):
        compress.load(tmp_path / "net.pth")


def test_tensors_that_do_not_fit_the_recorded_widths(model, tmp_path):
    content = torch.load(compress.save(model, tmp_path / "net.pth"), weights_only=True)
    content["config"]["widths"] = [[8], [24]]
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(UserInputError, match=r"do not fit .*size mismatch"):
        compress.load(tmp_path / "net.pth")


def test_an_absurd_recorded_width_takes_no_memory(model, tmp_path):
    content = torch.load(compress.save(model, tmp_path / "net.pth"), weights_only=True)
    content["config"]["widths"] = [[2**40], [2**40]]
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(UserInputError, match=r"1099511627776 for widths, but the file has 18"):
        compress.load(tmp_path / "net.pth")


def test_meta_must_be_json(model, tmp_path):
    for bad in ({"x": torch.zeros(1)}, {"x": float("nan")}):
        with pytest.raises(UserInputError, match="JSON values only"):
            compress.save(model, tmp_path / "net.pth", meta=bad)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_rebuilt_is_not_saved(tmp_path):
    with pytest.raises(UnsupportedModelError, match="no `arch` and `config`"):
        compress.save(nn.Linear(2, 2), tmp_path / "net.pth")


def test_a_failing_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = compress.save(model, tmp_path / "net.pth")
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(DiskFullError, match="the disk is full"):
        compress.save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


def test_the_code_that_a_file_names_is_not_imported(tmp_path):
    head = {"format": FORMAT, "arch": "factory", "config": {"factory": "antigravity:build"}}
    torch.save({**head, "state_dict": {"w": torch.zeros(1)}, "meta": {}}, tmp_path / "net.pth")
    with pytest.raises(UserInputError, match=r"--model antigravity:build if you trust"):
        compress.load(tmp_path / "net.pth")


def test_safetensors_head_is_json(model, tmp_path):
    path = compress.save(model, tmp_path / "net.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["compress"])["arch"] == "vgg"
