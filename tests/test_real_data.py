"""Real images and real trained networks, from ../shared/data, read as a user would."""

import json
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.adopt import main as adopt
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.evaluate import main as evaluate

SHARED = Path(__file__).parents[2] / "shared" / "data"
ARCHIVE = SHARED / "cifar10_jpeg.tar.xz"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    with lzma.open(ARCHIVE) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
        tar.extractall(root, filter="data")
    return root / "cifar10"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(folder: Path, cache: Path) -> ImageData:
    return load_data(f"folder:{folder}", cache=cache)


def test_the_folders_are_the_splits(data: ImageData) -> None:
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 40_000,
        "validation": 5_000,
        "calibration": 5_000,
        "test": 10_000,
    }
    assert data.classes == tuple(CLASSES.split())
    for name, split in data.splits.items():
        counts = np.bincount(split.labels.numpy(), minlength=10)
        assert set(counts.tolist()) == {len(split) // 10}, name
    assert data.preprocessing.shape == (3, 32, 32)


def test_pixels_are_those_of_the_files(data: ImageData, folder: Path) -> None:
    test = data.splits["test"]
    first = test.images(torch.arange(1000, 1003)).numpy()  # the first of the second class
    for number, pixels in enumerate(first):
        path = folder / "test" / "automobile" / f"{number:04}.jpg"
        assert np.array_equal(pixels, np.asarray(Image.open(path)).transpose(2, 0, 1))
    assert test.labels[1000] == 1


@pytest.mark.parametrize(
    ("file", "right"), [("resnet20-12fca82f.th", 8103), ("resnet56-4bfd9763.th", 8320)]
)
def test_a_foreign_checkpoint_is_right_in_exactly_as_many_images_as_measured(
    data: ImageData, folder: Path, cache: Path, tmp_path: Path, capsys, file: str, right: int
) -> None:
    """What adopt is told once is all that evaluate needs; both integers were measured elsewhere."""
    pixels = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--resize", "none"]
    output = str(tmp_path / "network.pth")
    assert adopt([str(SHARED / file), "--image-size", "32", *pixels, "-o", output, "-q"]) == 0
    capsys.readouterr()
    images = ["--data", f"folder:{folder}", "--cache", str(cache)]
    assert evaluate([output, *images, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)["whole_network"]
    assert (found["correct"], found["count"]) == (right, 10_000)
