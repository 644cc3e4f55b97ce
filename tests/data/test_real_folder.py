"""CIFAR-10 as JPEG class folders, from ../shared/data: unpacked once, read as a user would."""

import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data.image_data import ImageData
from compress.data.spec import load_data

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg.tar.xz"
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
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return load_data(f"folder:{folder}", cache=tmp_path_factory.mktemp("cache"))


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
