"""Every shipped recipe, from its file to its table, on tiny data of the layout that it asks for.

All that shortens them is given by `--set`. Recipes on the same data share the folder of a run, as
their headers say that they may.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compress
from compress.checkpoint import read_checkpoint
from compress.data import cifar
from compress.data.image_data import Preprocessing
from compress.models.published import PUBLISHED
from compress.recipe.schema import read_recipe
from compress.run import main
from compress.runtime.exit_spelling import spelled
from compress.runtime.manifest import read_manifest

RECIPES = {path.stem: path for path in Path("recipes").glob("*.yaml")}
RECORDS = 60  # in a batch of the stand-in for CIFAR-10, which has 10,000
EXITS = {"cifar10": [7, 8, 9], "resisc45": [4, 5, 7], "ucm": [7, 8, 9]}
THRESHOLD = {"cifar10": 0.8, "resisc45": 0.5, "ucm": 0.8}


def training(kind: str) -> list[str]:
    return [f"{kind}.epochs=1", f"{kind}.warmup_epochs=0", f"{kind}.batch_size=16"]


COMPARE = ["image_size=32", "compare.seconds=0.1"]
TRAIN = [*training("train"), "train.model.width=16", "train.augment.rand_augment=false"]
DISTIL = [*training("distil"), "distil.model.width=8", "distil.augment.rand_augment=false"]
DYNN = ["exits.epochs=1", "exits.head_warmup_epochs=1"]
VGG = [
    "train.epochs=2", "train.warmup_epochs=0", "train.milestones=[1]", "train.batch_size=16",
    "train.model.pooled=1", "train.model.hidden=[]", "train.sparsity_lambda=0.01",
    f"train.model.widths={[[16] * 2, [16] * 2, [16] * 3, [16] * 3, [16] * 3]}",
    "finetune.epochs=2", "finetune.warmup_epochs=0", "finetune.milestones=[1]",
    "finetune.batch_size=16",
]  # fmt: skip


def picture(path: Path, rng: np.random.Generator, shade: int, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(rng.normal(shade, 40, (size, size, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def make_resisc45(folder: Path, rng: np.random.Generator) -> str:
    """Folders of classes, JPEG."""
    for shade, name in ((50, "airplane"), (120, "beach"), (200, "wetland")):
        for number in range(1, 25):
            picture(folder / "NWPU-RESISC45" / name / f"{name}_{number:03}.jpg", rng, shade, 40)
    return f"folder:{folder / 'NWPU-RESISC45'}"


def make_ucm(folder: Path, rng: np.random.Generator) -> str:
    """A folder Images that holds folders of classes, TIFF."""
    root = folder / "UCMerced_LandUse"
    for shade, name in ((60, "agricultural"), (180, "river")):
        for number in range(30):
            picture(root / "Images" / name / f"{name}{number:02}.tif", rng, shade, 40)
    return f"folder:{root}"


def make_cifar100(folder: Path, rng: np.random.Generator) -> str:
    """Folders train and test with folders of classes, PNG."""
    for split, count in (("train", 30), ("test", 10)):
        for shade, name in ((60, "apple"), (180, "worm")):
            for number in range(count):
                picture(folder / "cifar100" / split / name / f"{number:04}.png", rng, shade, 32)
    return f"folder:{folder / 'cifar100'}"


def make_cifar10(folder: Path, rng: np.random.Generator) -> str:
    """Binary batches: a byte of label, then 3,072 of pixels."""
    place = folder / "cifar10" / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels = np.arange(RECORDS, dtype=np.uint8) % 10
        pixels = np.clip(rng.normal(25 * labels[:, None], 30, (RECORDS, 3072)), 0, 255)
        rows = np.concatenate([labels[:, None], pixels.astype(np.uint8)], axis=1)
        (place / f"{name}.bin").write_bytes(rows.tobytes())
    return f"cifar10:{folder / 'cifar10'}"


MAKERS = {
    "cifar10": make_cifar10,
    "resisc45": make_resisc45,
    "ucm": make_ucm,
    "cifar100": make_cifar100,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Give for a data set its stand-in, and the folder that runs on it share."""
    root = tmp_path_factory.mktemp("shipped")
    made: dict[str, str] = {}

    def get(key: str) -> tuple[str, Path]:
        if key not in made:
            made[key] = MAKERS[key](root / "data", np.random.default_rng(0))
        return made[key], root / "runs" / key

    return get


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    few = dict.fromkeys(cifar.CIFAR10.records, RECORDS)
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, records=few))


def run(name: str, place, key: str, shortened: list[str], capsys) -> tuple[Path, list[dict]]:
    spec, folder = place(key)
    settings = [part for setting in shortened for part in ("--set", setting)]
    command = [f"recipes/{name}.yaml", "--data", spec, "-o", str(folder), "--json", *settings]
    assert main(command) == 0, capsys.readouterr().err
    tables = json.loads(capsys.readouterr().out)["tables"]
    return folder, tables["compare"]["rows"]


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.parent.name): path.stat().st_mtime_ns for path in folder.rglob("done.json")}


@pytest.mark.slow
def test_vgg16_cifar100_slim(place, capsys):
    _, rows = run("vgg16_cifar100_slim", place, "cifar100", [*COMPARE, *VGG], capsys)
    assert [row["ratio"] for row in rows] == [None, 0.2, 0.4, 0.6]
    assert rows[3]["macs"] < rows[1]["macs"] <= rows[0]["macs"]


@pytest.mark.slow
def test_resnet_slim(place, tmp_path, capsys):
    """A trained ResNet of the published layout, with channels that it does not need."""
    torch.manual_seed(0)
    arch, config = PUBLISHED["resnet20"]
    model = compress.models.build(arch, {**config, "num_classes": 2})
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0, 1)
    pixels = Preprocessing(32, "none", 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    file = compress.save(model, tmp_path / "r.pth", meta={"preprocessing": pixels.to_dict()})
    settings = [f"start.checkpoint={file}", "finetune.epochs=1", "finetune.batch_size=16"]
    folder, rows = run("resnet_slim", place, "cifar100", [*settings, COMPARE[1]], capsys)
    assert [row["ratio"] for row in rows] == [None, 0.2, 0.4, 0.6]
    assert rows[3]["macs"] < rows[1]["macs"] < rows[0]["macs"]
    tuned = read_checkpoint(folder / "finetune" / "0.6" / "best.pth")
    assert (tuned.arch, tuned.meta["preprocessing"]) == (arch, pixels.to_dict())
    assert (folder / "export" / "0.6" / "bundle" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("key", EXITS)
class TestEarlyExits:
    """In this order: each recipe finds in the shared folder what the one before it made."""

    def test_baseline(self, place, key, capsys):
        _, rows = run(f"gfnet_12_384_{key}", place, key, [*COMPARE, *TRAIN], capsys)
        assert [row["network"] for row in rows] == ["baseline"]

    def test_distilled(self, place, key, capsys):
        spec_and_folder = place(key)
        before = stamps(spec_and_folder[1])
        settings = [*COMPARE, *TRAIN, *DISTIL]
        folder, rows = run(f"gfnet_distil_12_192_{key}", place, key, settings, capsys)
        assert [row["network"] for row in rows] == ["baseline", "distilled"]
        assert compress.load(folder / "distil" / "best.pth").config["distilled"]
        if before:  # the teacher was not trained again
            assert stamps(folder)["train"] == before["train"]

    def test_early_exits_down_to_bundles(self, place, key, capsys):
        settings = [*COMPARE, *TRAIN, *DYNN]
        folder, rows = run(f"gfnet_dynn_12_384_{key}", place, key, settings, capsys)
        assert [row["network"] for row in rows] == ["baseline", "dynn"]
        assert rows[1]["exit_threshold"] == THRESHOLD[key]
        check_bundle(folder / "export" / "dynn" / "bundle", key)

    def test_distilled_with_early_exits(self, place, key, capsys):
        settings = [*COMPARE, *TRAIN, *DISTIL, *DYNN]
        folder, rows = run(f"gfnet_dynn_12_192_{key}", place, key, settings, capsys)
        assert [row["network"] for row in rows] == [
            "baseline", "distilled", "dynn", "distilled dynn",
        ]  # fmt: skip
        check_bundle(folder / "export" / "distilled-dynn" / "bundle", key)


def check_bundle(bundle: Path, key: str) -> None:
    """The exits and the threshold are the log's, and the target is a Jetson's TensorRT."""
    manifest = read_manifest(bundle)
    assert [spelled(segment.at) for segment in manifest.segments[:-1]] == EXITS[key]
    assert manifest.thresholds == [THRESHOLD[key]] * 3
    assert manifest.target == "jetpack6.2"


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_tells_what_is_to_be_known(name):
    text = RECIPES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 80
    if name == "quickstart":
        return
    header = text.partition("\nname:")[0]
    for field in ("Purpose", "Data", "Command", "Expected", "Time", "Source", "Change"):
        assert re.search(rf"^# {field} ", header, re.MULTILINE), field
    words = " ".join(header.replace("#", " ").split())
    assert f"python -m compress run recipes/{name}.yaml" in words
    if name != "resnet_slim":  # whose figures are ours
        assert re.search(r"not rerun by us", words, re.IGNORECASE)


@pytest.mark.parametrize("name", RECIPES)
def test_the_name_is_that_of_the_file_so_that_runs_do_not_meet(name):
    assert read_recipe(RECIPES[name]).name == name
